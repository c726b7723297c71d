//! The page.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use dalle2::base::store::write_file;
use dalle2_train::StepRecord;
use plotters::style::RGBColor;

use super::curves::{COLORS, Plot, render, short};
use super::runs::{Group, Run};

const STYLE: &str = include_str!("style.css");

/// Writes the page.
pub fn write(path: &Path, groups: &[Group], samples: usize) -> Result<()> {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>Training runs</title><style>{STYLE}</style></head><body>\
         <h1>Training runs</h1>"
    );
    for (index, group) in groups.iter().enumerate() {
        let names: Vec<&str> = group.runs.iter().map(|run| run.name.as_str()).collect();
        let _ = write!(html, "<section id=\"group-{index}\"><h2>{}</h2>", escape(&names.join(", ")));
        summary(&mut html, &group.runs);
        plots(&mut html, &group.runs)?;
        images(&mut html, &group.runs, samples)?;
        settings(&mut html, &group.runs);
        html.push_str("</section>");
    }
    html.push_str("</body></html>\n");
    Ok(write_file(path, html.as_bytes())?)
}

fn color(index: usize) -> String {
    let RGBColor(r, g, b) = COLORS[index % COLORS.len()];
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A run's name with the colour of its curves.
fn label(index: usize, run: &Run) -> String {
    format!("<span class=\"key\" style=\"background:{}\"></span>{}", color(index), escape(&run.name))
}

fn summary(html: &mut String, runs: &[Run]) {
    html.push_str(
        "<div class=\"wide\"><table class=\"summary\"><thead><tr><th>run</th><th>steps</th><th>training time</th>\
         <th>loss</th><th>skipped steps</th><th>images per second</th><th>peak memory</th><th>last validation</th></tr>\
         </thead><tbody>",
    );
    let number = |value: Option<f64>| value.map_or_else(|| "–".into(), short);
    for (index, run) in runs.iter().enumerate() {
        let last = run.steps.last();
        let memory = run.memory().map_or_else(|| "–".into(), |mib| format!("{mib:.0} MiB"));
        let validation = run.validation().map_or_else(
            || "–".into(),
            |step| {
                let metrics = step.validation.iter().map(|(name, value)| format!("{} {}", escape(name), short(*value)));
                metrics.collect::<Vec<_>>().join("<br>")
            },
        );
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{memory}</td>\
             <td class=\"text\">{validation}</td></tr>",
            label(index, run),
            last.map_or(0, |step| step.step),
            time(last.map_or(0.0, |step| step.seconds)),
            number(run.last_loss()),
            last.map_or(0, |step| step.skipped),
            number(run.throughput()),
        );
    }
    html.push_str("</tbody></table></div>");
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A curve for everything that was recorded.
fn plots(html: &mut String, runs: &[Run]) -> Result<()> {
    let steps = || runs.iter().flat_map(|run| &run.steps);
    let metrics: BTreeSet<&String> = steps().flat_map(|step| step.metrics.keys()).collect();
    let validation: BTreeSet<&String> = steps().flat_map(|step| step.validation.keys()).collect();
    let mut plots = vec![of("loss", |step| step.loss)];
    plots.extend(metrics.into_iter().map(|name| of(name, move |step| step.metrics.get(name).copied())));
    plots.extend(
        validation
            .into_iter()
            .map(|name| of(&format!("validation: {name}"), move |step| step.validation.get(name).copied())),
    );
    plots.push(of("gradient norm", |step| step.grad_norm));
    plots.push(of("learning rate", |step| Some(step.learning_rate)));
    plots.push(of("skipped steps", |step| Some(step.skipped as f64).filter(|_| steps().any(|s| s.skipped > 0))));
    plots.push(of("loss scale", |step| step.loss_scale));
    plots.push(of("steps skipped after overflow", |step| step.overflows.map(|count| count as f64)));
    plots.push(of("images per second", |step| Some(step.images_per_second)));
    plots.push(of("memory of the process in MiB", |step| step.memory_mib));
    html.push_str("<h3>Curves</h3>");
    if runs.len() > 1 {
        let keys: Vec<String> = runs.iter().enumerate().map(|(index, run)| label(index, run)).collect();
        let _ = write!(html, "<p class=\"legend\">{}</p>", keys.join(" "));
    }
    html.push_str("<div class=\"curves\">");
    for plot in &plots {
        if let Some(svg) = render(plot, runs)? {
            let title = escape(&plot.title);
            // The page sets the size; the title is the accessible name.
            let svg = svg.replacen(
                "<svg width=\"560\" height=\"300\"",
                &format!("<svg role=\"img\" aria-label=\"{title}\""),
                1,
            );
            let _ = write!(html, "<figure><figcaption>{title}</figcaption>{svg}</figure>");
        }
    }
    html.push_str(
        "</div><p class=\"note\">By step. Long curves are means over stretches, with their range as a band.</p>",
    );
    Ok(())
}

fn of<'a>(title: &str, value: impl Fn(&StepRecord) -> Option<f64> + 'a) -> Plot<'a> {
    Plot { title: title.to_string(), value: Box::new(value) }
}

/// The samples of every run, oldest first.
fn images(html: &mut String, runs: &[Run], most: usize) -> Result<()> {
    if runs.iter().all(|run| run.samples.is_empty()) || most == 0 {
        return Ok(());
    }
    html.push_str("<h3>Samples over time</h3>");
    for (index, run) in runs.iter().enumerate().filter(|(_, run)| !run.samples.is_empty()) {
        let _ = write!(html, "<p class=\"legend\">{}</p><div class=\"samples\">", label(index, run));
        for (step, path) in run.some_samples(most) {
            let png = std::fs::read(path).with_context(|| path.display().to_string())?;
            let png = BASE64_STANDARD.encode(png);
            let _ = write!(
                html,
                "<figure><figcaption>step {step}</figcaption><img alt=\"{} at step {step}\" \
                 src=\"data:image/png;base64,{png}\"></figure>",
                escape(&run.name)
            );
        }
        html.push_str("</div>");
    }
    Ok(())
}

/// Differences between the configurations, and the first one in full.
fn settings(html: &mut String, runs: &[Run]) {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    let value = |run: &Run, key: &String| run.settings.get(key).map_or_else(|| "–".into(), |value| escape(value));
    let differing: Vec<&String> = keys
        .iter()
        .copied()
        .filter(|key| runs.iter().any(|run| run.settings.get(*key) != runs[0].settings.get(*key)))
        .collect();
    if runs.len() > 1 {
        html.push_str("<h3>Differences of the configurations</h3>");
        if differing.is_empty() {
            html.push_str("<p>None.</p>");
        } else {
            table(html, "differences", runs, &differing, &value);
        }
    }
    html.push_str("<details><summary>Whole configuration</summary>");
    table(html, "settings", runs, &keys.into_iter().collect::<Vec<_>>(), &value);
    html.push_str("</details>");
}

fn table(html: &mut String, class: &str, runs: &[Run], keys: &[&String], value: &dyn Fn(&Run, &String) -> String) {
    let _ = write!(html, "<div class=\"wide\"><table class=\"{class}\"><thead><tr><th>setting</th>");
    for (index, run) in runs.iter().enumerate() {
        let _ = write!(html, "<th>{}</th>", label(index, run));
    }
    html.push_str("</tr></thead><tbody>");
    for key in keys {
        let _ = write!(html, "<tr><td><code>{}</code></td>", escape(key));
        for run in runs {
            let _ = write!(html, "<td>{}</td>", value(run, key));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
