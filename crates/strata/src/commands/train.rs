//! `strata train base|command|dialogue`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use strata_data::packing::LongExamples;
use strata_train::{
    BaseRequest, Dial, ExamplesRequest, Finished, Overrides, Workplace, train_base, train_command,
    train_dialogue,
};

use super::{finished_json, print_json, print_line, stop_on_interrupt};
use crate::failure::BadInput;
use crate::machine::{Place, count, minutes, peak_flops};
use crate::show::{Show, duration, thousands};

/// Arguments of `strata train`.
#[derive(Args)]
#[command(after_help = "Example:\n  strata train base --corpus texts/ --name base --minutes 30\n  \
                        strata train command --from base --pairs pairs.jsonl --name helper\n  \
                        strata train dialogue --from helper --dialogues talks.jsonl --name talker")]
pub struct TrainArguments {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Subcommand)]
enum Stage {
    /// Learn a little about a lot from raw text.
    #[command(after_help = "Example:\n  strata train base --corpus texts/ --name base --minutes 30\n  \
                            strata train base --corpus texts/ --name states --minutes 30 --mixer ssm")]
    Base {
        /// Files or folders of text: .txt, .md, .jsonl, .parquet, also .zst and .gz
        #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
        corpus: Vec<PathBuf>,
        /// Size of the model, for example 10M [default: follows from the time or the tokens]
        #[arg(long, value_name = "N", value_parser = count)]
        params: Option<u64>,
        /// What mixes the sequence: attention, ssm, lstm, s4d, none, hybrid or hybrid:PATTERN, a letter per block (A
        /// attention, S ssm, L lstm, D s4d, N none) [default: attention]
        #[arg(long, value_parser = mixer)]
        mixer: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Learn to follow instructions from prompts and responses.
    #[command(after_help = "Example:\n  strata train command --from base --pairs pairs.jsonl --name helper")]
    Command {
        /// Name or path of the model to start from
        #[arg(long, value_name = "MODEL")]
        from: String,
        /// Files or folders of {"prompt", "response"} lines
        #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
        pairs: Vec<PathBuf>,
        /// What to do with examples longer than the model's context
        #[arg(long, value_enum, default_value = "error")]
        long: Long,
        #[command(flatten)]
        common: Common,
    },
    /// Learn to converse from dialogues.
    #[command(
        after_help = "Example:\n  strata train dialogue --from helper --dialogues talks.jsonl --name talker"
    )]
    Dialogue {
        /// Name or path of the model to start from
        #[arg(long, value_name = "MODEL")]
        from: String,
        /// Files or folders of {"messages": [{"role", "content"}]} lines
        #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
        dialogues: Vec<PathBuf>,
        /// What to do with examples longer than the model's context
        #[arg(long, value_enum, default_value = "error")]
        long: Long,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    /// Name of the new model
    #[arg(long)]
    name: String,
    /// Minutes from now to the finished model
    #[arg(long, value_parser = minutes, conflicts_with = "tokens")]
    minutes: Option<f64>,
    /// Tokens to train on, repeats counted, for example 20M
    #[arg(long, value_parser = count)]
    tokens: Option<u64>,
    /// Seed of weights and data order
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: u64,
    /// TOML file with settings that shall not follow from the dial, for example: layers = 4
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Insist on going on with an interrupted run of this name; without the flag that is done where there is one
    #[arg(long)]
    resume: bool,
    /// Forget an interrupted run of this name instead of continuing it
    #[arg(long, conflicts_with = "resume")]
    restart: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Long {
    /// Refuse them
    Error,
    /// Cut their ends
    Truncate,
    /// Leave them out
    Drop,
}

/// Minutes of a base run when nothing says how long.
const DEFAULT_MINUTES: f64 = 10.0;

/// Runs the command.
pub fn run(arguments: TrainArguments, place: &Place) -> Result<()> {
    let (common, job) = match arguments.stage {
        Stage::Base { corpus, params, mixer, common } => {
            let mut dial = common.dial();
            dial.parameters = params;
            if dial == Dial::default() {
                dial.seconds = Some(60.0 * DEFAULT_MINUTES);
            }
            let mut overrides = read_overrides(common.recipe.as_deref())?;
            if mixer.is_some() {
                overrides.mixer = mixer;
            }
            let corpus = absolute(corpus)?;
            let request =
                BaseRequest { name: common.name.clone(), corpus, dial, overrides, seed: common.seed };
            (common, Job::Base(request))
        }
        Stage::Command { from, pairs, long, common } => {
            let request = common.examples(from, pairs, long)?;
            (common, Job::Command(request))
        }
        Stage::Dialogue { from, dialogues, long, common } => {
            let request = common.examples(from, dialogues, long)?;
            (common, Job::Dialogue(request))
        }
    };
    if common.resume && !place.home.run(&common.name)?.join("run.toml").exists() {
        let name = &common.name;
        return Err(BadInput(format!(
            "no interrupted run \"{name}\" to resume; leave --resume out to begin one"
        ))
        .into());
    }
    let stop = stop_on_interrupt()?;
    let mut show = Show::new(peak_flops(&place.machine, 0.1));
    let mut workplace = Workplace {
        home: &place.home,
        machine: &place.machine,
        stop: &stop,
        progress: &mut |event| show.event(event),
        restart: common.restart,
    };
    let finished = match &job {
        Job::Base(request) => train_base(request, &mut workplace),
        Job::Command(request) => train_command(request, &mut workplace),
        Job::Dialogue(request) => train_dialogue(request, &mut workplace),
    }
    .with_context(|| format!("training {}", common.name))?;
    drop(show);
    tell(&finished, common.json)
}

enum Job {
    Base(BaseRequest),
    Command(ExamplesRequest),
    Dialogue(ExamplesRequest),
}

impl Common {
    fn dial(&self) -> Dial {
        Dial { seconds: self.minutes.map(|minutes| 60.0 * minutes), tokens: self.tokens, parameters: None }
    }

    fn examples(&self, from: String, data: Vec<PathBuf>, long: Long) -> Result<ExamplesRequest> {
        Ok(ExamplesRequest {
            name: self.name.clone(),
            from,
            data: absolute(data)?,
            dial: self.dial(),
            overrides: read_overrides(self.recipe.as_deref())?,
            long: match long {
                Long::Error => LongExamples::Error,
                Long::Truncate => LongExamples::Truncate,
                Long::Drop => LongExamples::Drop,
            },
            seed: self.seed,
        })
    }
}

/// The name of a mixer that exists.
pub(super) fn mixer(name: &str) -> Result<String, String> {
    match strata_model::Mixing::pattern_of(name) {
        Ok(_) => Ok(name.to_string()),
        Err(expected) => Err(format!("expected {expected}")),
    }
}

/// Absolute paths, so that a run can be continued from anywhere.
pub(super) fn absolute(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let each =
        |path: &PathBuf| std::path::absolute(path).with_context(|| format!("the path {}", path.display()));
    paths.iter().map(each).collect()
}

pub(super) fn read_overrides(path: Option<&Path>) -> Result<Overrides> {
    let Some(path) = path else { return Ok(Overrides::default()) };
    let text = std::fs::read_to_string(path)
        .map_err(|error| BadInput(format!("cannot read {}: {error}", path.display())))?;
    let wrong = |error: &dyn std::fmt::Display| BadInput(format!("{}: {error}", path.display()));
    let overrides: Overrides = toml::from_str(&text).map_err(|error| wrong(&error))?;
    overrides.check().map_err(|error| wrong(&error))?;
    Ok(overrides)
}

fn tell(finished: &Finished, json: bool) -> Result<()> {
    let Finished { name, folder, outcome, predicted_loss } = finished;
    let Some(folder) = folder else {
        bail!(
            "stopped at step {} after {}; everything is saved: repeat the same command to continue, with --resume to insist on it",
            outcome.step,
            duration(outcome.seconds)
        );
    };
    if json {
        return print_json(&finished_json(finished));
    }
    let validation = outcome.validation.map_or(String::new(), |validation| {
        let bits =
            validation.bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.3} bits per byte"));
        let predicted =
            predicted_loss.map_or(String::new(), |predicted| format!(" (predicted: {predicted:.3})"));
        format!(", held-out loss {:.3}{predicted}{bits}", validation.loss)
    });
    print_line(&format!(
        "{name}: {} tokens in {} ({} tokens/s){validation}\n{}",
        thousands(outcome.tokens as f64),
        duration(outcome.seconds),
        thousands(outcome.tokens_per_second),
        folder.display()
    ))
}
