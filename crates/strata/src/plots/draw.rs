//! Where everything of a figure goes, and its drawing on any backend of `plotters`.

use anyhow::{Result, bail};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Axis, Chart, Line, Marker, SIZE, Series, drawing};

/// The font's name; an SVG's reader takes their own.
pub(super) const FONT: &str = "sans-serif";

/// How a backend differs from SVG.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surface {
    /// Pixels per unit of SVG.
    pub scale: f64,
    /// How far text is moved down, in its own size.
    pub text_shift: f64,
}

const INK: RGBColor = RGBColor(40, 44, 52);
const GREY: RGBColor = RGBColor(105, 112, 122);
const GRID: RGBColor = RGBColor(226, 229, 233);
/// Font sizes in units of SVG.
const TITLE: f64 = 24.0;
const TEXT: f64 = 16.0;
/// Room around the plot, in units of SVG.
const LEFT: f64 = 78.0;
const TOP: f64 = 98.0;
const BOTTOM: f64 = 62.0;
const RIGHT: f64 = 24.0;
/// Height of a legend's line, width of its sample.
const ENTRY: f64 = 25.0;
const SAMPLE: f64 = 34.0;
/// Mean width of a character of text in its size: labels need no exact measure.
const CHARACTER: f64 = 0.5;

type Point = (f64, f64);

/// Draws `chart` on `area`.
pub(super) fn draw<B: DrawingBackend>(
    chart: &Chart,
    area: &DrawingArea<B, Shift>,
    surface: Surface,
) -> Result<()> {
    let values =
        |pick: fn(Point) -> f64| chart.series.iter().flat_map(move |series| all_points(series).map(pick));
    let shown = chart.series.iter().flat_map(all_points).any(|(x, y)| chart.x.shows(x) && chart.y.shows(y));
    let (Some(x), Some(y)) = (chart.x.fit(values(|point| point.0)), chart.y.fit(values(|point| point.1)))
    else {
        bail!("there is nothing to draw in the figure \"{}\"", chart.title);
    };
    if !shown {
        bail!("there is nothing to draw in the figure \"{}\"", chart.title);
    }
    let named = chart.series.iter().filter(|series| !series.name.is_empty());
    let longest = named.clone().map(|series| series.name.chars().count()).max();
    let legend = longest.map_or(0.0, |longest| SAMPLE + 18.0 + longest as f64 * CHARACTER * TEXT);
    let right = f64::from(SIZE.0) - RIGHT - legend;
    let frame = Frame { left: LEFT, right, top: TOP, bottom: f64::from(SIZE.1) - BOTTOM, x, y };
    let pen = Pen { area, surface };
    area.fill(&WHITE).map_err(drawing)?;

    let left = LEFT - 54.0;
    pen.text(&chart.title, (left, 18.0), TITLE, FontStyle::Bold, INK, (HPos::Left, VPos::Top))?;
    pen.text(&chart.subtitle, (left, 46.0), TEXT, FontStyle::Normal, GREY, (HPos::Left, VPos::Top))?;
    pen.text(&chart.y.label, (left, TOP - 24.0), TEXT, FontStyle::Normal, INK, (HPos::Left, VPos::Top))?;
    let middle = (frame.left + frame.right) / 2.0;
    let below = frame.bottom + 32.0;
    pen.text(&chart.x.label, (middle, below), TEXT, FontStyle::Normal, INK, (HPos::Center, VPos::Top))?;
    axes(&pen, chart, &frame)?;
    for series in &chart.series {
        draw_series(&pen, chart, &frame, series)?;
    }
    for (entry, series) in named.enumerate() {
        let y = frame.top + 10.0 + ENTRY * entry as f64;
        draw_entry(&pen, series, (frame.right + 20.0, y))?;
    }
    area.present().map_err(drawing)
}

fn all_points(series: &Series) -> impl Iterator<Item = Point> + '_ {
    let both = |(x, low, high): &(f64, f64, f64)| [(*x, *low), (*x, *high)];
    let areas = series.band.iter().chain(&series.intervals).flat_map(both);
    series.points.iter().copied().chain(areas)
}

/// The plot's rectangle and what it shows.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    /// Where a point goes; `None` when it is not inside.
    fn place(&self, chart: &Chart, (x, y): Point) -> Option<Point> {
        let within = |axis: &Axis, value: f64, range: (f64, f64)| {
            let place = axis.shows(value).then(|| axis.place(value, range))?;
            (-1e-6..=1.0 + 1e-6).contains(&place).then_some(place)
        };
        let (x, y) = (within(&chart.x, x, self.x)?, within(&chart.y, y, self.y)?);
        Some((self.left + x * (self.right - self.left), self.bottom - y * (self.bottom - self.top)))
    }
}

