//! Longer than trained: how well a model predicts, by the position in its window.

use serde::{Deserialize, Serialize};
use strata_data::Shard;
use strata_model::{Decoder, Inference, Input, State, Wanted};
use strata_tensor::Cpu;

use crate::TrainError;

/// Loss by position, over windows of held-out text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ByPosition {
    /// Tokens of a sequence in training.
    pub trained: usize,
    /// Windows that were read.
    pub windows: usize,
    /// Parts of the window, each a quarter of the trained length, from its beginning to its end.
    pub parts: Vec<PositionPart>,
    /// Bits per byte of the same text where the model begins anew after every `trained` tokens.
    pub cut: f64,
}

/// What was measured in one part of the windows.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PositionPart {
    /// Position behind the last one of the part.
    pub end: usize,
    /// Loss in nats, summed.
    pub nats: f64,
    /// UTF-8 bytes that the predicted tokens stand for.
    pub bytes: u64,
}

impl ByPosition {
    /// Bits per byte of the positions from `start` to `end`, both borders of parts; `None` where there are none.
    pub fn bits_per_byte(&self, start: usize, end: usize) -> Option<f64> {
        let inside = self.parts.iter().filter(|part| part.end > start && part.end <= end);
        let (nats, bytes) = inside.fold((0.0, 0), |sum, part| (sum.0 + part.nats, sum.1 + part.bytes));
        (bytes > 0).then(|| bits(nats, bytes))
    }

    /// The ranges of positions that a table shows, as multiples of the trained length (1, 2, 4, 8: from half of it
    /// on), with their bits per byte.
    pub fn by_multiple(&self) -> Vec<(usize, f64)> {
        let multiple = |multiple: usize| {
            let start = if multiple == 1 { 0 } else { multiple / 2 * self.trained };
            Some((multiple, self.bits_per_byte(start, multiple * self.trained)?))
        };
        MULTIPLES.into_iter().filter_map(multiple).collect()
    }
}

/// Lengths of windows, in trained lengths; the longest that the text has room for is read.
pub const MULTIPLES: [usize; 4] = [1, 2, 4, 8];
/// Parts per trained length.
const PARTS: usize = 4;
/// Tokens whose logits exist at one time, per window.
const PIECE: usize = 128;
/// Windows that are read together.
const TOGETHER: usize = 8;

fn bits(nats: f64, bytes: u64) -> f64 {
    nats / std::f64::consts::LN_2 / bytes.max(1) as f64
}

/// Reads windows of the text of `shard` that are up to eight times as long as `trained`, the most tokens that a sequence
/// of the model's training had; `most_windows` of them, spread evenly. Documents follow each other as they do in a row of
/// training, but that here a model may see the ones before. The model's own limit does not hold: rotary positions are
/// simply counted on, for better or worse.
///
/// # Errors
/// The text has fewer than `trained` tokens, or the shard belongs to another vocabulary.
pub fn by_position(
    decoder: &Decoder,
    cpu: &Cpu,
    shard: &Shard,
    trained: usize,
    most_windows: usize,
) -> Result<ByPosition, TrainError> {
    if trained < PARTS {
        return Err(TrainError::Request(format!("a trained length of {trained} tokens has no quarters")));
    }
    let all = shard.tokens() + shard.documents();
    let Some(multiple) = MULTIPLES.into_iter().rev().find(|multiple| (multiple * trained) as u64 <= all)
    else {
        return Err(TrainError::Request(format!(
            "the text has {all} tokens, and the model was trained on sequences of {trained}; give a longer text"
        )));
    };
    let length = multiple * trained;
    let windows = windows(shard, length, most_windows)?;
    let mut config = decoder.config().clone();
    if config.context() < length {
        config.max_positions = length;
    }
    let model = Inference::new(Decoder::from_tensors(&config, decoder.tensors())?, cpu);
    let mut parts: Vec<PositionPart> = (1..=multiple * PARTS)
        .map(|part| PositionPart { end: part * trained / PARTS, ..PositionPart::default() })
        .collect();
    let mut cut = (0.0, 0u64);
    for group in windows.chunks(TOGETHER) {
        read(&model, cpu, shard, group, length, |position, nats, bytes| {
            let part = parts.partition_point(|part| part.end <= position);
            parts[part].nats += nats;
            parts[part].bytes += bytes;
        })?;
        read(&model, cpu, shard, group, trained, |_, nats, bytes| {
            cut = (cut.0 + nats, cut.1 + bytes);
        })?;
    }
    Ok(ByPosition { trained, windows: windows.len(), parts, cut: bits(cut.0, cut.1) })
}

/// Tokens of a window, and the token that should follow each.
struct Window {
    tokens: Vec<u32>,
    targets: Vec<u32>,
}

/// Windows of `length` tokens: as many as there are, or `most` of them spread evenly.
fn windows(shard: &Shard, length: usize, most: usize) -> Result<Vec<Window>, TrainError> {
    let (mut tokens, mut targets) = (Vec::new(), Vec::new());
    for document in 0..shard.documents() {
        let first = targets.len();
        shard.read(document, 0, shard.document_tokens(document) as usize, &mut targets)?;
        tokens.push(shard.begin_token());
        tokens.extend_from_slice(&targets[first..]);
        targets.push(shard.end_token());
    }
    let count = tokens.len() / length;
    let kept = count.min(most.max(1));
    let window = |i: usize| {
        let start = i * count / kept * length;
        let part = start..start + length;
        Window { tokens: tokens[part.clone()].to_vec(), targets: targets[part].to_vec() }
    };
    Ok((0..kept).map(window).collect())
}

