//! Win rates from answers.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::answers::{Answers, Choice};
use super::study::{Key, Kind, Model};
use crate::args::JsonArgs;

/// Quantile of the normal distribution that leaves 2.5 % above it.
const Z_95: f64 = 1.959_963_984_540_054;

/// Number of answers below which the normal approximation is poor.
const FEW: usize = 30;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Answers files, one per rater
    #[arg(required = true, value_name = "ANSWERS")]
    answers: Vec<PathBuf>,
    /// The key that `make` wrote beside the page
    #[arg(long, value_name = "FILE", default_value = "out/human_eval/key.json")]
    key: PathBuf,
    /// Value of "not sure"
    #[arg(long, value_enum, default_value_t = NotSure::Half)]
    not_sure: NotSure,
    #[command(flatten)]
    json: JsonArgs,
}

/// Value of "not sure".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum NotSure {
    /// Half a win for either model: the rates of both add up to 1
    Half,
    /// Nothing: the rate is among those who were sure
    Drop,
}

/// How often the first model was preferred.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    pub kind: Kind,
    pub wins_a: usize,
    pub wins_b: usize,
    pub not_sure: usize,
    /// Share of A, from 0 to 1; none without an answer that counts.
    pub rate: Option<f64>,
    /// Half the width of the 95 % interval around it.
    pub interval: Option<f64>,
}

/// One rater's part.
#[derive(Debug, Serialize)]
pub struct Rater {
    pub rater: String,
    pub name: String,
    pub rates: Vec<Rate>,
}

/// The outcome of a study.
#[derive(Debug, Serialize)]
pub struct Report {
    pub study: String,
    pub a: String,
    pub b: String,
    pub not_sure: NotSure,
    pub rates: Vec<Rate>,
    /// Share of pairs of raters who gave the same answer to the same question; none if no question has two.
    pub agreement: Option<f64>,
    pub raters: Vec<Rater>,
}

pub fn run(args: &Args) -> Result<()> {
    let key = Key::read(&args.key)?;
    let mut raters: Vec<Answers> = Vec::new();
    for (i, file) in args.answers.iter().enumerate() {
        let answers = Answers::read(file, &key)?;
        if let Some(other) = raters.iter().position(|other| other.rater == answers.rater) {
            bail!(
                "{} and {} are of the same rater: keep the later one",
                args.answers[other].display(),
                args.answers[i].display()
            );
        }
        raters.push(answers);
    }
    let report = report(&key, &raters, args.not_sure);
    print(&report, key.questions.len() * raters.len());
    args.json.write(&report)?;
    ensure!(report.rates.iter().any(|rate| rate.rate.is_some()), "no answer that counts: there is nothing to score");
    Ok(())
}

/// Counts the answers.
pub fn report(key: &Key, raters: &[Answers], not_sure: NotSure) -> Report {
    Report {
        study: key.study.clone(),
        a: key.a.name.clone(),
        b: key.b.name.clone(),
        not_sure,
        rates: rates(key, raters, not_sure),
        agreement: agreement(raters),
        raters: raters
            .iter()
            .map(|rater| Rater {
                rater: rater.rater.clone(),
                name: rater.name.clone(),
                rates: rates(key, std::slice::from_ref(rater), not_sure),
            })
            .collect(),
    }
}

fn rates(key: &Key, raters: &[Answers], not_sure: NotSure) -> Vec<Rate> {
    let questions = key.by_id();
    let mut kinds: Vec<Kind> = key.questions.iter().map(|question| question.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let rate = |kind: Kind| {
        let mut counts = [0; 3];
        for answer in raters.iter().flat_map(|rater| &rater.answers) {
            let question = questions[answer.question.as_str()];
            if question.kind == kind {
                counts[match answer.choice.preferred(question) {
                    Some(Model::A) => 0,
                    Some(Model::B) => 1,
                    None => 2,
                }] += 1;
            }
        }
        Rate::new(kind, counts, not_sure)
    };
    kinds.into_iter().map(rate).collect()
}

impl Rate {
    /// The mean of the answers' values (1 for A, 0 for B, "not sure" as it counts) and the normal approximation of its
    /// 95 % interval, with the answers taken as independent: 1.96 · √(variance / n).
    pub fn new(kind: Kind, [wins_a, wins_b, not_sure]: [usize; 3], count: NotSure) -> Self {
        let halves = if count == NotSure::Half { not_sure } else { 0 };
        let n = (wins_a + wins_b + halves) as f64;
        let rate = (n > 0.0).then(|| (wins_a as f64 + 0.5 * halves as f64) / n);
        let interval = rate.map(|rate| {
            let variance = (wins_a as f64 + 0.25 * halves as f64) / n - rate * rate;
            Z_95 * (variance.max(0.0) / n).sqrt()
        });
        Self { kind, wins_a, wins_b, not_sure, rate, interval }
    }

    fn answers(&self) -> usize {
        self.wins_a + self.wins_b + self.not_sure
    }
}

fn agreement(raters: &[Answers]) -> Option<f64> {
    let mut choices: HashMap<&str, Vec<Choice>> = HashMap::new();
    for answer in raters.iter().flat_map(|rater| &rater.answers) {
        choices.entry(&answer.question).or_default().push(answer.choice);
    }
    let (mut pairs, mut same) = (0, 0);
    for choices in choices.values() {
        for (i, first) in choices.iter().enumerate() {
            pairs += choices.len() - i - 1;
            same += choices[i + 1..].iter().filter(|&second| second == first).count();
        }
    }
    (pairs > 0).then(|| f64::from(same as u32) / f64::from(pairs as u32))
}

fn print(report: &Report, asked: usize) {
    let Report { a, b, rates, raters, .. } = report;
    let answered: usize = rates.iter().map(Rate::answers).sum();
    println!("study {}: A is {a}, B is {b}", report.study);
    println!("{} raters, {answered} of {asked} questions answered\n", raters.len());
    println!("{:14} {:>18} {:>7} {:>7} {:>9}", "", "A preferred", "A", "B", "not sure");
    for rate in rates {
        let share = match (rate.rate, rate.interval) {
            (Some(share), Some(interval)) => format!("{:.1} % ± {:.1} %", 100.0 * share, 100.0 * interval),
            _ => "no answers".into(),
        };
        println!("{:14} {share:>18} {:>7} {:>7} {:>9}", rate.kind, rate.wins_a, rate.wins_b, rate.not_sure);
    }
    println!();
    match report.not_sure {
        NotSure::Half => println!("\"Not sure\" counts as half a win for either. Intervals: 95 %, normal."),
        NotSure::Drop => println!("\"Not sure\" does not count. Intervals: 95 %, normal."),
    }
    if let Some(agreement) = report.agreement {
        println!("Two raters agree on {:.0} % of their common questions.", 100.0 * agreement);
    }
    if rates.iter().any(|rate| rate.answers() < FEW) {
        println!("With fewer than {FEW} answers the intervals are underestimates.");
    }
}
