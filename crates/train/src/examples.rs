//! What the stages that learn from examples share: tokenise, hold some out, train, publish.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use strata_data::packing::{
    BatchOptions, ExampleBatches, Fitted, LongExamples, fit_examples, tokenise_examples,
};
use strata_data::{Batch, Example, FileDigest, Tokenizer, split};
use strata_model::folder::read_model;
use strata_model::{Config, Decoder, Lineage, Parent};

use crate::plan::{Dial, ExampleFacts, Overrides, Recipe, flops_per_token, plan_examples};
use crate::run::{self, Decided, Finished, Run, Workplace};
use crate::{Event, TrainError, Trainer};

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExamplesRequest {
    /// Name of the new model.
    pub name: String,
    /// Name or path of the model to start from.
    pub from: String,
    /// Files and folders of examples.
    pub data: Vec<PathBuf>,
    /// Seconds from now to the finished model, or tokens.
    pub dial: Dial,
    /// Settings that are not left to the dial.
    pub overrides: Overrides,
    /// What to do with examples longer than the model's context.
    pub long: LongExamples,
    /// Seed of the data order.
    pub seed: u64,
}

/// Examples and the files they come from.
pub struct Source {
    /// The examples, in the order of the files.
    pub examples: Vec<Example>,
    /// The files.
    pub files: Vec<FileDigest>,
}

/// Fraction of the examples that is held out, by the hash of the prompt.
const HELD_OUT: f64 = 0.02;
/// Held-out tokens that are measured during a run.
const MEASURED_TOKENS: usize = 16 << 10;
/// Seconds kept back for writing the finished model.
const ENDING_SECONDS: f64 = 1.0;

