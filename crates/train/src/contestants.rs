//! What is compared: mixers by name, in models of matched size.

use serde::{Deserialize, Serialize};
use strata_model::mixers::Letter;
use strata_model::{Config, Positions};

use crate::TrainError;
use crate::plan::{Overrides, shape_of_width};

/// A mixer that takes part in a comparison: a name of the command line, with settings of the recipe behind it where it is
/// not as it comes, such as `attention+positions=alibi` or `hybrid:SSSA+window=128`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Contestant {
    name: String,
    overrides: Overrides,
}

/// Settings that may stand behind a mixer's name.
const SETTINGS: &str = "positions, window, state, state_head_dim, state_groups or s4d_states";

impl Contestant {
    /// As it was written.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings it stands for.
    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// The name as part of a file's name.
    pub fn file_name(&self) -> String {
        let safe = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
        self.name.chars().map(safe).collect()
    }

    /// Blocks without which a part of the pattern would be missing.
    fn least_layers(&self) -> Result<usize, TrainError> {
        Ok(self.overrides.mixing(0)?.pattern.len())
    }

    /// Whether its blocks have no MLP, whose width could be chosen.
    fn is_bare(&self) -> Result<bool, TrainError> {
        let mixing = self.overrides.mixing(0)?;
        Ok(mixing.is_all(Letter::Ssm, mixing.pattern.len()))
    }
}

impl TryFrom<String> for Contestant {
    type Error = TrainError;

    fn try_from(name: String) -> Result<Contestant, TrainError> {
        let wrong = |what: String| TrainError::Request(format!("the mixer \"{name}\": {what}"));
        let mut parts = name.split('+');
        let mixer = parts.next().map(String::from);
        let mut overrides = Overrides { mixer, ..Overrides::default() };
        for setting in parts {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| wrong(format!("expected key=value behind +, found \"{setting}\"")))?;
            let number = || {
                let number = value.parse::<usize>().ok().filter(|number| *number > 0);
                number.ok_or_else(|| wrong(format!("{key}: expected a number above 0, found \"{value}\"")))
            };
            match key {
                "positions" => {
                    overrides.positions = Some(match value {
                        "rotary" => Positions::Rotary,
                        "alibi" => Positions::Alibi,
                        "none" => Positions::None,
                        _ => {
                            let found =
                                format!("positions: expected rotary, alibi or none, found \"{value}\"");
                            return Err(wrong(found));
                        }
                    });
                }
                "window" => overrides.window = Some(number()?),
                "state" => overrides.state = Some(number()?),
                "state_head_dim" => overrides.state_head_dim = Some(number()?),
                "state_groups" => overrides.state_groups = Some(number()?),
                "s4d_states" => overrides.s4d_states = Some(number()?),
                _ => return Err(wrong(format!("expected {SETTINGS} behind +, found \"{key}\""))),
            }
        }
        overrides.mixing(0)?;
        Ok(Contestant { name, overrides })
    }
}

impl From<Contestant> for String {
    fn from(contestant: Contestant) -> String {
        contestant.name
    }
}

/// The size of the models that are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// About so many parameters, embeddings counted.
    Parameters(u64),
    /// As many parameters as an attention model of this width and depth has.
    Shape {
        /// Width of the residual stream.
        width: usize,
        /// Blocks of a mixer and an MLP.
        layers: usize,
    },
}

/// Largest difference of two matched models in parameters, as a fraction.
const MATCHED: f64 = 0.03;
/// The inner layer of a matched model is a multiple of this.
const FFN_STEP: usize = 16;

/// Shapes of the same width and, as nearly as can be, the same number of parameters, in the order of `contestants`. The
/// width is that of an attention model of the size. Where a mixer has MLPs beside it, their inner layer is made as wide
/// as it takes; a model without them (`ssm`) can only have more or fewer blocks, so the others are matched to it.
///
/// # Errors
/// A shape that cannot be, or that cannot be matched within 3 %.
pub fn matched_shapes(
    contestants: &[Contestant],
    size: Size,
    sequence: usize,
    vocab_size: usize,
) -> Result<Vec<Config>, TrainError> {
    let mut least_layers = 1;
    for contestant in contestants {
        least_layers = least_layers.max(contestant.least_layers()?);
    }
    let attention = |width: usize, layers: Option<usize>| {
        let overrides = Overrides { layers, ..Overrides::default() };
        shape_of_width(width, sequence, vocab_size, &overrides)
    };
    match size {
        Size::Shape { width, layers } => {
            let reference = attention(width, Some(layers.max(least_layers)))?;
            let wanted = reference.parameter_count();
            matched_to(contestants, &reference, wanted)
        }
        Size::Parameters(wanted) => {
            let mut candidates = Vec::new();
            for step in 1..=64 {
                let natural = attention(64 * step, None)?;
                candidates.push(attention(64 * step, Some(natural.layers.max(least_layers)))?);
            }
            let distance = |config: &Config| (config.parameter_count() as f64 / wanted as f64).ln().abs();
            candidates.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
            // What one mixer cannot match at the nearest width, it may at a smaller one.
            let mut tried =
                candidates.iter().take(3).map(|shape| matched_to(contestants, shape, wanted as usize));
            let first = tried.next().ok_or_else(|| TrainError::Request("no shape fits".into()))?;
            match first {
                Err(error @ TrainError::Request(_)) => tried.find_map(Result::ok).ok_or(error),
                first => first,
            }
        }
    }
}

