//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use strata_train::{Event, StepReport};

/// Seconds between plain lines.
const LINE_SECONDS: f64 = 5.0;

/// Shows the events of runs.
pub struct Show {
    bar: Option<ProgressBar>,
    peak_flops: f64,
    last_line: Option<Instant>,
    quiet_notes: bool,
}

impl Show {
    /// A display for runs on a machine with this peak of floating-point operations per second.
    pub fn new(peak_flops: f64) -> Show {
        Show { bar: None, peak_flops, last_line: None, quiet_notes: false }
    }

    /// A display that leaves out notes, for a command that runs several stages.
    pub fn without_notes(mut self) -> Show {
        self.quiet_notes = true;
        self
    }

    /// Shows an event.
    pub fn event(&mut self, event: Event) {
        match event {
            Event::Note(_) if self.quiet_notes => {}
            Event::Note(text) => self.line(&format!("  {text}")),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Phase(text) => {
                self.end_bar();
                self.last_line = None;
                self.line(&text);
            }
            Event::Step(report) => self.step(&report),
            Event::Validated { step, validation } => {
                let bits = validation
                    .bits_per_byte
                    .map_or(String::new(), |bits| format!(", {bits:.3} bits per byte"));
                self.line(&format!("  step {step}: held-out loss {:.3}{bits}", validation.loss));
            }
            Event::Saved { step, .. } => self.line(&format!("  step {step}: saved")),
        }
    }

    fn step(&mut self, report: &StepReport) {
        let text = format!(
            "loss {:.3}, {} tokens/s, {:.0} % of peak, {} left",
            report.loss,
            thousands(report.tokens_per_second),
            100.0 * report.flops_per_second / self.peak_flops,
            duration(report.seconds_left)
        );
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template("  {bar:30} {percent:>3} %  {msg}");
                ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            });
            bar.set_position((1000.0 * report.fraction) as u64);
            bar.set_message(text);
            if report.fraction >= 1.0 {
                self.end_bar();
            }
        } else if self.last_line.is_none_or(|last| last.elapsed() >= Duration::from_secs_f64(LINE_SECONDS)) {
            self.last_line = Some(Instant::now());
            eprintln!("  step {} ({:.0} %): {text}", report.step, 100.0 * report.fraction);
        }
    }

    /// Writes a line above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.end_bar();
    }
}

/// Seconds as a person says them: 45 s, 3 min 20 s, 2 h 5 min.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A whole number with commas.
pub fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([0.0, 999.4, 1000.0, 1234567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [59.2, 60.0, 200.0, 7500.0].map(duration),
            ["59 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
        );
    }
}
