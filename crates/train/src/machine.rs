//! The machine that trains, and the decoder as something that learns.

use std::time::Instant;

use strata_data::Batch;
use strata_model::{Config, Decoder, Mixing, NamedTensor, Training};
use strata_tensor::{AdamW, Cpu, OptimizerState, Precision};

use crate::plan::{Overrides, Recipe, flops_per_token, shape_of_width};
use crate::{Learner, Moments, TrainError};

/// Where training happens and in which precision.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Threads and instruction set.
    pub cpu: Cpu,
    /// Precision of activations and matrix products; weights and optimiser are f32 always.
    pub precision: Precision,
}

impl Machine {
    /// Floating-point operations per second that training reaches here with these mixers: a few steps of a model as a
    /// short run makes it, about a second.
    ///
    /// # Errors
    /// The model cannot be built.
    pub fn training_rate(&self, mixing: &Mixing) -> Result<f64, TrainError> {
        let (sequence, rows, vocab_size) = (256, 2 * self.cpu.threads(), 2048);
        let mixers = Overrides { pattern: Some(mixing.pattern.clone()), ..Overrides::default() };
        let config = shape_of_width(256, sequence, vocab_size, &mixers)?;
        let flops = (rows * sequence) as f64 * flops_per_token(&config, sequence);
        let mut learner =
            Training::new(Decoder::new(&config, 0)?, self.cpu.clone(), self.precision, AdamW::default());
        let tokens: Vec<u32> = (0..rows * sequence).map(|i| (i * 7919 % vocab_size) as u32).collect();
        let batch = Batch {
            targets: tokens.clone(),
            weights: vec![1.0; tokens.len()],
            starts: (0..rows).map(|row| (row * sequence) as u32).collect(),
            bytes: 0,
            tokens,
        };
        // The first step allocates; the fastest of the others is the machine's, the rest is disturbance.
        let mut fastest = f64::INFINITY;
        let began = Instant::now();
        for step in 0..4 {
            let started = Instant::now();
            Learner::loss_and_gradients(&mut learner, &batch, batch.tokens.len() as f32)?;
            Learner::optimizer_step(&mut learner, 1e-4, 1.0);
            if step > 0 {
                fastest = fastest.min(started.elapsed().as_secs_f64());
            }
            if step > 0 && began.elapsed().as_secs_f64() > 2.0 {
                break;
            }
        }
        Ok(flops / fastest.max(1e-9))
    }
}

impl Machine {
    /// Makes `decoder` ready to be trained here with the optimiser of `recipe`.
    pub fn training(&self, decoder: Decoder, recipe: &Recipe) -> Training {
        let optimizer = AdamW {
            betas: (recipe.betas.0 as f32, recipe.betas.1 as f32),
            epsilon: 1e-8,
            weight_decay: recipe.weight_decay as f32,
        };
        Training::new(decoder, self.cpu.clone(), self.precision, optimizer)
    }
}

fn view(batch: &Batch) -> strata_model::Batch<'_> {
    strata_model::Batch {
        tokens: &batch.tokens,
        targets: &batch.targets,
        weights: &batch.weights,
        starts: &batch.starts,
    }
}

impl Learner for Training {
    fn config(&self) -> &Config {
        self.decoder().config()
    }
    fn loss_and_gradients(&mut self, batch: &Batch, normalizer: f32) -> Result<f64, TrainError> {
        Ok(Training::loss_and_gradients(self, view(batch), normalizer)?)
    }
    fn loss(&mut self, batch: &Batch) -> Result<f64, TrainError> {
        Ok(Training::loss(self, view(batch))?)
    }
    fn gradient_norm(&self) -> f64 {
        Training::gradient_norm(self)
    }
    fn optimizer_step(&mut self, learning_rate: f64, gradient_scale: f64) {
        Training::optimizer_step(self, learning_rate as f32, gradient_scale as f32);
    }
    fn flops_per_token(&self, sequence: usize) -> f64 {
        flops_per_token(self.decoder().config(), sequence)
    }
    fn tensors(&self) -> Vec<NamedTensor> {
        self.decoder().tensors()
    }
    fn moments(&self) -> Moments {
        let OptimizerState { step, first, second } = self.optimizer_state().clone();
        Moments { step, first, second }
    }
    fn restore(&mut self, tensors: Vec<NamedTensor>, moments: Moments) -> Result<(), TrainError> {
        self.decoder_mut().set_tensors(tensors)?;
        let Moments { step, first, second } = moments;
        Ok(self.set_optimizer_state(OptimizerState { step, first, second })?)
    }
}
