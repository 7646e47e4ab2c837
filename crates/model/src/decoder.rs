//! The decoder: embedding, blocks of attention and SwiGLU with pre-normalisation, output head. On disk it is a
//! `LlamaForCausalLM`; in memory, matrices that read the same input are one (`qkv`, `gate_up`).

use crate::{Config, ModelError, NamedTensor, folder};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use strata_tensor::{Cpu, Heads, Layout, ParameterId, Parameters, RotaryTable};

/// The parameters of one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub attention_norm: ParameterId,
    pub qkv: ParameterId,
    pub output: ParameterId,
    pub mlp_norm: ParameterId,
    pub gate_up: ParameterId,
    pub down: ParameterId,
}

/// A decoder: its shape and its weights.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub(crate) config: Config,
    pub(crate) parameters: Parameters,
    pub(crate) embedding: ParameterId,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: ParameterId,
    pub(crate) head: ParameterId,
    pub(crate) rotary: Arc<RotaryTable>,
}

/// Where a Hugging Face tensor lies: a run of rows of one of our matrices.
struct Place {
    name: String,
    shape: Vec<usize>,
    parameter: ParameterId,
    start: usize,
}

impl Decoder {
    /// A decoder whose weights are all zero, except the gains of the norms, which are one.
    fn blank(config: &Config) -> Result<Decoder, ModelError> {
        config.check(Path::new("config.json"))?;
        let mut layout = Layout::new();
        let (width, heads) = (config.width, heads(config));
        let embedding = match config.tied {
            true => layout.matrix(config.vocab_size, width),
            false => layout.table(config.vocab_size, width),
        };
        let blocks: Vec<Block> = (0..config.layers)
            .map(|_| Block {
                attention_norm: layout.vector(width),
                qkv: layout.matrix(heads.row(), width),
                output: layout.matrix(width, heads.query_row()),
                mlp_norm: layout.vector(width),
                gate_up: layout.matrix(2 * config.ffn, width),
                down: layout.matrix(width, config.ffn),
            })
            .collect();
        let norm = layout.vector(width);
        let head = if config.tied { embedding } else { layout.matrix(config.vocab_size, width) };
        let mut parameters = Parameters::zeros(layout);
        for gain in blocks.iter().flat_map(|b| [b.attention_norm, b.mlp_norm]).chain([norm]) {
            parameters.get_mut(gain).fill(1.0);
        }
        let rotary = Arc::new(RotaryTable::new(&rotary_frequencies(config), config.max_positions));
        Ok(Decoder { config: config.clone(), parameters, embedding, blocks, norm, head, rotary })
    }

    /// A decoder with random weights: normal with deviation `1 / sqrt(inputs)` halved, matrices that write into the
    /// residual stream divided by `sqrt(2 · layers)` so that its size does not grow with depth (as GPT-2 does).
    ///
    /// # Errors
    /// [`ModelError::Field`] where the configuration does not fit together.
    pub fn new(config: &Config, seed: u64) -> Result<Decoder, ModelError> {
        let mut decoder = Decoder::blank(config)?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let residual = 1.0 / (2.0 * config.layers as f32).sqrt();
        let deviation = |inputs: usize| 0.5 / (inputs as f32).sqrt();
        let mut fill = |parameters: &mut Parameters, id: ParameterId, deviation: f32| {
            for value in parameters.get_mut(id) {
                *value = deviation * normal(&mut random);
            }
        };
        let (width, attended) = (config.width, config.heads * config.head_dim);
        fill(&mut decoder.parameters, decoder.embedding, deviation(width));
        for block in decoder.blocks.clone() {
            fill(&mut decoder.parameters, block.qkv, deviation(width));
            fill(&mut decoder.parameters, block.output, deviation(attended) * residual);
            fill(&mut decoder.parameters, block.gate_up, deviation(width));
            fill(&mut decoder.parameters, block.down, deviation(config.ffn) * residual);
        }
        if !config.tied {
            fill(&mut decoder.parameters, decoder.head, deviation(width));
        }
        Ok(decoder)
    }

    /// The decoder of a Hugging Face folder.
    ///
    /// # Errors
    /// As [`folder::read_model`].
    pub fn load(path: &Path) -> Result<Decoder, ModelError> {
        let (config, tensors) = folder::read_model(path)?;
        Decoder::from_tensors(&config, tensors)
    }

    /// A decoder of the given tensors (Hugging Face names), which must be exactly those of the configuration.
    ///
    /// # Errors
    /// [`ModelError::TensorAbsent`], [`ModelError::TensorShape`], [`ModelError::TensorUnknown`].
    pub fn from_tensors(config: &Config, tensors: Vec<NamedTensor>) -> Result<Decoder, ModelError> {
        let mut decoder = Decoder::blank(config)?;
        decoder.set_tensors(tensors)?;
        Ok(decoder)
    }

