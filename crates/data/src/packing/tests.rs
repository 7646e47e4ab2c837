//! Packing: nothing lost, nothing mixed, and every position can be returned to.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::corpus::Document;
use crate::message::{Example, Message, Origin, Role};
use crate::shards::{self, Shard};
use crate::tokenizer::tests::tiny;

fn shard(texts: &[String], folder: &Path) -> Arc<Shard> {
    let path = folder.join("all.bin");
    let document = |text: &String| Ok(Document { text: text.clone(), origin: Origin::new("t", 1) });
    shards::write(texts.iter().map(document), tiny(), &path).unwrap();
    Arc::new(Shard::open(&path).unwrap())
}

fn options(rows: usize, sequence: usize, endless: bool) -> BatchOptions {
    BatchOptions { rows, sequence, seed: 7, endless }
}

/// Segments of a batch with the positions they stand at, after checking its form.
fn segments(batch: &Batch, rows: usize, sequence: usize) -> Vec<std::ops::Range<usize>> {
    assert_eq!(batch.tokens.len(), rows * sequence);
    assert_eq!(batch.targets.len(), batch.tokens.len());
    assert_eq!(batch.weights.len(), batch.tokens.len());
    assert!(batch.starts.windows(2).all(|pair| pair[0] < pair[1]));
    for row in 0..rows {
        assert!(batch.starts.contains(&((row * sequence) as u32)), "row {row} starts no segment");
    }
    let ends = batch.starts.iter().skip(1).copied().chain([batch.tokens.len() as u32]);
    batch.starts.iter().zip(ends).map(|(start, end)| *start as usize..end as usize).collect()
}

