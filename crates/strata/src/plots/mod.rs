//! Figures: lines, points, bands and intervals over linear or logarithmic axes, as SVG and as PNG.
//!
//! ```ignore
//! let mut chart = Chart::new("Loss", Axis::log("training compute, floating-point operations"), Axis::log("loss"));
//! chart.series.push(Series::new("attention", points).line().markers().colour(Colour::Kind(0)));
//! chart.save(Path::new("loss"))?; // loss.svg and loss.png
//! ```

mod axis;
mod draw;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::{BitMapBackend, IntoDrawingArea, SVGBackend};
use plotters::style::{FontStyle, RGBColor, register_font};

pub use axis::Axis;

/// A figure.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows, in a few words.
    pub title: String,
    /// How it was made, in one line; may be empty.
    pub subtitle: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn, from the back to the front.
    pub series: Vec<Series>,
}

/// Points that belong together, with one entry in the legend.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Name in the legend; without one it has no entry there.
    pub name: String,
    /// The points, in the order of the line.
    pub points: Vec<(f64, f64)>,
    /// Areas from a low to a high value over x.
    pub band: Vec<(f64, f64, f64)>,
    /// Vertical intervals from a low to a high value at x.
    pub intervals: Vec<(f64, f64, f64)>,
    /// How the points are joined.
    pub line: Line,
    /// The form of the points.
    pub marker: Option<Marker>,
    /// Whether the points are drawn as outlines.
    pub hollow: bool,
    /// The colour of all of it.
    pub colour: Colour,
}

/// How points are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Line {
    /// Not at all.
    #[default]
    None,
    /// By a line.
    Solid,
    /// By dashes.
    Dashed,
}

/// The form of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Down,
    Cross,
}

impl Marker {
    const ALL: [Marker; 6] =
        [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::Down, Marker::Cross];
}

/// A colour that readers of any colour vision tell from the others.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Colour {
    /// That of the text.
    #[default]
    Ink,
    /// One of a few that stand for kinds (the palette of Okabe and Ito, 2008, without its yellow).
    Kind(usize),
    /// A place between 0 (light) and 1 (dark) on a scale that stands for a quantity.
    Step(f64),
}

impl Colour {
    fn rgb(self) -> RGBColor {
        const KINDS: [RGBColor; 6] = [
            RGBColor(0, 114, 178),
            RGBColor(213, 94, 0),
            RGBColor(0, 158, 115),
            RGBColor(204, 121, 167),
            RGBColor(230, 159, 0),
            RGBColor(86, 180, 233),
        ];
        // Lighter to darker also in print: a yellow-green, a blue-green, a dark blue.
        const STEPS: [(f64, f64, f64); 3] = [(150.0, 198.0, 70.0), (33.0, 145.0, 140.0), (52.0, 40.0, 110.0)];
        match self {
            Colour::Ink => RGBColor(40, 44, 52),
            Colour::Kind(kind) => KINDS[kind % KINDS.len()],
            Colour::Step(place) => {
                let place = 2.0 * if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 };
                let (low, part) = if place < 1.0 { (0, place) } else { (1, place - 1.0) };
                let (a, b) = (STEPS[low], STEPS[low + 1]);
                let mix = |a: f64, b: f64| (a + part * (b - a)).round() as u8;
                RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
            }
        }
    }
}

impl Series {
    /// Points under a name, not yet visible: ask for a line or markers.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.into(), points, ..Series::default() }
    }

    /// Joined by a line.
    pub fn line(mut self) -> Series {
        self.line = Line::Solid;
        self
    }

    /// Joined by dashes.
    pub fn dashed(mut self) -> Series {
        self.line = Line::Dashed;
        self
    }

    /// With the `kind`-th form of points.
    pub fn marker(mut self, kind: usize) -> Series {
        self.marker = Some(Marker::ALL[kind % Marker::ALL.len()]);
        self
    }

    /// With points that are outlines.
    pub fn hollow(mut self) -> Series {
        self.hollow = true;
        self
    }

    /// In a colour.
    pub fn colour(mut self, colour: Colour) -> Series {
        self.colour = colour;
        self
    }

    /// Over an area from a low to a high value over x.
    pub fn band(mut self, band: Vec<(f64, f64, f64)>) -> Series {
        self.band = band;
        self
    }

    /// With vertical intervals from a low to a high value at x.
    pub fn intervals(mut self, intervals: Vec<(f64, f64, f64)>) -> Series {
        self.intervals = intervals;
        self
    }
}

/// Size of a figure in units of SVG.
const SIZE: (u32, u32) = (960, 600);
/// Pixels of a PNG per unit of SVG.
const PIXELS: u32 = 2;
/// The bitmap is drawn larger by this and averaged down, which makes edges smooth.
const OVERSAMPLING: u32 = 2;

