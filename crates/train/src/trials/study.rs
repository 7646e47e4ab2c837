//! The corpus that trials share, and the training of one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use strata_data::packing::BatchOptions;
use strata_data::shards::{self, HELD_OUT_FILE, ShardOptions, TRAIN_FILE};
use strata_data::{BaseBatches, Corpus, Shard, Tokenizer};
use strata_model::{Config, DataFile, Decoder};
use strata_tensor::Precision;

use super::result::{TrialResult, curve, read_whole, write_whole};
use crate::base::{TOKENIZER_BYTES, held_out_batches, sample, texts};
use crate::plan::{self, Dial, Facts, Overrides, Recipe, flops_per_token, matmul_parameters, plan_base};
use crate::run::{self, Run, Workplace};
use crate::trainer::VALIDATIONS;
use crate::{Event, Machine, Progress, RunFiles, Stop, TrainError, Trainer};

/// Tokens per row of all trials unless asked for.
const SEQUENCE: usize = 256;
/// Rows are planned as for this many threads whatever the machine has, so that the recipe is the same everywhere.
const PLANNED_THREADS: usize = 2;
/// Held-out tokens that are measured: the same text for every trial of a study.
const MEASURED_TOKENS: usize = 64 << 10;
/// Rows per pass in measuring, whatever those of training.
const MEASURED_ROWS: usize = 8;
/// Changed when trials of earlier versions are no longer comparable with those of this one.
const VERSION: u32 = 2;

/// What a caller says of a trial; the rest follows as in `train base`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrialRequest {
    /// Mixer, width and whatever else shall not follow from the rest.
    pub overrides: Overrides,
    /// Tokens to train on.
    pub tokens: u64,
    /// Seed of weights and data order.
    pub seed: u64,
}

/// A trial, decided to the last number.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The model's shape.
    pub model: Config,
    /// The run.
    pub recipe: Recipe,
}

impl Trial {
    /// The mixer's name on the command line.
    pub fn mixer(&self) -> String {
        self.model.mixing.name(self.model.layers)
    }

    /// Trainable numbers, the embedding counted once when it is the head too.
    pub fn parameters(&self) -> u64 {
        self.model.parameter_count() as u64
    }

    /// Tokens it will have seen: whole steps.
    pub fn tokens(&self) -> u64 {
        self.steps() * self.tokens_per_step()
    }

    /// Floating-point operations of the whole training.
    pub fn flops(&self) -> f64 {
        self.tokens() as f64 * flops_per_token(&self.model, self.recipe.sequence)
    }

    fn steps(&self) -> u64 {
        self.recipe.budget.tokens.unwrap_or(0).div_ceil(self.tokens_per_step())
    }

    fn tokens_per_step(&self) -> u64 {
        (self.recipe.rows * self.recipe.sequence * self.recipe.accumulation) as u64
    }
}

/// `corpus.json`: what the shared files were made of. Written last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Prepared {
    data: Vec<DataFile>,
    vocab_size: usize,
    train_tokens: u64,
    train_bytes: u64,
    held_out_tokens: u64,
    held_out_bytes: u64,
    tokenizer_sha256: String,
}

/// A run's folder with a corpus in the form that all its trials share, taken by this process.
pub struct Study {
    run: Run,
    prepared: Prepared,
    tokenizer: Tokenizer,
    train: Arc<Shard>,
}

