//! The trainer from outside: learning, resuming, surviving, refusing.
//!
//! The tests share the device's random numbers through dropout, and run one at a time for that reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread::sleep;
use std::time::Duration;

use burn::module::{ModuleVisitor, Param};
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::DType;
use dalle2_core::nn::{LayerNorm, LayerNormConfig, layer_norm};
use dalle2_core::store::{PipelineDir, write_file};
use dalle2_core::{Error, Result};
use dalle2_train::data::Order;
use dalle2_train::{
    BatchSource, DisplayMode, Goal, Hooks, RunOptions, Schedule, StepOutput, StepRecord, Stop, TrainConfig,
    TrainReport, TrainTask, Trained, Trainer, Watch, read_checkpoint, read_metrics, step_rng,
};
use rand::RngExt;

#[path = "train/failures.rs"]
mod failures;
#[path = "train/loss_scaling.rs"]
mod loss_scaling;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    norm: LayerNorm,
    dropout: Dropout,
    down: Linear,
}

fn mlp(dropout: f64) -> Mlp {
    mlp_on(dropout, &Device::flex().autodiff())
}

fn mlp_on(dropout: f64, device: &Device) -> Mlp {
    Mlp {
        up: LinearConfig::new(4, 16).init(device),
        norm: LayerNormConfig::new(16).init(device),
        dropout: DropoutConfig::new(dropout).init(),
        down: LinearConfig::new(16, 2).init(device),
    }
}

#[derive(Debug, Clone)]
struct Batch {
    x: Tensor<2>,
    y: Tensor<2>,
}

impl TrainTask for Mlp {
    type Batch = Batch;

    fn loss(&self, batch: Batch) -> StepOutput {
        let error = self.error(batch);
        StepOutput::new(error.clone().square().mean()).with("absolute", error.abs().mean())
    }
}

impl Mlp {
    fn error(&self, batch: Batch) -> Tensor<2> {
        let x = batch.x.cast(self.up.weight.val().dtype());
        let hidden = layer_norm(&self.norm, self.up.forward(x)).tanh();
        self.down.forward(self.dropout.forward(hidden)).cast(DType::F32) - batch.y
    }
}

/// Eight points of a smooth function, four to a batch; from `broken` on, the batches hold NaN, and at `failing` there is
/// an error instead.
struct Points {
    order: Order,
    points: Vec<([f32; 4], [f32; 2])>,
    broken: std::ops::Range<u64>,
    failing: Option<u64>,
}

impl Points {
    fn new() -> Self {
        let mut rng = step_rng(3, 0, 0);
        let points = (0..8).map(|_| {
            let x: [f32; 4] = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
            (x, [(x[0] * 3.0).sin() + x[1], x[2] * x[3]])
        });
        let points = points.collect();
        Self { order: Order::new(5, 8).unwrap(), points, broken: 0..0, failing: None }
    }
}

impl BatchSource for Points {
    type Batch = Batch;

    fn batch(&self, step: u64, device: &Device) -> Result<Batch> {
        if self.failing == Some(step) {
            return Err(Error::Input("the disk caught fire".into()));
        }
        let indices = self.order.batch(step, 4);
        let mut x: Vec<f32> = indices.iter().flat_map(|i| self.points[*i].0).collect();
        let y: Vec<f32> = indices.iter().flat_map(|i| self.points[*i].1).collect();
        if self.broken.contains(&step) {
            x[5] = f32::NAN;
        }
        Ok(Batch {
            x: Tensor::from_data(TensorData::new(x, [4, 4]), device),
            y: Tensor::from_data(TensorData::new(y, [4, 2]), device),
        })
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        steps: 12,
        batch_size: 4,
        accumulation: 2,
        learning_rate: 0.01,
        warmup: 3,
        weight_decay: 0.01,
        max_grad_norm: Some(0.5),
        ema_decay: Some(0.9),
        checkpoint_every: 4,
        seed: 11,
        ..Default::default()
    }
}

