//! Which models there are, and those that are loaded: of the home folder, each loaded when it is first asked for, and of
//! another server where one was named.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use strata_generate::engine::{Counters, Settings};
use strata_model::{Config, Home, Lineage, WeightFormat};
use strata_tensor::Cpu;
use tracing::Instrument;

use crate::ask::{Answers, Ask, Asker};
use crate::error::ApiError;
use crate::local::LocalModel;
use crate::unfinished::Unfinished;
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
            Model::Upstream(upstream, name) => {
                let (prompts, count) = (ask.prompt.count(), ask.count);
                let pieces = upstream.ask(name, ask, asker).await?;
                // How its tokenizer cuts a prompt is not known here.
                Ok(Answers::Upstream(pieces, Unfinished::new(vec![0; prompts], count)))
            }
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
    weights: WeightFormat,
    most_loaded: usize,
    upstream: Option<Arc<Upstream>>,
    loaded: Mutex<HashMap<String, Loaded>>,
    /// Counters of models that were let go of: what they counted stays, and some are still finishing.
    past: Mutex<BTreeMap<String, Vec<Arc<Counters>>>>,
    failed: Mutex<HashMap<String, Failed>>,
    /// Held while a model is loaded, so that two requests do not load it twice.
    loading: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Loaded {
    model: Arc<LocalModel>,
    /// A model that was trained anew is loaded anew.
    version: Version,
    /// When that was looked at.
    seen: Instant,
    used: Instant,
}

/// How long the files of a model are believed to be what they were: a crowd would look at them thousands of times a second.
const SEEN: Duration = Duration::from_millis(250);

/// How long a model that could not be loaded is not tried again, unless its files change.
const FAILED: Duration = Duration::from_secs(30);

/// A model that could not be loaded.
#[derive(Debug)]
struct Failed {
    version: Version,
    when: Instant,
    error: ApiError,
}