/// Targets with a weight, and after each segment's own tokens the check that targets are the next ones.
fn learned(batch: &Batch, segments: &[std::ops::Range<usize>]) -> Vec<u32> {
    let mut learned = Vec::new();
    for segment in segments {
        for at in segment.clone() {
            if batch.weights[at] > 0.0 {
                learned.push(batch.targets[at]);
                if at + 1 < segment.end {
                    assert_eq!(batch.targets[at], batch.tokens[at + 1]);
                }
            }
        }
    }
    learned
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec("[a-z ]{1,60}", 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn one_pass_learns_every_token_once_in_order(texts in texts(), rows in 1usize..4, sequence in 1usize..20) {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(&texts, folder.path());
        let mut batches = BaseBatches::new(shard.clone(), options(rows, sequence, false)).unwrap();
        let positions = batches.positions_per_epoch();
        let (mut all, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = batches.next_batch().unwrap() {
            all.extend(learned(&batch, &segments(&batch, rows, sequence)));
            bytes += batch.bytes;
        }
        prop_assert_eq!(all.len() as u64, positions);
        let wanted: Vec<u32> = texts
            .iter()
            .flat_map(|text| tiny().encode_plain(text).unwrap().into_iter().chain(tiny().eos_id()))
            .collect();
        prop_assert_eq!(all, wanted);
        prop_assert_eq!(bytes, shard.text_bytes());
    }

    #[test]
    fn an_epoch_learns_every_token_after_the_one_before_it(texts in texts(), sequence in 1usize..20) {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(&texts, folder.path());
        let mut batches = BaseBatches::new(shard.clone(), options(1, sequence, true)).unwrap();
        let positions = batches.positions_per_epoch() as usize;
        let mut wanted: Vec<(u32, u32)> = Vec::new();
        for text in &texts {
            let ids = tiny().encode_plain(text).unwrap();
            let read = std::iter::once(shard.begin_token()).chain(ids.clone());
            wanted.extend(read.zip(ids.into_iter().chain(tiny().eos_id())));
        }
        wanted.sort_unstable();
        for _ in 0..2 {
            let mut found = Vec::new();
            while found.len() < positions {
                let batch = batches.next_batch().unwrap().unwrap();
                learned(&batch, &segments(&batch, 1, sequence));
                found.extend(batch.tokens.into_iter().zip(batch.targets));
            }
            found.truncate(positions);
            found.sort_unstable();
            prop_assert_eq!(&found, &wanted);
            // The last row of an epoch is shared with the next one; begin that at its start.
            let next = BatchesState { epoch: 1, item: 0, offset: 0, ..batches.position() };
            batches.seek(&next).unwrap();
        }
    }

    #[test]
    fn no_segment_reads_two_documents(texts in texts(), sequence in 1usize..20) {
        let folder = tempfile::tempdir().unwrap();
        let mut batches = BaseBatches::new(shard(&texts, folder.path()), options(2, sequence, true)).unwrap();
        for _ in 0..10 {
            let batch = batches.next_batch().unwrap().unwrap();
            for segment in segments(&batch, 2, sequence) {
                let tokens = &batch.tokens[segment];
                prop_assert!(tokens[1..].iter().all(|token| Some(*token) != tiny().bos_id()));
                prop_assert!(tokens.iter().all(|token| Some(*token) != tiny().eos_id()));
            }
        }
    }

    #[test]
    fn base_batches_continue_exactly(texts in texts(), sequence in 1usize..20, skip in 0usize..30) {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(&texts, folder.path());
        let mut first = BaseBatches::new(shard.clone(), options(2, sequence, true)).unwrap();
        for _ in 0..skip {
            first.next_batch().unwrap();
        }
        let saved = serde_json::to_string(&first.position()).unwrap();
        let mut second = BaseBatches::new(shard, options(2, sequence, true)).unwrap();
        second.seek(&serde_json::from_str(&saved).unwrap()).unwrap();
        for _ in 0..5 {
            prop_assert_eq!(first.next_batch().unwrap(), second.next_batch().unwrap());
        }
    }

    #[test]
    fn one_pass_holds_every_example_whole(
        pairs in proptest::collection::vec(("[a-z ]{1,30}", "[a-z ]{1,20}"), 1..20),
        rows in 1usize..4,
        room in 0usize..60,
        endless in any::<bool>(),
    ) {
        let examples = tokenise_examples(tiny(), &examples(&pairs)).unwrap();
        let sequence = examples.iter().map(TokenisedExample::positions).max().unwrap() + room;
        let mut batches =
            ExampleBatches::new(Arc::new(examples.clone()), options(rows, sequence, endless), 2).unwrap();
        let (mut found, mut bytes) = (Vec::new(), 0);
        let mut rows_left = batches.rows_per_epoch();
        while rows_left > 0 {
            let batch = batches.next_batch().unwrap();
            bytes += batch.bytes;
            for segment in segments(&batch, rows, sequence) {
                if segment.start / sequence >= rows_left {
                    continue;
                }
                prop_assert_eq!(segment.start / sequence, (segment.end - 1) / sequence);
                learned(&batch, std::slice::from_ref(&segment));
                if batch.weights[segment.clone()].iter().all(|weight| *weight == 0.0) {
                    prop_assert!(batch.tokens[segment].iter().all(|token| *token == 2));
                    continue;
                }
                let mut ids = batch.tokens[segment.clone()].to_vec();
                ids.push(batch.targets[segment.end - 1]);
                found.push((ids, batch.weights[segment].to_vec()));
            }
            rows_left = rows_left.saturating_sub(rows);
        }
        if !endless {
            prop_assert_eq!(batches.next_batch(), None);
            prop_assert_eq!(bytes, pairs.iter().map(|(_, answer)| answer.len() as u64).sum::<u64>());
        }
        let mut wanted: Vec<(Vec<u32>, Vec<f32>)> =
            examples.iter().map(|example| (example.ids.clone(), example.weights[1..].to_vec())).collect();
        let by_content = |a: &(Vec<u32>, Vec<f32>), b: &(Vec<u32>, Vec<f32>)| {
            a.0.cmp(&b.0).then_with(|| a.1.iter().map(|w| w.to_bits()).cmp(b.1.iter().map(|w| w.to_bits())))
        };
        found.sort_by(by_content);
        wanted.sort_by(by_content);
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn example_batches_continue_exactly(
        pairs in proptest::collection::vec(("[a-z ]{1,30}", "[a-z ]{1,20}"), 1..20),
        skip in 0usize..20,
    ) {
        let examples = Arc::new(tokenise_examples(tiny(), &examples(&pairs)).unwrap());
        let mut first = ExampleBatches::new(examples.clone(), options(2, 80, true), 2).unwrap();
        for _ in 0..skip {
            first.next_batch();
        }
        let mut second = ExampleBatches::new(examples, options(2, 80, true), 2).unwrap();
        second.seek(&first.position()).unwrap();
        for _ in 0..5 {
            prop_assert_eq!(first.next_batch(), second.next_batch());
        }
    }

    #[test]
    fn an_order_holds_every_number_once(count in 0usize..200, seed in any::<u64>(), epoch in 0u64..5) {
        let mut numbers = order(count, seed, epoch);
        prop_assert_eq!(&order(count, seed, epoch), &numbers);
        numbers.sort_unstable();
        prop_assert_eq!(numbers, (0..count as u32).collect::<Vec<_>>());
    }
}

fn examples(pairs: &[(String, String)]) -> Vec<Example> {
    let example = |(index, (prompt, response)): (usize, &(String, String))| Example {
        messages: vec![Message::new(Role::User, prompt), Message::new(Role::Assistant, response)],
        weight: 0.5 + (index % 3) as f32,
        origin: Origin::new("pairs.jsonl", index as u64 + 1),
    };
    pairs.iter().enumerate().map(example).collect()
}

#[test]
fn long_documents_of_several_sources_are_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["ab ".repeat(2000), "xy ".repeat(2000)];
    let shard = shard(&texts, folder.path());
    let of_first = |token: &u32| tiny().encode_plain("ab ab").unwrap().contains(token);
    let mut batches = BaseBatches::new(shard, options(8, 16, true)).unwrap();
    let quarters = batches.positions_per_epoch() / 4 / (8 * 16);
    let mut tokens = Vec::new();
    for _ in 0..quarters {
        tokens.extend(batches.next_batch().unwrap().unwrap().tokens);
    }
    let share = tokens.iter().filter(|token| of_first(token)).count() as f64 / tokens.len() as f64;
    // Some 20 pieces or more in a quarter, half of them of either source: 0.5 ± 0.11 by chance, and three times that.
    assert!((0.17..0.83).contains(&share), "a quarter of an epoch has {share} of the first document");
}

#[test]
fn epochs_and_seeds_have_different_orders() {
    assert_ne!(order(50, 1, 0), order(50, 1, 1));
    assert_ne!(order(50, 1, 0), order(50, 2, 0));
    // Fixed for ever: a run continued by a newer version must see the same order.
    // The numbers come from the same algorithm written in Python over ChaCha8 as RFC 8439 has it.
    assert_eq!(order(8, 0, 0), [3, 2, 7, 5, 0, 1, 4, 6]);
}

#[test]
fn weights_are_the_loss_mask_times_the_weight_of_the_example() {
    let examples = tokenise_examples(tiny(), &examples(&[("ask".into(), "answer".into())])).unwrap();
    let answer = tiny().encode_plain("answer").unwrap().len();
    let weights = &examples[0].weights;
    assert_eq!(weights.iter().filter(|weight| **weight == 0.5).count(), answer + 1);
    assert!(weights[..weights.len() - answer - 1].iter().all(|weight| *weight == 0.0));
}

#[test]
fn long_examples_are_refused_cut_or_left_out_and_counted() {
    let pairs = [("a".into(), "b".into()), ("a".into(), "b".repeat(400)), ("a b ".repeat(400), "c".into())];
    let examples = tokenise_examples(tiny(), &examples(&pairs)).unwrap();
    let error = fit_examples(examples.clone(), 20, LongExamples::Error).unwrap_err().to_string();
    assert!(
        error.contains("pairs.jsonl:2") && error.contains(&examples[1].positions().to_string()),
        "{error}"
    );
    let (kept, fitted) = fit_examples(examples.clone(), 20, LongExamples::Drop).unwrap();
    assert_eq!((kept.len(), fitted), (1, Fitted { truncated: 0, dropped: 2 }));
    let (kept, fitted) = fit_examples(examples.clone(), 20, LongExamples::Truncate).unwrap();
    assert_eq!((kept.len(), fitted), (2, Fitted { truncated: 1, dropped: 1 }));
    assert_eq!(kept[1].positions(), 20);
    let refused = ExampleBatches::new(Arc::new(examples), options(1, 20, true), 2);
    assert!(matches!(refused, Err(DataError::LongExample { .. })));
}

#[test]
fn impossible_shapes_and_foreign_positions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shard = shard(&["one".into(), "two".into()], folder.path());
    for (rows, sequence) in [(0, 4), (4, 0), (1 << 20, 1 << 20), (usize::MAX, 2)] {
        assert!(BaseBatches::new(shard.clone(), options(rows, sequence, true)).is_err());
    }
    let mut batches = BaseBatches::new(shard, options(1, 4, true)).unwrap();
    let good = batches.position();
    for bad in [
        BatchesState { seed: 8, ..good },
        BatchesState { sequence: 5, ..good },
        BatchesState { items: 3, ..good },
        BatchesState { tokens: 0, ..good },
        BatchesState { item: 99, ..good },
    ] {
        assert!(matches!(batches.seek(&bad), Err(DataError::Setting { .. })), "{bad:?}");
    }
    // An offset beyond its document is passed over, not an endless loop or a panic.
    batches.seek(&BatchesState { offset: u64::MAX - 5, ..good }).unwrap();
    assert!(batches.next_batch().unwrap().is_some());
    assert!(ExampleBatches::new(Arc::new(Vec::new()), options(1, 4, true), 2).is_err());
}
