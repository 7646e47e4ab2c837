//! The folder of a comparison.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use strata_model::Home;

use super::plan::{CompareRequest, Plan, decide};
use crate::trials::{Study, read_whole, write_whole};
use crate::{Machine, TrainError, Workplace};

/// A comparison's folder and its plan.
pub struct Comparison {
    folder: PathBuf,
    name: String,
    plan: Plan,
}

/// The file that makes a folder a comparison's.
const PLAN: &str = "plan.json";

impl Comparison {
    /// Opens the comparison `name`, or begins it where there is none. Without a `request`, there must be one.
    ///
    /// # Errors
    /// The folder holds another kind of run, or a comparison of other settings.
    pub fn open(home: &Home, name: &str, request: Option<&CompareRequest>) -> Result<Comparison, TrainError> {
        let folder = home.run(name)?;
        let path = folder.join(PLAN);
        let wrong = |reason: String| Err(TrainError::Run { path: path.clone(), reason });
        let plan = match (read_whole::<Plan>(&path)?, request) {
            // Until there is a plan nothing depends on the request.
            (Some(plan), Some(request)) if plan.entries.is_empty() => {
                request.check()?;
                let plan = Plan { request: request.clone(), ..plan };
                write_whole(&path, &plan)?;
                plan
            }
            (Some(plan), Some(request)) if plan.request != *request => {
                return wrong(format!(
                    "this comparison began with other settings ({}); repeat them, leave them all out to go on with it, or \
                     use another name",
                    difference(&plan.request, request)
                ));
            }
            (Some(plan), _) => plan,
            (None, None) => {
                return wrong(format!(
                    "there is no comparison \"{name}\" to go on with; say what to compare with --corpus, and how long"
                ));
            }
            (None, Some(request)) => {
                if let Some(other) = fs::read_dir(&folder).ok().and_then(|mut entries| entries.next()) {
                    let found = other.map(|entry| entry.file_name().to_string_lossy().into_owned());
                    return Err(TrainError::Run {
                        path: folder,
                        reason: format!(
                            "another kind of run has this name (it holds {}, and no {PLAN}); use another name",
                            found.unwrap_or_default()
                        ),
                    });
                }
                request.check()?;
                fs::create_dir_all(&folder).map_err(TrainError::io("create", &folder))?;
                let plan = Plan {
                    request: request.clone(),
                    isa: String::new(),
                    corpus_tokens: 0,
                    entries: Vec::new(),
                };
                write_whole(&path, &plan)?;
                plan
            }
        };
        Ok(Comparison { folder, name: name.to_string(), plan })
    }

    /// What was decided.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the plan is made.
    pub fn is_planned(&self) -> bool {
        !self.plan.entries.is_empty()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the corpus that the models share, and prepares it the first time. This process alone trains until it is
    /// dropped.
    ///
    /// # Errors
    /// As [`Study::open`].
    pub fn study(&self, place: &mut Workplace<'_>) -> Result<Study, TrainError> {
        let request = &self.plan.request;
        Study::open(&self.name, &request.corpus, request.vocab_size, place)
    }

    /// Measures the speed of every mixer and makes the plan of it, where that is not done; `machine` has as many threads
    /// as train one model. Wants a machine that does nothing else.
    ///
    /// # Errors
    /// Something asked for cannot be met, or the plan cannot be written.
    pub fn decide(
        &mut self,
        study: &Study,
        machine: &Machine,
        peak: &dyn Fn(&Machine) -> f64,
        tell: &mut dyn FnMut(String),
    ) -> Result<(), TrainError> {
        if self.is_planned() {
            return Ok(());
        }
        self.plan = decide(&self.plan.request, study, machine, peak, tell)?;
        write_whole(&self.folder.join(PLAN), &self.plan)
    }

    /// The result `name`, if it is there.
    ///
    /// # Errors
    /// The file is damaged.
    pub(super) fn result<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, TrainError> {
        read_whole(&self.result_path(name))
    }

    /// Keeps a result.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn keep(&self, name: &str, result: &impl Serialize) -> Result<(), TrainError> {
        let path = self.result_path(name);
        let folder = self.folder.join("results");
        fs::create_dir_all(&folder).map_err(TrainError::io("create", &folder))?;
        write_whole(&path, result)
    }

    fn result_path(&self, name: &str) -> PathBuf {
        self.folder.join("results").join(format!("{name}.json"))
    }

    /// Where the weights of a trained model are kept.
    pub(super) fn weights(&self, name: &str) -> PathBuf {
        self.folder.join("weights").join(format!("{name}.safetensors"))
    }

    /// Takes a part of the work for this process, until what is returned is dropped.
    ///
    /// # Errors
    /// Another process has it.
    pub(super) fn take(&self, part: &str) -> Result<File, TrainError> {
        let path = self.folder.join(format!("{part}.lock"));
        let lock = File::create(&path).map_err(TrainError::io("write", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => {
                let reason = "another process works on this part of the comparison; wait for it".to_string();
                Err(TrainError::Run { path, reason })
            }
            Err(TryLockError::Error(error)) => Err(TrainError::io("lock", &path)(error)),
        }
    }
}

/// The first setting that two requests differ in.
fn difference(before: &CompareRequest, now: &CompareRequest) -> String {
    let fields = |request: &CompareRequest| match serde_json::to_value(request) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (before, now) = (fields(before), fields(now));
    let differing = before.iter().find(|(name, value)| now.get(*name) != Some(value));
    differing.map_or("it is not clear which".to_string(), |(name, value)| {
        format!("{name} was {value} and is now {}", now.get(name).unwrap_or(&serde_json::Value::Null))
    })
}