impl Chart {
    /// A figure without series.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Chart {
        Chart { title: title.into(), subtitle: String::new(), x, y, series: Vec::new() }
    }

    /// Writes `stem`.svg and `stem`.png, each whole or not at all. Values that an axis cannot show (not finite, or not
    /// above 0 on a logarithmic one) are left out. Returns the two paths.
    ///
    /// # Errors
    /// There is nothing to draw, or a file cannot be written.
    pub fn save(&self, stem: &Path) -> Result<[PathBuf; 2]> {
        let files = [stem.with_extension("svg"), stem.with_extension("png")];
        let [svg, png] = &files;
        write(svg, self.svg()?.as_bytes())?;
        write(png, &self.png()?)?;
        Ok(files)
    }

    /// The figure as SVG.
    pub fn svg(&self) -> Result<String> {
        register_fonts();
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            draw::draw(self, &area, draw::Surface { scale: 1.0, text_shift: 0.0 })?;
        }
        Ok(text)
    }

    /// The figure as PNG.
    pub fn png(&self) -> Result<Vec<u8>> {
        register_fonts();
        let factor = PIXELS * OVERSAMPLING;
        let (width, height) = (SIZE.0 * factor, SIZE.1 * factor);
        let mut pixels = vec![255; 3 * (width * height) as usize];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
            // The bitmap backend sets text a ninth of its size higher than the SVG backend does.
            draw::draw(self, &area, draw::Surface { scale: f64::from(factor), text_shift: 0.11 })?;
        }
        let pixels = averaged(&pixels, width as usize, OVERSAMPLING as usize);
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, SIZE.0 * PIXELS, SIZE.1 * PIXELS);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().context("encoding a PNG")?;
        writer.write_image_data(&pixels).context("encoding a PNG")?;
        writer.finish().context("encoding a PNG")?;
        Ok(bytes)
    }
}

/// The mean of every `factor` × `factor` pixels of an RGB image in rows of `width`.
fn averaged(pixels: &[u8], width: usize, factor: usize) -> Vec<u8> {
    let columns = width / factor;
    let mut result = Vec::with_capacity(pixels.len() / (factor * factor));
    let mut sums = vec![0u32; 3 * columns];
    let count = (factor * factor) as u32;
    for rows in pixels.chunks_exact(3 * width * factor) {
        sums.fill(0);
        for row in rows.chunks_exact(3 * width) {
            for (cell, sum) in row.chunks_exact(3 * factor).zip(sums.chunks_exact_mut(3)) {
                for pixel in cell.chunks_exact(3) {
                    sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(*value));
                }
            }
        }
        result.extend(sums.iter().map(|sum| ((sum + count / 2) / count) as u8));
    }
    result
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("writing");
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// Fonts of our own, so that a figure looks the same on every machine, those without fonts included. In an SVG the
/// reader's sans-serif font stands in for them.
fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Both are whole fonts that the tests draw with; text would be an error of drawing otherwise.
        let _ = register_font(draw::FONT, FontStyle::Normal, dejavu::sans::regular());
        let _ = register_font(draw::FONT, FontStyle::Bold, dejavu::sans::bold());
    });
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing a figure: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let mut chart =
            Chart::new("Loss", Axis::log("compute, operations"), Axis::log("loss, nats per token"));
        chart.subtitle = "three points & a band".into();
        let points = vec![(1e11, 5.0), (1e12, 4.0), (1e13, 3.5), (f64::NAN, 1.0), (-1.0, 2.0)];
        let band = points.iter().map(|(x, y)| (*x, y * 0.95, y * 1.05)).collect();
        chart
            .series
            .push(Series::new("attention <a>", points.clone()).line().marker(0).colour(Colour::Kind(0)));
        chart.series.push(Series::new("band", points).dashed().band(band).colour(Colour::Kind(1)));
        chart
    }

    #[test]
    fn a_figure_has_its_words_and_its_points_in_both_formats() {
        let folder = tempfile::tempdir().unwrap();
        let [svg, png] = chart().save(&folder.path().join("figure")).unwrap();
        let text = fs::read_to_string(svg).unwrap();
        for word in
            ["Loss", "compute, operations", "attention &lt;a&gt;", "10¹²", "three points &amp; a band"]
        {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        let decoder = png::Decoder::new(std::io::BufReader::new(fs::File::open(png).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (SIZE.0 * PIXELS, SIZE.1 * PIXELS));
        let RGBColor(r, g, b) = Colour::Kind(0).rgb();
        let blue = pixels.chunks_exact(3).filter(|pixel| *pixel == [r, g, b]).count();
        let dark = pixels.chunks_exact(3).filter(|pixel| pixel.iter().all(|value| *value < 90)).count();
        assert!(blue > 500, "a line and its markers are {blue} pixels");
        assert!(dark > 2000, "words are {dark} pixels");
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        let mut chart = chart();
        chart.series.iter_mut().for_each(|series| {
            series.points = vec![(0.0, f64::INFINITY)];
            series.band.clear();
        });
        assert!(chart.svg().unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn one_point_is_enough() {
        let mut chart = Chart::new("One", Axis::linear("x"), Axis::linear("y"));
        chart.series.push(Series::new("point", vec![(3.0, 0.0)]).marker(2));
        chart.svg().unwrap();
    }
}
