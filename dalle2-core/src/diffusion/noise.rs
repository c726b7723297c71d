//! Where the random numbers of a generation come from: seeds, or a recording.
//!
//! Noise is drawn on the host, so the same seed gives the same numbers on every device.

use std::collections::VecDeque;

use burn::prelude::*;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use rand_distr::{Distribution, StandardNormal};

use crate::{Error, Result};

/// A source of standard normal numbers. Samplers draw one array per step from it.
pub trait NoiseSource {
    /// Standard normal values of an array of this shape, row-major; `shape[0]` is the batch.
    ///
    /// # Errors
    /// When the source cannot give an array of this shape.
    fn normal(&mut self, shape: &[usize]) -> Result<Vec<f32>>;
}

/// Draws a tensor from a source.
///
/// # Errors
/// When the source cannot give this shape, or gives another number of values.
pub fn draw<const D: usize>(source: &mut dyn NoiseSource, shape: [usize; D], device: &Device) -> Result<Tensor<D>> {
    let values = source.normal(&shape)?;
    if values.len() != shape.iter().product::<usize>() {
        return Err(Error::Input(format!("the noise source gave {} values for shape {shape:?}", values.len())));
    }
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

/// Noise from seeds, one independent stream per batch item: item i of a batch gets the numbers that its seed alone
/// would give, whatever the other items are.
#[derive(Debug, Clone)]
pub struct SeededNoise {
    items: Vec<ChaCha8Rng>,
}

impl SeededNoise {
    /// One seed per batch item. Different values of `stream` (say, one per stage of a pipeline) give independent
    /// numbers for the same seeds.
    pub fn new(seeds: &[u64], stream: u64) -> Self {
        let item = |seed: &u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(*seed);
            rng.set_stream(stream);
            rng
        };
        Self { items: seeds.iter().map(item).collect() }
    }

    /// Seeds for `count` items derived from one: `seed`, `seed + 1`, …
    pub fn consecutive(seed: u64, count: usize, stream: u64) -> Self {
        let seeds: Vec<u64> = (0..count as u64).map(|i| seed.wrapping_add(i)).collect();
        Self::new(&seeds, stream)
    }
}

impl NoiseSource for SeededNoise {
    /// A batch of k·n rows for n seeds gives k consecutive rows to each seed.
    fn normal(&mut self, shape: &[usize]) -> Result<Vec<f32>> {
        let (batch, items) = (shape.first().copied().unwrap_or(0), self.items.len());
        if items == 0 || batch == 0 || !batch.is_multiple_of(items) {
            let message =
                format!("noise of shape {shape:?} for {items} seeds: the batch must be a multiple of the seeds");
            return Err(Error::Input(message));
        }
        let per_item = shape.iter().product::<usize>() / items;
        Ok(self.items.iter_mut().flat_map(|rng| standard_normal(rng, per_item)).collect())
    }
}

/// Independent standard normal values.
pub fn standard_normal(rng: &mut impl Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| StandardNormal.sample(rng)).collect()
}

/// Noise that was recorded elsewhere, replayed in order: for comparison with another implementation.
#[derive(Debug, Clone, Default)]
pub struct RecordedNoise {
    queue: VecDeque<(Vec<usize>, Vec<f32>)>,
    drawn: usize,
}

impl RecordedNoise {
    /// An empty recording.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an array.
    ///
    /// # Errors
    /// When the number of values does not fit the shape.
    pub fn push(&mut self, shape: &[usize], values: Vec<f32>) -> Result<()> {
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::Input(format!("recorded noise of shape {shape:?} has {} values", values.len())));
        }
        self.queue.push_back((shape.to_vec(), values));
        Ok(())
    }

    /// Number of arrays that have not been drawn yet.
    pub fn remaining(&self) -> usize {
        self.queue.len()
    }
}

impl NoiseSource for RecordedNoise {
    fn normal(&mut self, shape: &[usize]) -> Result<Vec<f32>> {
        let position = self.drawn;
        match self.queue.front() {
            None => {
                return Err(Error::Input(format!(
                    "recorded noise ends after {position} arrays; one more of shape {shape:?} was asked for"
                )));
            }
            Some((found, _)) if found != shape => {
                return Err(Error::Input(format!(
                    "recorded noise {position} has shape {found:?}, the sampler asked for {shape:?}"
                )));
            }
            Some(_) => self.drawn += 1,
        }
        Ok(self.queue.pop_front().map(|(_, values)| values).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_of_a_batch_equals_its_seed_alone() {
        let mut batch = SeededNoise::new(&[7, 8, 9], 2);
        let mut alone = SeededNoise::new(&[8], 2);
        for _ in 0..3 {
            let all = batch.normal(&[3, 2, 5]).unwrap();
            assert_eq!(all[10..20], alone.normal(&[1, 2, 5]).unwrap());
        }
        let mut twice = SeededNoise::new(&[7, 8, 9], 2);
        let mut alone = SeededNoise::new(&[8], 2);
        assert_eq!(twice.normal(&[6, 4]).unwrap()[8..16], alone.normal(&[2, 4]).unwrap());
    }

    #[test]
    fn seeds_and_streams_are_independent() {
        let first = |seed, stream| SeededNoise::new(&[seed], stream).normal(&[1, 8]).unwrap();
        assert_eq!(first(1, 0), first(1, 0));
        assert_ne!(first(1, 0), first(2, 0));
        assert_ne!(first(1, 0), first(1, 1));
        let mut consecutive = SeededNoise::consecutive(4, 2, 0);
        assert_eq!(consecutive.normal(&[2, 8]).unwrap()[8..], first(5, 0));
    }

    #[test]
    fn values_are_standard_normal() {
        let values = SeededNoise::new(&[0], 0).normal(&[1, 100_000]).unwrap();
        let n = values.len() as f64;
        let moment = |k: i32| values.iter().map(|v| (*v as f64).powi(k)).sum::<f64>() / n;
        // Five standard errors of each moment.
        assert!(moment(1).abs() < 5.0 / n.sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }

    #[test]
    fn a_batch_that_does_not_fit_the_seeds_is_an_error() {
        let message = SeededNoise::new(&[1, 2], 0).normal(&[3, 4]).unwrap_err().to_string();
        assert!(message.contains("[3, 4]") && message.contains("2 seeds"), "{message}");
    }

    #[test]
    fn recordings_replay_in_order_and_name_what_does_not_fit() {
        let device = Device::flex();
        let mut noise = RecordedNoise::new();
        noise.push(&[1, 2], vec![0.5, -1.5]).unwrap();
        noise.push(&[1, 3], vec![0.0; 3]).unwrap();
        assert!(noise.push(&[2, 2], vec![0.0; 3]).is_err());
        let first = draw(&mut noise, [1, 2], &device).unwrap();
        assert_eq!(first.into_data().try_to_vec::<f32>().unwrap(), [0.5, -1.5]);
        assert_eq!(noise.remaining(), 1);
        let message = draw(&mut noise, [1, 2], &device).unwrap_err().to_string();
        assert!(message.contains("[1, 3]") && message.contains("[1, 2]"), "{message}");
        draw(&mut noise, [1, 3], &device).unwrap();
        assert!(draw(&mut noise, [1, 2], &device).unwrap_err().to_string().contains("ends after 2"));
    }
}
