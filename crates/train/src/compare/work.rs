//! The parts of a comparison: each makes the results that are missing.

use std::collections::VecDeque;
use std::fs;
use std::sync::Mutex;

use strata_data::shards::HELD_OUT_FILE;
use strata_data::{RecallTask, Shard};
use strata_model::mixers::CacheFormat;
use strata_model::weights::{read_tensors, write_weights};
use strata_model::{Decoder, Inference, Input, Wanted, WeightFormat};

use super::files::Comparison;
use super::plan::Entry;
use super::summary::{LossRun, Memory, SpeedRun};
use crate::positions::{ByPosition, by_position};
use crate::recall::{RecallLesson, RecallResult, run_recall};
use crate::speed::{Timed, training_speed};
use crate::trials::{Study, Trial};
use crate::{Event, Machine, RunFiles, Stop, TrainError};

/// Receives what happens: the number of the worker, what it works on, and the event. Called from several threads.
pub type Told<'a> = dyn Fn(usize, &str, Event) + Sync + 'a;

/// Trains what is not trained yet, on each of `machines` one model at a time: all mixers with the first seed, then with the
/// next. Returns whether everything is there; it is not where a stop was asked for.
///
/// # Errors
/// Training diverges, or a file cannot be read or written.
pub fn train(
    comparison: &Comparison,
    study: &Study,
    machines: &[Machine],
    stop: &Stop,
    told: &Told<'_>,
) -> Result<bool, TrainError> {
    let mut missing = VecDeque::new();
    for (entry, seed) in trials(comparison) {
        if comparison.result::<LossRun>(&loss_name(entry, seed))?.is_none() {
            missing.push_back((entry, seed));
        }
    }
    share(machines, missing, stop, |worker, machine, (entry, seed)| {
        let name = format!("{}, seed {seed}", entry.mixer.name());
        told(worker, &name, Event::Phase("training".into()));
        let mut recipe = entry.recipe.clone();
        recipe.seed = seed;
        let trial = Trial { model: entry.model.clone(), recipe };
        let weights = comparison.weights(&trial_name(entry, seed));
        let mut keep = |decoder: &Decoder| -> Result<(), TrainError> {
            let folder = weights.parent().unwrap_or(comparison.folder());
            fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
            Ok(write_weights(&weights, &decoder.tensors())?)
        };
        let mut progress = |event| told(worker, &name, event);
        let result = study.train_and(&trial, machine, stop, &mut progress, &mut keep)?;
        if let Some(result) = result {
            let run = LossRun { mixer: entry.mixer.clone(), seed, trial: result };
            comparison.keep(&loss_name(entry, seed), &run)?;
        }
        Ok(())
    })
}

/// Reads long windows of held-out text with every trained model that has not read them yet. Returns whether all did that;
/// those that are not trained yet did not.
///
/// # Errors
/// The text is too short, or a file cannot be read or written.
pub fn lengths(
    comparison: &Comparison,
    machine: &Machine,
    stop: &Stop,
    told: &Told<'_>,
) -> Result<bool, TrainError> {
    let _taken = comparison.take("length")?;
    let path = comparison.folder().join("data").join(HELD_OUT_FILE);
    let mut complete = true;
    let mut shard = None;
    for (entry, seed) in trials(comparison) {
        let name = format!("length-{}", trial_name(entry, seed));
        if comparison.result::<ByPosition>(&name)?.is_some() {
            continue;
        }
        let weights = comparison.weights(&trial_name(entry, seed));
        if stop.asked() || comparison.result::<LossRun>(&loss_name(entry, seed))?.is_none() {
            complete = false;
            continue;
        }
        told(0, &format!("{}, seed {seed}", entry.mixer.name()), Event::Phase("reading long text".into()));
        let shard = match &mut shard {
            Some(shard) => shard,
            none => none.insert(Shard::open(&path)?),
        };
        let decoder = Decoder::from_tensors(&entry.model, read_tensors(&[weights], &entry.model.tensors())?)?;
        let result = by_position(&decoder, &machine.cpu, shard, comparison.plan().request.sequence, WINDOWS)?;
        comparison.keep(&name, &result)?;
    }
    Ok(complete)
}

