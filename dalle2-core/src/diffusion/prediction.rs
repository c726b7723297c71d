//! What a network predicts, and the conversions between noise, clean data and velocity.
//!
//! All three are linear in one another given x_t = √ᾱ·x_0 + √(1−ᾱ)·ε; the velocity is v = √ᾱ·ε − √(1−ᾱ)·x_0
//! (Salimans and Ho 2022, arXiv 2202.00512, appendix D).

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::NoiseSchedule;

/// What the output of a denoising network means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise ε (unCLIP's decoder and upsamplers).
    Epsilon,
    /// The clean data x_0 (unCLIP's diffusion prior).
    XStart,
    /// The velocity v.
    V,
}

impl PredictionType {
    /// What the network should output.
    ///
    /// # Shapes
    /// - x_start, noise and the output: `[B, …]`
    /// - t: B timesteps
    ///
    /// # Panics
    /// When `t` has another length than the batch or leaves the schedule.
    pub fn target<const D: usize>(
        self,
        schedule: &NoiseSchedule,
        x_start: Tensor<D>,
        noise: Tensor<D>,
        t: &[usize],
    ) -> Tensor<D> {
        match self {
            Self::Epsilon => noise,
            Self::XStart => x_start,
            Self::V => {
                let (signal, sigma) = schedule.signal_and_sigma(t, &x_start);
                noise * signal - x_start * sigma
            }
        }
    }

    /// The clean data that an output implies.
    ///
    /// # Shapes
    /// - output, x_t and the result: `[B, …]`
    /// - t: B timesteps
    ///
    /// # Panics
    /// When `t` has another length than the batch or leaves the schedule.
    pub fn x_start<const D: usize>(
        self,
        schedule: &NoiseSchedule,
        output: Tensor<D>,
        x_t: Tensor<D>,
        t: &[usize],
    ) -> Tensor<D> {
        let (signal, sigma) = schedule.signal_and_sigma(t, &x_t);
        match self {
            Self::Epsilon => (x_t - output * sigma) / signal,
            Self::XStart => output,
            Self::V => x_t * signal - output * sigma,
        }
    }

    /// The noise that an output implies.
    ///
    /// # Shapes
    /// - output, x_t and the result: `[B, …]`
    /// - t: B timesteps
    ///
    /// # Panics
    /// When `t` has another length than the batch or leaves the schedule.
    pub fn eps<const D: usize>(
        self,
        schedule: &NoiseSchedule,
        output: Tensor<D>,
        x_t: Tensor<D>,
        t: &[usize],
    ) -> Tensor<D> {
        let (signal, sigma) = schedule.signal_and_sigma(t, &x_t);
        match self {
            Self::Epsilon => output,
            Self::XStart => (x_t - output * signal) / sigma,
            Self::V => x_t * sigma + output * signal,
        }
    }

    /// [`Self::x_start`] where the whole batch is at the level ᾱ, as in a sampler.
    pub(super) fn x_start_at<const D: usize>(self, alpha_cumprod: f64, output: Tensor<D>, x_t: Tensor<D>) -> Tensor<D> {
        let (signal, sigma) = (alpha_cumprod.sqrt(), (1.0 - alpha_cumprod).sqrt());
        match self {
            Self::Epsilon => (x_t - output * sigma) / signal,
            Self::XStart => output,
            Self::V => x_t * signal - output * sigma,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::BetaSchedule;
    use super::*;
    use burn::tensor::Tolerance;

    const TYPES: [PredictionType; 3] = [PredictionType::Epsilon, PredictionType::XStart, PredictionType::V];

    fn data() -> (NoiseSchedule, Tensor<4>, Tensor<4>, [usize; 2]) {
        let device = Device::flex();
        let values = |seed: f32| (0..12).map(|i| (i as f32 * 1.7 + seed).sin()).collect::<Vec<_>>();
        let x_start = Tensor::from_data(TensorData::new(values(0.3), [2, 3, 2, 1]), &device);
        let noise = Tensor::from_data(TensorData::new(values(2.9), [2, 3, 2, 1]), &device);
        (NoiseSchedule::new(BetaSchedule::Cosine, 100).unwrap(), x_start, noise, [11, 60])
    }

    #[test]
    fn the_target_gives_back_data_and_noise() {
        let (schedule, x_start, noise, t) = data();
        let x_t = schedule.q_sample(x_start.clone(), &t, noise.clone());
        for kind in TYPES {
            let target = kind.target(&schedule, x_start.clone(), noise.clone(), &t);
            let x = kind.x_start(&schedule, target.clone(), x_t.clone(), &t);
            let eps = kind.eps(&schedule, target, x_t.clone(), &t);
            x.into_data().assert_approx_eq::<f32>(&x_start.to_data(), Tolerance::rel_abs(1e-4, 1e-5));
            eps.into_data().assert_approx_eq::<f32>(&noise.to_data(), Tolerance::rel_abs(1e-4, 1e-5));
        }
    }

    #[test]
    fn every_pair_of_types_round_trips() {
        let (schedule, x_t, output, t) = data();
        for from in TYPES {
            for to in TYPES {
                let x = from.x_start(&schedule, output.clone(), x_t.clone(), &t);
                let eps = from.eps(&schedule, output.clone(), x_t.clone(), &t);
                let other = to.target(&schedule, x, eps, &t);
                let x = to.x_start(&schedule, other.clone(), x_t.clone(), &t);
                let eps = to.eps(&schedule, other, x_t.clone(), &t);
                let back = from.target(&schedule, x, eps, &t);
                back.into_data().assert_approx_eq::<f32>(&output.to_data(), Tolerance::rel_abs(1e-4, 1e-5));
            }
        }
    }

    #[test]
    fn velocity_has_the_closed_form() {
        let device = Device::flex();
        let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 100).unwrap();
        let level = schedule.alphas_cumprod()[40];
        let (x, noise) = (Tensor::<2>::from_floats([[2.0]], &device), Tensor::from_floats([[-1.0]], &device));
        let v = PredictionType::V.target(&schedule, x, noise, &[40]).into_scalar::<f32>();
        assert!((v as f64 + level.sqrt() + 2.0 * (1.0 - level).sqrt()).abs() < 1e-6);
    }

    #[test]
    fn one_level_for_the_batch_equals_per_item_timesteps() {
        let (schedule, x_t, output, _) = data();
        for kind in TYPES {
            let items = kind.x_start(&schedule, output.clone(), x_t.clone(), &[30, 30]);
            let batch = kind.x_start_at(schedule.alphas_cumprod()[30], output.clone(), x_t.clone());
            batch.into_data().assert_approx_eq::<f32>(&items.into_data(), Tolerance::rel_abs(1e-5, 1e-6));
        }
    }
}
