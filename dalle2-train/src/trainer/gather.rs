//! Forward and backward through the batches of one step, on one device or on several.

use std::ops::Range;
use std::thread::Scope;

use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;

use super::mix_seed;
use super::precision::{cast_gradients, cast_model};
use super::source::Prefetch;
use super::values::Values;
use super::{BatchSource, DeviceThreads, StepGradients, StepOutput, TrainConfig, TrainTask};
use dalle2_core::{Error, FloatType, Result, on_pool};

/// The stream of [`mix_seed`] for dropout, out of the way of the small numbers that callers choose.
const DROPOUT: u64 = 0x6472_6f70_6f75_7400;

/// Gradients and values of the batches of one step.
pub(super) struct Gathered {
    pub grads: GradientsParams,
    pub values: Values,
}

/// Where the gradients of a step come from.
pub(super) trait Gather<M> {
    /// The summed gradients, of `scale` times the loss if there is one, and values of the batches of step `step`, counted
    /// from 0.
    fn gather(&mut self, model: &M, step: u64, scale: Option<f64>) -> Result<Gathered>;
}

/// One batch after the other on the model's device.
pub(super) struct OneDevice<'a, B> {
    pub batches: Prefetch<'a, B>,
    pub device: Device,
    pub config: &'a TrainConfig,
}

impl<M> Gather<M> for OneDevice<'_, M::Batch>
where
    M: TrainTask,
{
    fn gather(&mut self, model: &M, step: u64, scale: Option<f64>) -> Result<Gathered> {
        let mut sum = Sum::new(self.device.clone().inner(), self.config.precision);
        let mut working = cast_model(model, self.config.precision);
        for part in 0..self.config.accumulation as u64 {
            let batch = self.batches.next()?;
            self.device.seed(mix_seed(self.config.seed, DROPOUT, step * self.config.accumulation as u64 + part));
            let output;
            // The model goes there and comes back, since models need not be `Sync`.
            let scale = scale.unwrap_or(1.0);
            (output, working) = on_pool(&self.device, move || (working.gradients(batch, scale), working));
            sum.add(model, output.grads, &output.output);
        }
        sum.finish()
    }
}

/// One batch per device in parallel.
///
/// Batch n of a step is computed on device n modulo the number of devices, and gradients are added in the order of the
/// batches, so they equal those of a single device that computes them in sequence.
pub(super) struct ManyDevices<'a, B> {
    threads: DeviceThreads,
    loaders: Vec<Prefetch<'a, B>>,
    config: &'a TrainConfig,
}

impl<'a, B: Send + 'static> ManyDevices<'a, B> {
    /// Starts a thread for the batches of each device, for the session's `steps`.
    pub(super) fn start<'env: 'a, S: BatchSource<Batch = B> + ?Sized>(
        scope: &'a Scope<'a, 'env>,
        source: &'env S,
        threads: DeviceThreads,
        steps: Range<u64>,
        (config, ahead): (&'a TrainConfig, usize),
    ) -> Result<Self> {
        let (per_step, count) = (config.accumulation as u64, threads.devices().len());
        let loaders = threads.devices().iter().enumerate().map(|(index, device)| {
            let mine = (steps.start * per_step..steps.end * per_step).skip(index).step_by(count);
            Prefetch::start(scope, source, device.clone(), mine, ahead)
        });
        Ok(Self { loaders: loaders.collect::<Result<_>>()?, threads, config })
    }
}

impl<M> Gather<M> for ManyDevices<'_, M::Batch>
where
    M: TrainTask + 'static,
{
    fn gather(&mut self, model: &M, step: u64, scale: Option<f64>) -> Result<Gathered> {
        let accumulation = self.config.accumulation as u64;
        let devices = self.threads.devices();
        let main = devices[0].clone();
        let mut sum = Sum::new(main.clone().inner(), self.config.precision);
        let working = cast_model(model, self.config.precision);
        for round in 0..accumulation / devices.len() as u64 {
            for (index, device) in devices.iter().enumerate() {
                let micro_step = step * accumulation + round * devices.len() as u64 + index as u64;
                device.seed(mix_seed(self.config.seed, DROPOUT, micro_step));
            }
            let batches = self.loaders.iter_mut().map(Prefetch::next).collect::<Result<Vec<_>>>()?;
            let outputs = self.threads.run(batches.into_iter().map(|batch| {
                let working = working.clone();
                move |device: &Device| on_pool(device, || working.fork(device).gradients(batch, scale.unwrap_or(1.0)))
            }))?;
            for StepGradients { grads, output } in outputs {
                sum.add(model, grads.to_device(&main, model), &output);
            }
        }
        sum.finish()
    }
}

/// Gradients and values, summed.
struct Sum<M> {
    grads: GradientsAccumulator<M>,
    values: Values,
    device: Device,
    precision: FloatType,
}

impl<M: Module> Sum<M> {
    fn new(device: Device, precision: FloatType) -> Self {
        Self { grads: GradientsAccumulator::new(), values: Values::default(), device, precision }
    }

    fn add(&mut self, model: &M, grads: GradientsParams, output: &StepOutput) {
        self.values.add(output, &self.device);
        self.grads.accumulate(model, cast_gradients(grads, model, self.precision));
    }

    fn finish(mut self) -> Result<Gathered> {
        let grads = self.grads.grads();
        if grads.is_empty() {
            let message = "no parameter has a gradient: the loss does not depend on them";
            return Err(Error::Training(message.into()));
        }
        Ok(Gathered { grads, values: self.values })
    }
}