/// Reads windows side by side, from the beginning again after every `length` tokens, and tells position, loss and bytes
/// of every token.
fn read(
    model: &Inference,
    cpu: &Cpu,
    shard: &Shard,
    windows: &[Window],
    length: usize,
    mut tell: impl FnMut(usize, f64, u64),
) -> Result<(), TrainError> {
    let all = windows.first().map_or(0, |window| window.tokens.len());
    let lengths = shard.byte_lengths();
    let vocabulary = model.config().vocab_size;
    let mut states: Vec<State> = Vec::new();
    let mut start = 0;
    while start < all {
        if start % length == 0 {
            states = windows.iter().map(|_| model.new_state()).collect();
        }
        let end = (start + PIECE).min(start - start % length + length).min(all);
        let mut inputs: Vec<Input<'_>> = states
            .iter_mut()
            .zip(windows)
            .map(|(state, window)| Input { state, tokens: &window.tokens[start..end] })
            .collect();
        let logits = model.step(cpu, &mut inputs, Wanted::All)?;
        let targets = windows.iter().flat_map(|window| &window.targets[start..end]);
        for (at, (logits, target)) in logits.chunks_exact(vocabulary).zip(targets).enumerate() {
            let (Some(bytes), true) = (lengths.get(*target as usize), (*target as usize) < vocabulary) else {
                return Err(TrainError::Request(format!(
                    "token {target} is outside the model's vocabulary of {vocabulary}"
                )));
            };
            tell(start % length + at % (end - start), nats(logits, *target as usize), u64::from(*bytes));
        }
        start = end;
    }
    Ok(())
}

/// Cross entropy of one token in nats.
fn nats(logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    sum.ln() - f64::from(logits[target] - largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use strata_data::{Document, Origin, Tokenizer, shards};
    use strata_model::Config;
    use strata_tensor::Isa;

    use crate::contestants::{Contestant, Size, matched_shapes};

    const TRAINED: usize = 32;

    fn shard(folder: &Path, characters: usize) -> Shard {
        let words = ["salt ", "the river ", "and ", "a house, ", "old. "];
        let mut text = String::new();
        let mut state = 7usize;
        while text.len() < characters {
            state = state * 1_103_515_245 % 2_147_483_647 + 12_345;
            text += words[state / 1000 % words.len()];
        }
        let tokenizer = Tokenizer::train([Ok(text.clone())], 300).unwrap();
        let path = folder.join("text.bin");
        let document = Document { text, origin: Origin::new("text", 1) };
        shards::write([Ok(document)], &tokenizer, &path).unwrap();
        Shard::open(&path).unwrap()
    }

    fn config(mixer: &str, vocabulary: usize) -> Config {
        let contestant = [Contestant::try_from(mixer.to_string()).unwrap()];
        matched_shapes(&contestant, Size::Shape { width: 32, layers: 1 }, TRAINED, vocabulary)
            .unwrap()
            .remove(0)
    }

    #[test]
    fn parts_add_up_to_the_loss_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), 6000);
        let cpu = Cpu::new(Isa::best(), 1).unwrap();
        for mixer in ["attention", "attention+positions=alibi", "ssm"] {
            let decoder = Decoder::new(&config(mixer, shard.byte_lengths().len()), 5).unwrap();
            let found = by_position(&decoder, &cpu, &shard, TRAINED, 3).unwrap();
            assert_eq!((found.windows, found.parts.len()), (3, 32), "{mixer}");
            assert_eq!(found.parts.last().unwrap().end, 8 * TRAINED);
            let multiples: Vec<usize> =
                found.by_multiple().into_iter().map(|(multiple, _)| multiple).collect();
            assert_eq!(multiples, [1, 2, 4, 8]);
            let nats: f64 = found.parts.iter().map(|part| part.nats).sum();
            let bytes: u64 = found.parts.iter().map(|part| part.bytes).sum();
            let whole = found.bits_per_byte(0, 8 * TRAINED).unwrap();
            // The same sums in another order.
            assert!((whole - bits(nats, bytes)).abs() < 1e-9, "{mixer}");
            // An untrained model knows nothing: about as many nats as the logarithm of the vocabulary, everywhere.
            let guess = (shard.byte_lengths().len() as f64).ln();
            for part in &found.parts {
                let mean = part.nats / (3 * TRAINED / PARTS) as f64;
                assert!((0.7 * guess..1.3 * guess).contains(&mean), "{mixer} {}: {mean}", part.end);
            }
            assert!((0.7..1.3).contains(&(found.cut / whole)), "{mixer}");
        }
    }

    #[test]
    fn a_model_without_memory_does_not_care_where_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path(), 3000);
        let cpu = Cpu::new(Isa::best(), 1).unwrap();
        let decoder = Decoder::new(&config("none", shard.byte_lengths().len()), 5).unwrap();
        let found = by_position(&decoder, &cpu, &shard, TRAINED, 1).unwrap();
        // The same logits, summed in the same order up to the borders of the parts.
        assert!((found.cut - found.bits_per_byte(0, 8 * TRAINED).unwrap()).abs() < 1e-9);
    }

    #[test]
    fn short_texts_are_read_as_far_as_they_go_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cpu = Cpu::new(Isa::best(), 1).unwrap();
        let short = shard(folder.path(), 800);
        let tokens = (short.tokens() + short.documents()) as usize;
        let decoder = Decoder::new(&config("ssm", short.byte_lengths().len()), 5).unwrap();
        let trained = tokens / 3;
        let found = by_position(&decoder, &cpu, &short, trained, 9).unwrap();
        assert_eq!(found.by_multiple().last().unwrap().0, 2);
        let message = by_position(&decoder, &cpu, &short, tokens + 1, 9).unwrap_err().to_string();
        assert!(message.contains("longer text"), "{message}");
    }
}
