//! A lane of the engine, which is a thread: admit, read or write one step for everyone, give out, repeat.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use strata_data::Tokenizer;
use strata_model::{Inference, Input, State, Wanted};
use strata_tensor::Cpu;

use super::prefix::{PrefixCache, common, is_worth};
use super::queue::Queue;
use super::{Counters, Event, Finished, Job, Reason, Settings, Token, Usage};
use crate::sampler::{NOT_NUMBERS, are_numbers, likelihoods};
use crate::{Constraint, Sampler, TextStream};

/// What all lanes of an engine share.
pub(super) struct Shared {
    pub model: Inference,
    pub tokenizer: Tokenizer,
    pub settings: Settings,
    pub counters: Arc<Counters>,
    /// How many lanes there are: each has an equal part of the batch, and of the memory of running sequences.
    pub lanes: usize,
    /// What is kept of finished sequences.
    pub kept: Mutex<PrefixCache>,
    /// Bytes of the running sequences of all lanes.
    pub running_bytes: AtomicUsize,
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, PrefixCache> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    cpu: Cpu,
    queue: Queue,
    running: Vec<Sequence>,
    /// What the counters hold of this lane: running sequences and their bytes.
    counted: (usize, usize),
    /// Memory of every step.
    logits: Vec<f32>,
}

/// A sequence that is being read or written.
struct Sequence {
    job: Job,
    state: State,
    /// The prompt and what was written; the state has seen a beginning of it.
    tokens: Vec<u32>,
    sampler: Sampler,
    text: TextStream,
    /// Tokens of the prompt with their log-probabilities, where these are wanted, until all are known.
    prompt: Option<Vec<Token>>,
    cached: usize,
    ended: bool,
    /// How it ended, where that is of use to anybody. It is told when the state is kept, so that whoever goes on at once finds it.
    end: Option<Event>,
}

impl Sequence {
    fn end(&mut self, event: Event) {
        self.ended = true;
        self.end = Some(event);
    }

    fn written(&self) -> usize {
        self.tokens.len() - self.job.request.prompt.len()
    }

    /// Tokens that the state has not seen.
    fn unseen(&self) -> usize {
        self.tokens.len() - self.state.len()
    }

    /// Whether log-probabilities of the prompt are wanted that are not known yet.
    fn tells_prompt(&self) -> bool {
        self.prompt.is_some()
    }

    /// Notes the log-probabilities of the prompt's tokens that follow those just read, a row of logits for each, and tells them when they
    /// are all.
    ///
    /// # Errors
    /// The model computes no numbers.
    fn note_prompt(&mut self, logits: &[f32], vocabulary: usize) -> Result<(), String> {
        let Some(mut told) = self.prompt.take() else { return Ok(()) };
        if !are_numbers(logits) {
            return Err(NOT_NUMBERS.into());
        }
        let request = &self.job.request;
        let read = self.state.len() - logits.len() / vocabulary;
        let token = |id, log_probability, alternatives| Token {
            id,
            text: String::new(),
            log_probability,
            alternatives,
        };
        if read == 0 {
            told.push(token(request.prompt[0], None, Vec::new()));
        }
        let next = request.prompt.iter().skip(read + 1);
        for (&id, logits) in next.zip(logits.chunks_exact(vocabulary)) {
            let (own, alternatives) = likelihoods(self.sampler.isa(), logits, id, request.log_probabilities);
            told.push(token(id, Some(own), alternatives));
        }
        if told.len() == request.prompt.len() {
            self.job.send(Event::Prompt(told));
        } else {
            self.prompt = Some(told);
        }
        Ok(())
    }
}

impl Worker {
    pub fn new(shared: Arc<Shared>, cpu: Cpu) -> Worker {
        let (queue, running, logits) = (Queue::default(), Vec::new(), Vec::new());
        Worker { shared, cpu, queue, running, counted: (0, 0), logits }
    }

    /// Works until nobody can send requests any more and all are done.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let mut open = true;
        loop {
            while open {
                let idle = self.running.is_empty() && self.queue.is_empty();
                let job =
                    if idle { jobs.recv().map_err(|_| TryRecvError::Disconnected) } else { jobs.try_recv() };
                match job {
                    Ok(job) => self.queue.push(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => open = false,
                }
            }
            self.drop_the_ended();
            self.admit();
            if self.running.is_empty() {
                if !open {
                    return;
                }
                continue;
            }
            self.step();
            if self.shared.lanes > 1 {
                // Lanes never wait, so the connections get a core at once only if it is offered.
                std::thread::yield_now();
            }
        }
    }

