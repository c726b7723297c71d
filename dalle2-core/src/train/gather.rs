//! Forward and backward through the batches of one step, on one device or on several.

use std::thread::Scope;

use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::train::train::MultiDevicesTrainStep;
use burn::train::{LearnerModel, TrainStep};

use super::source::{Prefetch, mix_seed};
use super::values::Values;
use super::{BatchSource, LossOutput, Precision, TrainConfig};
use crate::{Error, Result};

/// The stream of [`mix_seed`] for dropout, out of the way of the small numbers that callers choose.
const DROPOUT: u64 = 0x6472_6f70_6f75_7400;

/// What the batches of one step gave.
pub(super) struct Gathered {
    pub grads: GradientsParams,
    pub values: Values,
}

/// Where the gradients of a step come from.
pub(super) trait Gather<M> {
    /// The summed gradients and values of the batches of step `step`, counted from 0.
    fn gather(&mut self, model: &M, step: u64) -> Result<Gathered>;
}

/// One batch after the other on the model's device.
pub(super) struct OneDevice<'a, B> {
    pub batches: Prefetch<'a, B>,
    pub device: Device,
    pub config: &'a TrainConfig,
}

impl<M> Gather<M> for OneDevice<'_, M::Input>
where
    M: TrainStep + Module,
    M::Output: LossOutput,
{
    fn gather(&mut self, model: &M, step: u64) -> Result<Gathered> {
        let mut sum = Sum::new(self.device.clone().inner(), self.config.precision);
        let working = self.config.precision.working(model);
        for part in 0..self.config.accumulation as u64 {
            let batch = self.batches.next()?;
            self.device.seed(mix_seed(self.config.seed, DROPOUT, step * self.config.accumulation as u64 + part));
            let output = working.step(batch);
            sum.add(model, output.grads, &output.item);
        }
        sum.finish()
    }
}

/// As many batches at once as there are devices, by Burn's multi-device step.
///
/// Batch n of a step is computed on device n modulo the number of devices, so the batches, and with them the gradients, are
/// those of a single device that computes one after the other.
pub(super) struct ManyDevices<'a, M: LearnerModel> {
    step: MultiDevicesTrainStep<M>,
    loaders: Vec<Batches<'a, <M as TrainStep>::Input>>,
    devices: Vec<Device>,
    config: &'a TrainConfig,
}

impl<'a, M: LearnerModel> ManyDevices<'a, M> {
    /// Starts a thread for the batches of each device, and Burn's for computing. `steps` are those of the session.
    pub fn start<'env: 'a, S: BatchSource<Batch = <M as TrainStep>::Input>>(
        scope: &'a Scope<'a, 'env>,
        source: &'env S,
        devices: &[Device],
        steps: std::ops::Range<u64>,
        (config, ahead): (&'a TrainConfig, usize),
    ) -> Result<Self> {
        let per_step = config.accumulation as u64;
        let loaders = devices.iter().enumerate().map(|(index, device)| {
            let mine = (steps.start * per_step..steps.end * per_step).skip(index).step_by(devices.len());
            let batches = Prefetch::start(scope, source, device.clone(), mine, ahead)?;
            Ok(Batches { batches, failure: None })
        });
        let loaders = loaders.collect::<Result<_>>()?;
        Ok(Self { step: MultiDevicesTrainStep::new(devices), loaders, devices: devices.to_vec(), config })
    }
}

impl<M> Gather<M> for ManyDevices<'_, M>
where
    M: LearnerModel,
    <M as TrainStep>::Output: LossOutput,
{
    fn gather(&mut self, model: &M, step: u64) -> Result<Gathered> {
        let accumulation = self.config.accumulation as u64;
        let main = self.devices[0].clone();
        let mut sum = Sum::new(main.clone().inner(), self.config.precision);
        let working = self.config.precision.working(model);
        for round in 0..accumulation / self.devices.len() as u64 {
            for (index, device) in self.devices.iter().enumerate() {
                let micro_step = step * accumulation + round * self.devices.len() as u64 + index as u64;
                device.seed(mix_seed(self.config.seed, DROPOUT, micro_step));
            }
            let mut loaders: Vec<Box<dyn DataLoaderIterator<<M as TrainStep>::Input> + '_>> =
                self.loaders.iter_mut().map(|loader| Box::new(loader) as Box<_>).collect();
            let outputs = self.step.step(&mut loaders, &working);
            drop(loaders);
            if let Some(failure) = self.loaders.iter_mut().find_map(|loader| loader.failure.take()) {
                return Err(failure);
            }
            let (outputs, _) = outputs.map_err(|e| Error::Training(e.to_string()))?;
            for output in outputs {
                let grads = output.output.grads.to_device(&main, model);
                sum.add(model, grads, &output.output.item);
            }
        }
        sum.finish()
    }
}

/// The batches of one device in the form that Burn reads.
struct Batches<'a, B> {
    batches: Prefetch<'a, B>,
    failure: Option<Error>,
}

impl<B: Send + 'static> Iterator for &mut Batches<'_, B> {
    type Item = Result<B, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.batches.next() {
            Ok(batch) => Some(Ok(batch)),
            Err(error) => {
                let told = Error::Training(error.to_string());
                self.failure = Some(error);
                Some(Err(DatasetError::new(told)))
            }
        }
    }
}

impl<B: Send + 'static> DataLoaderIterator<B> for &mut Batches<'_, B> {
    /// The trainer counts itself.
    fn progress(&self) -> Progress {
        Progress::new(0, 0, None)
    }
}

/// Gradients and values, summed.
struct Sum<M> {
    grads: GradientsAccumulator<M>,
    values: Values,
    device: Device,
    precision: Precision,
}

impl<M: Module> Sum<M> {
    fn new(device: Device, precision: Precision) -> Self {
        Self { grads: GradientsAccumulator::new(), values: Values::default(), device, precision }
    }

    fn add(&mut self, model: &M, grads: GradientsParams, item: &impl LossOutput) {
        self.values.add(item, &self.device);
        self.grads.accumulate(model, self.precision.widen(grads, model));
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
