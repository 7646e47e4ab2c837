//! One file per command: parse, call the libraries, show.

pub mod bench;
pub mod bench_attention;
pub mod bench_decode;
pub mod bench_growth;
pub mod bench_matmul;
pub mod bench_serve;
pub mod chat;
pub mod compare;
pub mod demo;
pub mod eval;
pub mod generate;
pub mod keys;
pub mod models;
pub mod scale;
pub mod serve;
pub mod train;

use std::io::Write;

use anyhow::Result;
use strata_train::{Finished, Stop};

/// Prints one JSON object to stdout.
pub fn print_json(value: &serde_json::Value) -> Result<()> {
    print_line(&value.to_string())
}

/// Prints a line to stdout; unlike `println!`, an error is an error and no panic.
pub fn print_line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// A flag that Ctrl-C sets: once to save and end, twice to end at once.
pub fn stop_on_interrupt() -> Result<Stop> {
    let stop = Stop::default();
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.asked() {
            std::process::exit(1);
        }
        asked.ask();
        eprintln!("stopping after this step and saving; press Ctrl-C again to end without saving");
    })?;
    Ok(stop)
}

/// What the contract promises of a training run, as JSON.
pub fn finished_json(finished: &Finished) -> serde_json::Value {
    let outcome = &finished.outcome;
    serde_json::json!({
        "name": finished.name,
        "path": finished.folder,
        "tokens": outcome.tokens,
        "steps": outcome.step,
        "seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens_per_second,
        "flops": outcome.flops,
        "training_loss": outcome.training_loss,
        "predicted_loss": finished.predicted_loss,
        "loss": outcome.validation.map_or(outcome.training_loss, |validation| validation.loss),
        "bits_per_byte": outcome.validation.and_then(|validation| validation.bits_per_byte),
    })
}