impl Catalog {
    /// The models of `home`, or only those given; at most `most_loaded` stay in memory.
    pub fn new(
        home: Home,
        only: Option<Vec<(String, PathBuf)>>,
        cpu: Cpu,
        (settings, weights): (Settings, WeightFormat),
        most_loaded: usize,
        upstream: Option<Arc<Upstream>>,
    ) -> Catalog {
        Catalog {
            home,
            only,
            cpu,
            settings,
            weights,
            most_loaded: most_loaded.max(1),
            upstream,
            loaded: Mutex::default(),
            past: Mutex::default(),
            failed: Mutex::default(),
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
            for name in upstream.models().await.iter() {
                if models.iter().all(|model| model.name != *name) {
                    models.push(ModelInfo {
                        name: name.clone(),
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

    /// The models that are served by name, and only they.
    pub fn named(&self) -> Vec<String> {
        self.only.iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    /// Whether there is a model of that name, as far as is known without asking another server.
    pub fn knows(&self, name: &str) -> bool {
        self.folder(name).is_some() || self.upstream.as_ref().is_some_and(|upstream| upstream.knows(name))
    }

    /// The model of that name, loaded if it was not. What is loaded stays, even for a client that goes away meanwhile.
    ///
    /// # Errors
    /// There is no such model, or it cannot be loaded.
    pub async fn get(self: &Arc<Self>, name: &str) -> Result<Model, ApiError> {
        let Some(folder) = self.folder(name) else {
            if let Some(upstream) = &self.upstream
                && upstream.has(name).await
            {
                return Ok(Model::Upstream(upstream.clone(), name.to_string()));
            }
            let names: Vec<String> = self.list().await?.into_iter().map(|model| model.name).collect();
            return Err(ApiError::model(name, &names));
        };
        if let Some(model) = self.ready(name, &folder) {
            return Ok(Model::Local(model));
        }
        // A task of its own, which goes on when its client does not: else every client that loses patience would have the model loaded
        // once more.
        let (catalog, name) = (self.clone(), name.to_string());
        let loading = async move { catalog.load(&name, folder).await };
        tokio::spawn(loading.in_current_span()).await.map_err(ApiError::internal)?.map(Model::Local)
    }

    async fn load(&self, name: &str, folder: PathBuf) -> Result<Arc<LocalModel>, ApiError> {
        let _guard = self.loading.lock().await;
        if let Some(model) = self.ready(name, &folder) {
            return Ok(model);
        }
        // What cannot be listed is looked at again soon.
        let version = version(&folder).unwrap_or_default();
        let failed_before = match lock(&self.failed).get(name).filter(|failed| failed.version == version) {
            Some(failed) if failed.when.elapsed() < FAILED => return Err(failed.error.clone()),
            failed => failed.is_some(),
        };
        // For one that is likely to fail again no other has to go.
        if !failed_before {
            self.unload_idle(name);
        }
        let since = Instant::now();
        let (cpu, settings, weights) = (self.cpu.clone(), self.settings, self.weights);
        let open = move || LocalModel::open(&folder, &cpu, settings, weights);
        let opened = tokio::task::spawn_blocking(open).await.map_err(ApiError::internal)?;
        let model = opened.map_err(|problem| {
            // Where models lie is nobody's business but the operator's.
            tracing::error!(model = name, problem, "a model cannot be loaded");
            let error = ApiError::unavailable(format!(
                "model '{name}' cannot be loaded; the log of the server says why"
            ));
            let failed = Failed { version: version.clone(), when: Instant::now(), error: error.clone() };
            lock(&self.failed).insert(name.to_string(), failed);
            error
        })?;
        tracing::info!(model = name, ms = since.elapsed().as_millis() as u64, "model loaded");
        let model = Arc::new(model);
        let now = Instant::now();
        let entry = Loaded { model: model.clone(), version, seen: now, used: now };
        lock(&self.loaded).insert(name.to_string(), entry);
        lock(&self.failed).remove(name);
        self.unload_idle(name);
        Ok(model)
    }

    /// Lets go of models that nobody uses, those unused for longest first, until there is room for that of the given name, or all are used.
    fn unload_idle(&self, but: &str) {
        let mut loaded = lock(&self.loaded);
        while loaded.keys().filter(|name| *name != but).count() >= self.most_loaded {
            // Whoever is about to ask one, or still reads its answer, holds it.
            let idle =
                |(name, loaded): &(&String, &Loaded)| *name != but && Arc::strong_count(&loaded.model) == 1;
            let oldest = loaded.iter().filter(idle).min_by_key(|(_, loaded)| loaded.used);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            tracing::info!(model = oldest, "model unloaded");
            let gone = loaded.remove(&oldest);
            self.retire(oldest, gone);
        }
    }

    /// Remembers what a model counted that is let go of.
    fn retire(&self, name: String, gone: Option<Loaded>) {
        let Some(gone) = gone else { return };
        let mut past = lock(&self.past);
        let past = past.entry(name).or_default();
        past.push(gone.model.engine().counters().clone());
        add_up(past);
    }

    /// The model of this machine of that name, for what only those can do.
    ///
    /// # Errors
    /// As [`Catalog::get`]; the model is another server's.
    pub async fn get_local(self: &Arc<Self>, name: &str) -> Result<Arc<LocalModel>, ApiError> {
        match self.get(name).await? {
            Model::Local(model) => Ok(model),
            Model::Upstream(..) => {
                Err(ApiError::field("model", "it runs on another server, whose tokenizer is not known here"))
            }
        }
    }

    /// What all models that were ever loaded have counted, for the metrics; the sum of each model's counters is meant.
    pub fn counters(&self) -> BTreeMap<String, Vec<Arc<Counters>>> {
        let loaded = lock(&self.loaded);
        let mut all = {
            let mut past = lock(&self.past);
            past.values_mut().for_each(add_up);
            past.clone()
        };
        for (name, loaded) in loaded.iter() {
            all.entry(name.clone()).or_default().push(loaded.model.engine().counters().clone());
        }
        all
    }

    /// Most models in memory at one time, as far as they are not at work.
    pub fn most_loaded(&self) -> usize {
        self.most_loaded
    }

    /// How many models are in memory.
    pub fn loaded(&self) -> usize {
        lock(&self.loaded).len()
    }

    fn ready(&self, name: &str, folder: &Path) -> Option<Arc<LocalModel>> {
        let (model, too_many) = {
            let mut loaded = lock(&self.loaded);
            let too_many = loaded.len() > self.most_loaded;
            let entry = loaded.get_mut(name)?;
            let now = Instant::now();
            // That nothing can be seen of them, for want of open files perhaps, says nothing of them.
            let stale =
                now - entry.seen >= SEEN && version(folder).is_ok_and(|version| version != entry.version);
            if stale || entry.model.engine().is_stopped() {
                let gone = loaded.remove(name);
                self.retire(name.to_string(), gone);
                return None;
            }
            if now - entry.seen >= SEEN {
                entry.seen = now;
            }
            entry.used = now;
            (entry.model.clone(), too_many)
        };
        // Those that were at work when there was no room may be idle now.
        if too_many {
            self.unload_idle(name);
        }
        Some(model)
    }
}

/// Adds up counters that only this list still holds, of engines that are gone, so that the list does not grow.
fn add_up(past: &mut Vec<Arc<Counters>>) {
    let (gone, finishing): (Vec<_>, Vec<_>) =
        std::mem::take(past).into_iter().partition(|counters| Arc::strong_count(counters) == 1);
    let sum = Counters::default();
    gone.iter().for_each(|counters| sum.add(counters));
    past.push(Arc::new(sum));
    past.extend(finishing);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the model in `folder` is; none where it cannot be read.
fn describe(name: &str, folder: &Path) -> Option<ModelInfo> {
    let config = Config::load(folder).ok()?;
    let lineage = Lineage::load(folder).ok()?;
    let written = std::fs::metadata(folder.join("config.json")).and_then(|data| data.modified()).ok();
    let created = written.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Some(ModelInfo {
        name: name.to_string(),
        upstream: false,
        created: created.map_or(0, |time| time.as_secs()),
        stage: lineage.map(|lineage| lineage.stage),
        parameters: Some(config.parameter_count()),
        context_length: Some(config.context()),
    })
}

/// The files of a model: names, when they were written, and their bytes. A copy may keep the time of any of them.
type Version = Vec<(PathBuf, SystemTime, u64)>;

fn version(folder: &Path) -> std::io::Result<Version> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            match std::fs::metadata(entry.path())? {
                // Some have their chat templates in a folder of this name.
                data if data.is_dir() && entry.file_name() == "additional_chat_templates" => {
                    folders.push(entry.path());
                }
                data if data.is_file() => {
                    files.push((entry.path(), data.modified().unwrap_or(UNIX_EPOCH), data.len()));
                }
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use strata_data::Tokenizer;
    use strata_model::{Decoder, weights, write_weights};
    use strata_tensor::Isa;

    /// Untrained models of these names.
    fn catalog(names: &[&str], most_loaded: usize) -> (tempfile::TempDir, Arc<Catalog>) {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::train([Ok("the water and the land")], 270).unwrap();
        let config = Config {
            vocab_size: tokenizer.vocab_size(),
            width: 16,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            ffn: 24,
            max_positions: 64,
            norm_epsilon: 1e-5,
            rope_theta: 10000.0,
            rope_scaling: None,
            tied: true,
            bos: tokenizer.bos_id(),
            eos: tokenizer.eos_ids().to_vec(),
            mixing: strata_model::Mixing::default(),
        };
        for name in names {
            let path = folder.path().join("models").join(name);
            std::fs::create_dir_all(&path).unwrap();
            config.save(&path).unwrap();
            write_weights(&path.join(weights::SINGLE_FILE), &Decoder::new(&config, 1).unwrap().tensors())
                .unwrap();
            tokenizer.save(&path).unwrap();
        }
        let (home, cpu) = (Home::new(folder.path()), Cpu::new(Isa::best(), 1).unwrap());
        let forms = (Settings::default(), WeightFormat::Bf16);
        (folder, Arc::new(Catalog::new(home, None, cpu, forms, most_loaded, None)))
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    fn local(model: Model) -> Arc<LocalModel> {
        let Model::Local(model) = model else { panic!("a model of another server") };
        model
    }

    #[test]
    fn what_is_loaded_for_a_client_that_goes_away_stays() {
        let (_folder, catalog) = catalog(&["a"], 1);
        run(async {
            assert!(catalog.get("a").now_or_never().is_none());
            let waited = Instant::now();
            while catalog.loaded() == 0 {
                assert!(waited.elapsed() < Duration::from_secs(60), "nothing was loaded");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    #[test]
    fn a_model_is_loaded_once_for_all_who_ask_at_the_same_time() {
        let (_folder, catalog) = catalog(&["a"], 1);
        run(async {
            let (first, second) = tokio::join!(catalog.get("a"), catalog.get("a"));
            assert!(Arc::ptr_eq(&local(first.unwrap()), &local(second.unwrap())));
        });
    }

    #[test]
    fn no_more_models_are_in_memory_than_allowed_and_the_one_unused_for_longest_goes() {
        let (_folder, catalog) = catalog(&["a", "b", "c"], 2);
        run(async {
            let a = Arc::downgrade(&local(catalog.get("a").await.unwrap()));
            for (name, count) in [("b", 2), ("a", 2), ("c", 2)] {
                catalog.get(name).await.unwrap();
                assert_eq!(catalog.loaded(), count);
            }
            assert!(a.upgrade().is_some(), "b was unused for longer");
        });
    }

    #[test]
    fn a_model_that_cannot_be_loaded_drives_no_other_out_again_and_again() {
        let (folder, catalog) = catalog(&["a", "b", "c"], 2);
        let weights = folder.path().join("models").join("c").join(weights::SINGLE_FILE);
        let whole = std::fs::read(&weights).unwrap();
        std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
        run(async {
            catalog.get("c").await.unwrap_err();
            for name in ["a", "b"] {
                catalog.get(name).await.unwrap();
            }
            catalog.get("c").await.unwrap_err();
            assert_eq!(catalog.loaded(), 2);
            // Nor when it is tried once more.
            let before = lock(&catalog.failed)["c"].when;
            lock(&catalog.failed).get_mut("c").unwrap().when = before.checked_sub(FAILED).unwrap();
            catalog.get("c").await.unwrap_err();
            assert!(lock(&catalog.failed)["c"].when > before, "it was tried");
            assert_eq!(catalog.loaded(), 2);
            std::fs::write(&weights, whole).unwrap();
            catalog.get("c").await.unwrap();
            assert_eq!(catalog.loaded(), 2);
        });
    }

    #[test]
    fn a_model_that_somebody_holds_stays() {
        let (_folder, catalog) = catalog(&["a", "b", "c"], 1);
        run(async {
            let held = catalog.get("a").await.unwrap();
            catalog.get("b").await.unwrap();
            assert_eq!(catalog.loaded(), 2, "one was in use");
            assert!(Arc::ptr_eq(&local(held), &local(catalog.get("a").await.unwrap())));
            catalog.get("c").await.unwrap();
            assert_eq!(catalog.loaded(), 1);
        });
    }

    #[test]
    fn a_model_whose_weights_are_replaced_is_loaded_anew() {
        let (folder, catalog) = catalog(&["a"], 1);
        let weights = folder.path().join("models").join("a").join(weights::SINGLE_FILE);
        run(async {
            let before = local(catalog.get("a").await.unwrap());
            let written = std::fs::metadata(&weights).unwrap().modified().unwrap();
            let file = std::fs::File::options().append(true).open(&weights).unwrap();
            // Older than what it replaces, as a copy may be.
            file.set_modified(written - Duration::from_secs(60)).unwrap();
            tokio::time::sleep(SEEN).await;
            assert!(!Arc::ptr_eq(&before, &local(catalog.get("a").await.unwrap())));
        });
    }
}