/// The contestants' shapes with the width and the blocks of `reference`, each of `wanted` parameters, or of as many as
/// the contestant nearest to that which has whole blocks only.
fn matched_to(
    contestants: &[Contestant],
    reference: &Config,
    mut wanted: usize,
) -> Result<Vec<Config>, TrainError> {
    let mut shapes: Vec<Option<Config>> = vec![None; contestants.len()];
    for (contestant, shape) in contestants.iter().zip(&mut shapes) {
        if contestant.is_bare()? {
            let layers = (reference.layers..=3 * reference.layers)
                .map(|layers| with(contestant, reference, Some(layers), None));
            let bare = nearest(layers, wanted)?;
            wanted = bare.parameter_count();
            *shape = Some(bare);
        }
    }
    for (contestant, shape) in contestants.iter().zip(&mut shapes) {
        if shape.is_none() {
            let widths = (1..=8 * reference.width / FFN_STEP)
                .map(|step| with(contestant, reference, Some(reference.layers), Some(FFN_STEP * step)));
            *shape = Some(nearest(widths, wanted)?);
        }
    }
    let shapes: Vec<Config> = shapes.into_iter().flatten().collect();
    for (contestant, shape) in contestants.iter().zip(&shapes) {
        let found = shape.parameter_count();
        if (found as f64 / wanted as f64 - 1.0).abs() > MATCHED {
            return Err(TrainError::Request(format!(
                "the mixer \"{}\" cannot be matched: its nearest model has {found} parameters and {wanted} were wanted; \
                 ask for other parameters",
                contestant.name
            )));
        }
    }
    Ok(shapes)
}

/// The contestant's shape with the reference's width.
fn with(
    contestant: &Contestant,
    reference: &Config,
    layers: Option<usize>,
    ffn: Option<usize>,
) -> Result<Config, TrainError> {
    let overrides = Overrides { layers, ffn, ..contestant.overrides.clone() };
    let shape = shape_of_width(reference.width, reference.max_positions, reference.vocab_size, &overrides)?;
    shape.check(std::path::Path::new(&format!("the mixer {}", contestant.name)))?;
    Ok(shape)
}

fn nearest(
    shapes: impl Iterator<Item = Result<Config, TrainError>>,
    parameters: usize,
) -> Result<Config, TrainError> {
    let shapes = shapes.collect::<Result<Vec<Config>, TrainError>>()?;
    let best = shapes.into_iter().min_by_key(|shape| shape.parameter_count().abs_diff(parameters));
    best.ok_or_else(|| TrainError::Request("no shape fits".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contestant(name: &str) -> Contestant {
        Contestant::try_from(name.to_string()).unwrap()
    }

    #[test]
    fn matched_models_differ_by_a_step_of_the_inner_layer_at_most() {
        let names = ["attention", "ssm", "s4d", "hybrid:SSSA", "lstm", "none", "attention+positions=alibi"];
        let contestants: Vec<Contestant> = names.map(contestant).to_vec();
        for wanted in [2_000_000, 5_000_000, 20_000_000u64] {
            let shapes = matched_shapes(&contestants, Size::Parameters(wanted), 512, 4096).unwrap();
            let counts: Vec<usize> = shapes.iter().map(Config::parameter_count).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            // Each is within half a step of the inner layer of what was wanted.
            let step = FFN_STEP * 3 * shapes[0].width * shapes[0].layers;
            assert!(most - least <= step, "{counts:?}");
            // Blocks of ssm alone come whole: half of one is the most that the size may miss by.
            assert!((0.85..1.15).contains(&(counts[0] as f64 / wanted as f64)), "{counts:?}");
            assert!(shapes.iter().all(|shape| shape.width == shapes[0].width));
        }
        // Four blocks of an LSTM and a vocabulary of 4,096 take more.
        let error = matched_shapes(&contestants, Size::Parameters(1_000_000), 512, 4096).unwrap_err();
        assert!(error.to_string().contains("\"lstm\" cannot be matched"), "{error}");
    }

    #[test]
    fn a_pattern_is_never_cut_short() {
        let shapes =
            matched_shapes(&[contestant("hybrid:SSSA")], Size::Shape { width: 64, layers: 2 }, 128, 130)
                .unwrap();
        assert_eq!(shapes[0].layers, 4);
        assert!(shapes[0].heads > 0);
    }

    #[test]
    fn settings_stand_behind_the_name() {
        let alibi = contestant("attention+positions=alibi+window=7");
        assert_eq!((alibi.overrides.positions, alibi.overrides.window), (Some(Positions::Alibi), Some(7)));
        assert_eq!(alibi.file_name(), "attention-positions-alibi-window-7");
        let refused = |name: &str| Contestant::try_from(name.to_string()).unwrap_err().to_string();
        assert!(refused("mamba").contains("attention, ssm"));
        assert!(refused("hybrid:SQ").contains("S (ssm)"));
        assert!(refused("attention+alibi").contains("key=value"));
        assert!(refused("attention+width=3").contains("positions, window"));
        assert!(refused("attention+window=0").contains("above 0"));
        assert!(refused("attention+positions=polar").contains("alibi"));
        assert!(refused("ssm+window=5").contains("attention"));
        let state = [contestant("ssm+state_head_dim=48")];
        let message = matched_shapes(&state, Size::Parameters(1_000_000), 512, 4096).unwrap_err().to_string();
        assert!(message.contains("head_dim") && message.contains("divisor"), "{message}");
    }
}
