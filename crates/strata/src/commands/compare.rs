//! `strata compare`

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use strata_tensor::{Cpu, Precision};
use strata_train::compare::{self, CompareRequest, Comparison, summary};
use strata_train::{Contestant, Event, Machine, Stop, Workplace};

use super::{print_json, print_line, stop_on_interrupt};
use crate::comparison;
use crate::machine::{Place, count, minutes, peak_flops};
use crate::show::{duration, thousands};

/// Arguments of `strata compare`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata compare --corpus texts/ --name mixers --minutes 10 --threads 1 --parallel 2\n  \
                        strata compare --name mixers --only speed\n  \
                        strata compare --name mixers --only report\n\n\
                        The first call measures how fast each mixer trains (let the machine do nothing else meanwhile) and \
                        keeps a plan in runs/NAME; from then on everything is counted in tokens. Repeat the call, or \
                        give the name alone, to go on where it was interrupted: what is done is not done again. Results, \
                        table and plots are compare.json, compare.md and *.svg and *.png in that folder."
)]
pub struct CompareArguments {
    /// Files or folders of text; left out, the comparison of this name goes on
    #[arg(long, num_args = 1.., value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Name of the comparison
    #[arg(long)]
    name: String,
    /// Mixers as in `strata train base`, also with settings of the recipe behind them, such as
    /// attention+positions=alibi or hybrid:SSSA+window=128
    #[arg(long, value_delimiter = ',', value_parser = contestant, requires = "corpus",
          default_value = "attention,ssm,s4d,hybrid:SSSA,lstm,none")]
    mixers: Vec<Contestant>,
    /// Minutes of training for each model, of this machine with nothing else to do [default: 10]
    #[arg(long, value_parser = minutes, conflicts_with = "tokens", requires = "corpus")]
    minutes: Option<f64>,
    /// Tokens for each model instead, for example 20M
    #[arg(long, value_parser = count, requires = "corpus")]
    tokens: Option<u64>,
    /// Parameters of each model, about
    #[arg(long, value_name = "N", value_parser = count, requires = "corpus", default_value = "5M")]
    params: u64,
    /// Models of each mixer, each with another seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000), requires = "corpus",
          default_value_t = 3)]
    seeds: u64,
    /// Tokens of a sequence in training
    #[arg(long, value_name = "N", requires = "corpus", default_value_t = 512)]
    sequence: usize,
    /// Tokens of the vocabulary [default: follows from the corpus]
    #[arg(long, value_name = "N", requires = "corpus")]
    vocab: Option<usize>,
    /// Lengths at which the speed of training is measured
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "corpus",
          default_values_t = [512, 1024, 2048, 4096, 8192, 16384])]
    lengths: Vec<usize>,
    /// Optimiser steps of each lesson of recall [default: the lesson's own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "corpus")]
    recall_steps: Option<u64>,
    /// Models that are trained at the same time, each on --threads of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// Do these parts only, of those that follow the plan
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// A part of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Measure the speed of each mixer and decide; every other part does it first where it was not done
    Plan,
    /// Speed of training by length of the sequences, and memory of decoding
    Speed,
    /// Train the models
    Loss,
    /// Bits per byte by position, beyond the trained length, of the models that are trained
    Length,
    /// Associative recall, copying, needles
    Recall,
    /// Table and plots of what is there; every other part does it at its end
    Report,
}

/// Seconds of the peak before and after each measurement.
const PEAK_SECONDS: f64 = 0.05;
/// Seconds between two lines about one model's training.
const LINE_SECONDS: f64 = 30.0;
/// Minutes per model when nothing says how long.
const DEFAULT_MINUTES: f64 = 10.0;

/// Runs the command.
pub fn run(arguments: CompareArguments, place: &Place) -> Result<()> {
    let stop = stop_on_interrupt()?;
    let request = (!arguments.corpus.is_empty()).then(|| request(&arguments, place)).transpose()?;
    let mut comparison = Comparison::open(&place.home, &arguments.name, request.as_ref())?;
    let complete = work(&arguments, &mut comparison, place, &stop)
        .with_context(|| format!("comparing {}", arguments.name))?;
    if comparison.is_planned() {
        let summary = summary(&comparison)?;
        let (markdown, value) = comparison::write(comparison.folder(), &summary)?;
        if complete {
            return if arguments.json { print_json(&value) } else { print_line(markdown.trim_end()) };
        }
    }
    if stop.asked() {
        bail!("stopped; everything is saved: repeat the command to go on, or give --name alone");
    }
    Ok(())
}

