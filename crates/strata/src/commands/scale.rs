//! `strata scale`: a ladder of runs, the law that they follow, and a figure.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use strata_train::scaling::{Corpus, Ladder, Optimum, Rung, Sample, ScalingLaw, check_ladder};
use strata_train::{Overrides, Study, TrialResult, Workplace};

use super::train::{absolute, mixer, read_overrides};
use super::{print_json, print_line, stop_on_interrupt};
use crate::failure::BadInput;
use crate::machine::{Place, count, minutes, peak_flops};
use crate::plots::{Axis, Chart, Colour, Series};
use crate::show::{Show, thousands};

/// Arguments of `strata scale`.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  strata scale --corpus texts/ --name law --mixer attention --mixer ssm --minutes 60\n  \
                        strata scale --corpus texts/ --name grid --params 300k 600k 1.2M --tokens 500k 1M 2M\n\nThe law \
                        of each mixer is kept in $STRATA_HOME/laws, where `strata train base` finds it."
)]
pub struct ScaleArguments {
    /// Files or folders of text: .txt, .md, .jsonl, .parquet, also .zst and .gz
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    corpus: Vec<PathBuf>,
    /// Name of the run; the same name goes on where it was, and trains nothing twice
    #[arg(long)]
    name: String,
    /// What mixes the sequence, as in `train base`; more than one for a law of each [default: attention]
    #[arg(long = "mixer", value_name = "MIXER", value_parser = mixer)]
    mixers: Vec<String>,
    /// Minutes for all of it, as this machine measures now [default: 30]
    #[arg(long, value_parser = minutes)]
    minutes: Option<f64>,
    /// Floating-point operations of the largest run, for example 2e13, in place of minutes; the ladder below it takes
    /// a little more
    #[arg(long, value_name = "N", value_parser = operations, conflicts_with = "minutes")]
    compute: Option<f64>,
    /// Sizes of a ladder of your own, for example 300k 600k 1.2M; each is trained on each of --tokens
    #[arg(long, num_args = 1.., value_name = "N", value_parser = count, requires = "tokens",
          conflicts_with_all = ["minutes", "compute"])]
    params: Vec<u64>,
    /// Budgets of tokens of a ladder of your own
    #[arg(long, num_args = 1.., value_name = "N", value_parser = count, requires = "params")]
    tokens: Vec<u64>,
    /// Seed of weights and data order
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: u64,
    /// TOML file with settings of all runs, for example: vocab_size = 2048
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Forget the runs of this name
    #[arg(long)]
    restart: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

/// Minutes when nothing says how long.
const DEFAULT_MINUTES: f64 = 30.0;
/// All runs of a ladder together take about this many times the largest.
const LADDER: f64 = 2.3;
/// What small models reach of the rate that is measured on one of middle size.
const SMALL_RATE: f64 = 0.5;
/// Points of a curve in the figure.
const CURVE: usize = 60;

