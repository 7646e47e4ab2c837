//! The model's shape: widths, what they cost, and which of them suits a budget.

use strata_model::Config;
use strata_model::mixers::{Kind, Letter};

use super::{Decisions, Dial, Facts, Overrides, TOKENS_PER_PARAMETER};
use crate::TrainError;

/// Passes over the same data that teach almost as much as new data would (Muennighoff et al. 2023, "Scaling
/// Data-Constrained Language Models").
pub(super) const USEFUL_EPOCHS: f64 = 4.0;
/// Nats per token that e times too many passes count as; a house rule, so that the dial bends and does not break.
const REPEAT_PENALTY: f64 = 0.5;
/// From this width on, the head has a table of its own. Small models learn sooner to repeat what they read with one
/// table for both ends (measured on the sample world: 0.11 nats per answer token at width 128), and save its weights.
const UNTIED_WIDTH: usize = 1024;

/// Vocabulary size for a corpus of `bytes` UTF-8 bytes: distinct words grow about as the square root of the
/// text (Heaps' law), so the nearest power of two to that, from 1,024 to 32,768.
pub fn vocab_size(bytes: u64) -> usize {
    let power = ((bytes.max(1) as f64).sqrt().log2().round() as u32).clamp(10, 15);
    1 << power
}

/// Weights that take part in matrix products, the head included and the embedding (a lookup) not.
pub fn matmul_parameters(config: &Config) -> f64 {
    let weights = config.mixers().into_iter().flat_map(|mixer| mixer.weights());
    let projections = weights.filter(|weight| weight.kind == Kind::Projection);
    let mixers: usize = projections.map(|weight| weight.shape.0 * weight.shape.1).sum();
    (mixers + config.layers * 3 * config.width * config.ffn + config.vocab_size * config.width) as f64
}

/// Floating-point operations of training on one token: 6 per weight, and three times (once forward, twice backward) what
/// the mixers compute beyond them in sequences of that length.
pub fn flops_per_token(config: &Config, sequence: usize) -> f64 {
    let mixing: f64 = config.mixers().iter().map(|mixer| mixer.flops(sequence)).sum();
    6.0 * matmul_parameters(config) + 3.0 * mixing
}

/// Loss in nats per token that `parameters` trained on `tokens`, of which `unique` are different, come to:
/// the parametric fit of Hoffmann et al. 2022 with the effective parameters and data of Muennighoff et al.
/// 2023, equations 5 and 6 (with one parameter per different token as what the data can fill). Used to compare shapes; its absolute value belongs to other corpora.
pub fn predicted_loss(parameters: f64, tokens: f64, unique: f64) -> f64 {
    // Each repeat of data (each parameter beyond what the data can fill) is worth less than the one before.
    let effective = |value: f64, base: f64, scale: f64| {
        let base = base.min(value);
        base + base * scale * (1.0 - (-(value / base - 1.0) / scale).exp())
    };
    let data = effective(tokens, unique, 15.4);
    let size = effective(parameters, unique, 5.3);
    1.69 + 406.4 / size.powf(0.34) + 410.7 / data.powf(0.28)
}

/// Heads are 64 wide, and narrower in narrow models.
pub(super) fn head_width(width: usize) -> usize {
    if width < 256 { 32 } else { 64 }
}