fn axes<B: DrawingBackend>(pen: &Pen<'_, B>, chart: &Chart, frame: &Frame) -> Result<()> {
    let mut free = f64::NEG_INFINITY;
    for tick in chart.x.ticks(frame.x) {
        let x = frame.left + chart.x.place(tick.value, frame.x) * (frame.right - frame.left);
        pen.line(&[(x, frame.top), (x, frame.bottom)], GRID.into(), 1.0)?;
        // A label that would touch the one before it is left out.
        let half = tick.label.chars().count() as f64 * CHARACTER * TEXT / 2.0;
        if x - half > free {
            pen.text(
                &tick.label,
                (x, frame.bottom + 8.0),
                TEXT,
                FontStyle::Normal,
                GREY,
                (HPos::Center, VPos::Top),
            )?;
            free = x + half + 6.0;
        }
    }
    for tick in chart.y.ticks(frame.y) {
        let y = frame.bottom - chart.y.place(tick.value, frame.y) * (frame.bottom - frame.top);
        pen.line(&[(frame.left, y), (frame.right, y)], GRID.into(), 1.0)?;
        pen.text(
            &tick.label,
            (frame.left - 8.0, y),
            TEXT,
            FontStyle::Normal,
            GREY,
            (HPos::Right, VPos::Center),
        )?;
    }
    let corners = [(frame.left, frame.top), (frame.left, frame.bottom), (frame.right, frame.bottom)];
    pen.line(&corners, GREY.into(), 1.25)
}

fn draw_series<B: DrawingBackend>(
    pen: &Pen<'_, B>,
    chart: &Chart,
    frame: &Frame,
    series: &Series,
) -> Result<()> {
    let colour = series.colour.rgb();
    let side = |pick: fn(&(f64, f64, f64)) -> Point| {
        series.band.iter().map(pick).filter_map(|point| frame.place(chart, point))
    };
    let mut band: Vec<Point> = side(|(x, low, _)| (*x, *low)).collect();
    let upper: Vec<Point> = side(|(x, _, high)| (*x, *high)).collect();
    band.extend(upper.into_iter().rev());
    if band.len() > 2 {
        pen.polygon(&band, colour.mix(0.16))?;
    }
    // A point that cannot be shown breaks the line.
    let places: Vec<Option<Point>> = series.points.iter().map(|point| frame.place(chart, *point)).collect();
    for piece in places.split(Option::is_none) {
        let piece: Vec<Point> = piece.iter().flatten().copied().collect();
        pen.path(&piece, series.line, colour)?;
    }
    for (x, low, high) in &series.intervals {
        if let (Some(a), Some(b)) = (frame.place(chart, (*x, *low)), frame.place(chart, (*x, *high))) {
            pen.line(&[a, b], colour.into(), 1.5)?;
            for (x, y) in [a, b] {
                pen.line(&[(x - 4.0, y), (x + 4.0, y)], colour.into(), 1.5)?;
            }
        }
    }
    for place in places.into_iter().flatten() {
        pen.marker(series, place)?;
    }
    Ok(())
}

fn draw_entry<B: DrawingBackend>(pen: &Pen<'_, B>, series: &Series, (x, y): Point) -> Result<()> {
    let colour = series.colour.rgb();
    if !series.band.is_empty() {
        let (top, bottom) = (y - 7.0, y + 7.0);
        let corners = [(x, top), (x + SAMPLE, top), (x + SAMPLE, bottom), (x, bottom)];
        pen.polygon(&corners, colour.mix(0.16))?;
    }
    pen.path(&[(x, y), (x + SAMPLE, y)], series.line, colour)?;
    let middle = (x + SAMPLE / 2.0, y);
    if !series.intervals.is_empty() {
        pen.line(&[(middle.0, y - 8.0), (middle.0, y + 8.0)], colour.into(), 1.5)?;
    }
    pen.marker(series, middle)?;
    let at = (x + SAMPLE + 10.0, y);
    pen.text(&series.name, at, TEXT, FontStyle::Normal, INK, (HPos::Left, VPos::Center))
}

/// Draws in units of SVG.
struct Pen<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    surface: Surface,
}

