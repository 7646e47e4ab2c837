//! Which mixer each block of a model has, and their shapes.

use super::ssm::SsmShape;
use serde::{Deserialize, Serialize};

/// A kind of mixer, as a letter of a pattern.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Letter {
    /// `A`: attention
    Attention,
    /// `S`: state-space scan (Mamba-2)
    Ssm,
    /// `L`: long short-term memory
    Lstm,
    /// `D`: diagonal state-space layer (S4D)
    S4d,
    /// `N`: no mixing
    Nothing,
}

/// All kinds: letter, kind, and the name that the command line has for a model of it alone.
pub const LETTERS: [(char, Letter, &str); 5] = [
    ('A', Letter::Attention, "attention"),
    ('S', Letter::Ssm, "ssm"),
    ('L', Letter::Lstm, "lstm"),
    ('D', Letter::S4d, "s4d"),
    ('N', Letter::Nothing, "none"),
];

/// The pattern of `hybrid` where none is given: looking up by attention in every fourth block, all else through states.
pub const HYBRID: &str = "SSSA";

impl Letter {
    fn of(letter: char) -> Option<Letter> {
        LETTERS.into_iter().find(|(known, _, _)| *known == letter).map(|(_, kind, _)| kind)
    }
}

/// How attention knows where tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Queries and keys are turned by their positions.
    #[default]
    Rotary,
    /// Scores fall with the distance.
    Alibi,
    /// Not at all, but that a token sees none behind it.
    None,
}

/// Which mixer each block has, and the shapes of the mixers beyond plain attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mixing {
    /// A letter per block, from the first on; begins again where there are more blocks than letters.
    pub pattern: String,
    /// The shape of the blocks with `S`.
    pub ssm: SsmShape,
    /// Real numbers of state per channel of the blocks with `D`: twice its complex states.
    pub s4d_states: usize,
    /// Positions of the blocks with `A`.
    pub positions: Positions,
    /// Tokens that a token sees in the blocks with `A`, itself included; all before it where there is none.
    pub window: Option<usize>,
}

impl Default for Mixing {
    fn default() -> Mixing {
        Mixing {
            pattern: "A".to_string(),
            ssm: SsmShape::default(),
            s4d_states: 64,
            positions: Positions::Rotary,
            window: None,
        }
    }
}

impl Mixing {
    /// The pattern that a name of the command line stands for: one of [`LETTERS`], `hybrid`, or `hybrid:` and a pattern.
    ///
    /// # Errors
    /// What would have been right.
    pub fn pattern_of(name: &str) -> Result<String, String> {
        if let Some((letter, _, _)) = LETTERS.into_iter().find(|(_, _, known)| *known == name) {
            return Ok(letter.to_string());
        }
        let pattern = match name.split_once(':') {
            None if name == "hybrid" => HYBRID.to_string(),
            Some(("hybrid", pattern)) => pattern.to_string(),
            _ => {
                let names: Vec<&str> = LETTERS.iter().map(|(_, _, name)| *name).collect();
                return Err(format!(
                    "{}, hybrid, or hybrid:PATTERN such as hybrid:{HYBRID}",
                    names.join(", ")
                ));
            }
        };
        match (Mixing { pattern: pattern.clone(), ..Mixing::default() }).problem() {
            Some(expected) => Err(format!("behind \"hybrid:\" {expected}")),
            None => Ok(pattern),
        }
    }

    /// The name of the command line for the mixers of `layers` blocks, the other way round.
    pub fn name(&self, layers: usize) -> String {
        let mut kinds =
            LETTERS.into_iter().filter(|(_, kind, _)| self.letters(layers).any(|own| own == *kind));
        match (kinds.next(), kinds.next()) {
            (Some((_, _, name)), None) => name.to_string(),
            _ => format!("hybrid:{}", self.pattern),
        }
    }

    /// The kinds of the first `layers` blocks; unknown letters, which `Config::check` refuses, are left out.
    pub(crate) fn letters(&self, layers: usize) -> impl Iterator<Item = Letter> + '_ {
        self.pattern.chars().filter_map(Letter::of).cycle().take(layers)
    }

    /// Whether all of the first `layers` blocks are of this kind.
    pub fn is_all(&self, letter: Letter, layers: usize) -> bool {
        self.letters(layers).all(|own| own == letter)
    }

    /// Whether attention is as in a Llama.
    pub(crate) fn is_plain(&self) -> bool {
        self.positions == Positions::Rotary && self.window.is_none()
    }

    /// Whether one of the first `layers` blocks is of this kind.
    pub fn has(&self, letter: Letter, layers: usize) -> bool {
        self.letters(layers).any(|own| own == letter)
    }

    /// What is wrong with the pattern: what was expected.
    pub fn problem(&self) -> Option<String> {
        let unknown = self.pattern.chars().any(|letter| Letter::of(letter).is_none());
        let known: Vec<String> =
            LETTERS.iter().map(|(letter, _, name)| format!("{letter} ({name})")).collect();
        (unknown || self.pattern.is_empty())
            .then(|| format!("one or more of the letters {}", known.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_patterns_stand_for_each_other() {
        for (name, pattern) in
            [("attention", "A"), ("ssm", "S"), ("lstm", "L"), ("s4d", "D"), ("none", "N"), ("hybrid", HYBRID)]
        {
            assert_eq!(Mixing::pattern_of(name).unwrap(), pattern);
        }
        assert_eq!(Mixing::pattern_of("hybrid:SA").unwrap(), "SA");
        for wrong in ["", "mamba", "hybrid:", "hybrid:SXA", "SSA"] {
            let message = Mixing::pattern_of(wrong).unwrap_err();
            assert!(message.contains("ssm") && message.contains("attention"), "{wrong}: {message}");
        }
        let named = |pattern: &str| Mixing { pattern: pattern.into(), ..Mixing::default() }.name(4);
        assert_eq!((named("SS").as_str(), named("SA").as_str()), ("ssm", "hybrid:SA"));
        // The attention of the fifth block does not come into being.
        assert_eq!(named("SSSSA"), "ssm");
    }
}
