//! A decoder in training: gradients, optimiser state and buffers beside the weights.

use crate::mixers::{AnyMixer, Whole};
use crate::{Decoder, ModelError};
use strata_tensor::ops::Loss;
use strata_tensor::{Activation, AdamW, Buffers, Cpu, Gradients, OptimizerState, Precision, Tape, Var, bf16};

/// Tokens of one pass, flat: packed segments that do not see each other.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// The token that should follow each.
    pub targets: &'a [u32],
    /// How much each token counts in the loss; 0 leaves it out.
    pub weights: &'a [f32],
    /// Where each segment starts, ascending from 0; the last ends with the tokens.
    pub starts: &'a [u32],
}

/// A decoder with everything that training keeps from step to step.
#[derive(Debug)]
pub struct Training {
    decoder: Decoder,
    cpu: Cpu,
    precision: Precision,
    optimizer: AdamW,
    gradients: Gradients,
    state: OptimizerState,
    buffers: Buffers,
}

impl Training {
    /// Makes a decoder ready for training on `cpu`.
    pub fn new(decoder: Decoder, cpu: Cpu, precision: Precision, optimizer: AdamW) -> Training {
        let gradients = Gradients::zeros(decoder.parameters.layout());
        let (state, buffers) = (OptimizerState::default(), Buffers::new());
        Training { decoder, cpu, precision, optimizer, gradients, state, buffers }
    }

    /// Forward and backward. Gradients of the weighted loss divided by `normalizer` are added to those already
    /// there. Returns the weighted sum of the losses in nats.
    ///
    /// # Errors
    /// [`ModelError::Batch`] where the batch does not fit the model.
    pub fn loss_and_gradients(&mut self, batch: Batch<'_>, normalizer: f32) -> Result<f64, ModelError> {
        check(&self.decoder, batch)?;
        match self.precision {
            Precision::F32 => Ok(self.pass::<f32>(batch, Some(normalizer))),
            Precision::Bf16 => Ok(self.pass::<bf16>(batch, Some(normalizer))),
        }
    }

    /// The weighted sum of the losses in nats, without gradients.
    ///
    /// # Errors
    /// As [`Training::loss_and_gradients`].
    pub fn loss(&mut self, batch: Batch<'_>) -> Result<f64, ModelError> {
        check(&self.decoder, batch)?;
        match self.precision {
            Precision::F32 => Ok(self.pass::<f32>(batch, None)),
            Precision::Bf16 => Ok(self.pass::<bf16>(batch, None)),
        }
    }

    fn pass<E: Precise>(&mut self, batch: Batch<'_>, normalizer: Option<f32>) -> f64 {
        if self.precision == Precision::Bf16 {
            self.decoder.ensure_half(&self.cpu);
        }
        let gradients = normalizer.is_some().then_some(&mut self.gradients);
        let mut tape = Tape::<E>::new(&self.cpu, &self.decoder.parameters, gradients, &mut self.buffers);
        let hidden = forward(&self.decoder, &mut tape, batch.tokens, batch.starts);
        let gradient_scale = 1.0 / normalizer.unwrap_or(1.0);
        let loss = Loss { targets: batch.targets, weights: batch.weights, gradient_scale };
        let total = tape.cross_entropy(hidden, self.decoder.head, loss);
        if normalizer.is_some() {
            tape.backward();
        }
        total
    }

    /// Euclidean norm of all gradients together.
    pub fn gradient_norm(&self) -> f64 {
        self.gradients.norm(&self.cpu)
    }

    /// One optimiser step with the gradients times `gradient_scale`; the gradients are zero afterwards.
    pub fn optimizer_step(&mut self, learning_rate: f32, gradient_scale: f32) {
        let parameters = &mut self.decoder.parameters;
        let (state, gradients) = (&mut self.state, &mut self.gradients);
        self.optimizer.step(&self.cpu, state, parameters, gradients, learning_rate, gradient_scale);
    }

    /// The decoder as it is now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The decoder, to be changed.
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// Ends the training.
    pub fn into_decoder(self) -> Decoder {
        self.decoder
    }

