//! Which models there are, and those that are loaded: of the home folder, each loaded when it is first asked for, and of
//! another server where one was named.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use strata_generate::engine::Settings;
use strata_model::{Config, Home, Lineage};
use strata_tensor::Cpu;

use crate::ask::{Answers, Ask, Asker};
use crate::error::ApiError;
use crate::local::LocalModel;
use crate::upstream::Upstream;

/// What is told of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Whether it runs on another server.
    pub upstream: bool,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// `base`, `command`, `dialogue`; none for models made elsewhere.
    pub stage: Option<String>,
    /// Number of weights, where known.
    pub parameters: Option<usize>,
    /// Tokens of its context, where known.
    pub context_length: Option<usize>,
}

/// A model that can be asked.
#[derive(Debug, Clone)]
pub enum Model {
    /// One of this machine.
    Local(Arc<LocalModel>),
    /// One of another server, by the name it has there.
    Upstream(Arc<Upstream>, String),
}

impl Model {
    /// Begins to answer.
    ///
    /// # Errors
    /// The request does not fit the model, or the engine is too busy.
    pub async fn ask(&self, ask: Ask, asker: Asker) -> Result<Answers, ApiError> {
        match self {
            Model::Local(model) => {
                // Encoding a long prompt or compiling a schema would hold up everyone on this thread; a short one is
                // encoded sooner than another thread wakes.
                if ask.is_light() {
                    return model.ask(&ask, asker).map(Answers::Local);
                }
                let model = model.clone();
                let answers = tokio::task::spawn_blocking(move || model.ask(&ask, asker)).await;
                answers.map_err(ApiError::internal)?.map(Answers::Local)
            }
            Model::Upstream(upstream, name) => upstream.ask(name, ask, asker).await.map(Answers::Upstream),
        }
    }
}

/// All models.
#[derive(Debug)]
pub struct Catalog {
    home: Home,
    /// Where only some models are served: their names and folders.
    only: Option<Vec<(String, PathBuf)>>,
    cpu: Cpu,
    settings: Settings,
    most_loaded: usize,
    upstream: Option<Arc<Upstream>>,
    loaded: Mutex<HashMap<String, Loaded>>,
    /// Held while a model is loaded, so that two requests do not load it twice.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Loaded {
    model: Arc<LocalModel>,
    /// When its weights were written: a model that was trained anew is loaded anew.
    written: Option<SystemTime>,
    used: Instant,
}

impl Catalog {
    /// The models of `home`, or only those given; at most `most_loaded` stay in memory.
    pub fn new(
        home: Home,
        only: Option<Vec<(String, PathBuf)>>,
        cpu: Cpu,
        settings: Settings,
        most_loaded: usize,
        upstream: Option<Arc<Upstream>>,
    ) -> Catalog {
        Catalog {
            home,
            only,
            cpu,
            settings,
            most_loaded: most_loaded.max(1),
            upstream,
            loaded: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// What is known of every model that can be served: dialogue models first, then command models, then those made
    /// elsewhere, base models last; the newest first.
    ///
    /// # Errors
    /// The home folder cannot be listed.
    pub async fn list(&self) -> Result<Vec<ModelInfo>, ApiError> {
        let mut models: Vec<ModelInfo> =
            self.folders()?.iter().filter_map(|(name, folder)| describe(name, folder)).collect();
        if let Some(upstream) = &self.upstream {
            for name in upstream.models().await {
                if models.iter().all(|model| model.name != name) {
                    models.push(ModelInfo {
                        name,
                        upstream: true,
                        created: 0,
                        stage: None,
                        parameters: None,
                        context_length: None,
                    });
                }
            }
        }
        // The first one is meant where a request names none, and is what the chat page begins with.
        let rank = |model: &ModelInfo| match model.stage.as_deref() {
            Some("dialogue") => 0,
            Some("command") => 1,
            None => 2,
            Some(_) => 3,
        };
        models.sort_by_key(|model| (rank(model), std::cmp::Reverse(model.created)));
        Ok(models)
    }

    fn folders(&self) -> Result<Vec<(String, PathBuf)>, ApiError> {
        if let Some(only) = &self.only {
            return Ok(only.clone());
        }
        let names = self.home.models().map_err(ApiError::internal)?;
        let folder = |name: String| self.home.model(&name).ok().map(|folder| (name, folder));
        Ok(names.into_iter().filter_map(folder).collect())
    }

    /// The folder of the model of that name. Only names are taken, never paths.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        match &self.only {
            Some(only) => only.iter().find(|(known, _)| known == name).map(|(_, folder)| folder.clone()),
            None => self.home.model(name).ok().filter(|folder| folder.join("config.json").exists()),
        }
    }

