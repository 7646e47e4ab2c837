//! `strata bench growth`: what training costs as models get wider and sequences longer.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use strata_model::Config;
use strata_train::plan::{Overrides, shape_of_width};
use strata_train::speed::{Speed, Timed, training_speed};

use super::bench::median;
use super::{print_json, print_line};
use crate::failure::BadInput;
use crate::machine::{Place, peak_flops};
use crate::plots::{Axis, Chart, Colour, Series};
use crate::show::thousands;

/// Arguments of `strata bench growth`.
#[derive(Args)]
pub struct GrowthBench {
    /// Widths to compare, multiples of 64, in sequences of the first of the lengths
    #[arg(long, value_delimiter = ',', default_values_t = [256, 384, 512, 768, 1024])]
    widths: Vec<usize>,
    /// Lengths of sequences to compare, with the width 384
    #[arg(long, value_delimiter = ',', default_values_t = [512, 1024, 2048, 4096])]
    lengths: Vec<usize>,
    /// Tokens per step, at least one sequence
    #[arg(long, default_value_t = 8192, value_name = "N")]
    step_tokens: usize,
    /// Rounds through all shapes; the middle of each shape's rounds counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Draw the result: PATH.svg and PATH.png
    #[arg(long, value_name = "PATH")]
    plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Blocks, vocabulary and, where lengths are compared, the width: those of the reference shape R1.
const LAYERS: usize = 6;
const VOCABULARY: usize = 8192;
const WIDTH: usize = 384;
/// Seconds of the peak before and after each step.
const PEAK_SECONDS: f64 = 0.05;

/// A shape with its rounds.
struct Row {
    config: Config,
    length: usize,
    rounds: Vec<Speed>,
}

impl Row {
    fn middle(&self, value: impl Fn(&Speed) -> f64) -> f64 {
        median(self.rounds.iter().map(value).collect())
    }

    /// Operations per second.
    fn rate(&self) -> f64 {
        self.middle(|speed| speed.tokens_per_second * speed.flops_per_token)
    }

    fn share(&self) -> f64 {
        self.middle(|speed| speed.utilisation)
    }

    fn json(&self) -> Value {
        json!({
            "width": self.config.width,
            "length": self.length,
            "tokens_per_second": self.middle(|speed| speed.tokens_per_second),
            "flops_per_token": self.rounds[0].flops_per_token,
            "tflops": self.rate() / 1e12,
            "utilisation": self.share(),
        })
    }

    fn line(&self) -> String {
        format!(
            "width {:>5}, {:>6} tokens  {:>8} tokens/s  {:.3} TFLOP/s  {:3.0} % of the peak",
            self.config.width,
            self.length,
            thousands(self.middle(|speed| speed.tokens_per_second)),
            self.rate() / 1e12,
            100.0 * self.share()
        )
    }
}

/// Runs the command.
pub fn run(bench: &GrowthBench, place: &Place) -> Result<()> {
    let bad = |text: &str| Err(BadInput(text.to_string()).into());
    if bench.widths.is_empty() || bench.widths.iter().any(|width| *width == 0 || width % 64 != 0) {
        return bad("--widths must be multiples of 64");
    }
    if bench.lengths.is_empty() || bench.lengths.iter().any(|length| !(16..=1 << 17).contains(length)) {
        return bad("--lengths must be from 16 to 131072");
    }
    if bench.rounds == 0 || bench.step_tokens == 0 {
        return bad("--rounds and --step-tokens must be at least 1");
    }
    let overrides = Overrides { layers: Some(LAYERS), tied: Some(false), ..Overrides::default() };
    let row = |width, length| -> Result<Row> {
        let config = shape_of_width(width, length, VOCABULARY, &overrides)?;
        Ok(Row { config, length, rounds: Vec::new() })
    };
    let mut by_width =
        bench.widths.iter().map(|&w| row(w, bench.lengths[0])).collect::<Result<Vec<Row>>>()?;
    let mut by_length = bench.lengths.iter().map(|&l| row(WIDTH, l)).collect::<Result<Vec<Row>>>()?;
    let peak = |machine: &_| peak_flops(machine, PEAK_SECONDS);
    // Round after round, so that a machine that slows down slows all shapes down.
    for _ in 0..bench.rounds {
        for row in by_width.iter_mut().chain(&mut by_length) {
            let rows = (bench.step_tokens / row.length).max(1);
            let speed =
                training_speed(&place.machine, &row.config, (row.length, rows), Timed::Steps, 1, &peak)?;
            row.rounds.push(speed);
        }
    }
    if let Some(path) = &bench.plot {
        chart(&by_width, &by_length, place).save(path)?;
    }
    if bench.json {
        let values = |rows: &[Row]| rows.iter().map(Row::json).collect::<Vec<Value>>();
        return print_json(&json!({
            "layers": LAYERS,
            "vocabulary": VOCABULARY,
            "isa": place.machine.cpu.isa().name(),
            "threads": place.machine.cpu.threads(),
            "rounds": bench.rounds,
            "widths": values(&by_width),
            "width_keeps": kept(&by_width, Row::rate),
            "lengths": values(&by_length),
            "length_keeps": kept(&by_length, Row::rate),
        }));
    }
    for (rows, what) in [(&by_width, "width"), (&by_length, "length")] {
        for row in rows {
            print_line(&row.line())?;
        }
        print_line(&format!(
            "the largest {what} keeps {:.0} % of the smallest's rate, and {:.0} % of its share of the peak",
            100.0 * kept(rows, Row::rate),
            100.0 * kept(rows, Row::share)
        ))?;
    }
    Ok(())
}

/// What the last has of the first.
fn kept(rows: &[Row], value: impl Fn(&Row) -> f64) -> f64 {
    value(&rows[rows.len() - 1]) / value(&rows[0])
}

fn chart(by_width: &[Row], by_length: &[Row], place: &Place) -> Chart {
    let mut chart = Chart::new(
        "Rate of training as the work grows",
        Axis::log("times the smallest width, or the shortest sequence"),
        Axis::linear("operations per second, the smallest = 1"),
    );
    chart.subtitle = format!(
        "{LAYERS} blocks, {} on {} threads; dashed: as a share of the peak measured beside each step",
        place.machine.cpu.isa().name(),
        place.machine.cpu.threads()
    );
    let range = |rows: &[Row], size: fn(&Row) -> usize| {
        format!("{} to {}", thousands(size(&rows[0]) as f64), thousands(size(&rows[rows.len() - 1]) as f64))
    };
    let width: fn(&Row) -> usize = |row| row.config.width;
    let length: fn(&Row) -> usize = |row| row.length;
    for (kind, (rows, size, what)) in
        [(by_width, width, "width"), (by_length, length, "sequence")].into_iter().enumerate()
    {
        let points = |value: fn(&Row) -> f64| -> Vec<(f64, f64)> {
            let at = |row: &Row| (size(row) as f64 / size(&rows[0]) as f64, value(row) / value(&rows[0]));
            rows.iter().map(at).collect()
        };
        let colour = Colour::Kind(kind);
        let name = format!("{what} {}", range(rows, size));
        chart.series.push(Series::new("", points(Row::share)).dashed().colour(colour));
        chart.series.push(Series::new(name, points(Row::rate)).line().marker(kind).colour(colour));
    }
    // The axis begins at zero.
    chart.series.push(Series::new("", vec![(1.0, 0.0)]));
    chart
}