/// Runs the command.
pub fn run(arguments: ScaleArguments, place: &Place) -> Result<()> {
    let overrides = read_overrides(arguments.recipe.as_deref())?;
    if overrides.width.is_some() && !arguments.params.is_empty() {
        return Err(BadInput("the recipe sets a width and --params sets sizes; leave one out".into()).into());
    }
    let mut mixers = match (&overrides.mixer, arguments.mixers.is_empty()) {
        (Some(mixer), true) => vec![mixer.clone()],
        (None, true) => vec!["attention".to_string()],
        _ => arguments.mixers.clone(),
    };
    let mut seen = BTreeSet::new();
    mixers.retain(|mixer| seen.insert(mixer.clone()));
    let stop = stop_on_interrupt()?;
    let mut show = Show::new(peak_flops(&place.machine, 0.1));
    let mut workplace = Workplace {
        home: &place.home,
        machine: &place.machine,
        stop: &stop,
        progress: &mut |event| show.event(event),
        restart: arguments.restart,
    };
    let corpus = absolute(arguments.corpus.clone())?;
    let study = Study::open(&arguments.name, &corpus, overrides.vocab_size, &mut workplace)
        .with_context(|| format!("preparing {}", arguments.name))?;
    let ladders = mixers
        .iter()
        .map(|mixer| {
            let overrides = Overrides { mixer: Some(mixer.clone()), ..overrides.clone() };
            ladder(&arguments, place, &study, &overrides, mixers.len())
        })
        .collect::<Result<Vec<Ladder>>>()?;

    for (mixer, ladder) in mixers.iter().zip(&ladders) {
        if let Some(share) = ladder.starved() {
            show.line(&format!(
                "{mixer}: the largest run reads {share:.1} tokens per parameter, for want of text or by --tokens; a law is \
                 tested better by more text, less compute, or a smaller vocabulary (vocab_size in --recipe; now {})",
                thousands(study.vocab_size() as f64)
            ));
        }
    }

    // The cheapest first, whatever the mixer: mistakes show early.
    let mut order: Vec<&Rung> = ladders.iter().flat_map(|ladder| &ladder.rungs).collect();
    order.sort_by(|a, b| a.trial.flops().total_cmp(&b.trial.flops()));
    let (mut trained, mut found) = (0, 0);
    for (number, Rung { trial, .. }) in order.iter().enumerate() {
        if study.finished(trial, place.machine.precision)?.is_some() {
            found += 1;
            continue;
        }
        show.line(&format!(
            "run {} of {}: {}, {} parameters, {} tokens, {:.1e} operations",
            number + 1,
            order.len(),
            trial.mixer(),
            thousands(trial.parameters() as f64),
            thousands(trial.tokens() as f64),
            trial.flops()
        ));
        let result = study
            .train(trial, &place.machine, &stop, &mut |event| show.event(event))
            .with_context(|| format!("training run {} of {}", number + 1, order.len()))?;
        if result.is_none() {
            bail!(
                "stopped with {} of {} runs finished; everything is saved: repeat the same command to go on",
                trained + found,
                order.len()
            );
        }
        trained += 1;
    }
    drop(show);

    let mut reports = Vec::new();
    for ladder in &ladders {
        let results = ladder
            .rungs
            .iter()
            .map(|rung| {
                Ok(study.finished(&rung.trial, place.machine.precision)?.map(|result| (result, rung.fitted)))
            })
            .collect::<Result<Vec<_>>>()?;
        reports.push(report(&arguments.name, &study, results.into_iter().flatten().collect(), place)?);
    }
    let json = json!({
        "name": arguments.name,
        "path": study.folder(),
        "trained": trained,
        "found": found,
        "corpus": corpus_of(&study, &ladders),
        "laws": reports.iter().map(Report::json).collect::<Vec<_>>(),
    });
    let path = study.folder().join("scale.json");
    let temporary = path.with_extension("writing");
    fs::write(&temporary, format!("{json:#}\n"))
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("writing {}", path.display()))?;
    if arguments.json {
        return print_json(&json);
    }
    reports.iter().try_for_each(|report| print_line(&report.text()))?;
    print_line(&path.display().to_string())
}

/// A number of operations.
fn operations(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(flops) if (1e6..1e30).contains(&flops) => Ok(flops),
        _ => Err("expected a number of operations from 1e6 to 1e30, for example 2e13".to_string()),
    }
}

/// The ladder of a mixer, long enough for a law.
fn ladder(
    arguments: &ScaleArguments,
    place: &Place,
    study: &Study,
    overrides: &Overrides,
    mixers: usize,
) -> Result<Ladder> {
    let seed = arguments.seed;
    let ladder = if arguments.params.is_empty() {
        let flops = match arguments.compute {
            Some(flops) => flops,
            None => compute_of_minutes(arguments, place, study, overrides, mixers)?,
        };
        Ladder::of_compute(study, overrides, seed, flops)?
    } else {
        Ladder::of_grid(study, overrides, seed, &arguments.params, &arguments.tokens)?
    };
    check_ladder(&ladder)?;
    Ok(ladder)
}

/// Operations of the largest run in a share of the minutes. They are kept: the second call of a command is to go on with
/// the ladder of the first, however fast the machine is at the time.
fn compute_of_minutes(
    arguments: &ScaleArguments,
    place: &Place,
    study: &Study,
    overrides: &Overrides,
    mixers: usize,
) -> Result<f64> {
    let minutes = arguments.minutes.unwrap_or(DEFAULT_MINUTES);
    let mixing = overrides.mixing(0)?;
    let key = format!("{} in {minutes} minutes for {mixers}", mixing.name(mixing.pattern.len()));
    let path = study.folder().join("compute.json");
    let mut known: Value = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?,
        Err(_) => json!({}),
    };
    if let Some(flops) = known[&key].as_f64().filter(|_| !arguments.restart) {
        return Ok(flops);
    }
    let rate = SMALL_RATE * place.machine.training_rate(&mixing)?;
    let flops = 60.0 * minutes / mixers as f64 * rate / LADDER;
    known[&key] = json!(flops);
    fs::write(&path, format!("{known:#}\n")).with_context(|| format!("writing {}", path.display()))?;
    Ok(flops)
}