    /// Lets go of requests that nobody waits for any more, or whose time is over.
    fn drop_the_ended(&mut self) {
        let now = Instant::now();
        let late = |job: &Job| job.request.deadline.is_some_and(|deadline| now >= deadline);
        for job in self.queue.remove(|job| job.events.is_closed() || late(job)) {
            self.shared.counters.waiting.fetch_sub(1, Relaxed);
            let usage = Usage { prompt_tokens: job.request.prompt.len(), ..Usage::default() };
            let finished = Finished { reason: Reason::Timeout, text: String::new(), usage };
            job.send(Event::Finished(finished));
        }
        for sequence in &mut self.running {
            if sequence.ended {
            } else if sequence.job.events.is_closed() {
                sequence.ended = true;
            } else if late(&sequence.job) {
                finish(sequence, Reason::Timeout, &self.shared.counters);
            }
        }
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].ended {
                // The order stays: it is the order in which prompts are read.
                let Sequence { job, state, mut tokens, end, .. } = self.running.remove(index);
                tokens.truncate(state.len());
                self.shared.kept().keep(job.request.client, tokens, state);
                if let Some(event) = end {
                    job.send(event);
                }
            } else {
                index += 1;
            }
        }
    }

    /// Moves waiting requests into the batch while there is room.
    fn admit(&mut self) {
        let shared = self.shared.clone();
        let Shared { model, settings, counters, .. } = &*shared;
        let needs = |job: &Job| {
            let request = &job.request;
            let tokens = request.prompt.len().saturating_add(request.limits.max_tokens);
            model.state_bytes(tokens.min(model.context()))
        };
        let (batch, bytes) = (settings.batch.div_ceil(shared.lanes), settings.cache_bytes / shared.lanes);
        let mut reserved: usize = self.running.iter().map(|sequence| needs(&sequence.job)).sum();
        while self.running.len() < batch {
            let fits = |job: &Job| reserved == 0 || reserved + needs(job) <= bytes;
            let Some(job) = self.queue.pop(fits) else { break };
            // In this order, so that `is_busy`, which looks the other way round, finds it somewhere.
            counters.running.fetch_add(1, Relaxed);
            self.counted.0 += 1;
            counters.waiting.fetch_sub(1, Release);
            reserved += needs(&job);
            self.start(job);
        }
        let used = self.count();
        let mut kept = shared.kept();
        kept.shrink(settings.cache_bytes.saturating_sub(used));
        counters.cache_bytes.store(used + kept.bytes(), Relaxed);
    }

    /// Brings this lane's part of the counters up to date. Returns the bytes of the running sequences of all lanes.
    fn count(&mut self) -> usize {
        let (running, bytes) = self.counted;
        let used = self.running.iter().map(|sequence| sequence.state.bytes()).sum();
        self.counted = (self.running.len(), used);
        // Sums of atomics wrap around, so that a difference may be negative.
        self.shared.counters.running.fetch_add(self.counted.0.wrapping_sub(running), Relaxed);
        let change = used.wrapping_sub(bytes);
        self.shared.running_bytes.fetch_add(change, Relaxed).wrapping_add(change)
    }

    fn start(&mut self, job: Job) {
        let request = &job.request;
        if request.limits.max_tokens == 0 && !request.prompt_log_probabilities {
            let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
            let finished = Finished { reason: Reason::Length, text: String::new(), usage };
            job.send(Event::Finished(finished));
            return;
        }
        let state = self.known_beginning(&job);
        let cached = state.len();
        let Shared { tokenizer, counters, .. } = &*self.shared;
        counters.prompt_tokens.fetch_add(request.prompt.len() as u64, Relaxed);
        counters.cached_tokens.fetch_add(cached as u64, Relaxed);
        self.running.push(Sequence {
            tokens: request.prompt.clone(),
            sampler: Sampler::new(self.cpu.isa(), request.sampling, job.index as u64),
            text: TextStream::new(tokenizer, &request.stop_strings, request.answer),
            state,
            prompt: request.prompt_log_probabilities.then(Vec::new),
            cached,
            ended: false,
            end: None,
            job,
        });
    }

    /// The state after the longest beginning of the prompt that a sequence running in this lane, or one that is kept, has
    /// seen.
    fn known_beginning(&self, job: &Job) -> State {
        let (client, prompt) = (job.request.client, &job.request.prompt);
        if job.request.prompt_log_probabilities {
            return self.shared.model.new_state();
        }
        let running = self
            .running
            .iter()
            .filter(|sequence| sequence.job.request.client == client)
            .map(|Sequence { tokens, state, .. }| {
                (state.reach(common(&tokens[..state.len()], prompt)), state)
            })
            .max_by_key(|(length, _)| *length);
        let kept = self.shared.kept().find(client, prompt);
        match (running, kept) {
            (Some((length, state)), kept)
                if is_worth(length) && kept.as_ref().is_none_or(|kept| kept.len() < length) =>
            {
                state.prefix(length).unwrap_or_else(|| self.shared.model.new_state())
            }
            (_, Some(kept)) => kept,
            _ => self.shared.model.new_state(),
        }
    }

    /// One pass through the model: everyone being answered gets a token, new prompts are read a piece further.
    fn step(&mut self) {
        let Shared { model, settings, counters, .. } = &*self.shared;
        // Rows of logits for every token of a prompt are many, also of those that nobody asked for.
        let all = self.running.iter().any(Sequence::tells_prompt);
        let most = if all { MEASURED / model.config().vocab_size } else { usize::MAX };
        let mut room = settings.prompt_tokens.min(most).max(1);
        let mut inputs = Vec::with_capacity(self.running.len());
        let mut served = Vec::with_capacity(self.running.len());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let unseen = sequence.unseen();
            let piece = if unseen == 1 { 1 } else { unseen.min(room) };
            if piece > 0 {
                room -= if unseen == 1 { 0 } else { piece };
                let tokens = &sequence.tokens[sequence.state.len()..][..piece];
                inputs.push(Input { state: &mut sequence.state, tokens });
                served.push((index, piece));
            }
        }
        let wanted = if all { Wanted::All } else { Wanted::Last };
        counters.steps.fetch_add(1, Relaxed);
        counters.step_sequences.fetch_add(inputs.len() as u64, Relaxed);
        if let Err(error) = model.step_into(&self.cpu, &mut inputs, wanted, &mut self.logits) {
            // Every prompt was checked before, so this concerns them all.
            for sequence in &mut self.running {
                sequence.end(Event::Failed(error.to_string()));
            }
            return;
        }
        let (context, vocabulary) = (model.context(), model.config().vocab_size);
        let mut items = Vec::with_capacity(served.len());
        let (mut served, mut rest) = (served.into_iter().peekable(), self.logits.as_mut_slice());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let Some((_, piece)) = served.next_if(|(served, _)| *served == index) else { continue };
            let (logits, others) = rest.split_at_mut(if all { piece * vocabulary } else { vocabulary });
            rest = others;
            if sequence.unseen() == 0 || sequence.tells_prompt() {
                items.push((sequence, logits));
            }
        }
        let choose = |(sequence, logits): (&mut Sequence, &mut [f32])| {
            let mut noted = sequence.note_prompt(logits, vocabulary);
            if noted.is_ok() && sequence.unseen() == 0 {
                let last = logits.len() - vocabulary;
                noted = write(sequence, &mut logits[last..], context, counters);
            }
            if let Err(problem) = noted {
                sequence.end(Event::Failed(problem));
            }
        };
        // What a sequence chooses is its own affair, so threads share them out.
        self.cpu.for_each(items, choose);
        if all {
            // Their memory is many times that of other steps.
            self.logits = Vec::new();
        }
    }
}

