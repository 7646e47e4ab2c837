//! Generation for many at once, in lanes: threads with a batch of sequences each, which requests join and leave at any step.
//!
//! [`Engine::submit`] puts requests into a bounded queue and returns the stream of their events. A lane
//! takes the requests of all clients in turn, reads their prompts in pieces beside the sequences that are already
//! being written, and gives every token out as soon as it is chosen. Dropping the stream cancels the request.
//!
//! A model that fits the cache of a core has a lane for each of the threads, and no two cores ever wait for each other. A larger
//! one has a single lane, whose steps all threads share: there the time goes into reading weights, once for everybody.

mod prefix;
mod queue;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use strata_data::Tokenizer;
use strata_model::Inference;
use strata_tensor::Cpu;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use self::worker::{Shared, Worker};
use crate::{Constraint, Limits, Sampling};

/// One sequence to be written.
#[derive(Debug, Clone)]
pub struct Request {
    /// The tokens to continue; at least one.
    pub prompt: Vec<u32>,
    /// When it ends.
    pub limits: Limits,
    /// Text that ends it and is not part of the result.
    pub stop_strings: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Added to the logits of tokens, each time.
    pub bias: Arc<[(u32, f32)]>,
    /// Whether the text answers in a chat, where the template's leading space is left out.
    pub answer: bool,
    /// What the text must look like.
    pub constraint: Option<Constraint>,
    /// Whether log-probabilities are wanted, and those of how many likeliest tokens beside the chosen one.
    pub log_probabilities: Option<usize>,
    /// Whether those of the prompt's tokens are wanted too, which is then read anew.
    pub prompt_log_probabilities: bool,
    /// Who asks: clients take turns, and only requests of the same client share what was computed of a prompt.
    pub client: u64,
    /// When it ends at the latest.
    pub deadline: Option<Instant>,
}

/// What happens to a request, in this order: its prompt where that was asked for, tokens, then one of the last two.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt was read: its tokens, of which the first has no log-probability, and none a text.
    Prompt(Vec<Token>),
    /// A token was written.
    Token(Token),
    /// The sequence ended.
    Finished(Finished),
    /// The engine could not go on.
    Failed(String),
}

/// A token that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// The text that is certain now; it may be empty, or hold characters of earlier tokens.
    pub text: String,
    /// Natural logarithm of its probability, where asked for.
    pub log_probability: Option<f32>,
    /// The likeliest tokens with theirs, likeliest first, where asked for.
    pub alternatives: Vec<(u32, f32)>,
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: Reason,
    /// The last of the text.
    pub text: String,
    /// What it took.
    pub usage: Usage,
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The model ended it.
    Stop,
    /// This stop string came.
    StopString(String),
    /// It has as many tokens as allowed, or the context is full.
    Length,
    /// Its time was over.
    Timeout,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Those of the prompt that did not have to be computed again.
    pub cached_tokens: usize,
    /// Written, an end token included.
    pub completion_tokens: usize,
}

/// Bounds of an engine, and the form of its model.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Sequences that are written at the same time.
    pub batch: usize,
    /// Requests that wait at most.
    pub queue: usize,
    /// Prompt tokens that are read in one step at most, so that those who are being answered do not wait.
    pub prompt_tokens: usize,
    /// Bytes of keys and values: of running sequences, and of finished ones kept for what may follow.
    pub cache_bytes: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { batch: 128, queue: 256, prompt_tokens: 256, cache_bytes: 1 << 30 }
    }
}

/// Counters of an engine since its start; read them at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that wait now.
    pub waiting: AtomicUsize,
    /// Sequences that are being written now.
    pub running: AtomicUsize,
    /// Passes through the model.
    pub steps: AtomicU64,
    /// Sequences of all passes: divided by `steps`, the mean batch.
    pub step_sequences: AtomicU64,
    /// Prompt tokens asked for.
    pub prompt_tokens: AtomicU64,
    /// Prompt tokens that did not have to be computed.
    pub cached_tokens: AtomicU64,
    /// Tokens written.
    pub completion_tokens: AtomicU64,
    /// Bytes of keys and values of running and kept sequences.
    pub cache_bytes: AtomicUsize,
    /// Milliseconds that the last finished requests took on average, for the advice to those who are turned away.
    request_milliseconds: AtomicU64,
}

