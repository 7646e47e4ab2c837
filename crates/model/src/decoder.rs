//! The decoder: embedding, blocks of a sequence mixer and SwiGLU with pre-normalisation, output head. With attention
//! it is a `LlamaForCausalLM` on disk; in memory, matrices that read the same input are one (`qkv`, `gate_up`).

use crate::mixers::{AnyMixer, Kind, Start};
use crate::{Config, ModelError, NamedTensor, folder};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use strata_tensor::{Cpu, Layout, ParameterId, Parameters};

/// The parameters of one block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// `None` where the mixer has no weights: the block then mixes nothing.
    pub mixer_norm: Option<ParameterId>,
    pub mixer: Vec<ParameterId>,
    /// `None` where the model has no MLPs.
    pub mlp: Option<Mlp>,
}

/// The parameters of a block's MLP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mlp {
    pub norm: ParameterId,
    pub gate_up: ParameterId,
    pub down: ParameterId,
}

/// A decoder: its shape and its weights.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub(crate) config: Config,
    pub(crate) mixers: Vec<Arc<dyn AnyMixer>>,
    pub(crate) parameters: Parameters,
    pub(crate) embedding: ParameterId,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: ParameterId,
    pub(crate) head: ParameterId,
}

/// Where a Hugging Face tensor lies: a run of rows of one of our matrices.
struct Place {
    name: String,
    shape: Vec<usize>,
    parameter: ParameterId,
    start: usize,
}

impl Decoder {
    /// A decoder whose matrices are all zero and whose vectors hold what they begin with.
    fn blank(config: &Config, mixers: Vec<Arc<dyn AnyMixer>>) -> Result<Decoder, ModelError> {
        config.check(Path::new("config.json"))?;
        let mut layout = Layout::new();
        let width = config.width;
        let embedding = match config.tied {
            true => layout.matrix(config.vocab_size, width),
            false => layout.table(config.vocab_size, width),
        };
        let mut starts = Vec::new();
        let mut blocks = Vec::with_capacity(mixers.len());
        for mixer in &mixers {
            let weights = mixer.weights();
            let mixer_norm = (!weights.is_empty()).then(|| layout.vector(width));
            let add = |weight: &crate::mixers::Weight| match weight.kind {
                Kind::Projection => layout.matrix(weight.shape.0, weight.shape.1),
                Kind::Table => layout.table(weight.shape.0, weight.shape.1),
                Kind::Vector => layout.vector(weight.shape.1),
            };
            let mixer: Vec<ParameterId> = weights.iter().map(add).collect();
            starts.extend(mixer.iter().copied().zip(weights.into_iter().map(|weight| weight.start)));
            let mlp = (config.ffn > 0).then(|| Mlp {
                norm: layout.vector(width),
                gate_up: layout.matrix(2 * config.ffn, width),
                down: layout.matrix(width, config.ffn),
            });
            blocks.push(Block { mixer_norm, mixer, mlp });
        }
        let norm = layout.vector(width);
        let head = if config.tied { embedding } else { layout.matrix(config.vocab_size, width) };
        let mut parameters = Parameters::zeros(layout);
        let gains = blocks.iter().flat_map(|b| [b.mixer_norm, b.mlp.map(|mlp| mlp.norm)]);
        for gain in gains.flatten().chain([norm]) {
            parameters.get_mut(gain).fill(1.0);
        }
        for (id, start) in starts {
            match start {
                Start::Fill(value) => parameters.get_mut(id).fill(value),
                Start::Values(values) => parameters.get_mut(id).copy_from_slice(&values),
                Start::Normal | Start::Residual => {}
            }
        }
        Ok(Decoder { config: config.clone(), mixers, parameters, embedding, blocks, norm, head })
    }

    /// A decoder with random weights: normal with deviation `1 / sqrt(inputs)` halved, matrices that write into the
    /// residual stream divided by `sqrt(2 · layers)` so that its size does not grow with depth (as GPT-2 does).
    ///
    /// # Errors
    /// [`ModelError::Field`] where the configuration does not fit together.
    pub fn new(config: &Config, seed: u64) -> Result<Decoder, ModelError> {
        config.check(Path::new("config.json"))?;
        Decoder::with_mixers(config, config.mixers(), seed)
    }

    /// As [`Decoder::new`], with mixers of the caller's in the blocks, one for each: for trying out what no letter of a
    /// pattern stands for yet.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn with_mixers(
        config: &Config,
        mixers: Vec<Arc<dyn AnyMixer>>,
        seed: u64,
    ) -> Result<Decoder, ModelError> {
        let mut decoder = Decoder::blank(config, mixers)?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let residual = 1.0 / (2.0 * config.layers as f32).sqrt();
        let deviation = |inputs: usize| 0.5 / (inputs as f32).sqrt();
        let mut fill = |parameters: &mut Parameters, id: ParameterId, deviation: f32| {
            for value in parameters.get_mut(id) {
                *value = deviation * normal(&mut random);
            }
        };
        let width = config.width;
        fill(&mut decoder.parameters, decoder.embedding, deviation(width));
        for (block, mixer) in decoder.blocks.iter().zip(&decoder.mixers) {
            for (&id, weight) in block.mixer.iter().zip(mixer.weights()) {
                match weight.start {
                    Start::Normal => fill(&mut decoder.parameters, id, deviation(weight.shape.1)),
                    Start::Residual => {
                        fill(&mut decoder.parameters, id, deviation(weight.shape.1) * residual);
                    }
                    Start::Fill(_) | Start::Values(_) => {}
                }
            }
            if let Some(mlp) = block.mlp {
                fill(&mut decoder.parameters, mlp.gate_up, deviation(width));
                fill(&mut decoder.parameters, mlp.down, deviation(config.ffn) * residual);
            }
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
        config.check(Path::new("config.json"))?;
        let mut decoder = Decoder::blank(config, config.mixers())?;
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
        let mut parameters = vec![self.embedding];
        for (block, mixer) in self.blocks.iter().zip(&self.mixers) {
            parameters.extend(block.mixer_norm);
            for (&id, weight) in block.mixer.iter().zip(mixer.weights()) {
                parameters.extend(weight.tensors.iter().map(|_| id));
            }
            parameters
                .extend(block.mlp.iter().flat_map(|mlp| [mlp.norm, mlp.gate_up, mlp.gate_up, mlp.down]));
        }
        parameters.extend([self.norm, self.head]);
        let (mut last, mut next) = (None, 0);
        // The tied head has no tensor, so it is left over.
        let tensors = self.config.tensors_with(&self.mixers);
        let place = |((name, shape), parameter): ((String, Vec<usize>), ParameterId)| {
            // The parts of a joined matrix follow each other.
            let start = if last == Some(parameter) { next } else { 0 };
            (last, next) = (Some(parameter), start + shape.iter().product::<usize>());
            Place { name, shape, parameter, start }
        };
        tensors.into_iter().zip(parameters).map(place).collect()
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
}

/// A standard normal number (Box and Muller, 1958).
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    let angle = 2.0 * std::f64::consts::PI * random.random::<f64>();
    (radius * angle.cos()) as f32
}