/// Trains `request.from` on `source`. An interrupted run of the same request goes on where it was.
pub(crate) fn train_examples(
    stage: &str,
    request: &ExamplesRequest,
    place: &mut Workplace<'_>,
    read: impl FnOnce() -> Result<Source, TrainError>,
) -> Result<Finished, TrainError> {
    let began = Instant::now();
    let run = Run::take_for_stage(place.home, &request.name, place.restart)?;
    let parent = place.home.resolve(&request.from)?;
    let lineage_of_parent = Lineage::load(&parent)?;
    let (config, tensors) = read_model(&parent)?;
    let tokenizer = Tokenizer::load(&parent)?;
    check_vocabulary(&parent, &config, &tokenizer)?;
    let before = run.decided(stage, request)?;

    (place.progress)(Event::Phase("reading the examples".into()));
    let Source { examples, files } = read()?;
    let sequence = request.overrides.sequence.unwrap_or(config.max_positions.min(LONGEST_ROW));
    let (train, held_out) = split::held_out(examples, HELD_OUT)?;
    let tokenised = fit_examples(tokenise_examples(&tokenizer, &train)?, sequence, request.long)?;
    let (train, fitted) = tokenised;
    let (held_out, held_out_fitted) =
        fit_examples(tokenise_examples(&tokenizer, &held_out)?, sequence, request.long)?;
    tell_fitted(fitted, place);
    let tokens: u64 = train.iter().map(|example| example.positions() as u64).sum();

    let decided = match before {
        Some(decided) => {
            let same = decided.data.iter().map(|file| &file.sha256).eq(files.iter().map(|file| &file.sha256));
            if !same {
                let reason =
                    "the examples have changed since this run was interrupted; add --restart to begin anew";
                return Err(TrainError::Run { path: run.files.folder.clone(), reason: reason.to_string() });
            }
            decided
        }
        None => {
            let mut dial = request.dial;
            let timed = dial.seconds.is_some();
            let flops_per_second = if timed { place.machine.training_rate(&config.mixing)? } else { 0.0 };
            if let Some(seconds) = dial.seconds {
                let left = seconds - began.elapsed().as_secs_f64() - ENDING_SECONDS;
                dial.seconds = Some(left.max(0.1 * seconds));
            }
            let facts = ExampleFacts {
                parent_rate: lineage_of_parent.as_ref().and_then(peak_rate),
                tokens,
                threads: place.machine.cpu.threads(),
                tokens_per_second: flops_per_second / flops_per_token(&config, sequence),
            };
            let overrides = Overrides { sequence: Some(sequence), ..request.overrides.clone() };
            let (recipe, decisions) = plan_examples(dial, &config, facts, &overrides, request.seed);
            run.clear()?;
            run::tell(&decisions, place.progress);
            let decided = Decided {
                stage: stage.to_string(),
                predicted_loss: None,
                request: request.clone(),
                recipe,
                model: config.clone(),
                decisions,
                data: files.into_iter().map(run::data_file).collect(),
            };
            run.decide(&decided)?;
            decided
        }
    };
    let recipe = &decided.recipe;

    let pad = tokenizer.pad_id().unwrap_or(0);
    let options =
        |seed, endless| BatchOptions { rows: recipe.rows, sequence: recipe.sequence, seed, endless };
    let mut batches = ExampleBatches::new(Arc::new(train), options(recipe.seed, true), pad)?;
    let held_out = measured_batches(held_out, options(0, false), pad, recipe)?;
    // How many bytes are left of an answer that was cut is not known.
    let cut = held_out_fitted.truncated > 0;
    let answers = if cut { 0 } else { held_out.iter().map(|batch| batch.bytes).sum() };

    let mut learner = place.machine.training(Decoder::from_tensors(&config, tensors)?, recipe);
    (place.progress)(Event::Phase(format!("training {}", request.name)));
    let trainer = Trainer::new(
        recipe,
        &mut learner,
        &mut batches,
        (&held_out, answers),
        Some(&run.files),
        place.progress,
    )?;
    let outcome = trainer.run(place.stop, place.progress)?;
    if outcome.stopped {
        return Ok(Finished { name: request.name.clone(), folder: None, outcome, predicted_loss: None });
    }

    let parent_name = lineage_of_parent.map_or(request.from.clone(), |lineage| lineage.name);
    let lineage = Lineage {
        name: request.name.clone(),
        stage: stage.to_string(),
        parent: Some(Parent::of(&parent_name, &parent)?),
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
    Ok(Finished { name: request.name.clone(), folder: Some(folder), outcome, predicted_loss: None })
}

/// Rows are no longer than this unless asked for: examples are short, and attention grows with the square.
const LONGEST_ROW: usize = 1024;

/// A tokenizer that writes tokens the model has no row for would fail deep inside the first batch.
fn check_vocabulary(folder: &Path, config: &Config, tokenizer: &Tokenizer) -> Result<(), TrainError> {
    if tokenizer.vocab_size() > config.vocab_size {
        let reason = format!(
            "tokenizer.json has {} tokens and config.json only {}; they belong to different models",
            tokenizer.vocab_size(),
            config.vocab_size
        );
        return Err(TrainError::Run { path: folder.to_path_buf(), reason });
    }
    Ok(())
}

fn tell_fitted(fitted: Fitted, place: &mut Workplace<'_>) {
    let Fitted { truncated, dropped } = fitted;
    if truncated > 0 || dropped > 0 {
        let text = format!("{truncated} examples are longer than a row and cut, {dropped} are left out");
        (place.progress)(Event::Warning(text));
    }
}

/// The peak learning rate a model was trained with, where its lineage tells.
fn peak_rate(lineage: &Lineage) -> Option<f64> {
    lineage.recipe.get("recipe")?.get("schedule")?.get("peak")?.as_f64()
}

/// The batches that are measured: the first of the held-out examples.
fn measured_batches(
    held_out: Vec<strata_data::packing::TokenisedExample>,
    options: BatchOptions,
    pad: u32,
    recipe: &Recipe,
) -> Result<Vec<Batch>, TrainError> {
    if held_out.is_empty() {
        return Ok(Vec::new());
    }
    let mut batches = ExampleBatches::new(Arc::new(held_out), options, pad)?;
    let most = MEASURED_TOKENS.div_ceil(recipe.rows * recipe.sequence).max(1);
    Ok(std::iter::from_fn(|| batches.next_batch()).take(most).collect())
}