fn quiet() -> RunOptions {
    RunOptions { display: DisplayMode::Quiet, ..Default::default() }
}

fn resuming() -> RunOptions {
    RunOptions { resume: true, ..quiet() }
}

fn train(config: TrainConfig, dir: &Path, options: RunOptions, source: &Points) -> Result<Trained<Mlp>> {
    Trainer::new(config, dir).options(options).run(mlp(0.3), source, &mut ())
}

/// All parameters as bits, in the order of the fields.
fn bits(module: &Mlp) -> Vec<u32> {
    struct Collect(Vec<u32>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values = param.val().into_data().try_to_vec::<f32>().unwrap();
            self.0.extend(values.iter().map(|v| v.to_bits()));
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

/// The values that do not depend on the clock.
fn timeless(dir: &Path) -> Vec<StepRecord> {
    let records = read_metrics(dir.join("metrics.jsonl")).unwrap();
    records.into_iter().map(|r| StepRecord { images_per_second: 0.0, seconds: 0.0, memory_mib: None, ..r }).collect()
}

fn steps_on_disk(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn overfits_eight_points() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        steps: 400,
        learning_rate: 0.03,
        warmup: 10,
        schedule: Schedule::Cosine { final_fraction: 0.0 },
        ema_decay: Some(0.95),
        accumulation: 1,
        max_grad_norm: Some(1.0),
        checkpoint_every: 1000,
        ..config()
    };
    let source = Points::new();
    let trained = Trainer::new(config, temp.path()).options(quiet()).run(mlp(0.0), &source, &mut ()).unwrap();
    let loss = trained.report.loss.unwrap();
    assert!(loss < 1e-4, "the mean loss of the last 50 steps is {loss}");
    let average = trained.ema.unwrap();
    let batch = source.batch(0, &Device::flex()).unwrap();
    let hidden = layer_norm(&average.norm, average.up.forward(batch.x)).tanh();
    let error = (average.down.forward(hidden) - batch.y).square().mean().into_scalar::<f32>();
    assert!(error < 1e-3, "the averaged model's error is {error}");
    assert_eq!(trained.report.stop, Stop::Finished);
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_for_bit() {
    let _alone = alone();
    let source = Points::new();
    let straight_dir = tempfile::tempdir().unwrap();
    let uninterrupted = train(config(), straight_dir.path(), quiet(), &source).unwrap();

    let parts = tempfile::tempdir().unwrap();
    for stop in [3, 4, 9] {
        let options = RunOptions { stop_after: Some(stop), ..resuming() };
        let part = train(config(), parts.path(), options, &source).unwrap();
        assert_eq!((part.report.stop, part.report.steps), (Stop::StepLimit, stop));
    }
    let resumed = train(config(), parts.path(), resuming(), &source).unwrap();

    assert_eq!(bits(&resumed.model), bits(&uninterrupted.model));
    assert_eq!(bits(&resumed.ema.unwrap()), bits(&uninterrupted.ema.unwrap()));
    assert_eq!(timeless(parts.path()), timeless(straight_dir.path()));
    assert_eq!(resumed.report.loss, uninterrupted.report.loss);
    assert_eq!(timeless(straight_dir.path()).len(), 12);
    assert!(timeless(straight_dir.path()).iter().all(|r| r.metrics.contains_key("absolute")));
    let other = train(TrainConfig { seed: 12, ..config() }, tempfile::tempdir().unwrap().path(), quiet(), &source);
    assert_ne!(bits(&other.unwrap().model), bits(&resumed.model), "the seed matters");
}

/// Long enough to be killed several times on the way.
fn long() -> TrainConfig {
    TrainConfig { steps: 400, ..config() }
}

/// The run that the next test starts as a process and kills; without its variable there is nothing to do.
#[test]
fn a_run_in_a_separate_process() {
    let Some(dir) = std::env::var_os(RUN_DIR) else { return };
    train(long(), Path::new(&dir), resuming(), &Points::new()).unwrap();
}

const RUN_DIR: &str = "DALLE2_TEST_RUN_DIR";

#[test]
fn a_killed_run_resumes_from_its_last_checkpoint_bit_for_bit() {
    let _alone = alone();
    let (straight_dir, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(long(), straight_dir.path(), quiet(), &Points::new()).unwrap();

    let newest = || {
        let entries = fs::read_dir(killed.path().join("checkpoints")).ok()?;
        let steps = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("step-")?.parse().ok());
        steps.max()
    };
    let mut hits = 0;
    for delay in [0, 1, 3, 7, 15] {
        let before: Option<u64> = newest();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_run_in_a_separate_process"])
            .env(RUN_DIR, killed.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while newest() == before && process.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(delay));
        hits += usize::from(process.try_wait().unwrap().is_none());
        process.kill().unwrap(); // SIGKILL on Unix
        process.wait().unwrap();
        let checkpoint = newest().expect("a checkpoint survives every kill");
        assert!(before.is_none_or(|before| before < checkpoint), "steps before the checkpoint were lost");
    }
    assert!(hits > 0, "no process was killed before its end");

    let resumed = train(long(), killed.path(), resuming(), &Points::new()).unwrap();
    assert_eq!(bits(&resumed.model), bits(&expected.model));
    assert_eq!(bits(resumed.ema.as_ref().unwrap()), bits(expected.ema.as_ref().unwrap()));
    assert_eq!(timeless(killed.path()), timeless(straight_dir.path()));
}

/// Hardly anything but writing checkpoints.
fn writing() -> TrainConfig {
    TrainConfig { steps: 120, checkpoint_every: 1, ..config() }
}

/// As [`a_run_in_a_separate_process`], for the next test.
#[test]
fn a_writing_run_in_a_separate_process() {
    let Some(dir) = std::env::var_os(WRITING_DIR) else { return };
    train(writing(), Path::new(&dir), resuming(), &Points::new()).unwrap();
}

const WRITING_DIR: &str = "DALLE2_TEST_WRITING_DIR";

#[test]
fn a_run_killed_while_it_writes_a_checkpoint_loses_that_one_only() {
    let _alone = alone();
    let (straight_dir, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(writing(), straight_dir.path(), quiet(), &Points::new()).unwrap();
    let unfinished = || {
        let names = steps_on_disk(killed.path()).into_iter();
        names.filter(|name| name.starts_with(".part-")).collect::<Vec<_>>()
    };
    fs::create_dir_all(killed.path().join("checkpoints")).unwrap();
    let mut hits = 0;
    for _ in 0..12 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_writing_run_in_a_separate_process"])
            .env(WRITING_DIR, killed.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let before = unfinished();
        while unfinished() == before && process.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        process.kill().unwrap(); // SIGKILL on Unix
        process.wait().unwrap();
        hits += usize::from(!unfinished().is_empty());
        if hits == 3 {
            break;
        }
    }
    assert!(hits > 0, "no process was killed while it was writing");
    let resumed = train(writing(), killed.path(), resuming(), &Points::new()).unwrap();
    assert_eq!(bits(&resumed.model), bits(&expected.model));
    assert_eq!(bits(resumed.ema.as_ref().unwrap()), bits(expected.ema.as_ref().unwrap()));
    assert!(unfinished().is_empty());
}

#[test]
fn dropout_and_accumulation_take_part() {
    let _alone = alone();
    let source = Points::new();
    let run = |model: Mlp, config: TrainConfig| {
        let temp = tempfile::tempdir().unwrap();
        bits(&Trainer::new(config, temp.path()).options(quiet()).run(model, &source, &mut ()).unwrap().model)
    };
    let base = run(mlp(0.3), config());
    assert_eq!(base, run(mlp(0.3), config()));
    assert_ne!(base, run(mlp(0.0), config()));
    assert_ne!(base, run(mlp(0.3), TrainConfig { accumulation: 1, ..config() }));
}

#[test]
fn accumulation_averages_the_gradients() {
    let _alone = alone();
    /// The same batch at every step, so two of them averaged are one.
    struct Same(Points);
    impl BatchSource for Same {
        type Batch = Batch;
        fn batch(&self, _step: u64, device: &Device) -> Result<Batch> {
            self.0.batch(0, device)
        }
    }
    let run = |accumulation| {
        let temp = tempfile::tempdir().unwrap();
        let config = TrainConfig { accumulation, ..config() };
        Trainer::new(config, temp.path()).options(quiet()).run(mlp(0.0), &Same(Points::new()), &mut ()).unwrap();
        timeless(temp.path())
    };
    for (one, two) in run(1).iter().zip(run(2)) {
        assert!((one.loss.unwrap() - two.loss.unwrap()).abs() < 1e-5, "{one:?} {two:?}");
        assert!((one.grad_norm.unwrap() - two.grad_norm.unwrap()).abs() < 1e-5, "{one:?} {two:?}");
    }
}

#[test]
fn half_written_and_damaged_checkpoints_are_survived() {
    let _alone = alone();
    let source = Points::new();
    let straight_dir = tempfile::tempdir().unwrap();
    let uninterrupted = train(config(), straight_dir.path(), quiet(), &source).unwrap();

    let killed = tempfile::tempdir().unwrap();
    train(config(), killed.path(), RunOptions { stop_after: Some(10), ..quiet() }, &source).unwrap();
    let checkpoints = killed.path().join("checkpoints");
    assert_eq!(steps_on_disk(killed.path()), ["step-10", "step-8"]);
    // As after a SIGKILL during the writing of step 12, with a disk that lost the end of step 10.
    fs::create_dir(checkpoints.join(".part-12-4711")).unwrap();
    fs::write(checkpoints.join(".part-12-4711/model.bpk"), b"half").unwrap();
    let model = checkpoints.join("step-10/model.bpk");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() - 100]).unwrap();

    let resumed = train(config(), killed.path(), resuming(), &source).unwrap();
    assert_eq!(bits(&resumed.model), bits(&uninterrupted.model));
    assert_eq!(timeless(killed.path()), timeless(straight_dir.path()));
    assert_eq!(steps_on_disk(killed.path()), ["damaged-step-10", "step-12", "step-8"]);
}

#[test]
fn when_every_checkpoint_is_damaged_nothing_is_overwritten() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: 4, ..config() };
    train(config.clone(), temp.path(), quiet(), &Points::new()).unwrap();
    let average = temp.path().join("checkpoints/step-4/ema.bpk");
    let mut bytes = fs::read(&average).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&average, bytes).unwrap();
    let message = train(config, temp.path(), resuming(), &Points::new()).unwrap_err().to_string();
    assert!(message.contains("ema.bpk") && message.contains("checksum"), "{message}");
    assert_eq!(steps_on_disk(temp.path()), ["step-4"]);
}

