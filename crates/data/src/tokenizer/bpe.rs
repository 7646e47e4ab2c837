//! Training a byte-level BPE vocabulary.
//!
//! The training of the `tokenizers` crate breaks ties by the order of a randomly seeded hash map and
//! so may give two vocabularies for one corpus. Here the choice is a total order (most frequent pair
//! first, then the smallest pair of ids), so that equal corpora give equal models. Byte-pair encoding:
//! Sennrich, Haddow and Birch 2016; over bytes: Radford et al. 2019.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use rayon::prelude::*;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::words;
use crate::error::DataError;

/// How text is cut into words before merging: contractions, letters with one leading sign, *single*
/// digits (small models add better when every digit is one token), punctuation, white space. This is
/// the expression of Qwen2, chosen to the letter because converters know it by name.
pub(super) const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Longer "words" (a line of base64, a run of one letter) are cut: no useful token is that long, and
/// the cost of a merge grows with the word.
const LONGEST_WORD: usize = 128;

/// A pair must occur this often to become a token: one occurrence teaches nothing.
const LEAST_COUNT: i64 = 2;

/// Bytes of text counted at a time, in pieces spread over the cores.
const CHUNK: usize = 8 << 20;
const PIECE: usize = 64 << 10;

type Pair = (u32, u32);

/// Words and how often they occur.
#[derive(Default)]
pub(super) struct WordCounts(HashMap<Vec<u8>, i64>);

impl WordCounts {
    /// Counts the words of all `texts`.
    pub fn of<S: AsRef<str>>(texts: impl Iterator<Item = Result<S, DataError>>) -> Result<Self, DataError> {
        let pattern = SplitPattern::Regex(SPLIT.to_string());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| DataError::Tokenizer { path: None, problem: error.to_string() })?;
        let mut counts = WordCounts::default();
        let mut chunk: Vec<String> = Vec::new();
        let mut size = 0;
        for text in texts {
            for piece in crate::split::blocks(text?.as_ref(), PIECE) {
                size += piece.len();
                chunk.push(piece.to_string());
            }
            if size >= CHUNK {
                counts.add(&split, &std::mem::take(&mut chunk))?;
                size = 0;
            }
        }
        counts.add(&split, &chunk)?;
        Ok(counts)
    }

    fn add(&mut self, split: &Split, pieces: &[String]) -> Result<(), DataError> {
        let counted: Vec<Result<HashMap<Vec<u8>, i64>, DataError>> = pieces
            .par_chunks(16)
            .map(|pieces| {
                let mut counts: HashMap<Vec<u8>, i64> = HashMap::new();
                for piece in pieces {
                    count_words(split, piece, &mut counts)?;
                }
                Ok(counts)
            })
            .collect();
        for counts in counted {
            for (word, count) in counts? {
                *self.0.entry(word).or_default() += count;
            }
        }
        Ok(())
    }

    /// True when no text was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn count_words(split: &Split, text: &str, counts: &mut HashMap<Vec<u8>, i64>) -> Result<(), DataError> {
    let mut count = |word: &str| {
        for part in word.as_bytes().chunks(LONGEST_WORD) {
            if let Some(count) = counts.get_mut(part) {
                *count += 1;
            } else {
                counts.insert(part.to_vec(), 1);
            }
        }
    };
    for mut line in words::lines(text) {
        if words::all_known(line) {
            while !line.is_empty() {
                let (word, rest) = line.split_at(words::next_word(line));
                count(word);
                line = rest;
            }
            continue;
        }
        let mut by_crate = PreTokenizedString::from(line);
        split.pre_tokenize(&mut by_crate).map_err(super::failed)?;
        for (word, _, _) in by_crate.get_splits(OffsetReferential::Original, OffsetType::None) {
            count(word);
        }
    }
    Ok(())
}

/// Tokens as byte strings, of which the first 256 are the single bytes, and the merges in order, as
/// indices of tokens.
pub(super) struct Vocabulary {
    pub tokens: Vec<Vec<u8>>,
    pub merges: Vec<Pair>,
}

struct Word {
    symbols: Vec<u32>,
    count: i64,
}

