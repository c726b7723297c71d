//! Curves of several runs, as SVG.

use std::ops::Range;

use anyhow::{Result, anyhow};
use dalle2_train::StepRecord;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::runs::Run;

/// Size of a plot in pixels.
const SIZE: (u32, u32) = (560, 300);
/// Points of a curve at most; more steps are averaged.
const POINTS: usize = 240;
/// Colours for all types of colour vision (Okabe and Ito 2008).
pub const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

/// Extracts the value of a curve from a step.
pub type Value<'a> = Box<dyn Fn(&StepRecord) -> Option<f64> + 'a>;

/// A plot: its title and its value in a record.
pub struct Plot<'a> {
    /// Title.
    pub title: String,
    /// The value of a step, if there is one.
    pub value: Value<'a>,
}

/// A stretch of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    step: f64,
    mean: f64,
    low: f64,
    high: f64,
}

/// Averages stretches of steps, so that a curve has at most [`POINTS`] points.
fn thin(values: &[(u64, f64)]) -> Vec<Point> {
    let stretch = values.len().div_ceil(POINTS).max(1);
    let point = |part: &[(u64, f64)]| {
        let n = part.len() as f64;
        let ends = part.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), (_, v)| (a.min(*v), b.max(*v)));
        Point {
            step: part.iter().map(|(step, _)| *step as f64).sum::<f64>() / n,
            mean: part.iter().map(|(_, value)| value).sum::<f64>() / n,
            low: ends.0,
            high: ends.1,
        }
    };
    values.chunks(stretch).map(point).collect()
}

/// Renders the plot of all runs as SVG; `None` if every run lacks the value.
pub fn render(plot: &Plot<'_>, runs: &[Run]) -> Result<Option<String>> {
    let curves: Vec<Vec<Point>> = runs
        .iter()
        .map(|run| {
            let values = run.steps.iter().filter_map(|step| Some((step.step, (plot.value)(step)?)));
            thin(&values.collect::<Vec<_>>())
        })
        .collect();
    let points = || curves.iter().flatten();
    if points().next().is_none() {
        return Ok(None);
    }
    let end = points().map(|p| p.step).fold(1.0, f64::max);
    let (low, high) = points().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), p| (a.min(p.mean), b.max(p.mean)));
    let mut svg = String::new();
    // Values over more than a decade and a half are read on a logarithmic scale.
    let painted = if low > 0.0 && high / low > 30.0 {
        paint(&mut svg, &curves, 0.0..end, (low / 1.3..high * 1.3).log_scale())
    } else {
        let room = (0.06 * (high - low)).max(1e-9 + 1e-3 * high.abs());
        paint(&mut svg, &curves, 0.0..end, low - room..high + room)
    };
    painted.map_err(|e| anyhow!("{}: {e}", plot.title))?;
    Ok(Some(svg))
}

fn paint<Y>(svg: &mut String, curves: &[Vec<Point>], x: Range<f64>, y: Y) -> Result<(), Box<dyn std::error::Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .margin_right(30)
        .x_label_area_size(34)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| short(*value))
        .label_style(("sans-serif", 17).into_font().color(&RGBColor(85, 85, 85)))
        .axis_style(RGBColor(170, 170, 170))
        .bold_line_style(RGBColor(232, 232, 232))
        .light_line_style(WHITE)
        .draw()?;
    for (curve, color) in curves.iter().zip(COLORS.iter().cycle()) {
        let ends = curve.iter().any(|p| p.high > p.low);
        if ends {
            let upper = curve.iter().map(|p| (p.step, p.high));
            let lower = curve.iter().rev().map(|p| (p.step, p.low));
            let band: Vec<_> = upper.chain(lower).collect();
            chart.draw_series(std::iter::once(Polygon::new(band, color.mix(0.13))))?;
        }
        chart.draw_series(LineSeries::new(curve.iter().map(|p| (p.step, p.mean)), color.stroke_width(2)))?;
        if curve.len() < 40 {
            chart.draw_series(curve.iter().map(|p| Circle::new((p.step, p.mean), 3, color.filled())))?;
        }
    }
    root.present()?;
    Ok(())
}

/// A number in a few characters.
pub fn short(value: f64) -> String {
    let size = value.abs();
    match value {
        0.0 => "0".into(),
        _ if !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_and_keep_their_ends_in_the_band() {
        let values: Vec<(u64, f64)> = (1..=1000).map(|step| (step, if step == 500 { 99.0 } else { 1.0 })).collect();
        let thinned = thin(&values);
        assert!(thinned.len() <= POINTS && thinned.len() > POINTS / 2, "{}", thinned.len());
        assert_eq!(thinned.iter().map(|p| p.high).fold(0.0, f64::max), 99.0);
        assert_eq!(thinned[0], Point { step: 3.0, mean: 1.0, low: 1.0, high: 1.0 });
        assert_eq!(thin(&[(7, 2.0)]), [Point { step: 7.0, mean: 2.0, low: 2.0, high: 2.0 }]);
    }

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0, 1e-5, 0.012_34, 0.5, 12.34, 123.4, 1.2e6, -3.5];
        assert_eq!(numbers.map(short), ["0", "1.0e-5", "0.0123", "0.500", "12.3", "123", "1.2e6", "-3.500"]);
    }
}