fn corpus_of(study: &Study, ladders: &[Ladder]) -> Corpus {
    let sequence =
        ladders.iter().flat_map(|ladder| &ladder.rungs).map(|rung| rung.trial.recipe.sequence).next();
    Corpus {
        files: study.data().iter().map(|file| file.path.clone()).collect(),
        tokens: study.corpus_tokens(),
        vocab_size: study.vocab_size(),
        tokenizer_sha256: study.tokenizer_sha256().to_string(),
        sequence: sequence.unwrap_or(0),
    }
}

/// A law with its runs and figures.
struct Report {
    law: ScalingLaw,
    runs: Vec<(TrialResult, bool)>,
    frontier: Vec<(Optimum, (f64, f64))>,
    figures: [PathBuf; 2],
}

/// Fits the law of one mixer, stores it, and draws it.
fn report(name: &str, study: &Study, runs: Vec<(TrialResult, bool)>, place: &Place) -> Result<Report> {
    let samples: Vec<Sample> = runs.iter().map(|(result, _)| Sample::from(result)).collect();
    let seen: Vec<Sample> =
        runs.iter().filter(|(_, fitted)| *fitted).map(|(result, _)| Sample::from(result)).collect();
    let first = &runs[0].0;
    let corpus = Corpus { sequence: first.sequence, ..corpus_of(study, &[]) };
    let law = ScalingLaw::of(&first.mixer, name, corpus, &samples, &seen)
        .with_context(|| format!("fitting the law of {}", first.mixer))?;
    law.save(&place.home)?;
    let most = law.most_flops();
    let least = samples.iter().map(|run| run.flops).fold(f64::INFINITY, f64::min);
    let frontier = (0..CURVE)
        .map(|i| least * (4.0 * most / least).powf(i as f64 / (CURVE - 1) as f64))
        .map(|flops| law.optimum(flops))
        .collect();
    let stem = study.folder().join(format!("scale-{}", first.mixer.replace(':', "-")));
    let mut report = Report { law, runs, frontier, figures: [PathBuf::new(), PathBuf::new()] };
    report.figures = report.draw(&stem)?;
    Ok(report)
}

impl Report {
    fn json(&self) -> Value {
        let optimum = |(best, (low, high)): &(Optimum, (f64, f64))| {
            json!({ "flops": best.flops, "parameters": best.parameters, "tokens": best.tokens, "loss": best.loss,
                    "loss_low": low, "loss_high": high })
        };
        let mut law = json!(self.law);
        if let Some(law) = law.as_object_mut() {
            // The resamples are for the dial; here their intervals say enough.
            law.remove("resamples");
            law.remove("corpus");
        }
        law["runs"] = json!(self.runs.iter().map(|(result, _)| result).collect::<Vec<_>>());
        law["frontier"] = self.frontier.iter().map(optimum).collect();
        law["figures"] = json!(self.figures);
        law
    }

    fn text(&self) -> String {
        let ScalingLaw { mixer, law, intervals, .. } = &self.law;
        let mut lines = vec![
            format!(
                "{mixer}: loss = {} + {} / N^{} + {} / D^{} nats per token ({} runs)",
                number(law.e),
                number(law.a),
                number(law.alpha),
                number(law.b),
                number(law.beta),
                self.runs.len()
            ),
            format!("  {} % intervals:", 100.0 * self.law.level),
        ];
        for (name, (low, high)) in [
            ("E", intervals.e),
            ("A", intervals.a),
            ("alpha", intervals.alpha),
            ("B", intervals.b),
            ("beta", intervals.beta),
        ] {
            lines.push(format!("    {name:<6}{:>12} to {}", number(low), number(high)));
        }
        lines.push("  parameters       tokens  operations    loss     law  bits per byte".to_string());
        for (run, fitted) in &self.runs {
            lines.push(format!(
                "  {:>10} {:>12}  {:>10.2e}  {:>6.4}  {:>6.4}  {:.4}{}",
                thousands(run.parameters as f64),
                thousands(run.tokens as f64),
                run.flops,
                run.loss,
                law.loss(run.parameters as f64, run.tokens as f64),
                run.bits_per_byte,
                if *fitted { "" } else { "  not seen by the test's law" }
            ));
        }
        match &self.law.test {
            Some(test) => lines.push(format!(
                "  test: a law of {} runs of at most {:.1e} operations predicts {:.4} ({:.4} to {:.4}) for the largest \
                 run, {:.1} times as much compute; it came to {:.4}: {:+.2} %",
                test.runs,
                test.most_flops,
                test.predicted,
                test.interval.0,
                test.interval.1,
                test.run.flops / test.most_flops,
                test.run.loss,
                test.error_percent
            )),
            None => lines.push(
                "  no test: too few of the runs take at most an eighth of the largest's compute".to_string(),
            ),
        }
        lines.push("  best use of compute:\n  operations   parameters       tokens    loss".to_string());
        let most = self.law.most_flops();
        for factor in [0.1, 1.0, 10.0, 100.0] {
            let (best, (low, high)) = self.law.optimum(factor * most);
            lines.push(format!(
                "  {:>10.1e} {:>12} {:>12}  {:>6.3} ({low:.3} to {high:.3})",
                best.flops,
                thousands(best.parameters),
                thousands(best.tokens),
                best.loss
            ));
        }
        lines.extend(self.figures.iter().map(|path| format!("  {}", path.display())));
        lines.join("\n")
    }

