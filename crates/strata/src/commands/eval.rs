//! `strata eval`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use strata_data::packing::BatchOptions;
use strata_data::{BaseBatches, Batch, Corpus, Shard, Task, Tokenizer, records, shards};
use strata_model::{Decoder, Inference, Input, Training, Wanted, WeightFormat};
use strata_tensor::infer::log_sum_exp;
use strata_tensor::{AdamW, Cpu};
use strata_train::trainer::measure;

use super::{print_json, print_line};
use crate::evaluate::{Opened, answers, require_some, score};
use crate::machine::{Place, WeightsName};

/// Arguments of `strata eval`.
#[derive(Args)]
#[command(after_help = "Example:\n  strata eval demo-command --tasks tasks.jsonl\n  \
                        strata eval demo-base --text held-out.txt")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["tasks", "text"]))]
pub struct EvalArguments {
    /// Name of a model, or path of a Hugging Face folder
    model: String,
    /// Files of {"prompt" or "messages", "answer", "family"} lines: exact-match accuracy
    #[arg(long, num_args = 1.., value_name = "PATH")]
    tasks: Vec<PathBuf>,
    /// Files or folders of text: bits per byte
    #[arg(long, num_args = 1.., value_name = "PATH")]
    text: Vec<PathBuf>,
    /// Hold weights as `chat` or `serve` would, to see what that does to the result [default: f32]
    #[arg(long, value_enum, value_name = "FORMAT")]
    weights: Option<WeightsName>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Rows measured at once.
const ROWS: usize = 8;
/// Longest row: a longer one would need much memory for its attention.
const LONGEST_ROW: usize = 1024;

/// Runs the command.
pub fn run(arguments: EvalArguments, place: &Place) -> Result<()> {
    let folder = place.home.resolve(&arguments.model)?;
    if arguments.text.is_empty() {
        on_tasks(&folder, &arguments, place)
    } else {
        on_text(&folder, &arguments, place)
    }
}

fn on_tasks(folder: &Path, arguments: &EvalArguments, place: &Place) -> Result<()> {
    let weights = arguments.weights.map_or(WeightFormat::F32, WeightsName::format);
    let model = Opened::load(folder, &place.machine.cpu, weights)?;
    let tasks: Vec<Task> = records::tasks(&arguments.tasks)?.collect::<Result<_, _>>()?;
    require_some(&tasks)?;
    let (all, families) = score(&tasks, &answers(&model, &place.machine.cpu, &tasks)?);
    if arguments.json {
        let families: serde_json::Map<String, serde_json::Value> =
            families.into_iter().map(|(family, score)| (family, json!(score.accuracy()))).collect();
        return print_json(&json!({ "accuracy": all.accuracy(), "tasks": all.total, "families": families }));
    }
    for (family, score) in &families {
        print_line(&format!(
            "{family:32} {:5.1} %  ({} of {})",
            100.0 * score.accuracy(),
            score.right,
            score.total
        ))?;
    }
    print_line(&format!("{:32} {:5.1} %  ({} of {})", "all", 100.0 * all.accuracy(), all.right, all.total))
}

/// Gives the mean loss per target of a batch, in nats.
type Measure<'a> = Box<dyn FnMut(&Batch) -> Result<f64> + 'a>;

fn on_text(model: &Path, arguments: &EvalArguments, place: &Place) -> Result<()> {
    let context = || format!("opening the model in {}", model.display());
    let decoder = Decoder::load(model).with_context(context)?;
    let tokenizer = Tokenizer::load(model).with_context(context)?;
    let corpus = Corpus::open(&arguments.text)?;
    let folder = tempfile::tempdir().context("making a temporary folder for the tokens")?;
    let path = folder.path().join("text.bin");
    shards::write(corpus.documents(), &tokenizer, &path)?;
    let sequence = decoder.config().max_positions.min(LONGEST_ROW);
    let options = BatchOptions { rows: ROWS, sequence, seed: 0, endless: false };
    let mut batches = BaseBatches::new(Arc::new(Shard::open(&path)?), options)?;
    let machine = &place.machine;
    let mut measured: Measure<'_> = match arguments.weights {
        None => {
            let cpu = machine.cpu.clone();
            let mut training = Training::new(decoder, cpu, machine.precision, AdamW::default());
            Box::new(move |batch| Ok(measure(&mut training, std::slice::from_ref(batch), batch.bytes)?.loss))
        }
        Some(weights) => {
            let model = Inference::with_format(decoder, &machine.cpu, weights.format());
            Box::new(move |batch| loss_of_decoding(&model, &machine.cpu, batch))
        }
    };
    let (mut nats, mut bytes, mut targets) = (0.0, 0u64, 0.0);
    while let Some(batch) = batches.next_batch()? {
        let weight: f64 = batch.weights.iter().map(|weight| f64::from(*weight)).sum();
        nats += weight * measured(&batch)?;
        (bytes, targets) = (bytes + batch.bytes, targets + weight);
    }
    let bits_per_byte = nats / std::f64::consts::LN_2 / bytes.max(1) as f64;
    let loss = nats / f64::max(targets, 1.0);
    if arguments.json {
        return print_json(&json!({
            "bits_per_byte": bits_per_byte, "loss": loss, "bytes": bytes, "tokens": targets,
        }));
    }
    print_line(&format!("{bits_per_byte:.4} bits per byte ({loss:.4} nats per token, {bytes} bytes)"))
}

/// Tokens whose logits exist at one time.
const PIECE: usize = 256;

/// Mean loss per target in nats, read by the code that decodes instead of the code that trains.
fn loss_of_decoding(model: &Inference, cpu: &Cpu, batch: &Batch) -> Result<f64> {
    let ends = batch.starts.iter().skip(1).map(|start| *start as usize).chain([batch.tokens.len()]);
    let (mut nats, mut targets) = (0.0, 0.0);
    for (start, end) in batch.starts.iter().map(|start| *start as usize).zip(ends) {
        let mut state = model.new_state();
        for first in (start..end).step_by(PIECE) {
            let piece = first..end.min(first + PIECE);
            let tokens = &batch.tokens[piece.clone()];
            let logits = model.step(cpu, &mut [Input { state: &mut state, tokens }], Wanted::All)?;
            for (logits, at) in logits.chunks_exact(model.config().vocab_size).zip(piece) {
                let (target, weight) = (batch.targets[at] as usize, f64::from(batch.weights[at]));
                if weight > 0.0 {
                    nats += weight * (log_sum_exp(cpu.isa(), logits) - f64::from(logits[target]));
                    targets += weight;
                }
            }
        }
    }
    Ok(nats / f64::max(targets, 1.0))
}
