//! Tasks of recall: made-up sequences that can only be continued by a model that looks back.
//!
//! Symbols have no meaning and no frequencies of their own, so whatever a model gets right beyond [`CHANCE`] it
//! remembers. What is held out is disjoint from what is trained on by construction: the hash of a sequence decides
//! which part it belongs to.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::hash::{sha256, uniform};
use crate::world::Part;
use crate::{Batch, DataError};

/// Symbols of each of the two alphabets: keys (and what is copied), and values.
const SYMBOLS: u32 = 64;
/// The first value; keys are below.
const VALUES: u32 = SYMBOLS;
/// Stands between a text and its copy.
const BORDER: u32 = 2 * SYMBOLS;
/// Stands before a needle.
const MARK: u32 = BORDER + 1;
/// Tokens that occur.
pub const VOCABULARY: usize = MARK as usize + 1;
/// What a model that remembers nothing gets right at best: every answer is one of the symbols of an alphabet, all of
/// them equally often. (In a copy no symbol comes twice, so that one of 63 is nearer the truth for those behind the first.)
pub const CHANCE: f64 = 1.0 / SYMBOLS as f64;
/// One sequence in so many is held out.
const HELD_OUT: u64 = 8;

/// A task of recall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecallTask {
    /// Pairs of a key and a value, then every key again in another order: what follows is its value. The multi-query
    /// form of associative recall (Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language
    /// Models").
    Associative,
    /// Different symbols, a border, then the same again (Jelassi et al. 2024, "Repeat After Me").
    Copy,
    /// Noise of keys and values with one marked value at a random depth; at the end the mark again, and what follows is
    /// that value.
    Needle,
}

impl RecallTask {
    /// All tasks.
    pub const ALL: [RecallTask; 3] = [RecallTask::Associative, RecallTask::Copy, RecallTask::Needle];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            RecallTask::Associative => "associative",
            RecallTask::Copy => "copy",
            RecallTask::Needle => "needle",
        }
    }

    /// Most items of a sequence: different keys, or different symbols to copy; for needles the length of the noise is
    /// bounded by nothing but patience.
    pub fn most_items(self) -> usize {
        match self {
            RecallTask::Associative | RecallTask::Copy => SYMBOLS as usize,
            RecallTask::Needle => 1 << 16,
        }
    }

    /// Positions of a sequence of so many items: pairs, symbols to copy, or tokens of noise around the needle.
    pub fn positions(self, items: usize) -> usize {
        match self {
            RecallTask::Associative => 4 * items,
            // The last symbol of the copy is a target only.
            RecallTask::Copy => 2 * items,
            RecallTask::Needle => items + 3,
        }
    }

    /// Answers of a sequence of so many items.
    pub fn answers(self, items: usize) -> usize {
        match self {
            RecallTask::Associative | RecallTask::Copy => items,
            RecallTask::Needle => 1,
        }
    }

    /// Batch number `index` of the stream of `seed`: `rows` sequences of `items` items, each a segment; only answers
    /// have weight. Equal arguments give equal batches.
    ///
    /// # Errors
    /// [`DataError::Setting`] where `rows` is 0 or the items are none or too many.
    pub fn batch(
        self,
        items: usize,
        rows: usize,
        seed: u64,
        index: u64,
        part: Part,
    ) -> Result<Batch, DataError> {
        let most = self.most_items();
        if !(1..=most).contains(&items) || rows == 0 {
            return Err(DataError::Setting {
                what: "task of recall",
                problem: format!(
                    "expected 1 to {most} items and at least one row, got {items} items and {rows} rows"
                ),
            });
        }
        let label = format!("recall {} {items} {seed} {index} {part:?}", self.name());
        let mut random = ChaCha8Rng::from_seed(sha256(label.as_bytes()));
        let mut batch = Batch::default();
        for _ in 0..rows {
            let sequence = loop {
                let sequence = self.sequence(items, &mut random);
                let bytes: Vec<u8> = sequence.iter().flat_map(|(token, _)| token.to_le_bytes()).collect();
                let held_out = uniform(&bytes).is_multiple_of(HELD_OUT);
                if held_out == (part == Part::HeldOut) {
                    break sequence;
                }
            };
            batch.starts.push(batch.tokens.len() as u32);
            for pair in sequence.windows(2) {
                let ((token, _), (target, counts)) = (pair[0], pair[1]);
                batch.tokens.push(token);
                batch.targets.push(target);
                batch.weights.push(if counts { 1.0 } else { 0.0 });
            }
        }
        Ok(batch)
    }

    /// The tokens of a sequence, and which of them are answers; one token more than positions.
    fn sequence(self, items: usize, random: &mut ChaCha8Rng) -> Vec<(u32, bool)> {
        let mut tokens = Vec::with_capacity(self.positions(items) + 1);
        match self {
            RecallTask::Associative => {
                let keys = different(items, random);
                let values: Vec<u32> = keys.iter().map(|_| VALUES + symbol(random)).collect();
                for (key, value) in keys.iter().zip(&values) {
                    tokens.extend([(*key, false), (*value, false)]);
                }
                for pair in
                    different(SYMBOLS as usize, random).into_iter().filter(|pair| (*pair as usize) < items)
                {
                    tokens.extend([(keys[pair as usize], false), (values[pair as usize], true)]);
                }
                // Nothing is asked behind the last value.
                tokens.push((BORDER, false));
            }
            RecallTask::Copy => {
                let symbols = different(items, random);
                tokens.extend(symbols.iter().map(|symbol| (*symbol, false)));
                tokens.push((BORDER, false));
                tokens.extend(symbols.iter().map(|symbol| (*symbol, true)));
            }
            RecallTask::Needle => {
                let value = VALUES + symbol(random);
                tokens.extend((0..items).map(|_| (random.random_range(0..2 * SYMBOLS), false)));
                let depth = random.random_range(0..=items as u32) as usize;
                tokens.splice(depth..depth, [(MARK, false), (value, false)]);
                tokens.extend([(MARK, false), (value, true)]);
            }
        }
        tokens
    }
}

