//! Continuing token sequences, many at once.

use strata_model::{Inference, Input, ModelError, State, Wanted};
use strata_tensor::Cpu;

use crate::sampler::{NOT_NUMBERS, are_numbers};
use crate::{Sampler, Sampling};

/// When a generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most new tokens.
    pub max_tokens: usize,
    /// Tokens that end a sequence; they are not part of the result.
    pub stop: Vec<u32>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model wrote a stop token.
    Stop,
    /// It wrote as many tokens as allowed, or its context was full.
    Length,
}

/// The continuation of one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, without the stop token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a generation can fail with.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model refused the tokens.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A prompt cannot be continued.
    #[error("prompt {index}: {problem}")]
    Prompt {
        /// Index of the prompt, from 0.
        index: usize,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The model computes nothing of use.
    #[error("{NOT_NUMBERS}")]
    NotNumbers,
}

/// Tokens of prompts that are read in one pass at most, so that memory stays bounded.
const PROMPT_TOKENS: usize = 2048;

struct Sequence {
    index: usize,
    state: State,
    next: u32,
    sampler: Sampler,
    tokens: Vec<u32>,
}

/// Continues every prompt. `each` sees every new token as it comes (index of the prompt, token) and returns
/// whether to go on. Results are in the order of the prompts; a sequence that ends leaves the batch.
///
/// # Errors
/// A prompt is empty or fills the context, or the model refuses a token.
pub fn generate(
    model: &Inference,
    cpu: &Cpu,
    prompts: &[Vec<u32>],
    limits: &Limits,
    sampling: Sampling,
    mut each: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Generated>, GenerateError> {
    let context = model.context();
    for (index, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() || prompt.len() >= context {
            let problem = match prompt.len() {
                0 => "it has no tokens; give some text".to_string(),
                count => format!(
                    "it has {count} tokens, and the model's context of {context} must have room for an answer too; shorten it"
                ),
            };
            return Err(GenerateError::Prompt { index, problem });
        }
    }
    let mut results: Vec<Generated> =
        prompts.iter().map(|_| Generated { tokens: Vec::new(), finish: Finish::Length }).collect();
    if limits.max_tokens == 0 {
        return Ok(results);
    }
    let mut active = read_prompts(model, cpu, prompts, sampling)?;
    let mut going = true;
    while going && !active.is_empty() {
        active.retain_mut(|sequence| {
            let finish = if limits.stop.contains(&sequence.next) {
                Some(Finish::Stop)
            } else {
                sequence.tokens.push(sequence.next);
                going &= each(sequence.index, sequence.next);
                let full = sequence.tokens.len() >= limits.max_tokens || sequence.state.len() + 1 >= context;
                full.then_some(Finish::Length)
            };
            if let Some(finish) = finish {
                results[sequence.index] = Generated { tokens: std::mem::take(&mut sequence.tokens), finish };
            }
            finish.is_none()
        });
        if !going || active.is_empty() {
            break;
        }
        let next: Vec<[u32; 1]> = active.iter().map(|sequence| [sequence.next]).collect();
        let mut inputs: Vec<Input<'_>> = active
            .iter_mut()
            .zip(&next)
            .map(|(sequence, tokens)| Input { state: &mut sequence.state, tokens })
            .collect();
        let mut logits = model.step(cpu, &mut inputs, Wanted::Last)?;
        for (sequence, logits) in active.iter_mut().zip(logits.chunks_exact_mut(model.config().vocab_size)) {
            sequence.next = sequence.sampler.choose(logits);
        }
    }
    for sequence in active {
        results[sequence.index].tokens = sequence.tokens;
    }
    Ok(results)
}

/// Reads all prompts, several per pass, and chooses their first tokens.
fn read_prompts(
    model: &Inference,
    cpu: &Cpu,
    prompts: &[Vec<u32>],
    sampling: Sampling,
) -> Result<Vec<Sequence>, GenerateError> {
    let mut sequences = Vec::with_capacity(prompts.len());
    let mut rest = prompts;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fitting = rest.iter().take_while(|prompt| {
            tokens += prompt.len();
            tokens <= PROMPT_TOKENS
        });
        let count = fitting.count().max(1);
        let (now, later) = rest.split_at(count);
        let mut states: Vec<State> = now.iter().map(|_| model.new_state()).collect();
        let mut inputs: Vec<Input<'_>> =
            states.iter_mut().zip(now).map(|(state, tokens)| Input { state, tokens }).collect();
        let mut logits = model.step(cpu, &mut inputs, Wanted::Last)?;
        for (state, logits) in states.into_iter().zip(logits.chunks_exact_mut(model.config().vocab_size)) {
            let index = sequences.len();
            if !are_numbers(logits) {
                return Err(GenerateError::NotNumbers);
            }
            let mut sampler = Sampler::new(cpu.isa(), sampling, index as u64);
            let next = sampler.choose(logits);
            sequences.push(Sequence { index, state, next, sampler, tokens: Vec::new() });
        }
        rest = later;
    }
    Ok(sequences)
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_model::{Config, Decoder};
    use strata_tensor::Isa;

    fn model() -> Inference {
        let config = Config {
            vocab_size: 32,
            width: 16,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            ffn: 24,
            max_positions: 20,
            norm_epsilon: 1e-5,
            rope_theta: 10000.0,
            rope_scaling: None,
            tied: false,
            bos: None,
            eos: vec![],
            mixing: strata_model::Mixing::default(),
        };
        Inference::new(Decoder::new(&config, 5).unwrap(), &cpu())
    }

    fn cpu() -> Cpu {
        Cpu::new(Isa::best(), 2).unwrap()
    }

    #[test]
    fn a_batch_gives_what_each_prompt_gives_alone() {
        let (model, cpu) = (model(), cpu());
        let prompts = vec![vec![1, 2, 3], vec![4], vec![5, 6, 7, 8, 9]];
        let limits = Limits { max_tokens: 6, stop: vec![] };
        let run = |prompts: &[Vec<u32>]| {
            generate(&model, &cpu, prompts, &limits, Sampling::default(), |_, _| true).unwrap()
        };
        let together = run(&prompts);
        for (prompt, result) in prompts.iter().zip(&together) {
            assert_eq!(run(std::slice::from_ref(prompt))[0], *result);
            assert_eq!((result.tokens.len(), result.finish), (6, Finish::Length));
        }
    }

    #[test]
    fn stop_tokens_end_and_are_left_out() {
        let (model, cpu) = (model(), cpu());
        let prompts = vec![vec![1, 2, 3]];
        let all = Limits { max_tokens: 5, stop: vec![] };
        let tokens = generate(&model, &cpu, &prompts, &all, Sampling::default(), |_, _| true).unwrap();
        let first = tokens[0].tokens[0];
        let limits = Limits { max_tokens: 5, stop: vec![first] };
        let stopped = generate(&model, &cpu, &prompts, &limits, Sampling::default(), |_, _| true).unwrap();
        assert_eq!(stopped[0], Generated { tokens: vec![], finish: Finish::Stop });
    }

    #[test]
    fn the_context_bounds_what_is_written() {
        let (model, cpu) = (model(), cpu());
        let limits = Limits { max_tokens: 1000, stop: vec![] };
        let run =
            |prompt: Vec<u32>| generate(&model, &cpu, &[prompt], &limits, Sampling::default(), |_, _| true);
        assert_eq!(run(vec![1; 18]).unwrap()[0].tokens.len(), 2);
        assert_eq!(run(vec![1; 19]).unwrap()[0].tokens.len(), 1);
        assert!(matches!(run(vec![1; 20]), Err(GenerateError::Prompt { index: 0, .. })));
        assert!(matches!(run(vec![]), Err(GenerateError::Prompt { .. })));
        assert!(matches!(run(vec![99]), Err(GenerateError::Model(_))));
    }

    #[test]
    fn a_listener_can_end_it_and_keeps_what_came() {
        let (model, cpu) = (model(), cpu());
        let limits = Limits { max_tokens: 10, stop: vec![] };
        let mut seen = 0;
        let result = generate(&model, &cpu, &[vec![1]], &limits, Sampling::default(), |_, _| {
            seen += 1;
            seen < 4
        });
        assert_eq!(result.unwrap()[0].tokens.len(), 4);
    }
}