    /// All gradients, flat, in the order of the parameters; [`Decoder::named`] cuts them up.
    pub fn gradients(&self) -> &[f32] {
        self.gradients.values()
    }

    /// The optimiser's state.
    pub fn optimizer_state(&self) -> &OptimizerState {
        &self.state
    }

    /// Puts the optimiser where it was.
    ///
    /// # Errors
    /// [`ModelError::Batch`] where the moments belong to another number of parameters.
    pub fn set_optimizer_state(&mut self, state: OptimizerState) -> Result<(), ModelError> {
        let count = self.decoder.parameter_count();
        for moments in [&state.first, &state.second] {
            if !moments.is_empty() && moments.len() != count {
                let found = moments.len();
                return Err(ModelError::Batch(format!(
                    "optimiser state for {found} parameters, model has {count}"
                )));
            }
        }
        self.state = state;
        Ok(())
    }
}

/// An element type that a mixer behind a pointer can be asked for.
trait Precise: Activation {
    fn mix(mixer: &dyn AnyMixer, tape: &mut Tape<'_, Self>, whole: &Whole<'_>) -> Var;
}

impl Precise for f32 {
    fn mix(mixer: &dyn AnyMixer, tape: &mut Tape<'_, f32>, whole: &Whole<'_>) -> Var {
        mixer.forward_f32(tape, whole)
    }
}

impl Precise for bf16 {
    fn mix(mixer: &dyn AnyMixer, tape: &mut Tape<'_, bf16>, whole: &Whole<'_>) -> Var {
        mixer.forward_bf16(tape, whole)
    }
}

/// The hidden state of every token before the output head.
fn forward<E: Precise>(decoder: &Decoder, tape: &mut Tape<'_, E>, tokens: &[u32], starts: &[u32]) -> Var {
    let epsilon = decoder.config.norm_epsilon;
    let mut residual = tape.embedding(decoder.embedding, tokens);
    for (block, mixer) in decoder.blocks.iter().zip(&decoder.mixers) {
        if let Some(norm) = block.mixer_norm {
            let x = tape.rms_norm(residual, norm, epsilon);
            residual = E::mix(&**mixer, tape, &Whole { weights: &block.mixer, x, residual, starts });
        }
        if let Some(mlp) = block.mlp {
            let normed = tape.rms_norm(residual, mlp.norm, epsilon);
            let gate_up = tape.linear(normed, mlp.gate_up);
            let gated = tape.swiglu(gate_up);
            residual = tape.linear_residual(gated, mlp.down, residual);
        }
    }
    tape.rms_norm(residual, decoder.norm, epsilon)
}

fn check(decoder: &Decoder, batch: Batch<'_>) -> Result<(), ModelError> {
    let n = batch.tokens.len();
    let fail = |reason: String| Err(ModelError::Batch(reason));
    if batch.targets.len() != n || batch.weights.len() != n {
        return fail(format!("{n} tokens, {} targets, {} weights", batch.targets.len(), batch.weights.len()));
    }
    let vocabulary = decoder.config.vocab_size as u32;
    let counted = batch.targets.iter().zip(batch.weights).filter(|(_, w)| **w != 0.0).map(|(t, _)| t);
    if let Some(token) = batch.tokens.iter().chain(counted).find(|&&t| t >= vocabulary) {
        return fail(format!("token {token} is outside the model's vocabulary of {vocabulary}"));
    }
    if n > 0 && batch.starts.first() != Some(&0) {
        return fail("the first segment does not start at 0".into());
    }
    let limit = decoder.mixers.iter().map(|mixer| mixer.context()).min().unwrap_or(usize::MAX);
    let ends = batch.starts.iter().skip(1).copied().chain([n as u32]);
    for (&start, end) in batch.starts.iter().zip(ends) {
        if end < start || (end - start) as usize > limit {
            return fail(format!(
                "a segment from {start} to {end}; segments ascend and hold at most {limit} tokens"
            ));
        }
    }
    Ok(())
}
