//! Progress of a run for people: Burn's dashboard, a progress bar, or plain lines.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

use super::{Interrupter, StepRecord};

/// How a run shows its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DisplayMode {
    /// Burn's dashboard when the output is a terminal and feature `tui` is on, a progress bar when standard error is a
    /// terminal, else lines.
    #[default]
    Auto,
    /// A progress bar on standard error.
    Bar,
    /// A line on standard error every [`TrainConfig::log_every`](super::TrainConfig::log_every) steps.
    Lines,
    /// Nothing.
    Quiet,
}

/// The range of a run's display.
pub(super) struct Range {
    pub label: String,
    pub from: u64,
    pub to: u64,
    pub log_every: u64,
}

pub(super) trait Display: Send {
    /// After every step.
    fn step(&mut self, record: &StepRecord);
    /// Something worth a line, such as a checkpoint.
    fn note(&mut self, kind: Note, text: &str);
}

/// The kind of a note.
#[derive(Clone, Copy)]
pub(super) enum Note {
    Skipped,
    Checkpoint,
    Stop,
}

pub(super) fn open(mode: DisplayMode, range: Range, interrupter: &Interrupter) -> Box<dyn Display> {
    match mode {
        DisplayMode::Auto if cfg!(feature = "tui") && std::io::stdout().is_terminal() => dashboard(range, interrupter),
        DisplayMode::Auto if std::io::stderr().is_terminal() => Box::new(Bar::new(&range)),
        DisplayMode::Bar => Box::new(Bar::new(&range)),
        DisplayMode::Auto | DisplayMode::Lines => Box::new(Lines::new(range, std::io::stderr())),
        DisplayMode::Quiet => Box::new(Quiet),
    }
}

struct Quiet;

impl Display for Quiet {
    fn step(&mut self, _record: &StepRecord) {}
    fn note(&mut self, _kind: Note, _text: &str) {}
}

struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(range: &Range) -> Self {
        let bar = ProgressBar::new(range.to).with_position(range.from).with_prefix(range.label.clone());
        let template = "{prefix} {wide_bar} {pos}/{len} [{elapsed_precise} < {eta_precise}] {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.reset_eta();
        Self { bar }
    }
}

impl Display for Bar {
    fn step(&mut self, record: &StepRecord) {
        self.bar.set_message(summary(record.loss, record));
        self.bar.set_position(record.step);
    }

    fn note(&mut self, kind: Note, text: &str) {
        if !matches!(kind, Note::Checkpoint) {
            self.bar.println(text);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

/// One line now and then, with the mean loss since the line before.
struct Lines<W> {
    range: Range,
    out: W,
    losses: Vec<f64>,
    since: std::time::Instant,
    last: u64,
}

impl<W: Write> Lines<W> {
    fn new(range: Range, out: W) -> Self {
        let last = range.from;
        Self { range, out, losses: Vec::new(), since: std::time::Instant::now(), last }
    }

    /// A display that cannot be written to must not end a run.
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{}: {text}", self.range.label);
    }
}

impl<W: Write + Send> Display for Lines<W> {
    fn step(&mut self, record: &StepRecord) {
        self.losses.extend(record.loss);
        if !record.step.is_multiple_of(self.range.log_every) && record.step != self.range.to {
            return;
        }
        let mean = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        let per_step = self.since.elapsed().as_secs_f64() / record.step.saturating_sub(self.last).max(1) as f64;
        let left = humantime(per_step * self.range.to.saturating_sub(record.step) as f64);
        let mean = (!self.losses.is_empty()).then_some(mean);
        self.line(&format!("step {}/{}  {}  {left} left", record.step, self.range.to, summary(mean, record)));
        self.losses.clear();
        self.last = record.step;
        self.since = std::time::Instant::now();
    }

    fn note(&mut self, _kind: Note, text: &str) {
        self.line(text);
    }
}

fn summary(loss: Option<f64>, record: &StepRecord) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "not finite".into(), |v| format!("{v:.4}"));
    let mut text = format!("loss {}  lr {:.2e}  grad {}", number(loss), record.learning_rate, number(record.grad_norm));
    for (name, value) in record.metrics.iter().chain(&record.validation) {
        text.push_str(&format!("  {name} {value:.4}"));
    }
    if let Some(scale) = record.loss_scale {
        text.push_str(&format!("  scale {scale}"));
    }
    if record.skipped > 0 {
        text.push_str(&format!("  skipped {}", record.skipped));
    }
    text.push_str(&format!("  {:.1} images/s", record.images_per_second));
    text
}

