//! The numbers that a step reports, on their way from the device.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::{FloatDType, Transaction};

use super::StepOutput;
use dalle2_core::{Error, Result};

/// Loss and metrics, summed over the batches of a step on the device and read once.
#[derive(Default)]
pub(super) struct Values {
    loss: Option<Tensor<1>>,
    metrics: BTreeMap<&'static str, Tensor<1>>,
}

impl Values {
    /// Adds the values of one batch; the sums are on `device`.
    pub(super) fn add(&mut self, output: &StepOutput, device: &Device) {
        let plain = |value: Tensor<1>| value.without_autodiff().mean().cast(FloatDType::F32).to_device(device);
        let loss = plain(output.loss.clone());
        self.loss = Some(match self.loss.take() {
            Some(sum) => sum + loss,
            None => loss,
        });
        for (name, value) in &output.metrics {
            let value = plain(value.clone());
            let sum = match self.metrics.remove(name) {
                Some(sum) => sum + value,
                None => value,
            };
            self.metrics.insert(name, sum);
        }
    }

    /// Loss and metrics, each times `share`.
    pub(super) fn read(self, share: f64) -> Result<(f64, Vec<(String, f64)>)> {
        let mut transaction = Transaction::default();
        let names: Vec<&'static str> = self.metrics.keys().copied().collect();
        for tensor in self.loss.into_iter().chain(self.metrics.into_values()) {
            transaction = transaction.register(tensor);
        }
        let data = transaction.try_execute().map_err(|e| Error::Device(e.to_string()))?;
        let mut numbers = data.into_iter().map(|data| -> Result<f64> {
            let values = data.try_to_vec::<f32>().map_err(|e| Error::Device(e.to_string()))?;
            Ok(values.first().map_or(f64::NAN, |v| f64::from(*v)) * share)
        });
        let loss = numbers.next().unwrap_or(Ok(f64::NAN))?;
        let metrics = names.into_iter().zip(numbers).map(|(name, number)| Ok((name.to_string(), number?)));
        Ok((loss, metrics.collect::<Result<_>>()?))
    }
}

/// JSON cannot represent others.
pub(super) fn finite(numbers: Vec<(String, f64)>) -> BTreeMap<String, f64> {
    numbers.into_iter().filter(|(_, value)| value.is_finite()).collect()
}
