//! A comparison as people and programs read it: one JSON object, tables in Markdown, plots.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use strata_data::RecallTask;
use strata_train::compare::{Row, Spread, Summary};

use crate::plots::{Axis, Chart, Colour, Series};
use crate::show::thousands;

/// Writes `compare.json`, `compare.md` and the plots into `folder`, and gives what is in the first two.
pub fn write(folder: &Path, summary: &Summary) -> Result<(String, Value)> {
    let markdown = markdown(summary);
    let value = json!(summary);
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        let temporary = folder.join(format!("{name}.writing"));
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("writing {}", path.display()))
    };
    save("compare.json", &format!("{:#}\n", value))?;
    save("compare.md", &markdown)?;
    for (name, chart) in charts(summary) {
        chart.save(&folder.join(name))?;
    }
    Ok((markdown, value))
}

/// A Markdown table: a head, and rows of as many cells.
fn table(head: &[String], rows: Vec<Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let border = format!("|---|{}\n", "---:|".repeat(head.len().saturating_sub(1)));
    let rows: String = rows.iter().map(|row| line(row)).collect();
    format!("{}{border}{rows}", line(head))
}

fn strings<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

/// The tables.
fn markdown(summary: &Summary) -> String {
    let request = &summary.plan.request;
    let seeds = request.seeds as usize;
    let budget = match (request.tokens, request.seconds) {
        (Some(tokens), _) => format!("{} tokens each", thousands(tokens as f64)),
        (None, seconds) => {
            format!("tokens for {:.1} minutes of each mixer's measured speed", seconds.unwrap_or(0.0) / 60.0)
        }
    };
    let recipe = summary.plan.entries.first().map(|entry| &entry.recipe);
    let recipe = recipe.map_or(String::new(), |recipe| {
        format!(
            "rows of {} tokens, {} rows per step, peak learning rate {:.1e}; ",
            recipe.sequence,
            recipe.rows * recipe.accumulation,
            recipe.schedule.peak
        )
    });
    let mut text = format!(
        "Models of about {} parameters; {budget}; {recipe}{} thread{} per model, {}, {}.\n\n",
        thousands(request.parameters as f64),
        request.threads,
        if request.threads == 1 { "" } else { "s" },
        request.precision,
        summary.plan.isa
    );
    text += &main_table(&summary.rows, seeds);
    if summary.rows.iter().any(|row| !row.by_multiple.is_empty()) {
        text += &format!("\n{}", positions_table(summary, seeds));
    }
    if summary.rows.iter().any(|row| !row.recall.is_empty()) {
        text += &format!("\n{}", recall_table(summary, seeds));
    }
    if !summary.speeds.is_empty() {
        text += &format!("\n{}", speed_table(summary));
    }
    if !summary.memory.is_empty() {
        text += &format!("\n{}", memory_table(summary));
    }
    text
}

fn main_table(rows: &[Row], seeds: usize) -> String {
    let head = strings([
        "mixer",
        "parameters",
        "blocks × width, inner layer",
        "million tokens",
        "PFLOP",
        "bits per byte",
        "tokens/s",
        "of the peak",
        "KiB of state",
        "and per further token",
    ]);
    let row = |row: &Row| {
        vec![
            row.mixer.clone(),
            thousands(row.parameters as f64),
            format!("{} × {}, {}", row.layers, row.width, row.ffn),
            format!("{:.2}", row.tokens as f64 / 1e6),
            format!("{:.3}", row.flops / 1e15),
            spread(row.bits_per_byte.as_ref(), seeds, 1.0, 3),
            thousands(row.tokens_per_second),
            format!("{:.0} %", 100.0 * row.utilisation),
            format!("{:.0}", row.state_bytes as f64 / 1024.0),
            format!("{:.1}", row.growth_per_token / 1024.0),
        ]
    };
    table(&head, rows.iter().map(row).collect())
}

fn positions_table(summary: &Summary, seeds: usize) -> String {
    let trained = summary.plan.request.sequence;
    let mut multiples: Vec<usize> =
        summary.rows.iter().flat_map(|row| &row.by_multiple).map(|(m, _)| *m).collect();
    multiples.sort_unstable();
    multiples.dedup();
    let mut head = strings(["bits per byte at positions"]);
    head.extend(multiples.iter().map(|multiple| match multiple {
        1 => format!("to {}", thousands(trained as f64)),
        _ => {
            let ends = [multiple / 2 * trained, multiple * trained];
            format!("{} to {} ({multiple}×)", thousands(ends[0] as f64), thousands(ends[1] as f64))
        }
    }));
    head.push(format!("the same text in windows of {}", thousands(trained as f64)));
    let row = |row: &Row| {
        let found = |multiple: &usize| row.by_multiple.iter().find(|(known, _)| known == multiple);
        let mut cells = vec![row.mixer.clone()];
        let at = |multiple| spread(found(multiple).map(|(_, spread)| spread), seeds, 1.0, 3);
        cells.extend(multiples.iter().map(at));
        cells.push(spread(row.cut.as_ref(), seeds, 1.0, 3));
        cells
    };
    table(&head, summary.rows.iter().map(row).collect())
}