impl Study {
    /// Opens the study `name` of the corpus, and prepares it if that was not done: a tokenizer of `vocab_size` tokens
    /// (what suits the corpus, if not said) and shards, as `train base` makes them of the whole corpus.
    ///
    /// # Errors
    /// The corpus cannot be read, the study is of another corpus or vocabulary, or another process works in it.
    pub fn open(
        name: &str,
        corpus: &[PathBuf],
        vocab_size: Option<usize>,
        place: &mut Workplace<'_>,
    ) -> Result<Study, TrainError> {
        let run = Run::take(place.home, name, place.restart)?;
        if run.begun() {
            let reason = format!(
                "\"{name}\" is an interrupted training run; use another name, or --restart to forget that run"
            );
            return Err(TrainError::Run { path: run.files.folder.clone(), reason });
        }
        let corpus = Corpus::open(corpus)?;
        let bytes = corpus.bytes_on_disk()?;
        let vocab_size = vocab_size.unwrap_or(plan::vocab_size(bytes));
        let data: Vec<DataFile> = corpus.digests()?.into_iter().map(run::data_file).collect();
        let path = run.data().join("corpus.json");
        let prepared = match read_whole::<Prepared>(&path)? {
            Some(prepared) => {
                let hashes = |files: &[DataFile]| -> Vec<String> {
                    files.iter().map(|file| file.sha256.clone()).collect()
                };
                if hashes(&prepared.data) != hashes(&data) || prepared.vocab_size != vocab_size {
                    let reason = format!(
                        "the run \"{name}\" is of another corpus or vocabulary ({} files, {} tokens asked for; now {} \
                         and {vocab_size}); use another name, or --restart to begin anew",
                        prepared.data.len(),
                        prepared.vocab_size,
                        data.len()
                    );
                    return Err(TrainError::Run { path, reason });
                }
                prepared
            }
            None => {
                let folder = run.data();
                fs::create_dir_all(&folder).map_err(TrainError::io("create", &folder))?;
                (place.progress)(Event::Phase("learning a tokenizer".into()));
                let text = texts(sample(&corpus, bytes, TOKENIZER_BYTES));
                let tokenizer = Tokenizer::train(text, vocab_size)?;
                tokenizer.save(&folder)?;
                (place.progress)(Event::Phase("tokenizing".into()));
                let report =
                    shards::build(corpus.documents(), &tokenizer, &ShardOptions::default(), &folder)?;
                let prepared = Prepared {
                    data,
                    vocab_size,
                    train_tokens: report.train_tokens,
                    train_bytes: report.train_bytes,
                    held_out_tokens: report.held_out_tokens,
                    held_out_bytes: report.held_out_bytes,
                    tokenizer_sha256: hexadecimal(&tokenizer.sha256()),
                };
                write_whole(&path, &prepared)?;
                prepared
            }
        };
        if prepared.held_out_tokens == 0 {
            let reason =
                "the corpus is too small to hold a part of it out, and trials are compared on that part";
            return Err(TrainError::Request(reason.into()));
        }
        let tokenizer = Tokenizer::load(&run.data())?;
        let train = Arc::new(Shard::open(&run.data().join(TRAIN_FILE))?);
        let study = Study { run, prepared, tokenizer, train };
        let trials = study.trials();
        if place.restart && trials.exists() {
            fs::remove_dir_all(&trials).map_err(TrainError::io("remove", &trials))?;
        }
        fs::create_dir_all(&trials).map_err(TrainError::io("create", &trials))?;
        Ok(study)
    }

    /// The study's folder.
    pub fn folder(&self) -> &Path {
        &self.run.files.folder
    }

    /// Tokens of the training part, each counted once.
    pub fn corpus_tokens(&self) -> u64 {
        self.prepared.train_tokens
    }

    /// UTF-8 bytes of the training part.
    pub fn corpus_bytes(&self) -> u64 {
        self.prepared.train_bytes
    }

    /// The corpus's files.
    pub fn data(&self) -> &[DataFile] {
        &self.prepared.data
    }

    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// The tokenizer that all trials share.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// SHA-256 of the tokenizer.
    pub fn tokenizer_sha256(&self) -> &str {
        &self.prepared.tokenizer_sha256
    }

    /// Decides everything about a trial by the recipe of `train base` for a model of that shape and that many tokens.
    /// Rows have 256 tokens unless asked for.
    ///
    /// # Errors
    /// A setting that cannot be met.
    pub fn plan(&self, request: &TrialRequest) -> Result<Trial, TrainError> {
        let sequence = request.overrides.sequence.unwrap_or(SEQUENCE);
        let overrides = Overrides { sequence: Some(sequence), ..request.overrides.clone() };
        let Some(width) = overrides.width else {
            return Err(TrainError::Request("a trial needs a width".into()));
        };
        let shape = plan::shape_of_width(width, sequence, self.vocab_size(), &overrides)?;
        let facts = Facts {
            flops_per_second: 0.0,
            threads: PLANNED_THREADS,
            corpus_tokens: self.prepared.train_tokens,
            vocab_size: self.vocab_size(),
        };
        let dial = Dial {
            seconds: None,
            tokens: Some(request.tokens.max(1)),
            parameters: Some(matmul_parameters(&shape) as u64),
        };
        let planned = plan_base(dial, facts, &overrides, request.seed)?;
        let mut model = planned.shape;
        model.bos = self.tokenizer.bos_id();
        model.eos = self.tokenizer.eos_ids().to_vec();
        Ok(Trial { model, recipe: planned.recipe })
    }

    /// The result of a trial that was trained before.
    ///
    /// # Errors
    /// Its file is damaged.
    pub fn finished(&self, trial: &Trial, precision: Precision) -> Result<Option<TrialResult>, TrainError> {
        read_whole(&self.file(trial, precision, "json"))
    }

    /// Trains a trial to its end and writes its result; one that was trained before is read, and one that was
    /// interrupted goes on from its checkpoint. `None` when the stop was asked for: what was done is saved.
    ///
    /// # Errors
    /// Training diverges, or a file cannot be read or written.
    pub fn train(
        &self,
        trial: &Trial,
        machine: &Machine,
        stop: &Stop,
        progress: &mut Progress<'_>,
    ) -> Result<Option<TrialResult>, TrainError> {
        self.train_and(trial, machine, stop, progress, &mut |_| Ok(()))
    }

