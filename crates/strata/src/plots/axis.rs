//! Axes: from values to places, and which values get a label.

/// An axis of a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What is measured, with its unit.
    pub label: String,
    /// Whether equal distances are equal factors.
    pub logarithmic: bool,
}

/// A labelled place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub value: f64,
    pub label: String,
}

impl Axis {
    /// Equal distances are equal differences.
    pub fn linear(label: impl Into<String>) -> Axis {
        Axis { label: label.into(), logarithmic: false }
    }

    /// Equal distances are equal factors.
    pub fn log(label: impl Into<String>) -> Axis {
        Axis { label: label.into(), logarithmic: true }
    }

    /// Whether the axis can show a value.
    pub(super) fn shows(&self, value: f64) -> bool {
        value.is_finite() && (!self.logarithmic || value > 0.0)
    }

    /// A range for values: all of them and a little room.
    pub(super) fn fit(&self, values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
        let values = values.filter(|value| self.shows(*value)).map(|value| self.forward(value));
        let (low, high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return None;
        }
        let room = if high > low { 0.05 * (high - low) } else { 0.1 * high.abs().max(1.0) };
        let back = |value: f64| if self.logarithmic { value.exp() } else { value };
        Some((back(low - room), back(high + room)))
    }

    /// The place of a value between 0 and 1 in a range.
    pub(super) fn place(&self, value: f64, (low, high): (f64, f64)) -> f64 {
        let (low, high) = (self.forward(low), self.forward(high));
        (self.forward(value) - low) / (high - low)
    }

    fn forward(&self, value: f64) -> f64 {
        if self.logarithmic { value.ln() } else { value }
    }

    /// The values of a range that get a label, at most about eight.
    pub(super) fn ticks(&self, (low, high): (f64, f64)) -> Vec<Tick> {
        let values = if self.logarithmic && high / low >= 4.0 { powers(low, high) } else { steps(low, high) };
        values.into_iter().map(|value| Tick { value, label: label(value) }).collect()
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn steps(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Powers of ten, and between them 2 and 5 times, or 3 times these where there is room.
fn powers(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    let (between, every): (&[f64], i32) = match decades {
        d if d <= 2.3 => (&[1.0, 2.0, 5.0], 1),
        d if d <= 4.0 => (&[1.0, 3.0], 1),
        d => (&[1.0], (d / 8.0).ceil() as i32),
    };
    let from = low.log10().floor() as i32;
    let to = high.log10().ceil() as i32;
    let inside = |value: &f64| (low * 0.9999..=high * 1.0001).contains(value);
    (from..=to)
        .filter(|exponent| exponent % every == 0)
        .flat_map(|exponent| between.iter().map(move |m| m * 10f64.powi(exponent)))
        .filter(inside)
        .collect()
}

/// A value in as few characters as say it.
fn label(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        let exponent = size.log10().floor();
        let mantissa = value / 10f64.powf(exponent);
        let power = superscript(exponent as i32);
        let rounded = (mantissa * 100.0).round() / 100.0;
        return if rounded == 1.0 { format!("10{power}") } else { format!("{rounded}·10{power}") };
    }
    if size >= 1e3 {
        return crate::show::thousands(value);
    }
    // Nine digits hide what adding steps left behind.
    format!("{}", (value * 1e9).round() / 1e9 + 0.0)
}

fn superscript(number: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let digit = |digit: char| digit.to_digit(10).map_or('⁻', |digit| DIGITS[digit as usize]);
    number.to_string().chars().map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, range: (f64, f64)) -> Vec<String> {
        axis.ticks(range).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn labels_are_round_numbers() {
        assert_eq!(labels(&Axis::linear(""), (0.0, 1.1)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(&Axis::linear(""), (-0.35, 0.1)), ["-0.3", "-0.2", "-0.1", "0", "0.1"]);
        assert_eq!(labels(&Axis::log(""), (9e10, 2e12)), ["10¹¹", "2·10¹¹", "5·10¹¹", "10¹²", "2·10¹²"]);
        assert_eq!(labels(&Axis::log(""), (512.0, 16384.0)), ["1,000", "2,000", "5,000", "10,000"]);
        assert_eq!(labels(&Axis::log(""), (3.4, 6.1)), ["3.5", "4", "4.5", "5", "5.5", "6"]);
        assert_eq!(labels(&Axis::log(""), (1e-7, 1e-2)), ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴", "0.001", "0.01"]);
        assert!(labels(&Axis::log(""), (1e-30, 1e30)).len() <= 9);
    }

    #[test]
    fn places_are_fractions_of_the_range() {
        let axis = Axis::log("");
        assert!((axis.place(100.0, (1.0, 1e4)) - 0.5).abs() < 1e-12);
        assert_eq!(Axis::linear("").place(3.0, (2.0, 6.0)), 0.25);
        assert_eq!(axis.fit([f64::NAN, -2.0, 0.0].into_iter()), None);
        let (low, high) = axis.fit([10.0, 1000.0].into_iter()).unwrap();
        assert!(low < 10.0 && low > 7.0 && high > 1000.0 && high < 1400.0);
    }
}