#[test]
fn a_batch_with_nan_changes_nothing_but_the_counter() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let before = train(config(), temp.path(), RunOptions { stop_after: Some(4), ..quiet() }, &Points::new()).unwrap();
    let source = Points { broken: 9..10, ..Points::new() };
    let after = train(config(), temp.path(), RunOptions { stop_after: Some(5), ..resuming() }, &source).unwrap();
    assert_eq!(bits(&before.model), bits(&after.model));
    assert_eq!(bits(&before.ema.unwrap()), bits(&after.ema.unwrap()));
    assert_eq!((before.report.skipped, after.report.skipped), (0, 1));
    assert_eq!(before.report.loss, after.report.loss);
    let last = timeless(temp.path()).pop().unwrap();
    assert_eq!((last.step, last.loss, last.grad_norm, last.skipped), (5, None, None, 1));
    let finished = train(config(), temp.path(), resuming(), &source).unwrap();
    assert_eq!((finished.report.steps, finished.report.skipped), (12, 1));
    assert_ne!(bits(&finished.model), bits(&after.model));
    assert!(finished.report.loss.unwrap().is_finite());
}

#[test]
fn endless_nan_ends_the_run_and_names_the_checkpoint() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let source = Points { broken: 10..1000, ..Points::new() };
    let config = TrainConfig { steps: 100, max_skipped_in_a_row: 6, checkpoint_every: 4, ..config() };
    let message = train(config, temp.path(), quiet(), &source).unwrap_err().to_string();
    assert!(message.contains("6 steps in a row") && message.contains("step-8"), "{message}");
    assert_eq!(timeless(temp.path()).len(), 11);
}

