//! `metrics.jsonl`: one JSON object per line, each with its `step`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::TrainError;

/// Appends measurements to a file that stays readable whatever interrupts the run.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens `path` to append after step `step`. What an interrupted run wrote beyond that step, and a line
    /// that was cut short, is removed, so that a resumed run leaves the file of an uninterrupted one.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, step: u64) -> Result<Metrics, TrainError> {
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(TrainError::io("read", path)(error)),
        };
        let kept: String = text.split_inclusive('\n').filter(|line| belongs(line, step)).collect();
        if kept != text {
            let temporary = path.with_extension("jsonl.writing");
            fs::write(&temporary, kept).map_err(TrainError::io("write", &temporary))?;
            fs::rename(&temporary, path).map_err(TrainError::io("rename into place", path))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Metrics { path: path.to_path_buf(), file: file.map_err(TrainError::io("write", path))? })
    }

    /// Appends `record`, which must be an object with a `step`, as one line in one write.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, record: &impl Serialize) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(record).map_err(|error| TrainError::Run {
            path: self.path.clone(),
            reason: format!("a measurement cannot be written as JSON: {error}"),
        })?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(TrainError::io("write", &self.path))
    }
}

/// Whether a line is whole and measures `step` or an earlier one.
fn belongs(line: &str, step: u64) -> bool {
    let value: Option<Value> = serde_json::from_str(line).ok().filter(|_| line.ends_with('\n'));
    value.and_then(|value| value.get("step")?.as_u64()).is_some_and(|found| found <= step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resumed_run_cuts_what_comes_after_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=5 {
            metrics.write(&json!({"step": step, "loss": 1.5})).unwrap();
        }
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\": 2, \"lo");
        fs::write(&path, text).unwrap();
        let mut metrics = Metrics::open(&path, 3).unwrap();
        metrics.write(&json!({"step": 4})).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }
}