/// Learns merges until there are `size` tokens or no pair occurs twice.
pub(super) fn learn(counts: WordCounts, size: usize) -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let mut ids: HashMap<Vec<u8>, u32> =
        tokens.iter().enumerate().map(|(id, bytes)| (bytes.clone(), id as u32)).collect();
    let mut words: Vec<Word> = counts
        .0
        .into_iter()
        .map(|(bytes, count)| Word { symbols: bytes.iter().map(|byte| u32::from(*byte)).collect(), count })
        .collect();

    let mut pair_counts: HashMap<Pair, i64> = HashMap::new();
    let mut places: HashMap<Pair, Vec<u32>> = HashMap::new();
    for (index, word) in words.iter().enumerate() {
        for pair in pairs(&word.symbols) {
            *pair_counts.entry(pair).or_default() += word.count;
            places.entry(pair).or_default().push(index as u32);
        }
    }
    let mut queue: BinaryHeap<(i64, Reverse<Pair>)> =
        pair_counts.iter().map(|(pair, count)| (*count, Reverse(*pair))).collect();

    let mut merges = Vec::new();
    while tokens.len() < size {
        let Some((count, Reverse(pair))) = queue.pop() else { break };
        let current = pair_counts.get(&pair).copied().unwrap_or(0);
        if current != count {
            // An older count: put the pair back where it belongs now.
            if current > 0 {
                queue.push((current, Reverse(pair)));
            }
            continue;
        }
        if count < LEAST_COUNT {
            break;
        }
        let bytes = [tokens[pair.0 as usize].as_slice(), tokens[pair.1 as usize].as_slice()].concat();
        // Two pairs can spell the same token; the second one only adds a way to reach it.
        let id = *ids.entry(bytes.clone()).or_insert_with(|| {
            tokens.push(bytes);
            tokens.len() as u32 - 1
        });
        merges.push(pair);

        let mut affected = places.remove(&pair).unwrap_or_default();
        affected.sort_unstable();
        affected.dedup();
        let mut grown: Vec<Pair> = Vec::new();
        for index in affected {
            let word = &mut words[index as usize];
            for old in pairs(&word.symbols) {
                if let Some(total) = pair_counts.get_mut(&old) {
                    *total -= word.count;
                }
            }
            merge(&mut word.symbols, pair, id);
            for new in pairs(&word.symbols) {
                *pair_counts.entry(new).or_default() += word.count;
                if new.0 == id || new.1 == id {
                    places.entry(new).or_default().push(index);
                    grown.push(new);
                }
            }
        }
        pair_counts.remove(&pair);
        grown.sort_unstable();
        grown.dedup();
        queue.extend(grown.into_iter().map(|pair| (pair_counts[&pair], Reverse(pair))));
    }
    Vocabulary { tokens, merges }
}

fn pairs(symbols: &[u32]) -> impl Iterator<Item = Pair> + '_ {
    symbols.windows(2).map(|pair| (pair[0], pair[1]))
}

/// Replaces `pair` by `id` from left to right.
fn merge(symbols: &mut Vec<u32>, pair: Pair, id: u32) {
    let mut write = 0;
    let mut read = 0;
    while read < symbols.len() {
        if read + 1 < symbols.len() && (symbols[read], symbols[read + 1]) == pair {
            symbols[write] = id;
            read += 2;
        } else {
            symbols[write] = symbols[read];
            read += 1;
        }
        write += 1;
    }
    symbols.truncate(write);
}

/// The printable character that stands for a byte in `tokenizer.json`: printable Latin-1 stands for
/// itself, the rest follows from U+0100 on in order (the byte-level alphabet of GPT-2).
pub(super) fn byte_characters() -> [char; 256] {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if printable(byte) {
            char::from(byte)
        } else {
            others += 1;
            char::from_u32(0x100 + others - 1).unwrap_or('\u{100}')
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(words: &[(&str, i64)]) -> WordCounts {
        WordCounts(words.iter().map(|(word, count)| (word.as_bytes().to_vec(), *count)).collect())
    }

    #[test]
    fn the_example_of_sennrich_gives_its_merges() {
        // Sennrich et al. 2016, figure 1, without the end-of-word sign.
        let counts = count(&[("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)]);
        let vocabulary = learn(counts, 256 + 4);
        let tokens: Vec<&str> =
            vocabulary.tokens[256..].iter().map(|token| std::str::from_utf8(token).unwrap()).collect();
        // "es" and "st" both occur 9 times; the smaller pair of ids comes first.
        assert_eq!(tokens, ["es", "est", "lo", "low"]);
    }

    #[test]
    fn pairs_seen_once_are_not_merged() {
        assert_eq!(learn(count(&[("abc", 1)]), 1000).tokens.len(), 256);
    }

    #[test]
    fn overlapping_pairs_are_merged_from_the_left() {
        let mut symbols = vec![7, 7, 7, 1, 7, 7];
        merge(&mut symbols, (7, 7), 9);
        assert_eq!(symbols, [9, 7, 1, 9]);
    }

    #[test]
    fn byte_characters_are_those_of_gpt2() {
        let characters = byte_characters();
        assert_eq!((characters[32], characters[10], characters[65]), ('Ġ', 'Ċ', 'A'));
        let distinct: std::collections::HashSet<char> = characters.into_iter().collect();
        assert_eq!(distinct.len(), 256);
    }
}