#[test]
fn a_learning_rate_of_ten_is_reported_as_divergence() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        steps: 2000,
        warmup: 60,
        learning_rate: 10.0,
        checkpoint_every: 5,
        keep_checkpoints: 50,
        ..config()
    };
    let message = train(config, temp.path(), quiet(), &Points::new()).unwrap_err().to_string();
    assert!(message.contains("diverged") && message.contains("checkpoints/step-"), "{message}");
    assert!(timeless(temp.path()).len() <= 200, "after {} steps", timeless(temp.path()).len());
}

#[test]
fn another_configuration_is_refused_by_name() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let source = Points::new();
    let run = |config: TrainConfig, width: usize| {
        let options = RunOptions { stop_after: Some(2), ..resuming() };
        let trainer = Trainer::new(config, temp.path()).options(options);
        trainer.describe("model", &serde_json::json!({ "width": width })).unwrap().run(mlp(0.0), &source, &mut ())
    };
    run(config(), 16).unwrap();
    let message = run(TrainConfig { learning_rate: 0.5, ..config() }, 16).unwrap_err().to_string();
    assert!(message.contains("`train.learning_rate` = 0.01") && message.contains("0.5"), "{message}");
    let message = run(config(), 17).unwrap_err().to_string();
    assert!(message.contains("`model.width` = 16"), "{message}");
    assert!(run(TrainConfig { steps: 50, log_every: 1, ..config() }, 16).is_ok(), "the length may change");
}

