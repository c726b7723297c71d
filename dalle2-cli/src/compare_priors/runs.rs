//! Training one prior.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use dalle2::base::{Prior, PriorOptions};
use dalle2::prior::train::{AutoregressiveTask, PriorTask};
use dalle2::prior::{EmbeddingQuantizer, QuantizerOptions, TrainingCost};
use dalle2_train::recipes::prior::{AsPrior, AutoregressiveSource, PairSource, PriorHooks, PriorKind, PriorSource};
use dalle2_train::{BatchSource, RunOptions, TrainConfig, TrainTask, Trainer, materialize, read_metrics};
use serde::Serialize;

use super::settings::{Budget, Configs, Plan, train_config};
use super::world::World;

/// Steps that are timed before the budget is fixed.
const TIMED: u32 = 4;

/// A trained prior and how it came about.
pub struct Trained {
    /// The prior.
    pub prior: Arc<dyn Prior>,
    /// Optimizer steps.
    pub steps: u64,
    /// Seconds of training, without validation.
    pub seconds: f64,
    /// Validations on the way.
    pub curve: Vec<Point>,
}

/// A validation.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    /// Steps so far.
    pub step: u64,
    /// Multiply-accumulates so far.
    pub macs: f64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Cosine between sampled and true image embeddings of held-out pairs.
    pub cosine: f64,
}

/// Everything that the trainings of a comparison have in common.
pub struct Lab<'a> {
    /// Data and models.
    pub world: &'a World,
    /// Sizes.
    pub plan: &'a Plan,
    /// Networks.
    pub configs: &'a Configs,
    /// Quantizer from embeddings to tokens.
    pub quantizer: EmbeddingQuantizer,
}

impl<'a> Lab<'a> {
    /// Fits the quantizer.
    pub fn new(world: &'a World, plan: &'a Plan, configs: &'a Configs) -> Result<Self> {
        let (image, text) = world.train.embeddings(&world.device);
        let options =
            QuantizerOptions { components: configs.components(), ..QuantizerOptions::of(&configs.autoregressive) };
        Ok(Self { world, plan, configs, quantizer: EmbeddingQuantizer::fit(image, text, &options)? })
    }

    /// Cost of a training step.
    pub fn cost(&self, kind: PriorKind) -> TrainingCost {
        match kind {
            PriorKind::Diffusion => self.configs.diffusion.training_cost(),
            PriorKind::Autoregressive => self.configs.autoregressive.training_cost(),
        }
    }

    fn diffusion(&self, seed: u64) -> Result<(PriorTask, PriorSource)> {
        let task = PriorTask::new(&self.configs.diffusion, &self.world.device.clone().autodiff())?;
        materialize(&task, &self.world.device, seed);
        let source = PriorSource::new(self.world.train.clone(), &self.configs.diffusion, self.plan.batch_size, seed)?;
        Ok((task, source))
    }

    fn autoregressive(&self, seed: u64) -> Result<(AutoregressiveTask, AutoregressiveSource)> {
        let (config, quantizer) = (&self.configs.autoregressive, self.quantizer.clone());
        let task = AutoregressiveTask::new(config, quantizer.clone(), &self.world.device.clone().autodiff())?;
        materialize(&task, &self.world.device, seed);
        let pairs = PairSource::of_set(self.world.train.clone(), seed)?;
        Ok((task, AutoregressiveSource::new(pairs, quantizer, self.plan.batch_size)))
    }

    /// Seconds of a step.
    pub fn seconds_per_step(&self, kind: PriorKind) -> Result<f64> {
        match kind {
            PriorKind::Diffusion => {
                self.diffusion(0).and_then(|(task, source)| timed(&task, &source, &self.world.device))
            }
            PriorKind::Autoregressive => {
                self.autoregressive(0).and_then(|(task, source)| timed(&task, &source, &self.world.device))
            }
        }
    }

    /// Steps that the budget pays for.
    pub fn steps(&self, kind: PriorKind, budget: Budget, seconds_per_step: f64) -> u64 {
        let (cost, batch) = (self.cost(kind), self.plan.batch_size);
        match budget {
            Budget::Steps(steps) => steps.unwrap_or(self.plan.steps),
            Budget::Seconds(seconds) => {
                let seconds = seconds.unwrap_or(120.0);
                ((seconds / seconds_per_step) as u64).max(1)
            }
            Budget::Macs(macs) => {
                let default = self.cost(PriorKind::Diffusion).macs * (self.plan.steps * batch as u64) as f64;
                cost.steps_for(macs.unwrap_or(default), batch)
            }
        }
    }

    /// Trains a prior in `dir`, or resumes its run.
    pub fn train(&self, kind: PriorKind, steps: u64, seed: u64, dir: &Path) -> Result<Trained> {
        let config = train_config(kind, self.plan, steps, seed);
        match kind {
            PriorKind::Diffusion => {
                let (task, source) = self.diffusion(seed)?;
                self.run(kind, config, &self.configs.diffusion, dir, (task, &source))
            }
            PriorKind::Autoregressive => {
                let (task, source) = self.autoregressive(seed)?;
                self.run(kind, config, &self.configs.autoregressive, dir, (task, &source))
            }
        }
    }

    fn run<M, S>(
        &self,
        kind: PriorKind,
        config: TrainConfig,
        described: &impl Serialize,
        dir: &Path,
        (task, source): (M, &S),
    ) -> Result<Trained>
    where
        M: TrainTask<Batch = S::Batch> + AsPrior,
        S: BatchSource,
    {
        let sampling = PriorOptions { guidance: Some(1.0), candidates: Some(1), ..Default::default() };
        let reference = self.world.validation.clone();
        let mut hooks = PriorHooks::new(reference, sampling, self.cost(kind), self.plan.batch_size).without_export();
        let steps = config.steps;
        let options = RunOptions { resume: true, ..Default::default() };
        let trainer = Trainer::new(config, dir).options(options).describe("model", described)?;
        let trained = trainer.run(task, source, &mut hooks)?;
        let curve = curve(&dir.join("metrics.jsonl"))?;
        let seconds = curve.last().map_or(trained.report.seconds, |point| point.seconds);
        Ok(Trained { prior: Arc::from(trained.best().as_prior()?), steps, seconds, curve })
    }
}

/// Median seconds of forward and backward pass over some batches.
fn timed<M, S>(task: &M, source: &S, device: &dalle2::Device) -> Result<f64>
where
    M: TrainTask<Batch = S::Batch>,
    S: BatchSource,
{
    let ad = device.clone().autodiff();
    let mut seconds = Vec::new();
    for step in 0..=u64::from(TIMED) {
        let start = Instant::now();
        drop(task.gradients(source.batch(step, &ad)?, 1.0));
        device.sync().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0); // the first one allocates
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// The validations of a run; its clock counts them, which is taken out again.
fn curve(path: &Path) -> Result<Vec<Point>> {
    let mut before = 0.0;
    let mut points = Vec::new();
    for record in read_metrics(path)? {
        if let (Some(cosine), Some(macs)) = (record.validation.get("cosine"), record.validation.get("macs")) {
            points.push(Point { step: record.step, macs: *macs, seconds: record.seconds - before, cosine: *cosine });
            before = record.validation.get("validation_seconds").copied().unwrap_or(before);
        }
    }
    Ok(points)
}
