//! Checkpoints: everything a run needs to go on as if it had never stopped.
//!
//! `checkpoints/step-0000000120/` holds the weights (a Hugging Face folder without tokenizer), the
//! optimiser's moments, and `state.json` with the hashes of the other files; `DONE` holds the hash of
//! `state.json`. The folder appears whole by rename; the hashes find what a disk has spoilt afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use strata_model::lineage::sha256_file;
use strata_model::weights::read_tensors;
use strata_model::{Config, NamedTensor, folder, read_weights, write_weights};

use crate::{Event, Progress, TrainError};

/// How many checkpoints of a run are kept: the newest, and one to fall back to.
const KEPT: usize = 2;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimiser steps done.
    pub step: u64,
    /// Tokens seen, padding counted.
    pub tokens: u64,
    /// Seconds of training so far, interruptions not counted.
    pub seconds: f64,
    /// Floating-point operations so far.
    pub flops: f64,
    /// Where the batches stand, in their own words.
    pub position: Value,
}

/// The moments of AdamW, in the model's own order of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Optimiser steps that went into the moments.
    pub step: u64,
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// A run at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where the run stands.
    pub state: RunState,
    /// The model's shape.
    pub config: Config,
    /// The weights.
    pub tensors: Vec<NamedTensor>,
    /// The optimiser.
    pub moments: Moments,
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    state: RunState,
    optimizer_step: u64,
    sha256: BTreeMap<String, String>,
}

const WEIGHTS: &str = strata_model::weights::SINGLE_FILE;
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const DONE: &str = "DONE";

impl Checkpoint {
    /// Writes the checkpoint into `folder` (the run's `checkpoints`) and removes all but the newest two.
    /// Returns its own folder.
    ///
    /// # Errors
    /// A file cannot be written; earlier checkpoints are then untouched.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, TrainError> {
        let target = folder.join(format!("step-{:010}", self.state.step));
        folder::write_folder(&target, |inside| -> Result<(), TrainError> {
            self.config.save(inside)?;
            write_weights(&inside.join(WEIGHTS), &self.tensors)?;
            let moment = |name: &str, data: &Vec<f32>| NamedTensor {
                name: name.to_string(),
                shape: vec![data.len()],
                data: data.clone(),
            };
            let moments = [moment("first", &self.moments.first), moment("second", &self.moments.second)];
            write_weights(&inside.join(MOMENTS), &moments)?;
            let mut sha256 = BTreeMap::new();
            for name in ["config.json", WEIGHTS, MOMENTS] {
                sha256.insert(name.to_string(), sha256_file(&inside.join(name))?.sha256);
            }
            let state = StateFile { state: self.state.clone(), optimizer_step: self.moments.step, sha256 };
            folder::write_json(&inside.join(STATE), &state)?;
            let done = inside.join(DONE);
            let hash = sha256_file(&inside.join(STATE))?.sha256;
            fs::write(&done, hash).map_err(TrainError::io("write", &done))
        })?;
        for old in steps(folder)?.iter().rev().skip(KEPT) {
            fs::remove_dir_all(old).map_err(TrainError::io("remove", old))?;
        }
        Ok(target)
    }

    /// Reads and verifies the checkpoint in `folder`.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when anything of it is absent or changed.
    pub fn load(folder: &Path) -> Result<Checkpoint, TrainError> {
        let broken = |reason: String| TrainError::Checkpoint { path: folder.to_path_buf(), reason };
        let done = fs::read_to_string(folder.join(DONE)).map_err(|error| broken(format!("DONE: {error}")))?;
        verify(folder, STATE, done.trim())?;
        let text = fs::read_to_string(folder.join(STATE)).map_err(|error| broken(error.to_string()))?;
        let file: StateFile =
            serde_json::from_str(&text).map_err(|error| broken(format!("{STATE}: {error}")))?;
        for (name, sha256) in &file.sha256 {
            verify(folder, name, sha256)?;
        }
        let config = Config::load(folder)?;
        let tensors = read_weights(folder, &config.tensors())?;
        let count = config.parameter_count();
        let expected = ["first", "second"].map(|name| (name.to_string(), vec![count]));
        let mut moments =
            read_tensors(&[folder.join(MOMENTS)], &expected)?.into_iter().map(|tensor| tensor.data);
        let (first, second) = (moments.next().unwrap_or_default(), moments.next().unwrap_or_default());
        let moments = Moments { step: file.optimizer_step, first, second };
        Ok(Checkpoint { state: file.state, config, tensors, moments })
    }

    /// The newest whole checkpoint in `folder` (the run's `checkpoints`); `None` when there is none. One that
    /// is not whole is passed over with a warning.
    ///
    /// # Errors
    /// The folder cannot be listed, or there are checkpoints and none of them is whole.
    pub fn load_newest(folder: &Path, progress: &mut Progress<'_>) -> Result<Option<Checkpoint>, TrainError> {
        let mut broken = None;
        for path in steps(folder)?.iter().rev() {
            match Checkpoint::load(path) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => {
                    progress(Event::Warning(format!("{error}; trying the one before")));
                    broken = Some(error);
                }
            }
        }
        broken.map_or(Ok(None), Err)
    }
}