#[test]
fn a_run_is_not_overwritten_by_accident() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    train(TrainConfig { steps: 2, ..config() }, temp.path(), quiet(), &Points::new()).unwrap();
    let before = timeless(temp.path());
    let message = train(config(), temp.path(), quiet(), &Points::new()).unwrap_err().to_string();
    assert!(message.contains("holds a run of 2 steps") && message.contains("resume"), "{message}");
    assert_eq!(timeless(temp.path()), before);
}

#[test]
fn what_cannot_work_is_an_error() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, b"").unwrap();
    let message = train(config(), &file.join("run"), quiet(), &Points::new()).unwrap_err().to_string();
    assert!(message.contains("file/run"), "{message}");
    let error = train(TrainConfig { steps: 0, ..config() }, temp.path(), quiet(), &Points::new()).unwrap_err();
    assert!(error.to_string().contains("`train.steps` = 0"), "{error}");
    let plain = Trainer::new(config(), temp.path()).options(quiet()).run(mlp(0.0).valid(), &Points::new(), &mut ());
    assert!(plain.unwrap_err().to_string().contains("autodiff"));
    let frozen = Trainer::new(config(), temp.path()).options(quiet()).run(mlp(0.0).no_grad(), &Points::new(), &mut ());
    assert!(frozen.unwrap_err().to_string().contains("frozen"));
}

#[test]
fn a_failing_source_leaves_a_checkpoint_to_go_on_from() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let source = Points { failing: Some(13), ..Points::new() };
    let message = train(config(), temp.path(), quiet(), &source).unwrap_err().to_string();
    assert!(message.contains("the disk caught fire"), "{message}");
    assert_eq!(steps_on_disk(temp.path()), ["step-4", "step-6"]);
    let resumed = train(config(), temp.path(), resuming(), &Points::new()).unwrap();
    assert_eq!(resumed.report.steps, 12);
    /// Panics at once.
    struct Panics;
    impl BatchSource for Panics {
        type Batch = Batch;
        fn batch(&self, step: u64, _device: &Device) -> Result<Batch> {
            panic!("batch {step} is impossible")
        }
    }
    let other = tempfile::tempdir().unwrap();
    let error = Trainer::new(config(), other.path()).options(quiet()).run(mlp(0.0), &Panics, &mut ()).unwrap_err();
    assert!(error.to_string().contains("batch 0 is impossible"), "{error}");
}