/// Teaches and asks what is missing of the tasks of recall, on each of `machines` one model at a time. Returns whether
/// everything is there.
///
/// # Errors
/// Training diverges, or a file cannot be read or written.
pub fn recall(
    comparison: &Comparison,
    machines: &[Machine],
    stop: &Stop,
    told: &Told<'_>,
) -> Result<bool, TrainError> {
    let _taken = comparison.take("recall")?;
    let request = &comparison.plan().request;
    let mut missing = VecDeque::new();
    for seed in 1..=request.seeds {
        for task in RecallTask::ALL {
            for mixer in &request.mixers {
                let name = format!("recall-{}-{}-{seed}", task.name(), mixer.file_name());
                if comparison.result::<RecallResult>(&name)?.is_none() {
                    missing.push_back((task, mixer, seed, name));
                }
            }
        }
    }
    share(machines, missing, stop, |worker, machine, (task, mixer, seed, name)| {
        let title = format!("{}, {}, seed {seed}", task.name(), mixer.name());
        told(worker, &title, Event::Phase("learning to recall".into()));
        let mut lesson = RecallLesson::of(task);
        lesson.steps = request.recall_steps.unwrap_or(lesson.steps);
        let files =
            RunFiles { folder: comparison.folder().join("lessons").join(&name), checkpoint_seconds: 120.0 };
        let mut progress = |event| told(worker, &title, event);
        let result = run_recall(&lesson, mixer, seed, machine, Some(&files), stop, &mut progress)?;
        if let Some(result) = result {
            comparison.keep(&name, &result)?;
            fs::remove_dir_all(&files.folder).map_err(TrainError::io("remove", &files.folder))?;
        }
        Ok(())
    })
}

/// Measures what is missing of the speeds of training by length, and the memory of decoding. Wants a machine that does
/// nothing else. `peak` measures operations per second, `memory` the bytes that this process holds, where that can be
/// known. Returns whether everything is there.
///
/// # Errors
/// A length does not fit, or a file cannot be read or written.
pub fn speed(
    comparison: &Comparison,
    machine: &Machine,
    peak: &dyn Fn(&Machine) -> f64,
    memory: &dyn Fn() -> Option<u64>,
    stop: &Stop,
    told: &Told<'_>,
) -> Result<bool, TrainError> {
    let _taken = comparison.take("speed")?;
    let lengths = &comparison.plan().request.lengths;
    for entry in &comparison.plan().entries {
        for &length in lengths {
            let name = format!("speed-{}-{length}", entry.mixer.file_name());
            if comparison.result::<SpeedRun>(&name)?.is_some() {
                continue;
            }
            if stop.asked() {
                return Ok(false);
            }
            // About the same number of tokens at every length, so that only the length differs.
            let shape = (length, (SPEED_TOKENS / length).max(1));
            told(
                0,
                &format!("{}, {length} tokens", entry.mixer.name()),
                Event::Phase("measuring speed".into()),
            );
            let speed = training_speed(machine, &entry.model, shape, Timed::Passes, SPEED_PASSES, peak)?;
            comparison.keep(&name, &SpeedRun { mixer: entry.mixer.clone(), speed })?;
        }
        let name = format!("memory-{}", entry.mixer.file_name());
        if comparison.result::<Memory>(&name)?.is_none() {
            if stop.asked() {
                return Ok(false);
            }
            told(0, entry.mixer.name(), Event::Phase("measuring memory".into()));
            comparison.keep(&name, &stream(entry, machine, memory)?)?;
        }
    }
    Ok(true)
}