impl Counters {
    /// Adds what another engine has done, and not what it is doing.
    pub fn add(&self, other: &Counters) {
        for (to, from) in [
            (&self.steps, &other.steps),
            (&self.step_sequences, &other.step_sequences),
            (&self.prompt_tokens, &other.prompt_tokens),
            (&self.cached_tokens, &other.cached_tokens),
            (&self.completion_tokens, &other.completion_tokens),
        ] {
            to.fetch_add(from.load(Relaxed), Relaxed);
        }
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("{waiting} requests are waiting already; try again in {} s", retry_after.as_secs())]
    Full {
        /// Requests that wait.
        waiting: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// A thread of the engine ended.
    #[error("the model is being stopped; try again")]
    Stopped,
}

/// A model that writes for many. Dropping it ends its threads once the running sequences are done.
#[derive(Debug)]
pub struct Engine {
    lanes: Vec<Lane>,
    counters: Arc<Counters>,
    settings: Settings,
}

/// A thread of the engine with sequences of its own.
#[derive(Debug)]
struct Lane {
    jobs: mpsc::Sender<Job>,
    /// Requests that wait for it or run in it.
    load: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

/// Models of at most so many bytes of weights get a lane for each thread. A step of such a model is so short that meeting
/// within it costs two threads more than they gain (`docs/decisions/lanes.md`).
const LANE_WEIGHTS: usize = 4 << 20;

/// How many lanes an engine has.
fn lanes(model: &Inference, cpu: &Cpu, settings: &Settings) -> usize {
    if model.weight_bytes() <= LANE_WEIGHTS { cpu.threads().min(settings.batch).max(1) } else { 1 }
}

/// A request on its way to a lane.
struct Job {
    request: Request,
    /// Place among the requests that were submitted together.
    index: usize,
    events: UnboundedSender<(usize, Event)>,
    ended: Arc<Notify>,
    since: Instant,
    _place: Place,
}

/// A place in the load of a lane, given back when the request is gone.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn new(load: &Arc<AtomicUsize>) -> Place {
        load.fetch_add(1, Relaxed);
        Place(load.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Job {
    fn send(&self, event: Event) {
        let ends = matches!(event, Event::Finished(_) | Event::Failed(_));
        // A receiver that is gone is noticed before the next step.
        let _ = self.events.send((self.index, event));
        if ends {
            self.ended.notify_one();
        }
    }
}

/// What happens to the requests that were submitted together, each with its place among them. Dropping this cancels what is
/// not finished.
#[derive(Debug)]
pub struct Events {
    receiver: UnboundedReceiver<(usize, Event)>,
    ended: Arc<Notify>,
}

impl Events {
    /// Waits for events and takes all that are there, `most` at most; none when all requests have ended.
    pub async fn take_into(&mut self, taken: &mut Vec<(usize, Event)>, most: usize) -> usize {
        self.receiver.recv_many(taken, most).await
    }

    /// The next event, for a thread that may wait; none when all requests have ended.
    pub fn blocking_next(&mut self) -> Option<(usize, Event)> {
        self.receiver.blocking_recv()
    }

    /// Waits until one of the requests has ended; an end before the call counts once. For those who would rather not be
    /// woken by every token.
    pub async fn an_end(&self) {
        self.ended.notified().await;
    }
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn start(
        model: Inference,
        tokenizer: Tokenizer,
        cpu: Cpu,
        settings: Settings,
    ) -> std::io::Result<Engine> {
        let counters = Arc::new(Counters::default());
        let lanes = lanes(&model, &cpu, &settings);
        let shared = Arc::new(Shared {
            model,
            tokenizer,
            settings,
            counters: counters.clone(),
            lanes,
            kept: Mutex::default(),
            running_bytes: AtomicUsize::new(0),
        });
        let start = |number| {
            let (jobs, receiver) = mpsc::channel();
            let worker =
                Worker::new(shared.clone(), if shared.lanes == 1 { cpu.clone() } else { cpu.alone() });
            let thread = std::thread::Builder::new()
                .name(format!("strata-lane-{number}"))
                .spawn(move || worker.run(&receiver))?;
            Ok(Lane { jobs, load: Arc::default(), thread })
        };
        let lanes = (0..lanes).map(start).collect::<std::io::Result<_>>()?;
        Ok(Engine { lanes, counters, settings })
    }

    /// Puts requests into the queue, all or none. Their events come with the request's index; sequences of one call
    /// choose independently of each other even with equal seeds. Dropping the events cancels all of them.
    ///
    /// # Errors
    /// [`Refused`] where the queue has not enough room, or a thread of the engine is gone.
    pub fn submit(&self, requests: Vec<Request>) -> Result<Events, Refused> {
        let waiting = &self.counters.waiting;
        let count = requests.len();
        // More at once than the queue holds are taken when nothing waits: else they would never be.
        let room = |n| (n == 0 || n + count <= self.settings.queue).then_some(n + count);
        if let Err(waiting) = waiting.fetch_update(Relaxed, Relaxed, room) {
            return Err(Refused::Full { waiting, retry_after: self.retry_after(waiting) });
        }
        let (events, receiver) = unbounded_channel();
        let (ended, since) = (Arc::new(Notify::new()), Instant::now());
        for (index, request) in requests.into_iter().enumerate() {
            let lane = self.lanes.iter().min_by_key(|lane| lane.load.load(Relaxed));
            let sent = lane.is_some_and(|lane| {
                let (events, ended) = (events.clone(), ended.clone());
                let job = Job { request, index, events, ended, since, _place: Place::new(&lane.load) };
                lane.jobs.send(job).is_ok()
            });
            if !sent {
                return Err(Refused::Stopped);
            }
        }
        Ok(Events { receiver, ended })
    }

    /// What the engine has done and is doing.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Whether one of the engine's threads ended, which they only do by a defect while there are requests to come.
    pub fn is_stopped(&self) -> bool {
        self.lanes.iter().any(|lane| lane.thread.is_finished())
    }

    /// Whether anything waits or runs.
    pub fn is_busy(&self) -> bool {
        // First the ones, then the others: what is admitted in between is counted twice rather than not at all.
        self.counters.waiting.load(Acquire) + self.counters.running.load(Relaxed) > 0
    }

    /// How long it takes until as many have been answered as wait now: at least a second, at most a minute.
    fn retry_after(&self, waiting: usize) -> Duration {
        let each = self.counters.request_milliseconds.load(Relaxed);
        let rounds = waiting.div_ceil(self.settings.batch) as u64;
        Duration::from_secs((each * rounds).div_ceil(1000).clamp(1, 60))
    }
}