/// Notes what it is called with.
#[derive(Default)]
struct Witness {
    sampled: Vec<u64>,
    exported: usize,
    validated: Vec<u64>,
    autodiff: bool,
}

impl Hooks<Mlp> for Witness {
    fn sample(&mut self, model: &Mlp, step: u64, path: &Path) -> Result<()> {
        self.sampled.push(step);
        self.autodiff |= model.up.weight.val().device().is_autodiff();
        fs::write(path, b"png").map_err(|e| Error::io(path, e))
    }

    fn validate(&mut self, _model: &Mlp, step: u64) -> Result<Vec<(String, f64)>> {
        self.validated.push(step);
        Ok(vec![("held_out".into(), step as f64)])
    }

    fn export(&mut self, _model: &Mlp, pipeline: &mut PipelineDir) -> Result<()> {
        self.exported += 1;
        write_file(pipeline.path().join("weights"), self.exported.to_string().as_bytes())
    }
}

#[test]
fn hooks_are_called_with_the_averaged_model() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig { sample_every: Some(5), validate_every: Some(6), ..config() };
    let mut hooks = Witness::default();
    let options = RunOptions { stop_after: Some(7), ..quiet() };
    Trainer::new(config.clone(), temp.path()).options(options).run(mlp(0.3), &Points::new(), &mut hooks).unwrap();
    assert_eq!((hooks.sampled.as_slice(), hooks.exported), ([5].as_slice(), 2));
    Trainer::new(config, temp.path()).options(resuming()).run(mlp(0.3), &Points::new(), &mut hooks).unwrap();
    assert_eq!(hooks.sampled, [5, 10, 12]);
    assert_eq!(hooks.validated, [6, 12]);
    assert!(!hooks.autodiff);
    assert!(temp.path().join("samples/step-12.png").exists());
    assert_eq!(fs::read_to_string(temp.path().join("export/weights")).unwrap(), hooks.exported.to_string());
    assert_eq!(timeless(temp.path())[5].validation["held_out"], 6.0);
    assert!(timeless(temp.path())[6].validation.is_empty());
}

#[test]
fn time_limit_and_interruption_end_with_a_checkpoint() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let options = RunOptions { max_seconds: Some(0.0), ..quiet() };
    let TrainReport { stop, steps, checkpoint, loss, .. } =
        train(config(), temp.path(), options, &Points::new()).unwrap().report;
    assert_eq!((stop, steps, loss), (Stop::TimeLimit, 0, None));
    assert!(checkpoint.ends_with("step-0") && checkpoint.exists());
    let options = resuming();
    options.interrupter.stop();
    let report = train(config(), temp.path(), options, &Points::new()).unwrap().report;
    assert_eq!((report.stop, report.steps), (Stop::Interrupted, 0));
    assert_eq!(train(config(), temp.path(), resuming(), &Points::new()).unwrap().report.steps, 12);
}

/// Metrics of a validation that improve and then get worse: lowest at the third.
struct Falling {
    exported: Vec<u64>,
    step: u64,
}

impl Hooks<Mlp> for Falling {
    fn validate(&mut self, _model: &Mlp, step: u64) -> Result<Vec<(String, f64)>> {
        self.step = step;
        let errors = [3.0, 2.0, f64::NAN, 1.0, 1.5, 1.0, 1.2, 1.1];
        Ok(vec![("error".into(), errors[(step / 2) as usize - 1]), ("recall".into(), step as f64)])
    }

    fn export(&mut self, _model: &Mlp, pipeline: &mut PipelineDir) -> Result<()> {
        self.exported.push(self.step);
        write_file(pipeline.path().join("step"), self.step.to_string().as_bytes())
    }
}