/// Logits of a step at most where those of every token of a prompt are wanted.
const MEASURED: usize = 4 << 20;

/// Chooses the next token of a sequence and gives it out.
fn write(
    sequence: &mut Sequence,
    logits: &mut [f32],
    context: usize,
    counters: &Counters,
) -> Result<(), String> {
    if sequence.job.request.limits.max_tokens == 0 {
        finish(sequence, Reason::Length, counters);
        return Ok(());
    }
    let first = sequence.written() == 0;
    let left = sequence.job.request.limits.max_tokens - sequence.written();
    let left = left.min(context - sequence.state.len());
    let request = &mut sequence.job.request;
    if first && !are_numbers(logits) {
        return Err(NOT_NUMBERS.into());
    }
    let wanted = request.log_probabilities.map(|_| logits.to_vec());
    for &(token, bias) in request.bias.iter() {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    let sampler = &mut sequence.sampler;
    sampler.penalise(logits);
    let token = match &mut request.constraint {
        None => sampler.sample(logits),
        Some(constraint) => {
            let chosen = constraint.choose(logits, left, |logits| sampler.sample(logits));
            chosen.map_err(|error| error.to_string())?
        }
    };
    sampler.note(token);
    sequence.tokens.push(token);
    counters.completion_tokens.fetch_add(1, Relaxed);
    if request.limits.stop.contains(&token) {
        finish(sequence, Reason::Stop, counters);
        return Ok(());
    }
    let complete = request.constraint.as_ref().is_some_and(Constraint::is_complete);
    let text = sequence.text.push(token).map_err(|error| error.to_string())?;
    // Those of the model, before anything was added.
    let told =
        wanted.map(|logits| likelihoods(sequence.sampler.isa(), &logits, token, request.log_probabilities));
    let (log_probability, alternatives) =
        told.map_or((None, Vec::new()), |(own, others)| (Some(own), others));
    let event = Token { id: token, text, log_probability, alternatives };
    sequence.job.send(Event::Token(event));
    if let Some(stop) = sequence.text.stopped_by() {
        let reason = Reason::StopString(stop.to_string());
        finish(sequence, reason, counters);
    } else if complete {
        finish(sequence, Reason::Stop, counters);
    } else if left == 1 {
        finish(sequence, Reason::Length, counters);
    }
    Ok(())
}

/// Notes how a sequence ended; it leaves the batch before the next step.
fn finish(sequence: &mut Sequence, reason: Reason, counters: &Counters) {
    let usage = Usage {
        prompt_tokens: sequence.job.request.prompt.len(),
        cached_tokens: sequence.cached,
        completion_tokens: sequence.written(),
    };
    let end = match sequence.text.finish() {
        Ok(text) => Event::Finished(Finished { reason, text, usage }),
        Err(error) => Event::Failed(error.to_string()),
    };
    sequence.end(end);
    let took = sequence.job.since.elapsed().as_millis() as u64;
    let mean = counters.request_milliseconds.load(Relaxed);
    let mean = if mean == 0 { took } else { (7 * mean + took) / 8 };
    counters.request_milliseconds.store(mean, Relaxed);
}