    /// As [`Study::train`]; `then` gets the trained decoder before the result is written, to keep what it wants of it.
    ///
    /// # Errors
    /// As [`Study::train`], and those of `then`.
    pub fn train_and(
        &self,
        trial: &Trial,
        machine: &Machine,
        stop: &Stop,
        progress: &mut Progress<'_>,
        then: &mut dyn FnMut(&Decoder) -> Result<(), TrainError>,
    ) -> Result<Option<TrialResult>, TrainError> {
        if let Some(result) = self.finished(trial, machine.precision)? {
            return Ok(Some(result));
        }
        if stop.asked() {
            return Ok(None);
        }
        let Trial { model, recipe } = trial;
        let options = |rows, seed, endless| BatchOptions { rows, sequence: recipe.sequence, seed, endless };
        let mut batches = BaseBatches::new(self.train.clone(), options(recipe.rows, recipe.seed, true))?;
        let held_out = held_out_batches(
            &self.run.data().join(HELD_OUT_FILE),
            options(MEASURED_ROWS, 0, false),
            MEASURED_TOKENS,
        )?;
        let bytes = held_out.iter().map(|batch| batch.bytes).sum();
        let files = RunFiles {
            folder: self.file(trial, machine.precision, ""),
            checkpoint_seconds: self.run.files.checkpoint_seconds,
        };
        let mut learner = machine.training(Decoder::new(model, recipe.seed)?, recipe);
        let trainer =
            Trainer::new(recipe, &mut learner, &mut batches, (&held_out, bytes), Some(&files), progress)?;
        let outcome = trainer.run(stop, progress)?;
        if outcome.stopped {
            return Ok(None);
        }
        let Some(validation) = outcome.validation else {
            return Err(TrainError::Request("nothing was held out to compare trials by".into()));
        };
        then(learner.decoder())?;
        let embedding = model.vocab_size * model.width * if model.tied { 1 } else { 2 };
        let rate = flops_per_token(model, recipe.sequence);
        let budget = recipe.budget.tokens.unwrap_or(0);
        let per_step = trial.tokens_per_step();
        let result = TrialResult {
            key: self.key(trial, machine.precision),
            mixer: trial.mixer(),
            width: model.width,
            layers: model.layers,
            sequence: recipe.sequence,
            parameters: trial.parameters(),
            non_embedding_parameters: trial.parameters() - embedding as u64,
            flops_per_token: rate,
            flops: outcome.flops,
            tokens: outcome.tokens,
            steps: outcome.step,
            seed: recipe.seed,
            seconds: outcome.seconds,
            loss: validation.loss,
            bits_per_byte: validation.bits_per_byte.unwrap_or(f64::NAN),
            curve: curve(&files.metrics(), per_step, budget, rate, VALIDATIONS as u64)?,
            threads: machine.cpu.threads(),
            precision: name_of(machine.precision).to_string(),
            software: run::SOFTWARE.to_string(),
        };
        write_whole(&self.file(trial, machine.precision, "json"), &result)?;
        fs::remove_dir_all(&files.folder).map_err(TrainError::io("remove", &files.folder))?;
        // As it is read from now on: the last digit of a number may change on its way through decimals.
        self.finished(trial, machine.precision)
    }

    fn trials(&self) -> PathBuf {
        self.folder().join("trials")
    }

    /// Hash of everything that determines a trial's result but the number of threads, which changes rounding alone.
    fn key(&self, trial: &Trial, precision: Precision) -> String {
        let files: Vec<&str> = self.prepared.data.iter().map(|file| file.sha256.as_str()).collect();
        let all = json!({
            "version": VERSION,
            "data": files,
            "tokenizer": self.prepared.tokenizer_sha256,
            "held_out": [MEASURED_TOKENS, MEASURED_ROWS],
            "model": trial.model,
            "recipe": trial.recipe,
            "precision": name_of(precision),
        });
        hexadecimal(&Sha256::digest(all.to_string()))
    }

    /// A file of a trial, or with an empty `extension` the folder it is trained in: a name for people, and a hash.
    fn file(&self, trial: &Trial, precision: Precision, extension: &str) -> PathBuf {
        let stem = format!(
            "{}-{}-{}-{}-{}",
            trial.mixer().replace(':', "-"),
            trial.parameters(),
            trial.tokens(),
            trial.recipe.seed,
            &self.key(trial, precision)[..12]
        );
        self.trials().join(stem).with_extension(extension)
    }
}

fn name_of(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