/// The shape of a width: depth grows with it, heads are 64 wide (32 below width 256), the inner layer is 8/3 as wide,
/// which gives SwiGLU's three matrices the weights of a plain layer's two (Shazeer 2020). Blocks of state-space mixers
/// alone have no inner layer; there are twice as many of them, which gives the same number of weights.
///
/// # Errors
/// As [`Overrides::mixing`], and heads for a model without attention.
pub fn shape_of_width(
    width: usize,
    sequence: usize,
    vocab_size: usize,
    overrides: &Overrides,
) -> Result<Config, TrainError> {
    let width = overrides.width.unwrap_or(width);
    let mixing = overrides.mixing(width)?;
    let all = mixing.pattern.len();
    let bare = mixing.is_all(Letter::Ssm, all) && overrides.ffn.is_none_or(|ffn| ffn == 0);
    let blocks = if bare { (width / 32).clamp(4, 48) } else { (width / 64).clamp(2, 24) };
    let layers = overrides.layers.unwrap_or(blocks);
    let attends = mixing.has(Letter::Attention, layers);
    if !attends && (overrides.heads.is_some() || overrides.kv_heads.is_some()) {
        let name = mixing.name(layers);
        return Err(TrainError::Request(format!(
            "heads and kv_heads are those of attention, and the mixer {name} has none; leave them out \
             (state-space heads are set by state_head_dim)"
        )));
    }
    let heads = match overrides.heads {
        Some(heads) => heads,
        None if attends => (width / head_width(width)).max(1),
        None => 0,
    };
    Ok(Config {
        vocab_size,
        width,
        layers,
        heads,
        kv_heads: overrides.kv_heads.unwrap_or(heads),
        head_dim: if attends { (width / heads.max(1)).max(2) } else { 0 },
        ffn: overrides.ffn.unwrap_or(if bare { 0 } else { (width * 8 / 3).next_multiple_of(64) }),
        max_positions: sequence,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: overrides.tied.unwrap_or(width < UNTIED_WIDTH),
        bos: None,
        eos: Vec::new(),
        mixing,
    })
}

/// The shape that suits the dial, or is asked for.
pub(super) fn choose_shape(
    dial: Dial,
    facts: Facts,
    compute: f64,
    sequence: usize,
    overrides: &Overrides,
    decisions: &mut Decisions,
) -> Result<Config, TrainError> {
    let candidates = (1..=64)
        .map(|step| shape_of_width(64 * step, sequence, facts.vocab_size, overrides))
        .collect::<Result<Vec<Config>, TrainError>>()?;
    let distance = |config: &Config| match (dial.parameters, dial.seconds) {
        (Some(wanted), _) => (config.parameter_count() as f64 / wanted as f64).ln().abs(),
        (None, Some(_)) => {
            let tokens = compute / flops_per_token(config, sequence);
            let loss = predicted_loss(matmul_parameters(config), tokens, facts.corpus_tokens as f64);
            // The fit comes from corpora too large to be learnt by heart; here, a larger model is the better
            // use of time than more passes than are useful.
            loss + REPEAT_PENALTY * (tokens / facts.corpus_tokens as f64 / USEFUL_EPOCHS).max(1.0).ln()
        }
        (None, None) => {
            let tokens = dial.tokens.unwrap_or(0) as f64;
            (matmul_parameters(config) * TOKENS_PER_PARAMETER / tokens.max(1.0)).ln().abs()
        }
    };
    let best = candidates.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let shape = best.cloned().ok_or_else(|| TrainError::Request("no shape fits".into()))?;
    if !shape.width.is_multiple_of(shape.heads.max(1)) {
        let reason =
            format!("{} heads do not divide the width {}; change one of them", shape.heads, shape.width);
        return Err(TrainError::Request(reason));
    }
    shape.check(std::path::Path::new("the plan"))?;
    let given = dial.parameters.is_some() || overrides.width.is_some();
    decisions.add("parameters", shape.parameter_count(), given, || match dial.seconds {
        Some(_) => format!("lowest predicted loss for {compute:.1e} operations on this corpus"),
        None => format!("one per {TOKENS_PER_PARAMETER} tokens"),
    });
    decisions.add("width", shape.width, overrides.width.is_some(), || "gives these parameters".to_string());
    decisions.add("layers", shape.layers, overrides.layers.is_some(), || match shape.ffn {
        0 => "two per 64 of width, from 4 to 48: blocks without an inner layer are half as large".to_string(),
        _ => "one per 64 of width, from 2 to 24".to_string(),
    });
    if shape.heads > 0 {
        decisions
            .add("heads", shape.heads, overrides.heads.is_some(), || format!("each {} wide", shape.head_dim));
    }
    decisions.add("ffn", shape.ffn, overrides.ffn.is_some(), || match shape.ffn {
        0 => "the state-space mixer gates its values itself".to_string(),
        _ => "8/3 of the width".to_string(),
    });
    Ok(shape)
}