/// Windows of held-out text that each model reads.
const WINDOWS: usize = 32;
/// Passes whose speed is measured, after one that is not.
const SPEED_PASSES: usize = 3;
/// Tokens of such a pass, one sequence at least: what its activations take stays within a few hundred megabytes.
const SPEED_TOKENS: usize = 8192;
/// Tokens that are streamed where the state does not grow with them.
pub(super) const STREAMED: usize = 100_000;
/// Tokens of a stream after which its memory is measured first.
const STREAM_START: usize = 1_000;
/// Tokens of a stream that are read at once.
const STREAM_PIECE: usize = 250;

/// Reads a long stream where the state does not grow with its length, and measures the memory.
fn stream(entry: &Entry, machine: &Machine, memory: &dyn Fn() -> Option<u64>) -> Result<Memory, TrainError> {
    let trained = entry.model.max_positions;
    let state_bytes = |length| entry.model.state_bytes(length, CacheFormat::Bf16);
    let grown = state_bytes(9 * trained) - state_bytes(8 * trained);
    let mut result = Memory {
        mixer: entry.mixer.clone(),
        state_bytes: state_bytes(trained),
        growth_per_token: grown as f64 / trained as f64,
        streamed: 0,
        state_before: 0,
        state_after: 0,
        process_before: None,
        process_after: None,
    };
    if grown > 0 || entry.model.context() < STREAMED {
        return Ok(result);
    }
    let model = Inference::with_format(Decoder::new(&entry.model, 1)?, &machine.cpu, WeightFormat::Bf16);
    let mut state = model.new_state();
    for start in (0..STREAMED).step_by(STREAM_PIECE) {
        let token = |at: usize| (at as u64 * 2_654_435_761 % entry.model.vocab_size as u64) as u32;
        let tokens: Vec<u32> = (start..start + STREAM_PIECE).map(token).collect();
        model.step(&machine.cpu, &mut [Input { state: &mut state, tokens: &tokens }], Wanted::Last)?;
        if state.len() == STREAM_START {
            (result.state_before, result.process_before) = (state.bytes(), memory());
        }
    }
    (result.streamed, result.state_after, result.process_after) = (state.len(), state.bytes(), memory());
    Ok(result)
}

/// Every trial: all mixers with the first seed, then with the next.
pub(super) fn trials(comparison: &Comparison) -> impl Iterator<Item = (&Entry, u64)> {
    let plan = comparison.plan();
    (1..=plan.request.seeds).flat_map(|seed| plan.entries.iter().map(move |entry| (entry, seed)))
}

pub(super) fn trial_name(entry: &Entry, seed: u64) -> String {
    format!("{}-{seed}", entry.mixer.file_name())
}

pub(super) fn loss_name(entry: &Entry, seed: u64) -> String {
    format!("loss-{}", trial_name(entry, seed))
}

/// Lets every machine take the next of `items` until none is left, a stop is asked for, or something fails. Returns
/// whether all of them were done before any stop.
fn share<T: Send>(
    machines: &[Machine],
    items: VecDeque<T>,
    stop: &Stop,
    work: impl Fn(usize, &Machine, T) -> Result<(), TrainError> + Sync,
) -> Result<bool, TrainError> {
    let queue = Mutex::new(items);
    let failure = Mutex::new(None);
    let next = || {
        let failed = failure.lock().map_or(true, |failure| failure.is_some());
        if failed || stop.asked() { None } else { queue.lock().ok()?.pop_front() }
    };
    std::thread::scope(|scope| {
        for (worker, machine) in machines.iter().enumerate() {
            let (next, work, failure) = (&next, &work, &failure);
            scope.spawn(move || {
                while let Some(item) = next() {
                    if let Err(error) = work(worker, machine, item)
                        && let Ok(mut failure) = failure.lock()
                    {
                        failure.get_or_insert(error);
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(!stop.asked() && queue.lock().is_ok_and(|queue| queue.is_empty())),
    }
}