fn recall_table(summary: &Summary, seeds: usize) -> String {
    let mut head = strings(["right answers, %"]);
    head.extend(RecallTask::ALL.map(|task| {
        let lesson = summary.recall.iter().map(|result| result.lesson).find(|lesson| lesson.task == task);
        let items = lesson.map_or("?".to_string(), |lesson| lesson.items.to_string());
        match task {
            RecallTask::Associative => format!("associative recall, {items} pairs"),
            RecallTask::Copy => format!("copy of {items}"),
            RecallTask::Needle => format!("needle in {items}"),
        }
    }));
    head.push("needle by depth, first fifth to last".into());
    head.push("KiB of state".into());
    let row = |row: &Row| {
        let mut cells = vec![row.mixer.clone()];
        cells.extend(RecallTask::ALL.map(|task| {
            let found = row.recall.iter().find(|(known, _)| *known == task).map(|(_, spread)| spread);
            spread(found, seeds, 100.0, 1)
        }));
        let needles: Vec<_> = summary
            .recall
            .iter()
            .filter(|result| result.mixer == row.mixer && result.lesson.task == RecallTask::Needle)
            .collect();
        let depths = needles.first().map_or(0, |result| result.by_depth.len());
        let mean = |depth: usize| {
            let sum: f64 = needles.iter().filter_map(|result| result.by_depth.get(depth)).sum();
            format!("{:.0}", 100.0 * sum / needles.len() as f64)
        };
        cells.push((0..depths).map(mean).collect::<Vec<_>>().join(", "));
        let state = |task: RecallTask| {
            let found =
                summary.recall.iter().find(|result| result.mixer == row.mixer && result.lesson.task == task);
            found.map_or("–".to_string(), |result| format!("{:.0}", result.state_bytes as f64 / 1024.0))
        };
        cells.push(RecallTask::ALL.map(state).join(", "));
        cells
    };
    let mut rows: Vec<Vec<String>> = summary.rows.iter().map(row).collect();
    let chance = summary.recall.first().map_or(0.0, |result| result.chance);
    let mut last = vec!["chance".to_string()];
    last.extend(RecallTask::ALL.map(|_| format!("{:.1}", 100.0 * chance)));
    last.extend([String::new(), String::new()]);
    rows.push(last);
    table(&head, rows)
}

fn speed_table(summary: &Summary) -> String {
    let lengths = &summary.plan.request.lengths;
    let mut head = strings(["tokens/s (of the peak) at length"]);
    head.extend(lengths.iter().map(|length| thousands(*length as f64)));
    let row = |row: &Row| {
        let mut cells = vec![row.mixer.clone()];
        cells.extend(lengths.iter().map(|length| {
            let found = summary
                .speeds
                .iter()
                .find(|run| run.mixer.name() == row.mixer && run.speed.length == *length)
                .map(|run| run.speed);
            found.map_or("–".to_string(), |speed| {
                format!("{} ({:.0} %)", thousands(speed.tokens_per_second), 100.0 * speed.utilisation)
            })
        }));
        cells
    };
    table(&head, summary.rows.iter().map(row).collect())
}

fn memory_table(summary: &Summary) -> String {
    let head = strings([
        "mixer",
        "tokens streamed",
        "bytes of state after 1,000",
        "after the last",
        "MiB of the process after 1,000",
        "after the last",
    ]);
    let mebibytes = |bytes: Option<u64>| {
        bytes.map_or("–".to_string(), |bytes| format!("{:.1}", bytes as f64 / 1048576.0))
    };
    let rows = summary.memory.iter().map(|memory| {
        let name = memory.mixer.name().to_string();
        if memory.streamed == 0 {
            let grows = format!("– (the state grows by {:.0} bytes a token)", memory.growth_per_token);
            return [vec![name, grows], vec!["–".to_string(); 4]].concat();
        }
        vec![
            name,
            thousands(memory.streamed as f64),
            thousands(memory.state_before as f64),
            thousands(memory.state_after as f64),
            mebibytes(memory.process_before),
            mebibytes(memory.process_after),
        ]
    });
    table(&head, rows.collect())
}