/// Where the needle of a sequence lies: 0 at its beginning, 1 right before the question. `None` where there is none.
pub fn needle_depth(tokens: &[u32]) -> Option<f64> {
    let at = tokens.iter().position(|token| *token == MARK)?;
    // The question and the needle itself are not noise.
    let noise = tokens.len().checked_sub(3)?;
    (at <= noise).then(|| at as f64 / noise.max(1) as f64)
}

fn symbol(random: &mut ChaCha8Rng) -> u32 {
    random.random_range(0..SYMBOLS)
}

/// `count` different symbols in random order; all of them where `count` is larger than an alphabet.
fn different(count: usize, random: &mut ChaCha8Rng) -> Vec<u32> {
    let mut symbols: Vec<u32> = (0..SYMBOLS).collect();
    for last in (1..symbols.len()).rev() {
        symbols.swap(last, random.random_range(0..=last as u32) as usize);
    }
    symbols.truncate(count);
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn rows(batch: &Batch) -> Vec<std::ops::Range<usize>> {
        let ends = batch.starts.iter().skip(1).copied().chain([batch.tokens.len() as u32]);
        batch.starts.iter().zip(ends).map(|(start, end)| *start as usize..end as usize).collect()
    }

    fn batch(task: RecallTask, items: usize, seed: u64, part: Part) -> Batch {
        task.batch(items, 40, seed, 3, part).unwrap()
    }

    #[test]
    fn sequences_have_the_form_they_should() {
        for task in RecallTask::ALL {
            for items in [1, 2, 7, 64] {
                let batch = batch(task, items, 1, Part::Training);
                assert_eq!(rows(&batch).len(), 40);
                for row in rows(&batch) {
                    assert_eq!(row.len(), task.positions(items), "{task:?} {items}");
                    let answers = batch.weights[row.clone()].iter().filter(|weight| **weight > 0.0).count();
                    assert_eq!(answers, task.answers(items), "{task:?} {items}");
                    assert!(batch.tokens[row].iter().all(|token| (*token as usize) < VOCABULARY));
                }
            }
        }
    }

    #[test]
    fn answers_are_what_was_said_before() {
        let associative = batch(RecallTask::Associative, 9, 2, Part::Training);
        for row in rows(&associative) {
            let (tokens, targets) = (&associative.tokens[row.clone()], &associative.targets[row.clone()]);
            let pairs: HashMap<u32, u32> = tokens[..18].chunks(2).map(|pair| (pair[0], pair[1])).collect();
            assert_eq!(pairs.len(), 9, "keys differ");
            let asked: Vec<usize> =
                (0..row.len()).filter(|at| associative.weights[row.start + at] > 0.0).collect();
            assert!(asked.iter().all(|at| *at >= 18 && targets[*at] == pairs[&tokens[*at]]));
            assert_eq!(asked.iter().map(|at| tokens[*at]).collect::<HashSet<_>>().len(), 9);
        }
        let copied = batch(RecallTask::Copy, 12, 2, Part::Training);
        for row in rows(&copied) {
            assert_eq!(copied.tokens[row.start + 12], BORDER);
            assert_eq!(copied.tokens[row.start..row.start + 12], copied.targets[row.start + 12..row.end]);
        }
        let needles = batch(RecallTask::Needle, 50, 2, Part::Training);
        let mut depths = Vec::new();
        for row in rows(&needles) {
            let tokens = &needles.tokens[row.clone()];
            let at = tokens.iter().position(|token| *token == MARK).unwrap();
            assert_eq!(tokens[tokens.len() - 1], MARK);
            assert_eq!(needles.targets[row.end - 1], tokens[at + 1]);
            assert_eq!(tokens.iter().filter(|token| **token == MARK).count(), 2);
            depths.push(needle_depth(tokens).unwrap());
            assert!((depths[depths.len() - 1] - at as f64 / 50.0).abs() < 1e-12);
        }
        assert!(depths.iter().any(|depth| *depth < 0.2) && depths.iter().any(|depth| *depth > 0.8));
    }

    #[test]
    fn what_is_held_out_is_never_trained_on() {
        // So few symbols that both streams would meet, were they not kept apart.
        let sequences = |part| {
            (0..200).flat_map(move |index| {
                let batch = RecallTask::Copy.batch(2, 50, 7, index, part).unwrap();
                rows(&batch).into_iter().map(|row| batch.tokens[row].to_vec()).collect::<Vec<_>>()
            })
        };
        let training: HashSet<Vec<u32>> = sequences(Part::Training).collect();
        let held_out: HashSet<Vec<u32>> = sequences(Part::HeldOut).collect();
        assert!(training.len() + held_out.len() > 3_000, "of the 4,032 there are");
        assert!(training.is_disjoint(&held_out));
    }

    #[test]
    fn the_best_guess_without_memory_is_right_by_chance() {
        for task in RecallTask::ALL {
            let mut seen: HashMap<(u32, u32), usize> = HashMap::new();
            let mut read: HashMap<u32, usize> = HashMap::new();
            for index in 0..60 {
                let batch = task.batch(16, 64, 5, index, Part::HeldOut).unwrap();
                let counted = (0..batch.tokens.len()).filter(|at| batch.weights[*at] > 0.0);
                for at in counted {
                    *seen.entry((batch.tokens[at], batch.targets[at])).or_default() += 1;
                    *read.entry(batch.tokens[at]).or_default() += 1;
                }
            }
            let best: usize = read
                .keys()
                .map(|token| {
                    seen.iter().filter(|((read, _), _)| read == token).map(|(_, n)| *n).max().unwrap_or(0)
                })
                .sum();
            let right = best as f64 / read.values().sum::<usize>() as f64;
            // The luckiest of 64 answers after each token: with 1,000 samples a token it is at most 2.5 times the mean.
            assert!((CHANCE..2.5 * CHANCE).contains(&right), "{task:?}: {right}");
        }
    }

    #[test]
    fn streams_repeat_and_differ_by_seed_and_number() {
        let make = |seed, index| RecallTask::Needle.batch(20, 4, seed, index, Part::Training).unwrap();
        assert_eq!(make(1, 5), make(1, 5));
        assert_ne!(make(1, 5), make(2, 5));
        assert_ne!(make(1, 5), make(1, 6));
    }

    #[test]
    fn impossible_tasks_are_refused() {
        for (task, items, rows) in
            [(RecallTask::Copy, 65, 1), (RecallTask::Needle, 0, 1), (RecallTask::Copy, 3, 0)]
        {
            assert!(task.batch(items, rows, 0, 0, Part::Training).unwrap_err().to_string().contains("items"));
        }
    }
}