    /// Replaces all weights; see [`Decoder::from_tensors`].
    ///
    /// # Errors
    /// As [`Decoder::from_tensors`]; the weights may then be half replaced.
    pub fn set_tensors(&mut self, tensors: Vec<NamedTensor>) -> Result<(), ModelError> {
        let path = || std::path::PathBuf::from("weights");
        let mut given: HashMap<String, NamedTensor> =
            tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        for place in self.places() {
            let Some(tensor) = given.remove(&place.name) else {
                return Err(ModelError::TensorAbsent {
                    path: path(),
                    tensor: place.name,
                    expected: place.shape,
                });
            };
            let count: usize = place.shape.iter().product();
            if tensor.shape != place.shape || tensor.data.len() != count {
                let (expected, found) = (place.shape, tensor.shape);
                return Err(ModelError::TensorShape { path: path(), tensor: place.name, expected, found });
            }
            self.parameters.get_mut(place.parameter)[place.start..place.start + count]
                .copy_from_slice(&tensor.data);
        }
        match given.into_keys().min() {
            Some(tensor) => Err(ModelError::TensorUnknown { path: path(), tensor }),
            None => Ok(()),
        }
    }

    /// All weights under their Hugging Face names, in the order of [`Config::tensors`].
    pub fn tensors(&self) -> Vec<NamedTensor> {
        self.named(self.parameters.values())
    }

    /// A flat buffer in the order of the parameters (weights, gradients) cut into Hugging Face tensors.
    pub fn named(&self, flat: &[f32]) -> Vec<NamedTensor> {
        let layout = self.parameters.layout();
        let cut = |place: Place| {
            let start = layout.range(place.parameter).start + place.start;
            let count: usize = place.shape.iter().product();
            NamedTensor { name: place.name, shape: place.shape, data: flat[start..start + count].to_vec() }
        };
        self.places().into_iter().map(cut).collect()
    }

    fn places(&self) -> Vec<Place> {
        let mut next: HashMap<usize, usize> = HashMap::new();
        self.config
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let parameter = self.parameter_of(&name);
                let key = self.parameters.layout().range(parameter).start;
                let start = next.entry(key).or_default();
                let place = Place { name, parameter, start: *start, shape };
                // The parts of a joined matrix follow each other in the order of the names.
                *start += place.shape.iter().product::<usize>();
                place
            })
            .collect()
    }

    fn parameter_of(&self, name: &str) -> ParameterId {
        let rest = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = rest else {
            return match name {
                "model.embed_tokens.weight" => self.embedding,
                "model.norm.weight" => self.norm,
                _ => self.head,
            };
        };
        let block = &self.blocks[layer.parse::<usize>().unwrap_or(0)];
        match part {
            "input_layernorm.weight" => block.attention_norm,
            "self_attn.o_proj.weight" => block.output,
            "post_attention_layernorm.weight" => block.mlp_norm,
            "mlp.gate_proj.weight" | "mlp.up_proj.weight" => block.gate_up,
            "mlp.down_proj.weight" => block.down,
            _ => block.qkv,
        }
    }

    /// The shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Notes the tokens that begin and end a document.
    pub fn set_special_tokens(&mut self, bos: Option<u32>, eos: Vec<u32>) {
        (self.config.bos, self.config.eos) = (bos, eos);
    }

    /// Number of trainable numbers.
    pub fn parameter_count(&self) -> usize {
        self.parameters.layout().len()
    }

    /// Makes the bf16 copy of the weights that training in bf16 reads.
    pub(crate) fn ensure_half(&mut self, cpu: &Cpu) {
        self.parameters.ensure_half(cpu);
    }

    pub(crate) fn heads(&self) -> Heads {
        heads(&self.config)
    }
}

pub(crate) fn heads(config: &Config) -> Heads {
    Heads { heads: config.heads, key_value_heads: config.kv_heads, dimension: config.head_dim }
}

/// Radians per position of each pair of a head; see [`crate::Llama3Scaling`] for the stretched ones.
pub(crate) fn rotary_frequencies(config: &Config) -> Vec<f64> {
    let half = config.head_dim / 2;
    let plain = (0..half).map(|i| config.rope_theta.powf(-(i as f64) / half as f64));
    let Some(scaling) = config.rope_scaling else { return plain.collect() };
    let original = scaling.original_max_positions as f64;
    plain
        .map(|frequency| {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
            if wavelength > original / low {
                frequency / scaling.factor
            } else if wavelength < original / high {
                frequency
            } else {
                let blend = (original / wavelength - low) / (high - low);
                (1.0 - blend) * frequency / scaling.factor + blend * frequency
            }
        })
        .collect()
}

/// A standard normal number (Box and Muller, 1958).
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    let angle = 2.0 * std::f64::consts::PI * random.random::<f64>();
    (radius * angle.cos()) as f32
}