/// The plots of what is there, each with the name of its files.
fn charts(summary: &Summary) -> Vec<(&'static str, Chart)> {
    let request = &summary.plan.request;
    let compute = Axis::log("training compute, floating-point operations");
    let mut loss = Chart::new("Loss against compute", compute, Axis::linear("held-out bits per byte"));
    loss.subtitle = format!(
        "about {} parameters each; every line is one seed, on the way to its end",
        thousands(request.parameters as f64)
    );
    let mut speed = Chart::new(
        "Training speed against length",
        Axis::log("tokens of a sequence"),
        Axis::log("tokens per second, forward and backward"),
    );
    let threads = summary.speeds.first().map_or(request.threads, |run| run.speed.threads);
    speed.subtitle = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
    let mut length = Chart::new(
        "Longer than trained",
        Axis::log("position in the text, tokens"),
        Axis::log("bits per byte"),
    );
    length.subtitle =
        format!("trained on sequences of {} tokens; means over seeds", thousands(request.sequence as f64));
    for (kind, row) in summary.rows.iter().enumerate() {
        let series = |points| Series::new(&row.mixer, points).line().marker(kind).colour(Colour::Kind(kind));
        for (at, run) in summary.losses.iter().filter(|run| run.mixer.name() == row.mixer).enumerate() {
            let bits = run.trial.bits_per_byte / run.trial.loss;
            let curve = run.trial.curve.iter().filter(|point| point.flops > 0.0);
            let mut line = series(curve.map(|point| (point.flops, bits * point.loss)).collect());
            if at > 0 {
                line.name.clear();
            }
            loss.series.push(line);
        }
        let speeds = summary.speeds.iter().filter(|run| run.mixer.name() == row.mixer);
        let points: Vec<(f64, f64)> =
            speeds.map(|run| (run.speed.length as f64, run.speed.tokens_per_second)).collect();
        if !points.is_empty() {
            speed.series.push(series(points));
        }
        let points = by_position(summary, &row.mixer);
        if !points.is_empty() {
            length.series.push(series(points));
        }
    }
    let charts = [("loss", loss), ("speed", speed), ("length", length)];
    charts.into_iter().filter(|(_, chart)| !chart.series.is_empty()).collect()
}

/// Bits per byte in the middle of each part of the windows, the mean of all seeds.
fn by_position(summary: &Summary, mixer: &str) -> Vec<(f64, f64)> {
    let all: Vec<_> =
        summary.positions.iter().filter(|(known, _, _)| known.name() == mixer).map(|(_, _, by)| by).collect();
    let Some(first) = all.first() else { return Vec::new() };
    let mut start = 0;
    let part = |part: &strata_train::positions::PositionPart| {
        let values: Vec<f64> = all.iter().filter_map(|by| by.bits_per_byte(start, part.end)).collect();
        let middle = (start + part.end) as f64 / 2.0;
        start = part.end;
        Some((middle, Spread::of(values)?.mean))
    };
    first.parts.iter().filter_map(part).collect()
}

/// A mean with the deviation of single seeds, and how many seeds it stands on where some are missing.
fn spread(found: Option<&Spread>, seeds: usize, factor: f64, digits: usize) -> String {
    let Some(found) = found else { return "–".to_string() };
    let mean = format!("{:.digits$}", factor * found.mean);
    let deviation =
        found.deviation.map_or(String::new(), |deviation| format!(" ± {:.digits$}", factor * deviation));
    let count = found.values.len();
    let part = if count < seeds { format!(" ({count} of {seeds} seeds)") } else { String::new() };
    format!("{mean}{deviation}{part}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_says_how_many_seeds_it_stands_on() {
        let of = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(spread(of(&[]).as_ref(), 3, 1.0, 2), "–");
        assert_eq!(spread(of(&[2.0]).as_ref(), 3, 1.0, 2), "2.00 (1 of 3 seeds)");
        assert_eq!(spread(of(&[1.0, 3.0]).as_ref(), 2, 1.0, 1), "2.0 ± 1.4");
        assert_eq!(spread(of(&[0.5]).as_ref(), 1, 100.0, 1), "50.0");
    }

    #[test]
    fn tables_are_markdown() {
        let text = table(&strings(["a", "b"]), vec![strings(["1", "2"])]);
        assert_eq!(text, "| a | b |\n|---|---:|\n| 1 | 2 |\n");
    }
}
