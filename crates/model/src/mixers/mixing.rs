//! Which mixer each block of a model has, and their shapes.

use serde::{Deserialize, Serialize};

/// A kind of mixer, as a letter of a pattern.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Letter {
    /// `A`
    Attention,
}

impl Letter {
    /// All kinds: letter, kind, and what it is.
    pub const ALL: [(char, Letter, &'static str); 1] = [('A', Letter::Attention, "attention")];

    fn of(letter: char) -> Option<Letter> {
        Letter::ALL.into_iter().find(|(known, _, _)| *known == letter).map(|(_, kind, _)| kind)
    }
}

/// Which mixer each block has, and the shapes that the mixers other than attention have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mixing {
    /// A letter per block, from the first on; begins again where there are more blocks than letters.
    pub pattern: String,
}

impl Default for Mixing {
    fn default() -> Mixing {
        Mixing { pattern: "A".to_string() }
    }
}

impl Mixing {
    /// The kinds of the first `layers` blocks; unknown letters, which `Config::check` refuses, are left out.
    pub(crate) fn letters(&self, layers: usize) -> impl Iterator<Item = Letter> + '_ {
        self.pattern.chars().filter_map(Letter::of).cycle().take(layers)
    }

    /// What is wrong with the pattern: what was expected.
    pub(crate) fn problem(&self) -> Option<String> {
        let known =
            || Letter::ALL.iter().map(|(letter, _, name)| format!("{letter} ({name})")).collect::<Vec<_>>();
        let unknown = self.pattern.chars().any(|letter| Letter::of(letter).is_none());
        (unknown || self.pattern.is_empty())
            .then(|| format!("one or more of the letters {}", known().join(", ")))
    }
}