fn watching(patience: Option<u64>) -> TrainConfig {
    let watch = Some(Watch { metric: "error".into(), goal: Goal::Lowest, patience });
    TrainConfig { steps: 16, validate_every: Some(2), checkpoint_every: 5, keep_checkpoints: 1, watch, ..config() }
}

#[test]
fn the_best_and_every_fifth_checkpoint_are_kept_and_the_run_stops_early() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig { keep_every: Some(5), ..watching(Some(3)) };
    let mut hooks = Falling { exported: Vec::new(), step: 0 };
    let first = RunOptions { stop_after: Some(11), ..quiet() };
    let trainer = |options| Trainer::new(config.clone(), temp.path()).options(options);
    trainer(first).run(mlp(0.3), &Points::new(), &mut hooks).unwrap();
    assert_eq!(steps_on_disk(temp.path()), ["step-10", "step-11", "step-5", "step-8"]);
    // The patience continues from the checkpoint: validations 5 and 6 were not better than the fourth, nor is the seventh.
    let trained = trainer(resuming()).run(mlp(0.3), &Points::new(), &mut hooks).unwrap();
    assert_eq!((trained.report.stop, trained.report.steps), (Stop::NoImprovement, 14));
    assert_eq!(steps_on_disk(temp.path()), ["step-10", "step-14", "step-5", "step-8"]);
    let best = trained.report.best.unwrap();
    assert_eq!(best.value, 1.0);
    assert!(best.path.ends_with("checkpoints/step-8"), "{best:?}");
    assert_eq!(fs::read_to_string(temp.path().join("export/step")).unwrap(), "8", "the export is the best state");
    // Until the first validation nothing is known to be better, then only what is.
    assert_eq!(hooks.exported, [2, 4, 8]);
    // And the best state can be read.
    let straight_dir = tempfile::tempdir().unwrap();
    let options = RunOptions { stop_after: Some(8), ..quiet() };
    let expected =
        Trainer::new(TrainConfig { watch: None, validate_every: None, ..config.clone() }, straight_dir.path())
            .options(options)
            .run(mlp(0.3), &Points::new(), &mut ())
            .unwrap();
    assert_eq!(bits(&read_checkpoint(&best.path, mlp(0.3)).unwrap()), bits(&expected.ema.unwrap()));
}

#[test]
fn a_metric_that_does_not_exist_cannot_be_watched() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let watch = Some(Watch { metric: "eror".into(), goal: Goal::Lowest, patience: None });
    let trainer = Trainer::new(TrainConfig { watch, ..watching(None) }, temp.path()).options(quiet());
    let error = trainer.run(mlp(0.3), &Points::new(), &mut Falling { exported: Vec::new(), step: 0 }).unwrap_err();
    assert!(error.to_string().contains("`train.watch.figure` = eror"), "{error}");
    assert!(error.to_string().contains("error, recall"), "{error}");
}

#[test]
fn several_devices_compute_what_one_does() {
    let _alone = alone();
    let run = |devices: Option<usize>, accumulation: usize, source: &Points| {
        let temp = tempfile::tempdir().unwrap();
        let trainer = Trainer::new(TrainConfig { accumulation, ..config() }, temp.path()).options(quiet());
        let trained = match devices {
            None => trainer.run(mlp(0.0), source, &mut ()),
            Some(count) => trainer.run_on(&vec![Device::flex(); count], mlp(0.0), source, &mut ()),
        };
        trained.map(|trained| (bits(&trained.model), bits(&trained.ema.unwrap()), timeless(temp.path())))
    };
    let source = Points::new();
    // Gradients are added in the order of the batches, so they are the same to the last bit.
    assert_eq!(run(Some(2), 2, &source).unwrap(), run(None, 2, &source).unwrap());
    assert_eq!(run(Some(1), 2, &source).unwrap(), run(None, 2, &source).unwrap());
    assert_ne!(run(Some(2), 2, &source).unwrap(), run(None, 1, &source).unwrap());
    assert_eq!(run(Some(2), 4, &source).unwrap(), run(None, 4, &source).unwrap());
    assert_eq!(run(Some(3), 3, &source).unwrap(), run(None, 3, &source).unwrap());
    let error = run(Some(3), 2, &source).unwrap_err().to_string();
    assert!(error.contains("`train.accumulation` = 2") && error.contains("devices, 3"), "{error}");
    let error = run(Some(2), 2, &Points { failing: Some(5), ..Points::new() }).unwrap_err().to_string();
    assert!(error.contains("the disk caught fire"), "{error}");
}

