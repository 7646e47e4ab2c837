//! A run's folder: what was asked, what was decided, and one process at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use strata_data::Tokenizer;
use strata_model::{Config, DataFile, Home, Lineage, folder, write_weights};

use crate::plan::{Decision, Recipe};
use crate::{Event, Learner, Machine, Outcome, Progress, RunFiles, Stop, TrainError};

/// Seconds between checkpoints.
const CHECKPOINT_SECONDS: f64 = 120.0;

/// What every stage works with.
pub struct Workplace<'a> {
    /// Where models and runs live.
    pub home: &'a Home,
    /// What computes.
    pub machine: &'a Machine,
    /// Asked for when the run is to save and end.
    pub stop: &'a Stop,
    /// Receives the events.
    pub progress: &'a mut Progress<'a>,
    /// Whether an interrupted run of the same name is forgotten instead of continued.
    pub restart: bool,
}

/// A finished or stopped run.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The model's name.
    pub name: String,
    /// Folder of the finished model; none when the run was stopped before its end.
    pub folder: Option<PathBuf>,
    /// The numbers.
    pub outcome: Outcome,
    /// The held-out loss that the mixer's scaling law gave before training; none without a law that applies.
    pub predicted_loss: Option<f64>,
}

/// `run.toml`: the request, and everything that was decided before training began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decided<R> {
    /// The stage.
    pub stage: String,
    /// The held-out loss that the mixer's scaling law gives, in nats per token; none without a law that applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_loss: Option<f64>,
    /// What the person asked for.
    pub request: R,
    /// Every setting of the run.
    pub recipe: Recipe,
    /// The model's shape.
    pub model: Config,
    /// Every choice with its reason.
    #[serde(default)]
    pub decisions: Vec<Decision>,
    /// The files that are trained on.
    #[serde(default)]
    pub data: Vec<DataFile>,
}

/// The folder of a run that this process alone works in until it is dropped.
pub struct Run {
    /// Where the run keeps its files.
    pub files: RunFiles,
    /// Released when closed, by whatever end the process comes to.
    _lock: File,
}

impl Run {
    /// Takes the folder of run `name` for a stage that trains one model.
    ///
    /// # Errors
    /// As [`Run::take`], and where the folder is a study's of many models.
    pub fn take_for_stage(home: &Home, name: &str, restart: bool) -> Result<Run, TrainError> {
        let folder = home.run(name)?;
        if folder.join("trials").exists() {
            let reason =
                "this name is that of a comparison or of another study of many models; use another name"
                    .into();
            return Err(TrainError::Run { path: folder, reason });
        }
        Run::take(home, name, restart)
    }

    /// Takes the folder of run `name`.
    ///
    /// # Errors
    /// Another process works in it, or it cannot be written.
    pub fn take(home: &Home, name: &str, restart: bool) -> Result<Run, TrainError> {
        let folder = home.run(name)?;
        fs::create_dir_all(&folder).map_err(TrainError::io("create", &folder))?;
        let path = folder.join("lock");
        let lock = File::create(&path).map_err(TrainError::io("write", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason =
                    "another process is training this run; wait for it or use another name".to_string();
                return Err(TrainError::Run { path: folder, reason });
            }
            Err(TryLockError::Error(error)) => return Err(TrainError::io("lock", &path)(error)),
        }
        let run = Run { files: RunFiles { folder, checkpoint_seconds: CHECKPOINT_SECONDS }, _lock: lock };
        if restart {
            run.clear()?;
        }
        Ok(run)
    }

