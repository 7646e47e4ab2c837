//! Stage one: a base model from raw text.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use strata_data::packing::{BatchOptions, BatchesState};
use strata_data::shards::{self, HELD_OUT_FILE, ShardOptions, TRAIN_FILE};
use strata_data::{BaseBatches, Batch, Corpus, DataError, Document, Shard, Tokenizer};
use strata_model::{Config, Decoder, Lineage};

use crate::plan::{self, Decision, Dial, Facts, Overrides, Recipe, flops_per_token, plan_base};
use crate::run::{self, Decided, Finished, Run, Workplace};
use crate::scaling::ScalingLaw;
use crate::{Event, TrainError, Trainer};

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseRequest {
    /// Name of the model.
    pub name: String,
    /// Files and folders of text.
    pub corpus: Vec<PathBuf>,
    /// Seconds from now to the finished model, or tokens, or parameters.
    pub dial: Dial,
    /// Settings that are not left to the dial.
    pub overrides: Overrides,
    /// Seed of weights and data order.
    pub seed: u64,
}

const STAGE: &str = "base";
/// Text that the tokenizer is learnt from: more changes few merges.
pub(crate) const TOKENIZER_BYTES: u64 = 32 << 20;
/// Text per second of budget that is used: reading and tokenizing more would take more than a tenth of it.
const BYTES_PER_SECOND: f64 = 0.5e6;
/// Held-out tokens that are measured during a run.
const MEASURED_TOKENS: usize = 16 << 10;
/// Seconds kept back for writing the finished model.
const ENDING_SECONDS: f64 = 1.0;

/// Trains a base model: reads the corpus, learns a tokenizer, asks the dial, trains, and puts the model into
/// the home. An interrupted run of the same request goes on where it was.
///
/// # Errors
/// The corpus cannot be read, a setting cannot be met, training diverges, or a file cannot be written.
pub fn train_base(request: &BaseRequest, place: &mut Workplace<'_>) -> Result<Finished, TrainError> {
    let began = Instant::now();
    let run = Run::take_for_stage(place.home, &request.name, place.restart)?;
    let decided = match run.decided(STAGE, request)? {
        Some(decided) => decided,
        None => prepare(request, &run, place, began)?,
    };
    let tokenizer = Tokenizer::load(&run.data())?;
    let recipe = &decided.recipe;

    let train = Arc::new(Shard::open(&run.data().join(TRAIN_FILE))?);
    let options = |rows, seed, endless| BatchOptions { rows, sequence: recipe.sequence, seed, endless };
    let mut batches = BaseBatches::new(train, options(recipe.rows, recipe.seed, true))?;
    let held_out =
        held_out_batches(&run.data().join(HELD_OUT_FILE), options(recipe.rows, 0, false), MEASURED_TOKENS)?;
    let bytes = held_out.iter().map(|batch| batch.bytes).sum();

    let mut learner = place.machine.training(Decoder::new(&decided.model, recipe.seed)?, recipe);
    (place.progress)(Event::Phase(format!("training {}", request.name)));
    let trainer = Trainer::new(
        recipe,
        &mut learner,
        &mut batches,
        (&held_out, bytes),
        Some(&run.files),
        place.progress,
    )?;
    let outcome = trainer.run(place.stop, place.progress)?;
    let predicted_loss = decided.predicted_loss;
    if outcome.stopped {
        return Ok(Finished { name: request.name.clone(), folder: None, outcome, predicted_loss });
    }

    if let (Some(predicted), Some(actual)) = (predicted_loss, outcome.validation) {
        let error = 100.0 * (predicted / actual.loss - 1.0);
        let text = format!("predicted loss: {predicted:.3}, actual: {:.3} ({error:+.1} %)", actual.loss);
        (place.progress)(Event::Note(text));
    }

    let lineage = Lineage {
        name: request.name.clone(),
        stage: STAGE.to_string(),
        parent: None,
        data: decided.data.clone(),
        recipe: run::recipe_value(&decided),
        seed: request.seed,
        tokens: outcome.tokens,
        flops: outcome.flops,
        metrics: run::metrics(&outcome),
        software: run::SOFTWARE.to_string(),
    };
    let folder = run::publish(place.home, &learner, &tokenizer, &lineage, place.progress)?;
    run.close()?;
    Ok(Finished { name: request.name.clone(), folder: Some(folder), outcome, predicted_loss })
}

