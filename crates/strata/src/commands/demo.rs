//! `strata demo`: the whole stack in a few minutes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use strata_data::packing::LongExamples;
use strata_data::world::{self, Part, World};
use strata_data::{Example, Task, records, split};
use strata_model::WeightFormat;
use strata_train::{
    BaseRequest, Dial, ExamplesRequest, Finished, Overrides, Stop, Workplace, train_base, train_command,
    train_dialogue,
};

use super::{finished_json, print_json, print_line, stop_on_interrupt};
use crate::evaluate::{Opened, Score, answers, fits, score, tasks_of};
use crate::machine::{Place, minutes, peak_flops};
use crate::show::{Show, duration};

/// Arguments of `strata demo`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  strata demo --minutes 5.5\n\nWithout data of your own, a small made-up world \
                        is used; nothing is downloaded."
)]
pub struct DemoArguments {
    /// Minutes for everything, from data to answers
    #[arg(long, default_value_t = 5.5, value_parser = minutes)]
    minutes: f64,
    /// Files or folders of raw text instead of the sample world's
    #[arg(long, num_args = 1.., value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Files or folders of prompts and responses instead of the sample world's
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pairs: Vec<PathBuf>,
    /// Files or folders of dialogues instead of the sample world's
    #[arg(long, num_args = 1.., value_name = "PATH")]
    dialogues: Vec<PathBuf>,
    /// Seed of the world, the weights and the data order
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: u64,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

impl DemoArguments {
    /// Whether all data is the sample world's.
    fn all_ours(&self) -> bool {
        self.corpus.is_empty() && self.pairs.is_empty() && self.dialogues.is_empty()
    }
}

/// How the time is shared out; what is left is for data and measuring.
const BASE_SHARE: f64 = 0.34;
const COMMAND_SHARE: f64 = 0.40;
const DIALOGUE_SHARE: f64 = 0.17;
/// The sample world's later stages are much of the whole training, not a finish to it: their rates stay high.
const COMMAND_RATE: f64 = 4e-3;
const DIALOGUE_RATE: f64 = 2e-3;
/// Pairs among the dialogues, per dialogue, so that conversing does not make the model forget how to answer.
const PAIRS_PER_DIALOGUE: f64 = 0.3;

/// Size of the sample world's parts: as much as a second of the whole can make use of, up to a limit.
const TEXT_BYTES: (f64, f64) = (50e3, 16e6);
const PAIRS: (f64, f64) = (500.0, 200e3);
const DIALOGUES: (f64, f64) = (150.0, 50e3);
const TASKS_PER_FAMILY: usize = 10;
const DIALOGUE_TASKS: usize = 120;
/// Held-out examples measured of data that was given.
const GIVEN_TASKS: usize = 300;

const STAGES: [&str; 3] = ["base", "command", "dialogue"];

/// Runs the command.
pub fn run(arguments: DemoArguments, place: &Place) -> Result<()> {
    let began = Instant::now();
    let seconds = 60.0 * arguments.minutes;
    let stop = stop_on_interrupt()?;
    let mut show = Show::new(peak_flops(&place.machine, 0.1)).without_notes();
    show.line("making the data");
    let mut data = Data::prepare(&arguments, place)?;

    let data_is_ours = arguments.all_ours();
    let stage = |share: f64| Dial { seconds: Some(share * seconds), ..Dial::default() };
    let mut finished = Vec::new();
    let base = BaseRequest {
        name: "demo-base".into(),
        corpus: data.corpus.clone(),
        dial: stage(BASE_SHARE),
        overrides: overrides(&arguments),
        seed: arguments.seed,
    };
    finished.push(whole(train_base(&base, &mut workplace(place, &stop, &mut |event| show.event(event))))?);
    let examples = |name: &str, from: &str, data: &[PathBuf], share: f64, rate: f64| ExamplesRequest {
        name: name.into(),
        from: from.into(),
        data: data.to_vec(),
        dial: stage(share),
        overrides: Overrides { learning_rate: data_is_ours.then_some(rate), ..Overrides::default() },
        long: LongExamples::Drop,
        seed: arguments.seed,
    };
    let command = examples("demo-command", "demo-base", &data.pairs, COMMAND_SHARE, COMMAND_RATE);
    finished
        .push(whole(train_command(&command, &mut workplace(place, &stop, &mut |event| show.event(event))))?);
    let dialogue = examples("demo-dialogue", "demo-command", &data.dialogues, DIALOGUE_SHARE, DIALOGUE_RATE);
    finished.push(whole(train_dialogue(
        &dialogue,
        &mut workplace(place, &stop, &mut |event| show.event(event)),
    ))?);

    show.line("measuring on prompts that training never saw");
    let results = measure(&finished, &mut data, place, &mut show)?;
    drop(show);
    let took = began.elapsed().as_secs_f64();
    if arguments.json {
        return print_json(&to_json(&finished, &results, took));
    }
    tell(&results, &data, took)
}

fn workplace<'a>(
    place: &'a Place,
    stop: &'a Stop,
    progress: &'a mut strata_train::Progress<'a>,
) -> Workplace<'a> {
    // The time budget begins now: an interrupted demonstration is not continued but made anew.
    Workplace { home: &place.home, machine: &place.machine, stop, progress, restart: true }
}