    /// The decisions of an interrupted run of the same request; none when there is no run to continue.
    ///
    /// # Errors
    /// There is one, but of another request.
    pub fn decided<R: DeserializeOwned + PartialEq>(
        &self,
        stage: &str,
        request: &R,
    ) -> Result<Option<Decided<R>>, TrainError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TrainError::io("read", &path)(error)),
        };
        match toml::from_str::<Decided<R>>(&text) {
            Ok(decided) if decided.stage == stage && decided.request == *request => Ok(Some(decided)),
            _ => {
                let reason = "this run was interrupted and began with other settings; repeat the command it \
                              began with to continue it, or add --restart to begin anew"
                    .to_string();
                Err(TrainError::Run { path, reason })
            }
        }
    }

    /// Writes `run.toml`; from then on the run can be continued.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn decide<R: Serialize>(&self, decided: &Decided<R>) -> Result<(), TrainError> {
        let path = self.path();
        let text = toml::to_string_pretty(decided).map_err(|error| TrainError::Run {
            path: path.clone(),
            reason: format!("a setting cannot be written: {error}"),
        })?;
        let temporary = path.with_extension("toml.writing");
        fs::write(&temporary, text).map_err(TrainError::io("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(TrainError::io("rename into place", &path))
    }

    /// Whether a stage began here and has not finished.
    pub fn begun(&self) -> bool {
        self.path().exists()
    }

    /// A folder of the run for prepared data.
    pub fn data(&self) -> PathBuf {
        self.files.folder.join("data")
    }

    fn path(&self) -> PathBuf {
        self.files.folder.join("run.toml")
    }

    /// Removes everything that an earlier run of this name left.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn clear(&self) -> Result<(), TrainError> {
        for path in [self.path(), self.files.metrics(), self.files.folder.join("finished.toml")] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(TrainError::io("remove", &path)(error));
                }
                _ => {}
            }
        }
        self.remove_bulk()
    }

    /// Closes a run whose model is finished: what was decided stays to be read, what is large goes, and the
    /// next run of this name begins anew.
    ///
    /// # Errors
    /// Something cannot be renamed or removed.
    pub fn close(&self) -> Result<(), TrainError> {
        let finished = self.files.folder.join("finished.toml");
        fs::rename(self.path(), &finished).map_err(TrainError::io("rename", &finished))?;
        self.remove_bulk()
    }

    fn remove_bulk(&self) -> Result<(), TrainError> {
        for folder in [self.data(), self.files.checkpoints()] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(TrainError::io("remove", &folder)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Makes the finished model appear in the home, whole, in place of one of the same name.
///
/// # Errors
/// A file cannot be written; an existing model of that name is then untouched.
pub fn publish(
    home: &Home,
    learner: &dyn Learner,
    tokenizer: &Tokenizer,
    lineage: &Lineage,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, TrainError> {
    let target = home.model(&lineage.name)?;
    if target.exists() {
        progress(Event::Note(format!("replacing the model {}", lineage.name)));
    }
    folder::write_folder(&target, |inside: &Path| -> Result<(), TrainError> {
        let config = learner.config();
        config.save(inside)?;
        write_weights(&inside.join(strata_model::weights::SINGLE_FILE), &learner.tensors())?;
        folder::write_generation_config(inside, config)?;
        tokenizer.save(inside)?;
        lineage.save(inside)?;
        Ok(())
    })?;
    Ok(target)
}

/// What goes into `lineage.json` as the numbers of a run.
pub fn metrics(outcome: &Outcome) -> serde_json::Value {
    serde_json::json!({
        "training_loss": outcome.training_loss,
        "loss": outcome.validation.map(|validation| validation.loss),
        "bits_per_byte": outcome.validation.and_then(|validation| validation.bits_per_byte),
        "steps": outcome.step,
        "seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens_per_second,
    })
}

/// Name and version for `lineage.json`.
pub const SOFTWARE: &str = concat!("strata ", env!("CARGO_PKG_VERSION"));

/// Tells every decision of the dial as a note.
pub fn tell(decisions: &[Decision], progress: &mut Progress<'_>) {
    for Decision { what, value, why } in decisions {
        progress(Event::Note(format!("{what}: {value} ({why})")));
    }
}

/// Everything that was decided, for `lineage.json`.
pub fn recipe_value<R: Serialize>(decided: &Decided<R>) -> serde_json::Value {
    serde_json::json!({ "request": decided.request, "recipe": decided.recipe, "decisions": decided.decisions })
}

/// A data file as the lineage writes it.
pub fn data_file(digest: strata_data::FileDigest) -> DataFile {
    DataFile { path: digest.path.display().to_string(), sha256: digest.sha256, bytes: digest.bytes }
}