#[test]
fn a_run_may_change_its_number_of_devices() {
    let _alone = alone();
    let (straight_dir, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trainer = |dir: &Path, options| Trainer::new(config(), dir).options(options);
    let expected = trainer(straight_dir.path(), quiet()).run(mlp(0.0), &Points::new(), &mut ()).unwrap();
    let first = RunOptions { stop_after: Some(5), ..quiet() };
    let devices = [Device::flex(), Device::flex()];
    trainer(parts.path(), first).run_on(&devices, mlp(0.0), &Points::new(), &mut ()).unwrap();
    let resumed = trainer(parts.path(), resuming()).run(mlp(0.0), &Points::new(), &mut ()).unwrap();
    assert_eq!(bits(&resumed.model), bits(&expected.model));
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let expected = train(config(), &temp.path().join("expected"), quiet(), &Points::new()).unwrap();
    let device = Device::flex().autodiff().gradient_checkpointing();
    let trainer = Trainer::new(config(), temp.path().join("computed")).options(quiet());
    let actual = trainer.run(mlp_on(0.3, &device), &Points::new(), &mut ()).unwrap();
    assert_eq!(bits(&actual.model), bits(&expected.model));
}

/// A place for runs that is soon full.
#[cfg(target_os = "linux")]
mod small_disk {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    pub struct SmallDisk(PathBuf);

    impl SmallDisk {
        /// A file system in memory; none where this user may not mount one.
        pub fn mount(at: &Path, bytes: usize) -> Option<Self> {
            std::fs::create_dir_all(at).unwrap();
            let size = format!("size={bytes}");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
            mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_path_buf()))
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }
}

/// Fills the disk at step 6.
#[cfg(target_os = "linux")]
struct Fills<'a>(&'a Path);

#[cfg(target_os = "linux")]
impl Hooks<Mlp> for Fills<'_> {
    fn validate(&mut self, _model: &Mlp, step: u64) -> Result<Vec<(String, f64)>> {
        let mut files = 0;
        while step == 6 && fs::write(self.0.join(format!("other-{files}")), [0; 4096]).is_ok() {
            files += 1;
        }
        Ok(Vec::new())
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path().join("small");
    let Some(_disk) = small_disk::SmallDisk::mount(&at, 1 << 20) else {
        eprintln!("SKIPPED, this test needs the right to mount a file system");
        return;
    };
    let config = TrainConfig { validate_every: Some(2), ..config() };
    let trainer = |dir: &Path, options| Trainer::new(config.clone(), dir).options(options);
    let error = trainer(&at, quiet()).run(mlp(0.3), &Points::new(), &mut Fills(&at)).unwrap_err().to_string();
    assert!(error.contains("checkpoints") && error.contains("step-8") || error.contains(".part-8"), "{error}");
    assert_eq!(steps_on_disk(&at), ["step-4"], "no half-written checkpoint, and the last good one");
    assert!(timeless(&at).len() >= 8, "the metrics had room");
    // With room again, the run resumes from there and ends like one without a full disk.
    for entry in fs::read_dir(&at).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("other-") {
            fs::remove_file(path).unwrap();
        }
    }
    let resumed = trainer(&at, resuming()).run(mlp(0.3), &Points::new(), &mut ()).unwrap();
    let uninterrupted =
        trainer(&temp.path().join("uninterrupted"), quiet()).run(mlp(0.3), &Points::new(), &mut ()).unwrap();
    assert_eq!(bits(&resumed.model), bits(&uninterrupted.model));
    assert_eq!(timeless(&at), timeless(&temp.path().join("uninterrupted")));
}