fn whole(result: Result<Finished, strata_train::TrainError>) -> Result<Finished> {
    let finished = result.context("the demonstration ended early")?;
    if finished.folder.is_none() {
        bail!("stopped; run `strata demo` again to begin anew");
    }
    Ok(finished)
}

/// The sample world has short texts and few words; data that was given gets what the dial says.
fn overrides(arguments: &DemoArguments) -> Overrides {
    if arguments.all_ours() {
        return Overrides { vocab_size: Some(2048), sequence: Some(256), ..Overrides::default() };
    }
    Overrides { sequence: Some(512), ..Overrides::default() }
}

/// Where the data lies, and what is measured.
struct Data {
    corpus: Vec<PathBuf>,
    pairs: Vec<PathBuf>,
    dialogues: Vec<PathBuf>,
    prompts: Vec<Task>,
    turns: Vec<Task>,
}

impl Data {
    /// Writes the sample world into the home, and holds some of the given data out.
    fn prepare(arguments: &DemoArguments, place: &Place) -> Result<Data> {
        let folder = place.home.path().join("demo");
        fs::create_dir_all(&folder).with_context(|| format!("making the folder {}", folder.display()))?;
        let world = World::new(arguments.seed);
        let size =
            |(per_second, most): (f64, f64)| (60.0 * arguments.minutes * per_second).min(most) as usize;
        let corpus = if arguments.corpus.is_empty() {
            let path = folder.join("text.txt");
            let text = world.base_text(Part::Training, size(TEXT_BYTES));
            write(&path, |out| world::write_text(out, text))?;
            vec![path]
        } else {
            arguments.corpus.clone()
        };
        let (pairs, prompts) = if arguments.pairs.is_empty() {
            let path = folder.join("pairs.jsonl");
            write(&path, |out| world::write_pairs(out, &world.pairs(Part::Training, size(PAIRS))))?;
            let tasks = folder.join("tasks.jsonl");
            write(&tasks, |out| world::write_tasks(out, &world.tasks(Part::HeldOut, TASKS_PER_FAMILY)))?;
            (vec![path], read_tasks(tasks)?)
        } else {
            let pairs = records::pairs(&arguments.pairs)?;
            let examples = pairs.map(|pair| Ok(pair?.into())).collect::<Result<Vec<Example>>>()?;
            hold_out(examples, &folder.join("pairs-given.jsonl"), "prompts")?
        };
        let (dialogues, turns) = if arguments.dialogues.is_empty() {
            let path = folder.join("dialogues.jsonl");
            let mut dialogues = world.dialogues(Part::Training, size(DIALOGUES));
            let pairs = (PAIRS_PER_DIALOGUE * dialogues.len() as f64) as usize;
            dialogues.extend(world.pairs(Part::Training, pairs).into_iter().map(one_turn));
            write(&path, |out| world::write_dialogues(out, &dialogues))?;
            let tasks = folder.join("dialogue-tasks.jsonl");
            let turns = world.dialogue_tasks(Part::HeldOut, DIALOGUE_TASKS);
            write(&tasks, |out| world::write_dialogue_tasks(out, &turns))?;
            (vec![path], read_tasks(tasks)?)
        } else {
            let dialogues = records::dialogues(&arguments.dialogues)?;
            let examples =
                dialogues.map(|dialogue| Ok(dialogue?.into())).collect::<Result<Vec<Example>>>()?;
            hold_out(examples, &folder.join("dialogues-given.jsonl"), "turns")?
        };
        Ok(Data { corpus, pairs, dialogues, prompts, turns })
    }
}

fn one_turn(pair: world::Pair) -> world::Dialogue {
    let messages = vec![(world::Role::User, pair.prompt), (world::Role::Assistant, pair.response)];
    world::Dialogue { messages, family: pair.family }
}