/// Everything before training: tokenizer, shards and decisions, in the run's folder. `run.toml` comes last, so
/// that what is interrupted here begins anew.
fn prepare(
    request: &BaseRequest,
    run: &Run,
    place: &mut Workplace<'_>,
    began: Instant,
) -> Result<Decided<BaseRequest>, TrainError> {
    // Before the corpus is read: a mixer that does not exist is no reason to wait.
    request.overrides.mixing(0)?;
    run.clear()?;
    let folder = run.data();
    fs::create_dir_all(&folder).map_err(TrainError::io("create", &folder))?;
    (place.progress)(Event::Phase("reading the corpus".into()));
    let corpus = Corpus::open(&request.corpus)?;
    if corpus.ignored_files() > 0 {
        let count = corpus.ignored_files();
        (place.progress)(Event::Note(format!("{count} files of other kinds in the folders are not read")));
    }
    let data = corpus.digests()?;
    let bytes = corpus.bytes_on_disk()?;

    (place.progress)(Event::Phase("learning a tokenizer".into()));
    let vocab_size = request.overrides.vocab_size.unwrap_or(plan::vocab_size(bytes));
    let tokenizer = Tokenizer::train(texts(sample(&corpus, bytes, TOKENIZER_BYTES)), vocab_size)?;
    tokenizer.save(&folder)?;

    (place.progress)(Event::Phase("tokenizing".into()));
    let usable = request.dial.seconds.map_or(u64::MAX, |seconds| (seconds * BYTES_PER_SECOND) as u64);
    if bytes > usable {
        (place.progress)(Event::Note(format!(
            "of the corpus's {} MB, about {} MB are read, spread evenly: more would leave no time for training",
            bytes >> 20,
            usable >> 20
        )));
    }
    let report =
        shards::build(sample(&corpus, bytes, usable), &tokenizer, &ShardOptions::default(), &folder)?;

    let mut dial = request.dial;
    let mut flops_per_second = 0.0;
    if let Some(seconds) = dial.seconds {
        flops_per_second = place.machine.training_rate(&request.overrides.mixing(0)?)?;
        let left = seconds - began.elapsed().as_secs_f64() - ENDING_SECONDS;
        dial.seconds = Some(left.max(0.1 * seconds));
    }
    let facts = Facts {
        flops_per_second,
        threads: place.machine.cpu.threads(),
        corpus_tokens: report.train_tokens,
        vocab_size: tokenizer.vocab_size(),
    };
    let planned = plan_base(dial, facts, &request.overrides, request.seed)?;
    let mut model = planned.shape;
    model.bos = tokenizer.bos_id();
    model.eos = tokenizer.eos_ids().to_vec();
    let mut decisions = planned.decisions;
    let predicted = predict(&model, &planned.recipe, facts, &tokenizer, place);
    let predicted_loss = predicted.map(|(loss, why)| {
        let (what, value) = ("predicted loss".to_string(), format!("{loss:.3}"));
        decisions.push(Decision { what, value, why });
        loss
    });
    run::tell(&decisions, place.progress);
    let decided = Decided {
        stage: STAGE.to_string(),
        predicted_loss,
        request: request.clone(),
        recipe: planned.recipe,
        model,
        decisions,
        data: data.into_iter().map(run::data_file).collect(),
    };
    run.decide(&decided)?;
    Ok(decided)
}

/// The held-out loss that the stored law of the model's mixer gives, and how it comes to that; none where there is no
/// law for this text, these tokens and this length of rows. A law that cannot be read is no reason not to train.
fn predict(
    model: &Config,
    recipe: &Recipe,
    facts: Facts,
    tokenizer: &Tokenizer,
    place: &mut Workplace<'_>,
) -> Option<(f64, String)> {
    let mixer = model.mixing.name(model.layers);
    let law = match ScalingLaw::load(place.home, &mixer) {
        Ok(law) => law?,
        Err(error) => {
            (place.progress)(Event::Warning(format!("no loss is predicted: {error}")));
            return None;
        }
    };
    if let Some(other) = law.corpus.differs(&tokenizer.sha256(), recipe.sequence) {
        (place.progress)(Event::Note(format!(
            "no loss is predicted: the law of {mixer} (made by \"{}\") is of {other}",
            law.made_by
        )));
        return None;
    }
    let per_token = flops_per_token(model, recipe.sequence);
    let by_time = recipe.budget.seconds.map(|seconds| seconds * facts.flops_per_second / per_token);
    let by_tokens = recipe.budget.tokens.map(|tokens| tokens as f64);
    let tokens = by_time.unwrap_or(f64::INFINITY).min(by_tokens.unwrap_or(f64::INFINITY));
    let (loss, (low, high)) = law.predict(model.parameter_count() as f64, tokens);
    let beyond = tokens * per_token / law.most_flops();
    let beyond = if beyond > 1.0 { format!(", {beyond:.1} times its largest run") } else { String::new() };
    let passes = tokens / facts.corpus_tokens as f64;
    let repeats = if passes > 1.5 {
        format!("; it does not know that text repeats {passes:.1} times")
    } else {
        String::new()
    };
    let why = format!("{low:.3} to {high:.3} by the law of \"{}\"{beyond}{repeats}", law.made_by);
    loss.is_finite().then_some((loss, why))
}

/// Documents of about `wanted` of the corpus's `bytes`, spread evenly.
pub(crate) fn sample(
    corpus: &Corpus,
    bytes: u64,
    wanted: u64,
) -> impl Iterator<Item = Result<Document, DataError>> + use<> {
    let every = bytes.div_ceil(wanted.max(1)).max(1) as usize;
    corpus.documents().step_by(every)
}

pub(crate) fn texts(
    documents: impl Iterator<Item = Result<Document, DataError>>,
) -> impl Iterator<Item = Result<String, DataError>> {
    documents.map(|document| document.map(|document| document.text))
}

/// The batches of the shard at `path` that are measured: all of it, or about `tokens` of it spread evenly over its
/// documents, so that every kind of text counts; none when the corpus is too small to hold any out.
pub(crate) fn held_out_batches(
    path: &Path,
    options: BatchOptions,
    tokens: usize,
) -> Result<Vec<Batch>, TrainError> {
    let shard = Arc::new(Shard::open(path)?);
    let documents = shard.documents();
    if documents == 0 {
        return Ok(Vec::new());
    }
    let mut batches = BaseBatches::new(shard, options)?;
    let per_batch = options.rows * options.sequence;
    let most = tokens.div_ceil(per_batch).max(1) as u64;
    if batches.positions_per_epoch() <= most * per_batch as u64 {
        return Ok(std::iter::from_fn(|| batches.next_batch().transpose()).collect::<Result<_, _>>()?);
    }
    let start = batches.position();
    let mut held_out = Vec::new();
    for part in 0..most {
        batches.seek(&BatchesState { item: part * documents / most, ..start })?;
        held_out.extend(batches.next_batch()?);
    }
    Ok(held_out)
}