impl<B: DrawingBackend> Pen<'_, B> {
    fn pixel(&self, (x, y): Point) -> (i32, i32) {
        ((x * self.surface.scale).round() as i32, (y * self.surface.scale).round() as i32)
    }

    fn pixels(&self, points: &[Point]) -> Vec<(i32, i32)> {
        points.iter().map(|point| self.pixel(*point)).collect()
    }

    fn line(&self, points: &[Point], colour: RGBAColor, width: f64) -> Result<()> {
        let width = (width * self.surface.scale).round().max(1.0) as u32;
        self.area.draw(&PathElement::new(self.pixels(points), colour.stroke_width(width))).map_err(drawing)
    }

    fn polygon(&self, points: &[Point], colour: RGBAColor) -> Result<()> {
        self.area.draw(&Polygon::new(self.pixels(points), colour.filled())).map_err(drawing)
    }

    fn path(&self, points: &[Point], line: Line, colour: RGBColor) -> Result<()> {
        match line {
            _ if points.len() < 2 => Ok(()),
            Line::None => Ok(()),
            Line::Solid => self.line(points, colour.into(), 2.0),
            Line::Dashed => dashes(points).iter().try_for_each(|dash| self.line(dash, colour.into(), 2.0)),
        }
    }

    fn marker(&self, series: &Series, (x, y): Point) -> Result<()> {
        let Some(marker) = series.marker else { return Ok(()) };
        let colour = series.colour.rgb();
        // An outline is larger, so that it can stand around another point.
        let size = if series.hollow { 8.5 } else { 5.5 };
        let shape = |corners: &[Point]| -> Vec<Point> {
            corners.iter().map(|(dx, dy)| (x + size * dx, y + size * dy)).collect()
        };
        let corners = match marker {
            Marker::Circle => (0..24)
                .map(|i| std::f64::consts::TAU * f64::from(i) / 24.0)
                .map(|angle| (0.95 * angle.cos(), 0.95 * angle.sin()))
                .collect(),
            Marker::Square => vec![(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
            Marker::Triangle => vec![(0.0, -1.15), (1.05, 0.75), (-1.05, 0.75)],
            Marker::Diamond => vec![(0.0, -1.2), (1.1, 0.0), (0.0, 1.2), (-1.1, 0.0)],
            Marker::Down => vec![(0.0, 1.15), (1.05, -0.75), (-1.05, -0.75)],
            Marker::Cross => {
                self.line(&shape(&[(-0.9, -0.9), (0.9, 0.9)]), colour.into(), 2.5)?;
                return self.line(&shape(&[(-0.9, 0.9), (0.9, -0.9)]), colour.into(), 2.5);
            }
        };
        let corners = shape(&corners);
        let mut outline = corners.clone();
        outline.push(corners[0]);
        outline.push(corners[1]);
        if series.hollow {
            return self.line(&outline, colour.into(), 2.0);
        }
        self.polygon(&corners, colour.into())?;
        // The rim keeps markers apart that lie on each other.
        self.line(&outline, WHITE.into(), 1.0)
    }

    fn text(
        &self,
        text: &str,
        (x, y): Point,
        size: f64,
        style: FontStyle,
        colour: RGBColor,
        (across, down): (HPos, VPos),
    ) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let font = (FONT, size * self.surface.scale, style).into_font().color(&colour);
        let style = font.pos(Pos::new(across, down));
        let at = self.pixel((x, y + self.surface.text_shift * size));
        self.area.draw(&Text::new(text.to_string(), at, style)).map_err(drawing)
    }
}

/// A line cut into dashes of 7 with gaps of 5.
fn dashes(points: &[Point]) -> Vec<Vec<Point>> {
    const PATTERN: [f64; 2] = [7.0, 5.0];
    let mut result = Vec::new();
    let mut dash = vec![points[0]];
    let (mut part, mut left) = (0, PATTERN[0]);
    for pair in points.windows(2) {
        let (mut from, to) = (pair[0], pair[1]);
        loop {
            let length = (to.0 - from.0).hypot(to.1 - from.1);
            if length < left {
                left -= length;
                if part == 0 {
                    dash.push(to);
                }
                break;
            }
            let share = left / length;
            from = (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1));
            if part == 0 {
                dash.push(from);
                result.push(std::mem::take(&mut dash));
            } else {
                dash.push(from);
            }
            part = 1 - part;
            left = PATTERN[part];
        }
    }
    if dash.len() > 1 {
        result.push(dash);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_cover_seven_twelfths_of_a_line() {
        let line = [(0.0, 0.0), (60.0, 0.0), (60.0, 60.0)];
        let dashes = dashes(&line);
        let length = |dash: &Vec<Point>| -> f64 {
            dash.windows(2).map(|pair| (pair[1].0 - pair[0].0).hypot(pair[1].1 - pair[0].1)).sum()
        };
        assert_eq!(dashes.len(), 10);
        assert!((dashes.iter().map(length).sum::<f64>() - 70.0).abs() < 1e-9);
    }

    #[test]
    fn ink_is_the_colour_of_words() {
        assert_eq!(super::super::Colour::Ink.rgb(), INK);
    }
}
