//! What a trial came to, and its file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::TrainError;

/// The result of one trial: one model, trained to the end of its budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialResult {
    /// Hash of everything that determines the result.
    pub key: String,
    /// The mixer's name on the command line.
    pub mixer: String,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Tokens per row in training and measuring.
    pub sequence: usize,
    /// Trainable numbers, the embedding counted once when it is the head too.
    pub parameters: u64,
    /// Trainable numbers without embedding and head.
    pub non_embedding_parameters: u64,
    /// Floating-point operations per token of training.
    pub flops_per_token: f64,
    /// Floating-point operations of the whole training.
    pub flops: f64,
    /// Tokens trained on, repeats counted.
    pub tokens: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Seed of weights and data order.
    pub seed: u64,
    /// Seconds of training and measuring, interruptions not counted. Depends on what else the machine did.
    pub seconds: f64,
    /// Loss on the held-out part at the end, in nats per token.
    pub loss: f64,
    /// The same in bits per UTF-8 byte.
    pub bits_per_byte: f64,
    /// The held-out loss on the way. The learning rate had not come down at these points: they are no results.
    pub curve: Vec<Point>,
    /// Threads that trained: another number of them adds in another order, which changes the last digits.
    pub threads: usize,
    /// Precision of training arithmetic.
    pub precision: String,
    /// Program and version.
    pub software: String,
}

/// A measurement within a trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Tokens trained on.
    pub tokens: u64,
    /// Floating-point operations until here.
    pub flops: f64,
    /// Held-out loss in nats per token.
    pub loss: f64,
}

/// Writes `value` as JSON to `path`, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_whole(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| TrainError::Run {
        path: path.to_path_buf(),
        reason: format!("it cannot be written as JSON: {error}"),
    })?;
    text.push('\n');
    let temporary = path.with_extension("writing");
    let mut file = File::create(&temporary).map_err(TrainError::io("write", &temporary))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(TrainError::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(TrainError::io("rename into place", path))
}

/// Reads what [`write_whole`] wrote; `None` when there is no such file.
///
/// # Errors
/// It cannot be read, or is not what was written.
pub(crate) fn read_whole<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TrainError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TrainError::io("read", path)(error)),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| TrainError::Run {
        path: path.to_path_buf(),
        reason: format!("it is not what was written there ({error}); remove it to have it made again"),
    })
}

/// The held-out measurements of a finished run in its `metrics.jsonl`, at the places where an uninterrupted run
/// measures: one that was interrupted also measured where it went on.
pub(crate) fn curve(
    metrics: &Path,
    tokens_per_step: u64,
    budget: u64,
    flops_per_token: f64,
    measurements: u64,
) -> Result<Vec<Point>, TrainError> {
    let text = fs::read_to_string(metrics).map_err(TrainError::io("read", metrics))?;
    let part = |step: u64| {
        let fraction = (step * tokens_per_step) as f64 / budget.max(1) as f64;
        (fraction.min(1.0) * measurements as f64).floor()
    };
    let mut points = BTreeMap::new();
    for line in text.lines() {
        let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
        let (Some(step), Some(loss)) = (record["step"].as_u64(), record["validation"]["loss"].as_f64())
        else {
            continue;
        };
        if step == 0 || part(step) > part(step - 1) {
            let tokens = step * tokens_per_step;
            points.insert(step, Point { tokens, flops: tokens as f64 * flops_per_token, loss });
        }
    }
    Ok(points.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_no_points_where_a_run_went_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut text = String::new();
        for step in [0, 2, 3, 3, 4, 6, 8, 10, 10] {
            text +=
                &format!("{{\"step\": {step}, \"validation\": {{\"loss\": {}}}}}\n", 9.0 - step as f64 / 2.0);
            text += &format!("{{\"step\": {step}, \"loss\": 1.0}}\n");
        }
        fs::write(&path, text).unwrap();
        let points = curve(&path, 100, 1000, 7.0, 5).unwrap();
        assert_eq!(
            points.iter().map(|point| point.tokens).collect::<Vec<_>>(),
            [0, 200, 400, 600, 800, 1000]
        );
        assert_eq!(points[2], Point { tokens: 400, flops: 2800.0, loss: 7.0 });
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        assert_eq!(read_whole::<Point>(&path).unwrap(), None);
        let point = Point { tokens: 3, flops: 0.1, loss: 2.5 };
        write_whole(&path, &point).unwrap();
        assert_eq!(read_whole::<Point>(&path).unwrap(), Some(point));
        fs::write(&path, "{\"tokens\": 3").unwrap();
        assert!(read_whole::<Point>(&path).unwrap_err().to_string().contains("remove it"));
    }
}