/// Does the parts that are asked for. Returns whether they came to their ends.
fn work(
    arguments: &CompareArguments,
    comparison: &mut Comparison,
    place: &Place,
    stop: &Stop,
) -> Result<bool> {
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let machine = machine(&comparison.plan().request, place)?;
    let peak = |machine: &Machine| peak_flops(machine, PEAK_SECONDS);
    let lines = Lines::default();
    let told = |worker: usize, name: &str, event: Event| lines.tell(worker, name, event);
    let needs_plan = arguments.only.iter().any(|part| *part != Part::Report);
    let mut study = None;
    if wanted(Part::Loss) || !comparison.is_planned() && (needs_plan || arguments.only.is_empty()) {
        let mut progress = |event| told(0, "corpus", event);
        let mut workplace =
            Workplace { home: &place.home, machine: &machine, stop, progress: &mut progress, restart: false };
        let opened = study.insert(comparison.study(&mut workplace)?);
        comparison.decide(opened, &machine, &peak, &mut |line| eprintln!("{line}"))?;
    }
    if !comparison.is_planned() {
        bail!("nothing to report: the comparison has no plan yet; leave --only report out");
    }
    let mut machines = vec![machine];
    while machines.len() < usize::from(arguments.parallel) {
        machines.push(self::machine(&comparison.plan().request, place)?);
    }
    let mut complete = true;
    if wanted(Part::Speed) {
        complete &= compare::speed(comparison, &machines[0], &peak, &held_memory, stop, &told)?;
    }
    if let Some(study) = study.filter(|_| wanted(Part::Loss)) {
        complete &= compare::train(comparison, &study, &machines, stop, &told)?;
    }
    if wanted(Part::Length) {
        // What is not trained yet is no failure: the table says how many seeds it stands on.
        complete &= compare::lengths(comparison, &machines[0], stop, &told)? || !stop.asked();
    }
    if wanted(Part::Recall) {
        complete &= compare::recall(comparison, &machines, stop, &told)?;
    }
    Ok(complete)
}

fn request(arguments: &CompareArguments, place: &Place) -> Result<CompareRequest> {
    let corpus = arguments
        .corpus
        .iter()
        .map(|path| std::path::absolute(path).with_context(|| format!("the path {}", path.display())));
    let minutes = arguments.minutes.or(arguments.tokens.is_none().then_some(DEFAULT_MINUTES));
    let request = CompareRequest {
        corpus: corpus.collect::<Result<_>>()?,
        mixers: arguments.mixers.clone(),
        parameters: arguments.params,
        seconds: minutes.map(|minutes| 60.0 * minutes),
        tokens: arguments.tokens,
        seeds: arguments.seeds,
        sequence: arguments.sequence,
        vocab_size: arguments.vocab,
        threads: place.machine.cpu.threads(),
        precision: match place.machine.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
        .to_string(),
        recall_steps: arguments.recall_steps,
        lengths: arguments.lengths.clone(),
    };
    Ok(request)
}

/// A machine of as many threads as train one model.
fn machine(request: &CompareRequest, place: &Place) -> Result<Machine> {
    let cpu = Cpu::new(place.machine.cpu.isa(), request.threads)
        .with_context(|| format!("starting {} threads", request.threads))?;
    let precision = if request.precision == "f32" { Precision::F32 } else { Precision::Bf16 };
    Ok(Machine { cpu, precision })
}

fn contestant(name: &str) -> Result<Contestant, String> {
    Contestant::try_from(name.to_string()).map_err(|error| error.to_string())
}

/// The memory that this process holds, where the system tells (`VmRSS` of Linux).
fn held_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// Lines on stderr about what several workers do.
#[derive(Default)]
struct Lines(Mutex<Vec<(usize, Instant)>>);

impl Lines {
    fn tell(&self, worker: usize, name: &str, event: Event) {
        match event {
            Event::Phase(text) => eprintln!("{name}: {text}"),
            Event::Warning(text) => eprintln!("warning: {name}: {text}"),
            Event::Note(text) => eprintln!("{name}: {text}"),
            Event::Validated { step, validation } => {
                let bits = validation.bits_per_byte.unwrap_or(f64::NAN);
                eprintln!(
                    "{name}: step {step}, held-out loss {:.3}, {bits:.3} bits per byte",
                    validation.loss
                );
            }
            Event::Saved { .. } => {}
            Event::Step(report) => {
                if self.due(worker) {
                    eprintln!(
                        "{name}: {:.0} %, loss {:.3}, {} tokens/s, {} left",
                        100.0 * report.fraction,
                        report.loss,
                        thousands(report.tokens_per_second),
                        duration(report.seconds_left)
                    );
                }
            }
        }
    }

    fn due(&self, worker: usize) -> bool {
        let Ok(mut last) = self.0.lock() else { return false };
        let now = Instant::now();
        match last.iter_mut().find(|(known, _)| *known == worker) {
            Some((_, at)) if now - *at < Duration::from_secs_f64(LINE_SECONDS) => false,
            Some((_, at)) => {
                *at = now;
                true
            }
            None => {
                last.push((worker, now));
                true
            }
        }
    }
}