fn humantime(seconds: f64) -> String {
    let seconds = seconds as u64;
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(not(feature = "tui"))]
fn dashboard(range: Range, _interrupter: &Interrupter) -> Box<dyn Display> {
    Box::new(Bar::new(&range))
}

#[cfg(feature = "tui")]
fn dashboard(range: Range, interrupter: &Interrupter) -> Box<dyn Display> {
    Box::new(tui::Dashboard::new(range, interrupter))
}

#[cfg(feature = "tui")]
mod tui {
    use std::collections::HashSet;
    use std::sync::Arc;

    use burn::train::Interrupter as BurnInterrupter;
    use burn::train::logger::TrainingProgressLogger;
    use burn::train::metric::{
        MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
    };
    use burn::train::renderer::tui::TuiMetricsRendererWrapper;
    use burn::train::renderer::{MetricState, MetricsRenderer, MetricsRendererTraining};

    use super::{Display, Interrupter, Note, Range, StepRecord};

    /// Burn's terminal dashboard, fed with steps in place of the items of an epoch.
    pub(super) struct Dashboard {
        renderer: TuiMetricsRendererWrapper,
        /// Set by the dashboard's own stop command, which this forwards to the run.
        stop: (BurnInterrupter, Interrupter),
        registered: HashSet<String>,
    }

    impl Dashboard {
        pub(super) fn new(range: Range, interrupter: &Interrupter) -> Self {
            let stop = BurnInterrupter::new();
            let mut renderer = TuiMetricsRendererWrapper::new(stop.clone(), None);
            let total = usize::try_from(range.to).unwrap_or(usize::MAX);
            renderer.start(1, 1, Some(total), Some(&range.label));
            renderer.start_split("train", total);
            Self { renderer, stop: (stop, interrupter.clone()), registered: HashSet::new() }
        }

        fn number(&mut self, name: &str, unit: Option<&str>, value: f64, valid: bool) {
            let id = MetricId::new(Arc::new(name.to_string()));
            if self.registered.insert(name.to_string()) {
                let unit = unit.map(str::to_string);
                self.renderer.register_metric(MetricDefinition {
                    metric_id: id.clone(),
                    name: Arc::new(name.to_string()),
                    description: None,
                    attributes: MetricAttributes::Numeric(NumericAttributes { unit, higher_is_better: false }),
                });
            }
            let text = if value.abs() < 1e-3 { format!("{value:.3e}") } else { format!("{value:.4}") };
            let entry = MetricEntry::new(id, SerializedEntry::new(text.clone(), text));
            let state = MetricState::Numeric(entry, Some(NumericEntry::Value(value)));
            if valid { self.renderer.update_valid(state) } else { self.renderer.update_train(state) }
        }
    }

    impl Display for Dashboard {
        fn step(&mut self, record: &StepRecord) {
            if self.stop.0.should_stop() {
                self.stop.1.stop();
            }
            if let Some(loss) = record.loss {
                self.number("Loss", None, loss, false);
            }
            for (name, value) in &record.metrics {
                self.number(name, None, *value, false);
            }
            for (name, value) in &record.validation {
                self.number(name, None, *value, true);
            }
            self.number("Learning rate", None, record.learning_rate, false);
            if let Some(norm) = record.grad_norm {
                self.number("Gradient norm", None, norm, false);
            }
            if let Some(scale) = record.loss_scale {
                self.number("Loss scale", None, scale, false);
            }
            self.number("Throughput", Some("images/s"), record.images_per_second, false);
            self.renderer.update_split(usize::try_from(record.step).unwrap_or(usize::MAX));
        }

        fn note(&mut self, kind: Note, _text: &str) {
            let counter = match kind {
                Note::Skipped => "Skipped",
                Note::Checkpoint => "Checkpoints",
                Note::Stop => return,
            };
            self.renderer.log_event_training(counter.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_every_n_steps_with_the_mean_loss() {
        let range = Range { label: "prior".into(), from: 0, to: 5, log_every: 2 };
        let mut out = Vec::new();
        let mut lines = Lines::new(range, &mut out);
        for step in 1..=5 {
            let loss = (step != 4).then_some(step as f64);
            lines.step(&StepRecord { step, loss, learning_rate: 1e-4, ..Default::default() });
        }
        lines.note(Note::Stop, "done");
        drop(lines);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with("prior: step 2/5  loss 1.5000  lr 1.00e-4"), "{text}");
        assert!(lines[1].contains("step 4/5  loss 3.0000"), "the step without a loss does not count: {text}");
        assert!(lines[2].contains("step 5/5"), "the last step always has a line: {text}");
        assert_eq!(lines[3], "prior: done");
    }
}
