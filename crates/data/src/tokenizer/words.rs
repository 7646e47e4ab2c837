//! Cutting text into words by our expression ([`super::bpe::SPLIT`]), by hand and so some twenty times
//! faster than a regular-expression engine. Characters whose class the standard library cannot tell
//! with certainty are left to that engine; the tests compare the two on every character that is not.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    /// Line feed and carriage return.
    Newline,
    /// Other white space.
    Space,
    Other,
}

/// The class of `character` by Unicode category (letter L, number N, white space), where it is sure:
/// `char::is_alphabetic` is wider than L by marks and enclosed letters, which these blocks do not have.
fn class(character: char) -> Option<Class> {
    match character {
        'a'..='z' | 'A'..='Z' => return Some(Class::Letter),
        '0'..='9' => return Some(Class::Number),
        '\n' | '\r' => return Some(Class::Newline),
        '\0'..='\u{7f}' => {}
        // Folds to "s", so an expression that ignores case takes it for one.
        '\u{17f}' => return None,
        // Latin, phonetic letters; Greek, Cyrillic; punctuation; kana; CJK; Hangul; pictures.
        '\u{80}'..='\u{2af}'
        | '\u{370}'..='\u{481}'
        | '\u{48a}'..='\u{52f}'
        | '\u{2000}'..='\u{206f}'
        | '\u{20a0}'..='\u{20bf}'
        | '\u{2190}'..='\u{22ff}'
        | '\u{3000}'..='\u{3020}'
        | '\u{3041}'..='\u{3096}'
        | '\u{30a1}'..='\u{30ff}'
        | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{fe0f}'
        | '\u{ff01}'..='\u{ff65}'
        | '\u{1f300}'..='\u{1faff}' => {}
        _ => return None,
    }
    Some(if character.is_whitespace() {
        Class::Space
    } else if character.is_numeric() {
        // Before letters: number letters, such as 〇, count as alphabetic too.
        Class::Number
    } else if character.is_alphabetic() {
        Class::Letter
    } else {
        Class::Other
    })
}

/// True when [`next_word`] knows every character of `text`.
pub(super) fn all_known(text: &str) -> bool {
    text.chars().all(|character| class(character).is_some())
}

/// Cuts `text` after line feeds that are not followed by white space: places that no word reaches over,
/// so that each part can be tokenised on its own.
pub(super) fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut from = 0;
        loop {
            let Some(at) = rest[from..].find('\n').map(|at| from + at + 1) else {
                return Some(std::mem::take(&mut rest));
            };
            if rest[at..].chars().next().is_none_or(|next| !next.is_whitespace()) {
                let (line, tail) = rest.split_at(at);
                rest = tail;
                return Some(line);
            }
            from = at;
        }
    })
}

/// The length in bytes of the first word of `text`, all of whose characters are known.
pub(super) fn next_word(text: &str) -> usize {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return 0 };
    let kind = |character: char| class(character).unwrap_or(Class::Other);
    let first_length = first.len_utf8();
    let rest = &text[first_length..];
    let run = |text: &str, wanted: &[Class]| -> usize {
        text.char_indices().find(|(_, c)| !wanted.contains(&kind(*c))).map_or(text.len(), |(at, _)| at)
    };

    // (?i:'s|'t|'re|'ve|'m|'ll|'d)
    if first == '\'' {
        let bytes = rest.as_bytes();
        let letter = |at: usize| bytes.get(at).map(u8::to_ascii_lowercase);
        match (letter(0), letter(1)) {
            (Some(b's' | b't' | b'm' | b'd'), _) => return 2,
            (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => return 3,
            _ => {}
        }
    }
    let next = characters.next().map(kind);
    match kind(first) {
        // [^\r\n\p{L}\p{N}]?\p{L}+
        Class::Letter => first_length + run(rest, &[Class::Letter]),
        Class::Space | Class::Other if next == Some(Class::Letter) => {
            first_length + run(rest, &[Class::Letter])
        }
        // \p{N}
        Class::Number => first_length,
        // ' ?[^\s\p{L}\p{N}]+[\r\n]*'
        Class::Other => signs(text, first_length, run),
        Class::Space if first == ' ' && next == Some(Class::Other) => signs(text, first_length, run),
        Class::Space | Class::Newline => {
            let length = first_length + run(rest, &[Class::Space, Class::Newline]);
            let white = &text[..length];
            if let Some(at) = white.rfind(['\r', '\n']) {
                // \s*[\r\n]+
                at + 1
            } else if length == text.len() {
                // \s+(?!\S) at the end of the text
                length
            } else {
                // \s+(?!\S), which leaves the last one to the word that follows; \s+ for a single one
                let last = white.chars().next_back().map_or(0, char::len_utf8);
                if length > last { length - last } else { length }
            }
        }
    }
}

/// Signs from `from` on, and the line feeds after them.
fn signs(text: &str, from: usize, run: impl Fn(&str, &[Class]) -> usize) -> usize {
    let end = from + run(&text[from..], &[Class::Other]);
    end + run(&text[end..], &[Class::Newline])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn by_expression(split: &Split, text: &str) -> Vec<String> {
        let mut words = PreTokenizedString::from(text);
        split.pre_tokenize(&mut words).unwrap();
        let splits = words.get_splits(OffsetReferential::Original, OffsetType::None);
        splits.into_iter().map(|(word, _, _)| word.to_string()).collect()
    }

    fn by_hand(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        for mut line in lines(text) {
            while !line.is_empty() {
                let (word, rest) = line.split_at(next_word(line));
                words.push(word.to_string());
                line = rest;
            }
        }
        words
    }

    fn expression() -> Split {
        let pattern = SplitPattern::Regex(super::super::bpe::SPLIT.to_string());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap()
    }

    #[test]
    fn every_known_character_has_the_class_the_expression_gives_it() {
        let split = expression();
        let known: Vec<char> = ('\0'..=char::MAX).filter(|c| class(*c).is_some()).collect();
        assert!(known.len() > 40_000);
        // Each character stands after and before letters, digits, signs, spaces and an apostrophe.
        for c in known {
            let text = format!("a{c}b {c}{c}1{c}.{c} '{c}e'{c}l\n{c}  {c}");
            assert_eq!(by_hand(&text), by_expression(&split, &text), "U+{:04X}", c as u32);
        }
    }

    #[test]
    fn lines_are_cut_only_before_what_is_not_white_space() {
        for character in ('\0'..=char::MAX).filter(|c| c.is_whitespace() && *c != '\n') {
            let text = format!("a\n{character}b\nc");
            assert_eq!(lines(&text).collect::<Vec<_>>(), [&text[..text.len() - 1], "c"]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn words_are_those_of_the_expression(
            text in "([a-z]{1,3}|[A-Z]|[ ]{1,3}|[\t\u{a0}\u{3000}]|\n|\r|'|'[sStTrRvVmMlLdDeE]{1,2}|[0-9]|[.,!?(-]|é|日|“|🎉){0,40}"
        ) {
            prop_assert!(all_known(&text));
            prop_assert_eq!(by_hand(&text), by_expression(&expression(), &text));
        }
    }
}
