//! Shards: what goes in comes out, and no damage goes unnoticed.

use proptest::prelude::*;

use super::*;
use crate::corpus::Document;
use crate::message::Origin;
use crate::tokenizer::{Tokenizer, tests::tiny};

fn documents(texts: &[String]) -> Vec<Result<Document, DataError>> {
    let document = |text: &String| Document { text: text.clone(), origin: Origin::new("t", 1) };
    texts.iter().map(|text| Ok(document(text))).collect()
}

fn text_of(shard: &Shard, tokenizer: &Tokenizer, document: u64) -> String {
    let mut ids = Vec::new();
    shard.read(document, 0, usize::MAX, &mut ids).unwrap();
    assert_eq!(ids.len() as u64, shard.document_tokens(document));
    tokenizer.decode(&ids, false).unwrap()
}

fn sentences(count: usize, seed: usize) -> String {
    (0..count)
        .map(|i| format!("The water was {} feet deep on day {i}.\n\n", (i * 7919 + seed) % 997))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn documents_survive_the_shard(texts in proptest::collection::vec("[a-z <|>end\n🎉]{1,80}", 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.bin");
        write(documents(&texts), tiny(), &path).unwrap();
        let shard = Shard::open(&path).unwrap();
        prop_assert_eq!(shard.documents(), texts.len() as u64);
        for (index, text) in texts.iter().enumerate() {
            prop_assert_eq!(&text_of(&shard, tiny(), index as u64), text);
            prop_assert_eq!(shard.document_bytes(index as u64), text.len() as u64);
        }
        prop_assert_eq!(shard.text_bytes(), texts.iter().map(|text| text.len() as u64).sum::<u64>());
        prop_assert_eq!(shard.tokenizer_sha256(), tiny().sha256());
        prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_shard_cut_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.bin");
    write(documents(&["one two".into(), "three".into()]), tiny(), &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        // An empty file cannot be mapped on every system, hence either error.
        let error = Shard::open(&path).unwrap_err();
        assert!(matches!(error, DataError::Shard { .. } | DataError::Io { .. }), "cut at {length}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    std::fs::write(&path, &longer).unwrap();
    assert!(Shard::open(&path).is_err());
}

#[test]
fn a_changed_byte_is_an_error_or_still_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.bin");
    write(documents(&["one two".into(), "three".into()]), tiny(), &path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let tokens = Shard::open(&path).unwrap().layout.tokens;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x80;
        std::fs::write(&path, &damaged).unwrap();
        match Shard::open(&path) {
            Err(error) => assert!(matches!(error, DataError::Shard { .. }), "byte {at}: {error}"),
            Ok(shard) => {
                assert!(at >= tokens, "byte {at} of the header or tables");
                let mut ids = Vec::new();
                for document in 0..shard.documents() {
                    let read = shard.read(document, 0, usize::MAX, &mut ids);
                    assert!(matches!(read, Ok(()) | Err(DataError::Shard { .. })));
                }
                assert!(ids.iter().all(|id| (*id as usize) < tiny().vocab_size()));
            }
        }
    }
}

fn split(texts: &[String], held_out: f64) -> (ShardReport, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let report = build(documents(texts), tiny(), &ShardOptions { held_out }, folder.path()).unwrap();
    let text = |name: &str| {
        let shard = Shard::open(&folder.path().join(name)).unwrap();
        (0..shard.documents()).map(|document| text_of(&shard, tiny(), document)).collect::<String>()
    };
    let (train, held) = (text(TRAIN_FILE), text(HELD_OUT_FILE));
    assert_eq!(report.train_bytes, train.len() as u64);
    assert_eq!(report.held_out_bytes, held.len() as u64);
    assert_eq!(train.len() + held.len(), texts.iter().map(String::len).sum::<usize>());
    (report, train, held)
}

#[test]
fn one_long_text_is_split_by_paragraphs() {
    let (report, train, held) = split(&[sentences(3000, 1)], 0.05);
    assert_eq!(report.documents, 1);
    assert!(report.held_out_tokens > 0 && train.len() > held.len());
    for paragraph in held.split_inclusive("\n\n") {
        assert!(!train.contains(paragraph), "{paragraph:?} is on both sides");
    }
}

#[test]
fn a_small_corpus_has_something_held_out_and_a_tiny_one_everything_to_train() {
    let (report, ..) = split(&[sentences(200, 2)], 0.01);
    assert!(report.held_out_tokens > 0);
    for fraction in [0.01, 0.99] {
        let (report, ..) = split(&["one".into()], fraction);
        assert_eq!((report.held_out_tokens, report.train_bytes), (0, 3));
        let (report, ..) = split(&["a".into(), "b".into(), "c".into()], fraction);
        assert!(report.held_out_bytes >= 1 && report.train_bytes >= 1);
    }
    let (report, ..) = split(&[sentences(200, 2)], 0.0);
    assert_eq!(report.held_out_tokens, 0);
}

#[test]
fn many_documents_are_split_whole_in_about_the_fraction_asked_for() {
    let texts: Vec<String> = (0..2000).map(|seed| sentences(3, seed)).collect();
    let (report, train, held) = split(&texts, 0.1);
    let share = report.held_out_bytes as f64 / (train.len() + held.len()) as f64;
    // 2000 draws at 0.1 have a standard deviation of 0.0067; five of them.
    assert!((share - 0.1).abs() <= 0.034, "{share}");
    assert_eq!(split(&texts, 0.1).2, held, "the split is the same every time");
}

#[test]
fn an_error_among_the_documents_leaves_no_shard() {
    let folder = tempfile::tempdir().unwrap();
    let failing = vec![
        Ok(Document { text: "good".into(), origin: Origin::new("t", 1) }),
        Err(DataError::NotFound { path: "gone".into() }),
    ];
    assert!(build(failing, tiny(), &ShardOptions::default(), folder.path()).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