/// Folders of the checkpoints, oldest first.
fn steps(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io("list", folder)(error)),
    };
    let mut steps = Vec::new();
    for entry in entries {
        let entry = entry.map_err(TrainError::io("list", folder))?;
        if entry.file_name().to_string_lossy().starts_with("step-") {
            steps.push(entry.path());
        }
    }
    // Step numbers have a fixed width, so the order of names is the order of steps.
    steps.sort();
    Ok(steps)
}

fn verify(folder: &Path, name: &str, expected: &str) -> Result<(), TrainError> {
    let broken = |reason: String| TrainError::Checkpoint { path: folder.to_path_buf(), reason };
    let found = sha256_file(&folder.join(name)).map_err(|error| broken(error.to_string()))?.sha256;
    if found != expected {
        return Err(broken(format!("{name} is not what was written (SHA-256 {found}, expected {expected})")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checkpoint(step: u64) -> Checkpoint {
        let config = Config {
            vocab_size: 8,
            width: 4,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
            ffn: 6,
            max_positions: 16,
            norm_epsilon: 1e-5,
            rope_theta: 10000.0,
            rope_scaling: None,
            tied: false,
            bos: None,
            eos: vec![1],
            mixing: strata_model::Mixing::default(),
        };
        let tensors: Vec<NamedTensor> = config
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let data = (0..shape.iter().product()).map(|i: usize| (i as f32).sin()).collect();
                NamedTensor { name, shape, data }
            })
            .collect();
        let count: usize = config.parameter_count();
        Checkpoint {
            state: RunState {
                step,
                tokens: 10 * step,
                seconds: 1.25,
                flops: 3e9,
                position: json!({"row": step}),
            },
            config,
            tensors,
            moments: Moments {
                step,
                first: (0..count).map(|i| i as f32).collect(),
                second: (0..count).map(|i| 1.0 / (1 + i) as f32).collect(),
            },
        }
    }

    #[test]
    fn the_newest_of_the_last_two_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::load_newest(folder.path(), &mut |_| ()).unwrap(), None);
        for step in [9, 10, 100] {
            checkpoint(step).save(folder.path()).unwrap();
        }
        assert_eq!(steps(folder.path()).unwrap().len(), KEPT);
        let newest = Checkpoint::load_newest(folder.path(), &mut |event| panic!("{event:?}")).unwrap();
        assert_eq!(newest, Some(checkpoint(100)));
    }

    #[test]
    fn a_spoilt_file_is_found_and_the_one_before_is_used() {
        for name in ["config.json", WEIGHTS, MOMENTS, STATE, DONE] {
            let folder = tempfile::tempdir().unwrap();
            checkpoint(1).save(folder.path()).unwrap();
            let newest = checkpoint(2).save(folder.path()).unwrap();
            let path = newest.join(name);
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.len() - 2;
            bytes[last] ^= 1;
            fs::write(&path, bytes).unwrap();
            let mut warnings = Vec::new();
            let loaded = Checkpoint::load_newest(folder.path(), &mut |event| warnings.push(event)).unwrap();
            assert_eq!(loaded, Some(checkpoint(1)), "{name}");
            assert!(matches!(warnings.as_slice(), [Event::Warning(_)]), "{name}: {warnings:?}");
            fs::remove_file(&path).unwrap();
            assert!(matches!(Checkpoint::load(&newest), Err(TrainError::Checkpoint { .. })), "{name}");
        }
    }

    #[test]
    fn when_none_is_whole_that_is_an_error_and_no_fresh_start() {
        let folder = tempfile::tempdir().unwrap();
        let only = checkpoint(3).save(folder.path()).unwrap();
        fs::remove_file(only.join(DONE)).unwrap();
        assert!(Checkpoint::load_newest(folder.path(), &mut |_| ()).is_err());
    }
}
