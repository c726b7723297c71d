//! The results of all rounds, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Common;
use super::machine::Processor;

/// The unit of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
}

/// Results of both sides, one per round; empty where PyTorch was not measured.
#[derive(Debug)]
struct Row {
    name: String,
    unit: Unit,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// All rows, with the processor, threads and versions.
#[derive(Debug)]
pub struct Report {
    processor: Processor,
    threads: usize,
    rounds: usize,
    versions: BTreeMap<String, String>,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    pub fn new(common: &Common) -> Self {
        Self {
            processor: Processor::here(),
            threads: common.threads(),
            rounds: common.rounds,
            versions: BTreeMap::new(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Sets the versions that PyTorch's side reported.
    pub fn versions(&mut self, versions: BTreeMap<String, String>) {
        self.versions = versions;
    }

    /// Adds a result of one round to its row. Rows appear in the order of their first result.
    pub fn add(&mut self, name: &str, unit: Unit, ours: f64, theirs: Option<f64>) {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name: name.to_owned(), unit, ours: Vec::new(), theirs: Vec::new() });
            self.rows.len() - 1
        });
        self.rows[at].ours.push(ours);
        self.rows[at].theirs.extend(theirs);
    }

    /// Adds a paragraph below the table.
    pub fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Writes all results as JSON if a path is given.
    pub fn save(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let text = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let unit = match row.unit {
                    Unit::Seconds => "seconds",
                    Unit::Bytes => "bytes",
                };
                json!({"name": row.name, "unit": unit, "ours": row.ours, "peer": row.theirs, "ratio": row.ratio()})
            })
            .collect();
        json!({
            "processor": self.processor.model, "instruction_sets": self.processor.instruction_sets,
            "threads": self.threads, "rounds": self.rounds, "dalle2": env!("CARGO_PKG_VERSION"),
            "versions": self.versions, "notes": self.notes, "rows": rows,
        })
    }
}

impl Row {
    /// Returns PyTorch's median divided by this library's.
    fn ratio(&self) -> Option<f64> {
        Some(median(&self.theirs)? / median(&self.ours)?)
    }

    fn show(&self, values: &[f64]) -> String {
        match (median(values), self.unit) {
            (None, _) => "–".into(),
            (Some(value), Unit::Bytes) => format!("{:.2} GiB", value / f64::from(1 << 30)),
            (Some(value), Unit::Seconds) if value < 1.0 => format!("{:.3} ms", value * 1e3),
            (Some(value), Unit::Seconds) => format!("{value:.2} s"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets = match self.processor.instruction_sets.join(", ") {
            sets if sets.is_empty() => sets,
            sets => format!(" ({sets})"),
        };
        let threads = match self.threads {
            1 => "1 thread".into(),
            n => format!("{n} threads"),
        };
        let versions: String = self.versions.iter().map(|(name, version)| format!(", {name} {version}")).collect();
        let rounds = match self.rounds {
            1 => "one round".into(),
            n => format!("medians of {n} rounds"),
        };
        let own = env!("CARGO_PKG_VERSION");
        writeln!(f, "{}{sets}, {threads} on both sides; dalle2 {own}{versions}; {rounds}\n", self.processor.model)?;
        writeln!(f, "| | dalle2 | PyTorch | PyTorch / dalle2 |\n|---|---|---|---|")?;
        for row in &self.rows {
            let ratio = row.ratio().map_or("–".into(), |ratio| format!("{ratio:.2}"));
            writeln!(f, "| {} | {} | {} | {ratio} |", row.name, row.show(&row.ours), row.show(&row.theirs))?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n{note}\n"))
    }
}

/// Returns the median; none for no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let processor = Processor { model: "Test".into(), instruction_sets: vec!["avx2".into()] };
        let versions = [("PyTorch".to_owned(), "2.0".to_owned())].into();
        Report { processor, threads: 2, rounds: 3, versions, rows: Vec::new(), notes: Vec::new() }
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_of_medians_exceed_one_where_this_library_is_faster() {
        let mut report = report();
        for (ours, theirs) in [(1.0, 3.0), (9.0, 2.0), (2.0, 4.0)] {
            report.add("a", Unit::Seconds, ours, Some(theirs));
        }
        report.add("memory", Unit::Bytes, f64::from(1 << 30), Some(f64::from(1 << 29)));
        report.add("alone", Unit::Seconds, 0.25, None);
        let text = report.to_string();
        assert!(text.starts_with("Test (avx2), 2 threads on both sides; dalle2 "), "{text}");
        assert!(text.contains(", PyTorch 2.0; medians of 3 rounds\n"), "{text}");
        assert!(text.contains("| a | 2.00 s | 3.00 s | 1.50 |"), "{text}");
        assert!(text.contains("| memory | 1.00 GiB | 0.50 GiB | 0.50 |"), "{text}");
        assert!(text.contains("| alone | 250.000 ms | – | – |"), "{text}");
        assert_eq!(report.json()["rows"][0]["peer"], json!([3.0, 2.0, 4.0]));
        assert_eq!(report.json()["rows"][2]["ratio"], Value::Null);
    }
}