fn write(path: &Path, fill: impl FnOnce(BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let context = || format!("writing {}", path.display());
    fill(BufWriter::new(File::create(path).with_context(context)?)).with_context(context)
}

fn read_tasks(path: PathBuf) -> Result<Vec<Task>> {
    Ok(records::tasks(&[path])?.collect::<Result<_, _>>()?)
}

/// Writes all but a held-out part of `examples` to `path`; returns it and the held-out tasks.
fn hold_out(examples: Vec<Example>, path: &Path, family: &str) -> Result<(Vec<PathBuf>, Vec<Task>)> {
    let (train, held_out) = split::held_out(examples, 0.05)?;
    write(path, |mut out| {
        use std::io::Write;
        for example in &train {
            // Pairs become dialogues of one turn; the command stage reads either by its messages.
            let line = match (family, example.messages.as_slice()) {
                ("prompts", [.., user, assistant]) => {
                    let system = example.messages.first().filter(|_| example.messages.len() > 2);
                    let mut line = json!({ "prompt": user.content, "response": assistant.content });
                    if let Some(system) = system {
                        line["system"] = json!(system.content);
                    }
                    line
                }
                (_, messages) => json!({ "messages": messages }),
            };
            let mut line = line;
            line["weight"] = json!(example.weight);
            writeln!(out, "{line}")?;
        }
        out.flush()
    })?;
    let mut tasks = tasks_of(held_out, family);
    tasks.truncate(GIVEN_TASKS);
    Ok((vec![path.to_path_buf()], tasks))
}

/// What one model came to.
struct Measured {
    prompts: Score,
    turns: Score,
    families: BTreeMap<String, Score>,
    answers: Vec<String>,
}

/// Asks every model the same tasks: those of the given data that are too long for a model are left out for all.
fn measure(finished: &[Finished], data: &mut Data, place: &Place, show: &mut Show) -> Result<Vec<Measured>> {
    let cpu = &place.machine.cpu;
    let folders = finished.iter().filter_map(|model| model.folder.as_ref());
    let models =
        folders.map(|folder| Opened::load(folder, cpu, WeightFormat::F32)).collect::<Result<Vec<_>>>()?;
    for (tasks, what) in [(&mut data.prompts, "prompts"), (&mut data.turns, "turns")] {
        let before = tasks.len();
        let mut kept = Vec::with_capacity(before);
        for task in tasks.drain(..) {
            if models
                .iter()
                .map(|model| fits(model, &task))
                .collect::<Result<Vec<_>>>()?
                .iter()
                .all(|fits| *fits)
            {
                kept.push(task);
            }
        }
        *tasks = kept;
        if tasks.len() < before {
            show.line(&format!(
                "{} of {before} held-out {what} are longer than the context",
                before - tasks.len()
            ));
        }
    }
    let mut results = Vec::new();
    for opened in &models {
        let prompt_answers = answers(opened, cpu, &data.prompts)?;
        let (prompts, mut families) = score(&data.prompts, &prompt_answers);
        let (turns, of_turns) = score(&data.turns, &answers(opened, cpu, &data.turns)?);
        families.extend(of_turns);
        results.push(Measured { prompts, turns, families, answers: prompt_answers });
    }
    Ok(results)
}

fn to_json(finished: &[Finished], results: &[Measured], seconds: f64) -> Value {
    let by_stage = |value: &dyn Fn(usize) -> Value| -> Value {
        Value::Object(STAGES.iter().enumerate().map(|(at, stage)| (stage.to_string(), value(at))).collect())
    };
    let mut families = Map::new();
    for family in results.iter().flat_map(|result| result.families.keys()) {
        let accuracy = |at: usize| json!(results[at].families.get(family).map(Score::accuracy));
        families.insert(family.clone(), by_stage(&accuracy));
    }
    json!({
        "minutes": seconds / 60.0,
        "stages": by_stage(&|at| finished_json(&finished[at])),
        "accuracy": by_stage(&|at| json!(results[at].prompts.accuracy())),
        "dialogue_accuracy": by_stage(&|at| json!(results[at].turns.accuracy())),
        "families": families,
        "models": by_stage(&|at| json!(format!("models/{}", finished[at].name))),
    })
}

fn tell(results: &[Measured], data: &Data, seconds: f64) -> Result<()> {
    let row = |name: &str, value: &dyn Fn(&Measured) -> Option<f64>| {
        let cells = results.iter().map(|result| match value(result) {
            Some(accuracy) => format!("{:9.0} %", 100.0 * accuracy),
            None => format!("{:>11}", "-"),
        });
        print_line(&format!("{name:28}{}", cells.collect::<String>()))
    };
    print_line(&format!("{:28}{:>11}{:>11}{:>11}", "right answers", STAGES[0], STAGES[1], STAGES[2]))?;
    for family in results[0].families.keys() {
        row(family, &|result| result.families.get(family).map(Score::accuracy))?;
    }
    row("ALL PROMPTS", &|result| Some(result.prompts.accuracy()))?;
    row("ALL DIALOGUES", &|result| Some(result.turns.accuracy()))?;
    // Three prompts from different places of the list, the same for all models.
    for at in (0..3).map(|third| third * data.prompts.len() / 3 + data.prompts.len() / 7) {
        let Some(task) = data.prompts.get(at) else { continue };
        let prompt = task.messages.last().map_or("", |message| message.content.as_str());
        print_line(&format!("\n{prompt}"))?;
        for (stage, result) in STAGES.iter().zip(results) {
            print_line(&format!("  {stage:10} {}", result.answers[at]))?;
        }
        print_line(&format!("  {:10} {}", "right", task.answer))?;
    }
    print_line(&format!(
        "\nThree models in {}. Talk with the last one:\n  strata chat demo-dialogue",
        duration(seconds)
    ))
}