    /// The model that is meant where a request names none: the first of [`Catalog::list`].
    ///
    /// # Errors
    /// There is no model at all.
    pub async fn default_name(&self) -> Result<String, ApiError> {
        let first = self.list().await?.into_iter().next();
        first.map(|model| model.name).ok_or_else(|| ApiError::model("", &[]))
    }

    /// The model of that name, loaded if it was not.
    ///
    /// # Errors
    /// There is no such model, or it cannot be loaded.
    pub async fn get(&self, name: &str) -> Result<Model, ApiError> {
        let Some(folder) = self.folder(name) else {
            if let Some(upstream) = &self.upstream
                && upstream.models().await.iter().any(|known| known == name)
            {
                return Ok(Model::Upstream(upstream.clone(), name.to_string()));
            }
            let names: Vec<String> = self.list().await?.into_iter().map(|model| model.name).collect();
            return Err(ApiError::model(name, &names));
        };
        if let Some(model) = self.ready(name, &folder) {
            return Ok(Model::Local(model));
        }
        let _guard = self.loading.lock().await;
        if let Some(model) = self.ready(name, &folder) {
            return Ok(Model::Local(model));
        }
        let since = Instant::now();
        let (cpu, settings, written) = (self.cpu.clone(), self.settings, written(&folder));
        let opened = tokio::task::spawn_blocking(move || LocalModel::open(&folder, &cpu, settings)).await;
        let model = opened.map_err(ApiError::internal)?.map_err(|problem| {
            tracing::error!(model = name, problem, "a model cannot be loaded");
            ApiError::unavailable(format!("model '{name}' cannot be loaded: {problem}"))
        })?;
        tracing::info!(model = name, ms = since.elapsed().as_millis() as u64, "model loaded");
        let model = Arc::new(model);
        let mut loaded = self.lock();
        loaded.insert(name.to_string(), Loaded { model: model.clone(), written, used: Instant::now() });
        while loaded.len() > self.most_loaded {
            let idle =
                loaded.iter().filter(|(known, loaded)| *known != name && !loaded.model.engine().is_busy());
            let Some(oldest) = idle.min_by_key(|(_, loaded)| loaded.used).map(|(known, _)| known.clone())
            else {
                break;
            };
            tracing::info!(model = oldest, "model unloaded");
            loaded.remove(&oldest);
        }
        Ok(Model::Local(model))
    }

    /// The model of this machine of that name, for what only those can do.
    ///
    /// # Errors
    /// As [`Catalog::get`]; the model is another server's.
    pub async fn get_local(&self, name: &str) -> Result<Arc<LocalModel>, ApiError> {
        match self.get(name).await? {
            Model::Local(model) => Ok(model),
            Model::Upstream(..) => {
                Err(ApiError::field("model", "it runs on another server, whose tokenizer is not known here"))
            }
        }
    }

    /// All loaded models, for the metrics.
    pub fn loaded(&self) -> Vec<(String, Arc<LocalModel>)> {
        self.lock().iter().map(|(name, loaded)| (name.clone(), loaded.model.clone())).collect()
    }

    fn ready(&self, name: &str, folder: &Path) -> Option<Arc<LocalModel>> {
        let mut loaded = self.lock();
        let entry = loaded.get_mut(name)?;
        if entry.written != written(folder) || entry.model.engine().is_stopped() {
            loaded.remove(name);
            return None;
        }
        entry.used = Instant::now();
        Some(entry.model.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the model in `folder` is; none where it cannot be read.
fn describe(name: &str, folder: &Path) -> Option<ModelInfo> {
    let config = Config::load(folder).ok()?;
    let lineage = Lineage::load(folder).ok()?;
    let created = written(folder).and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Some(ModelInfo {
        name: name.to_string(),
        upstream: false,
        created: created.map_or(0, |time| time.as_secs()),
        stage: lineage.map(|lineage| lineage.stage),
        parameters: Some(config.parameter_count()),
        context_length: Some(config.context()),
    })
}

fn written(folder: &Path) -> Option<SystemTime> {
    std::fs::metadata(folder.join("config.json")).and_then(|data| data.modified()).ok()
}
