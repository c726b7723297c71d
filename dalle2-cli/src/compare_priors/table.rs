//! The result as JSON and as a Markdown table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use dalle2::base::metrics::Estimate;
use dalle2::base::store::{write_file, write_json};
use serde::Serialize;
use serde_json::Value;

use super::measure::{Estimates, Sweep};
use super::runs::Point;

/// One way of getting an image embedding for a caption.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Description.
    pub description: &'static str,
    /// Figures of the embedding itself on the test pairs; none where the decoder gets none.
    pub embedding: Option<Estimates>,
    /// Metrics of the CLIP embeddings of decoded images.
    pub decoded: Estimates,
    /// Parameters of the prior.
    pub parameters: usize,
    /// Optimizer steps of each training.
    pub training_steps: u64,
    /// Multiply-accumulates of each training.
    pub training_macs: f64,
    /// Seconds of each training.
    pub training_seconds: Option<Estimate>,
    /// Milliseconds that the prior takes for a sample, in batches of four.
    pub milliseconds_per_sample: Estimate,
    /// Guidance scale of the prior.
    pub guidance: Option<f64>,
}

/// Something the experiment should show.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// Description with both values.
    pub statement: String,
    /// Whether the means are further apart than both 95 % intervals together.
    pub holds: bool,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// The command that gave it.
    pub command: String,
    /// Sizes, networks, data.
    pub settings: Value,
    /// Rows by name.
    pub rows: BTreeMap<&'static str, Row>,
    /// Expected results.
    pub checks: Vec<Check>,
    /// Guidance scales by kind of prior, on the validation pairs.
    pub sweeps: BTreeMap<&'static str, Vec<Sweep>>,
    /// Validations during training, by kind of prior and seed.
    pub curves: BTreeMap<&'static str, Vec<Vec<Point>>>,
    /// Seconds of the whole experiment in this session.
    pub seconds: f64,
}

/// A table to be shown.
pub struct Section {
    /// Subject.
    pub title: &'static str,
    /// Titles of the columns.
    pub head: Vec<String>,
    /// Rows of cells.
    pub body: Vec<Vec<String>>,
}

/// The rows in display order.
pub const ORDER: [&str; 5] = ["caption_only", "text_embedding", "autoregressive", "diffusion", "oracle"];

impl Table {
    /// Compares the cosine of both priors with what they should exceed.
    pub fn check(&mut self) {
        let cosine = |row: &str, name: &str| self.rows.get(row)?.embedding.as_ref()?.get(name).copied();
        let mut checks = Vec::new();
        for prior in ["autoregressive", "diffusion"] {
            for (what, other) in [
                ("its predictions with permuted captions", cosine(prior, "cosine_shuffled")),
                ("the caption's embedding", cosine("text_embedding", "cosine")),
            ] {
                if let (Some(own), Some(other)) = (cosine(prior, "cosine"), other) {
                    let (value, expected) = (show(&own), show(&other));
                    let statement =
                        format!("{prior}: cosine to the true image embedding {value}, above {what}, {expected}");
                    checks.push(Check { statement, holds: own.is_above(&other) });
                }
            }
        }
        self.checks = checks;
    }

    /// Writes `table.json` and `table.md`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(dir.join("table.json"), self)?;
        Ok(write_file(dir.join("table.md"), self.markdown().as_bytes())?)
    }

    /// The rows that are there, in order.
    pub fn ordered(&self) -> impl Iterator<Item = (&'static str, &Row)> {
        ORDER.into_iter().filter_map(|name| Some((name, self.rows.get(name)?)))
    }

    /// The tables and checks as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("`{}`\n\nMean ± 95 % interval over seeds.\n", self.command);
        for Section { title, head, body } in self.sections() {
            let _ = write!(text, "\n{title}\n\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
            for row in body {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        text.push('\n');
        for check in &self.checks {
            let _ = writeln!(text, "- {}: {}", check.statement, if check.holds { "yes" } else { "**no**" });
        }
        text
    }

    /// The tables.
    pub fn sections(&self) -> Vec<Section> {
        let embedding = [
            ("cosine", "cosine"),
            ("cosine_shuffled", "… shuffled"),
            ("cosine_wordings", "… wordings"),
            ("cosine_compositions", "… compositions"),
            ("text_cosine", "cosine to text"),
            ("text_cosine_shuffled", "… shuffled"),
            ("mse", "mse"),
            ("frechet", "Fréchet"),
            ("recall_at_1", "recall@1"),
            ("recall_at_5", "recall@5"),
            ("diversity", "diversity"),
        ];
        let decoded = [
            ("nearest_top1", "correct image"),
            ("nearest_top10", "… of ten"),
            ("cosine", "cosine"),
            ("text_cosine", "cosine to text"),
            ("frechet", "Fréchet"),
            ("recall_at_1", "recall@1"),
            ("recall_at_5", "recall@5"),
        ];
        let columns_of = |of: fn(&Row) -> Option<&Estimates>, columns: &[(&str, &str)]| {
            let head =
                std::iter::once("row").chain(columns.iter().map(|(_, title)| *title)).map(str::to_owned).collect();
            let cells = |(name, row): (&str, &Row)| {
                let cell =
                    |(key, _): &(&str, &str)| of(row).and_then(|e| e.get(*key)).map_or_else(|| "–".to_owned(), show);
                std::iter::once(name.to_owned()).chain(columns.iter().map(cell)).collect()
            };
            (head, self.ordered().map(cells).collect::<Vec<Vec<String>>>())
        };
        let (embedding_head, embedding_body) = columns_of(|row| row.embedding.as_ref(), &embedding);
        let (decoded_head, decoded_body) = columns_of(|row| Some(&row.decoded), &decoded);
        let cost_head = ["row", "parameters", "steps", "10¹² products", "seconds", "ms per sample", "guidance"];
        let costs = |(name, row): (&str, &Row)| {
            vec![
                name.to_owned(),
                row.parameters.to_string(),
                row.training_steps.to_string(),
                format!("{:.2}", row.training_macs / 1e12),
                row.training_seconds.as_ref().map_or_else(|| "–".to_owned(), show),
                show(&row.milliseconds_per_sample),
                row.guidance.map_or_else(|| "–".to_owned(), |scale| scale.to_string()),
            ]
        };
        vec![
            Section {
                title: "Image embedding against the true one, on held-out pairs.",
                head: embedding_head,
                body: embedding_body,
            },
            Section { title: "Decoded images, encoded again by CLIP.", head: decoded_head, body: decoded_body },
            Section {
                title: "Cost of a training, and of a sample.",
                head: cost_head.map(str::to_owned).to_vec(),
                body: self.ordered().map(costs).collect(),
            },
        ]
    }
}

/// A number with digits by its magnitude.
pub fn show(estimate: &Estimate) -> String {
    let digits = match estimate.mean.abs() {
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        m if m >= 0.01 || m == 0.0 => 3,
        _ => 5,
    };
    match estimate.half_width {
        Some(half) => format!("{:.digits$} ± {half:.digits$}", estimate.mean),
        None => format!("{:.digits$}", estimate.mean),
    }
}