    /// Loss against compute: the runs by size, the law's curve for each size, and the frontier.
    fn draw(&self, stem: &Path) -> Result<[PathBuf; 2]> {
        let law = &self.law;
        let mut chart = Chart::new(
            format!("Scaling law of {}", law.mixer),
            Axis::log("training compute, floating-point operations"),
            Axis::log("held-out loss, nats per token"),
        );
        let fit = law.law;
        chart.subtitle = format!(
            "loss = {} + {} / N^{} + {} / D^{}; N parameters, D tokens, {} runs",
            number(fit.e),
            number(fit.a),
            number(fit.alpha),
            number(fit.b),
            number(fit.beta),
            self.runs.len()
        );
        let mut sizes: Vec<u64> = self.runs.iter().map(|(run, _)| run.parameters).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let frontier: Vec<(f64, f64)> =
            self.frontier.iter().map(|(best, _)| (best.flops, best.loss)).collect();
        let band = self.frontier.iter().map(|(best, (low, high))| (best.flops, *low, *high)).collect();
        chart.series.push(Series::new("best use of compute", frontier).line().band(band));
        for (place, size) in sizes.iter().enumerate() {
            let colour = Colour::Step(place as f64 / (sizes.len().max(2) - 1) as f64);
            let mut own: Vec<&TrialResult> =
                self.runs.iter().map(|(run, _)| run).filter(|run| run.parameters == *size).collect();
            own.sort_by_key(|run| run.tokens);
            let (Some(first), Some(last)) = (own.first(), own.last()) else { continue };
            let (from, to) = (0.8 * first.tokens as f64, 1.25 * last.tokens as f64);
            let curve = (0..CURVE).map(|i| from * (to / from).powf(i as f64 / (CURVE - 1) as f64));
            let curve = curve.map(|tokens| (tokens * first.flops_per_token, fit.loss(*size as f64, tokens)));
            chart.series.push(Series::new("", curve.collect()).dashed().colour(colour));
            let points = own.iter().map(|run| (run.flops, run.loss)).collect();
            let name = format!("{} parameters", short(*size as f64));
            chart.series.push(Series::new(name, points).marker(place).colour(colour));
        }
        if let Some(test) = &law.test {
            let (x, (low, high)) = (test.run.flops, test.interval);
            chart.series.push(
                Series::new("predicted, unseen", vec![(x, test.predicted)])
                    .marker(3)
                    .hollow()
                    .intervals(vec![(x, low, high)])
                    .colour(Colour::Kind(1)),
            );
        }
        chart.save(stem)
    }
}

/// A number of a law, in as many digits as mean something.
fn number(value: f64) -> String {
    match value {
        value if value < 1e-3 => "0".to_string(),
        value if value < 1e4 => format!("{value:.3}"),
        value => format!("{value:.2e}"),
    }
}

/// A count in three digits: 950k, 1.27M.
fn short(value: f64) -> String {
    match value {
        value if value < 1e3 => format!("{value:.0}"),
        value if value < 1e6 => format!("{:.0}k", value / 1e3),
        value if value < 1e8 => format!("{:.2}M", value / 1e6),
        value => format!("{:.0}M", value / 1e6),
    }
}
