//! What a person may say beside the dial.

use serde::{Deserialize, Serialize};
use strata_model::mixers::Letter;
use strata_model::{Mixing, Positions};

use super::shape::head_width;
use crate::{Decay, TrainError};

/// What a person may set in a TOML file over the dial's choices; what is left out follows from the dial.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of Config and Recipe, where they are described")]
pub struct Overrides {
    /// The sequence mixer by its name on the command line; see [`Mixing::pattern_of`].
    pub mixer: Option<String>,
    /// A letter per block, in place of the mixer's own; see [`Mixing::pattern`].
    pub pattern: Option<String>,
    /// How attention knows where tokens are: "rotary", "alibi" or "none".
    pub positions: Option<Positions>,
    /// Tokens that a token sees by attention; see [`Mixing::window`].
    pub window: Option<usize>,
    /// State per element of a state-space head; see [`strata_model::SsmShape::state`].
    pub state: Option<usize>,
    /// Width of a state-space head; see [`strata_model::SsmShape::head_dim`].
    pub state_head_dim: Option<usize>,
    /// Groups of state-space heads; see [`strata_model::SsmShape::groups`].
    pub state_groups: Option<usize>,
    /// State per channel of the diagonal layer; see [`Mixing::s4d_states`].
    pub s4d_states: Option<usize>,
    pub vocab_size: Option<usize>,
    pub width: Option<usize>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub kv_heads: Option<usize>,
    pub ffn: Option<usize>,
    pub tied: Option<bool>,
    pub sequence: Option<usize>,
    pub rows: Option<usize>,
    pub accumulation: Option<usize>,
    pub learning_rate: Option<f64>,
    pub warmup: Option<f64>,
    pub decay: Option<Decay>,
    pub floor: Option<f64>,
    pub weight_decay: Option<f64>,
    /// AdamW's second averaging factor; see [`betas`](crate::Recipe::betas).
    pub beta2: Option<f64>,
    pub clip: Option<f64>,
}

impl Overrides {
    /// Checks what no run could begin with; whether shapes fit together is checked where the model is known.
    ///
    /// # Errors
    /// A number outside its range, with the range.
    pub fn check(&self) -> Result<(), TrainError> {
        let counts = [
            ("vocab_size", self.vocab_size),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("sequence", self.sequence),
            ("rows", self.rows),
            ("accumulation", self.accumulation),
        ];
        if let Some((field, _)) = counts.iter().find(|(_, count)| *count == Some(0)) {
            return Err(TrainError::Request(format!("{field} = 0: expected 1 or more")));
        }
        let positive = |value: f64| value > 0.0;
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        let numbers = [
            (
                "learning_rate",
                self.learning_rate,
                "a number above 0",
                self.learning_rate.is_none_or(positive),
            ),
            (
                "warmup",
                self.warmup,
                "a fraction of the run, from 0 to below 1",
                self.warmup.is_none_or(fraction),
            ),
            (
                "floor",
                self.floor,
                "a fraction of the peak, from 0 to 1",
                self.floor.is_none_or(|floor| floor == 1.0 || fraction(floor)),
            ),
            (
                "weight_decay",
                self.weight_decay,
                "0 or more",
                self.weight_decay.is_none_or(|decay| decay >= 0.0),
            ),
            ("beta2", self.beta2, "a number from 0 to below 1", self.beta2.is_none_or(fraction)),
            ("clip", self.clip, "a number above 0", self.clip.is_none_or(positive)),
        ];
        for (field, value, expected, fits) in numbers {
            if let Some(value) = value.filter(|value| !value.is_finite() || !fits) {
                return Err(TrainError::Request(format!("{field} = {value}: expected {expected}")));
            }
        }
        Ok(())
    }

    /// What is to mix the sequence in a model of `width`.
    ///
    /// # Errors
    /// A mixer that does not exist, or a pattern of unknown letters.
    pub fn mixing(&self, width: usize) -> Result<Mixing, TrainError> {
        let wrong = |field: &str, found: &str, expected: String| {
            TrainError::Request(format!("{field} = \"{found}\": expected {expected}"))
        };
        let mut mixing = Mixing::default();
        if let Some(name) = &self.mixer {
            mixing.pattern = Mixing::pattern_of(name).map_err(|expected| wrong("mixer", name, expected))?;
        }
        if let Some(pattern) = &self.pattern {
            mixing.pattern = pattern.clone();
            if let Some(expected) = mixing.problem() {
                return Err(wrong("pattern", pattern, expected));
            }
        }
        // A model of one mixer is written without its pattern, and shapes only where they are used.
        if let Some(letter) = mixing.pattern.chars().next()
            && mixing.pattern.chars().all(|other| other == letter)
        {
            mixing.pattern = letter.to_string();
        }
        if mixing.has(Letter::Attention, mixing.pattern.len()) {
            mixing.positions = self.positions.unwrap_or(mixing.positions);
            mixing.window = self.window;
        } else if self.positions.is_some() || self.window.is_some() {
            let reason =
                "positions and window are those of attention, and this mixer has none; leave them out";
            return Err(TrainError::Request(reason.into()));
        }
        if mixing.has(Letter::S4d, mixing.pattern.len()) {
            mixing.s4d_states = self.s4d_states.unwrap_or(mixing.s4d_states);
        }
        if !mixing.has(Letter::Ssm, mixing.pattern.len()) {
            return Ok(mixing);
        }
        let ssm = &mut mixing.ssm;
        ssm.state = self.state.unwrap_or(ssm.state);
        ssm.groups = self.state_groups.unwrap_or(ssm.groups);
        let widest = head_width(width);
        let fits = |head_dim: &usize| (ssm.expand * width).is_multiple_of(*head_dim);
        let head_dim = std::iter::successors(Some(widest), |size| Some(size / 2)).find(fits).unwrap_or(1);
        ssm.head_dim = self.state_head_dim.unwrap_or(head_dim);
        Ok(mixing)
    }
}
