//! Splitting by hash: the same content is always on the same side, on every machine.

use crate::error::DataError;
use crate::hash::uniform;
use crate::message::Example;

/// The hash below which content is held out, for a fraction in [0, 1).
///
/// # Errors
/// [`DataError::Setting`] when the fraction is not in that range.
pub(crate) fn threshold(fraction: f64) -> Result<u64, DataError> {
    if !(0.0..1.0).contains(&fraction) {
        return Err(DataError::Setting {
            what: "held-out fraction",
            problem: format!("expected at least 0 and below 1, got {fraction}"),
        });
    }
    Ok((fraction * u64::MAX as f64) as u64)
}

/// Splits examples into (training, held-out), in order. What decides is the hash of the prompt (all
/// messages before the first answer), so that one prompt with several answers is on one side. Neither
/// side is empty when there are two different prompts and `fraction` is above 0.
///
/// # Errors
/// [`DataError::Setting`] when `fraction` is not in [0, 1).
pub fn held_out(examples: Vec<Example>, fraction: f64) -> Result<(Vec<Example>, Vec<Example>), DataError> {
    let threshold = threshold(fraction)?;
    let hashes: Vec<u64> = examples.iter().map(prompt_hash).collect();
    let (least, most) = (hashes.iter().min().copied(), hashes.iter().max().copied());
    let forced = fraction > 0.0 && least != most;
    let (held, kept): (Vec<_>, Vec<_>) = examples.into_iter().zip(hashes).partition(|(_, hash)| {
        let below = *hash < threshold;
        if forced { (below || Some(*hash) == least) && Some(*hash) != most } else { false }
    });
    let strip = |side: Vec<(Example, u64)>| side.into_iter().map(|(example, _)| example).collect();
    Ok((strip(kept), strip(held)))
}

fn prompt_hash(example: &Example) -> u64 {
    let mut bytes = Vec::new();
    for message in example.prompt() {
        bytes.extend_from_slice(message.role.name().as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&(message.content.len() as u64).to_le_bytes());
        bytes.extend_from_slice(message.content.as_bytes());
    }
    uniform(&bytes)
}

/// Cuts `text` into consecutive blocks of at least `target` bytes (the last may be shorter) that end
/// with a paragraph where there is one within twice the target, else with a line, else with a word,
/// else anywhere between characters. Joined, the blocks are the text. A cut after line feeds is also a
/// border between tokens.
pub(crate) fn blocks(text: &str, target: usize) -> Vec<&str> {
    let target = target.max(4);
    let mut blocks = Vec::new();
    let mut rest = text;
    while rest.len() > 2 * target {
        let from = ceil_boundary(rest, target);
        let window = &rest[from..ceil_boundary(rest, 2 * target)];
        let after = |found: Option<usize>, length: usize| found.map(|at| from + at + length);
        let cut = after(window.find("\n\n"), 2)
            .or_else(|| after(window.find('\n'), 1))
            // The space belongs to the word that follows it.
            .or_else(|| after(window.find(' '), 0))
            .unwrap_or(from + window.len());
        let line_feeds = rest[cut..].bytes().take_while(|byte| *byte == b'\n').count();
        let cut = if rest[..cut].ends_with('\n') { cut + line_feeds } else { cut };
        let (block, tail) = rest.split_at(cut);
        blocks.push(block);
        rest = tail;
    }
    if !rest.is_empty() {
        blocks.push(rest);
    }
    blocks
}

/// The first character border at or after `index`.
fn ceil_boundary(text: &str, index: usize) -> usize {
    (index..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Origin, Role};

    fn example(prompt: &str, answer: &str) -> Example {
        Example {
            messages: vec![Message::new(Role::User, prompt), Message::new(Role::Assistant, answer)],
            weight: 1.0,
            origin: Origin::new("t", 1),
        }
    }

    #[test]
    fn answers_to_one_prompt_stay_together() {
        let examples = (0..400).map(|i| example(&format!("q{}", i / 4), &format!("a{i}"))).collect();
        let (train, held) = held_out(examples, 0.1).unwrap();
        assert_eq!(train.len() + held.len(), 400);
        assert!((20..=80).contains(&held.len()), "about 40 expected, got {}", held.len());
        for example in &held {
            assert!(train.iter().all(|other| other.messages[0] != example.messages[0]));
        }
    }

    #[test]
    fn two_prompts_are_enough_for_both_sides() {
        for fraction in [0.001, 0.999] {
            let (train, held) = held_out(vec![example("a", "x"), example("b", "y")], fraction).unwrap();
            assert_eq!((train.len(), held.len()), (1, 1));
        }
        let (train, held) = held_out(vec![example("a", "x"), example("a", "y")], 0.5).unwrap();
        assert_eq!((train.len(), held.len()), (2, 0));
        let (train, held) = held_out(vec![example("a", "x"), example("b", "y")], 0.0).unwrap();
        assert_eq!((train.len(), held.len()), (2, 0));
        assert!(held_out(vec![], f64::NAN).is_err());
        assert!(held_out(vec![], 1.0).is_err());
    }

    proptest::proptest! {
        #[test]
        fn blocks_joined_are_the_text(text in "[a-zé \n🎉]{0,400}", target in 1usize..40) {
            let blocks = blocks(&text, target);
            proptest::prop_assert_eq!(blocks.concat(), text.as_str());
            proptest::prop_assert!(blocks.iter().all(|block| !block.is_empty()));
        }
    }

    #[test]
    fn blocks_end_with_paragraphs_where_there_are_any() {
        let text = "one two three\n\n\nfour five six\nseven\n\neight nine ten eleven";
        assert_eq!(
            blocks(text, 12),
            ["one two three\n\n\n", "four five six\nseven\n\n", "eight nine ten eleven"]
        );
    }
}
