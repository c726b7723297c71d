//! Plots as SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use dalle2::base::metrics::Estimate;
use plotters::prelude::*;

use super::measure::Sweep;
use super::runs::Point;

/// A point with half the height of its interval and a label.
#[derive(Debug, Clone)]
struct Mark {
    x: f64,
    y: f64,
    half: f64,
    label: Option<String>,
}

/// A line of a plot.
#[derive(Debug, Clone)]
struct Line {
    name: String,
    color: RGBColor,
    marks: Vec<Mark>,
}

/// Titles of a plot.
struct Titles<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
}

const SIZE: (u32, u32) = (720, 440);
const DIFFUSION: RGBColor = RGBColor(31, 90, 180);
const AUTOREGRESSIVE: RGBColor = RGBColor(200, 80, 20);
const ORACLE: RGBColor = RGBColor(40, 130, 60);

fn color(kind: &str) -> RGBColor {
    if kind == "diffusion" { DIFFUSION } else { AUTOREGRESSIVE }
}

/// Cosine against multiply-accumulates of training, mean over seeds.
pub fn compute(path: &Path, curves: &BTreeMap<&'static str, Vec<Vec<Point>>>) -> Result<()> {
    let mut lines = Vec::new();
    for (kind, seeds) in curves {
        let shortest = seeds.iter().map(Vec::len).min().unwrap_or(0);
        let mut marks = Vec::with_capacity(shortest);
        for i in 0..shortest {
            let cosines: Vec<f64> = seeds.iter().map(|points| points[i].cosine).collect();
            let Estimate { mean, half_width, .. } = Estimate::of(&cosines)?;
            let x = seeds[0][i].macs / 1e12;
            marks.push(Mark { x, y: mean, half: half_width.unwrap_or(0.0), label: None });
        }
        lines.push(Line { name: (*kind).to_owned(), color: color(kind), marks });
    }
    let titles = Titles {
        title: "Held-out pairs during training, one sample without guidance",
        x: "multiply-accumulates of training, 10^12",
        y: "cosine to the true image embedding",
    };
    render(path, &titles, &lines)
}

/// Plots quality against diversity, one point per guidance scale.
pub fn guidance(
    path: &Path,
    sweeps: &BTreeMap<&'static str, Vec<Sweep>>,
    truth: f64,
    (key, name): (&str, &str),
    perfect: f64,
) -> Result<()> {
    let mut lines: Vec<Line> = sweeps
        .iter()
        .map(|(kind, sweep)| {
            let mark = |point: &Sweep| {
                let (x, y) = (point.metrics.get("diversity")?, point.metrics.get(key)?);
                let half = y.half_width.unwrap_or(0.0);
                Some(Mark { x: x.mean, y: y.mean, half, label: Some(point.guidance.to_string()) })
            };
            Line { name: (*kind).to_owned(), color: color(kind), marks: sweep.iter().filter_map(mark).collect() }
        })
        .collect();
    let label = Some("truth".to_owned());
    let marks = vec![Mark { x: truth, y: perfect, half: 0.0, label }];
    lines.push(Line { name: "true images of a caption".into(), color: ORACLE, marks });
    let titles = Titles {
        title: "Quality against diversity; numbers are guidance scales",
        x: "diversity: mean distance of two samples of a caption",
        y: name,
    };
    render(path, &titles, &lines)
}

fn render(path: &Path, titles: &Titles<'_>, lines: &[Line]) -> Result<()> {
    paint(path, titles, lines).map_err(|e| anyhow!("{}: {e}", path.display()))
}

fn paint(path: &Path, titles: &Titles<'_>, lines: &[Line]) -> Result<(), Box<dyn std::error::Error>> {
    let marks = || lines.iter().flat_map(|line| &line.marks);
    let (x_from, x_to) = range(marks().map(|mark| mark.x));
    let (y_from, y_to) = range(marks().flat_map(|mark| [mark.y - mark.half, mark.y + mark.half]));
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(titles.title, ("sans-serif", 17))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(x_from..x_to, y_from..y_to)?;
    chart
        .configure_mesh()
        .x_desc(titles.x)
        .y_desc(titles.y)
        .axis_desc_style(("sans-serif", 14))
        .label_style(("sans-serif", 12))
        .light_line_style(WHITE)
        .draw()?;
    for line in lines {
        let color = line.color;
        chart
            .draw_series(LineSeries::new(line.marks.iter().map(|mark| (mark.x, mark.y)), color.stroke_width(2)))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(line.marks.iter().map(|mark| Circle::new((mark.x, mark.y), 3, color.filled())))?;
        let bars = line.marks.iter().filter(|mark| mark.half > 0.0);
        chart.draw_series(bars.map(|mark| {
            PathElement::new(vec![(mark.x, mark.y - mark.half), (mark.x, mark.y + mark.half)], color.stroke_width(1))
        }))?;
        let labels = line.marks.iter().filter_map(|mark| Some((mark, mark.label.as_ref()?)));
        chart.draw_series(labels.map(|(mark, label)| {
            let place = (mark.x + 0.008 * (x_to - x_from), mark.y + 0.022 * (y_to - y_from));
            Text::new(label.clone(), place, ("sans-serif", 12).into_font().color(&color))
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()?;
    root.present()?;
    Ok(())
}

/// From the least to the largest value, with room on either side.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = (0.07 * (high - low)).max(1e-6);
    (low - room, high + room)
}
