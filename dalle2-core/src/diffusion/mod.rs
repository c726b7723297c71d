//! Noise schedules, prediction types, guidance, samplers and noise sources, for embeddings and pixels alike.
//!
//! A network is trained with [`NoiseSchedule::q_sample`] and [`PredictionType::target`]; data are drawn with [`sample`]
//! along a [`SamplingPlan`]. Tables are computed in `f64`; random numbers come from a [`NoiseSource`].
//!
//! # Notation
//! | symbol | name in the code | meaning |
//! |---|---|---|
//! | T | `num_steps` | number of training timesteps, usually 1000 |
//! | t | `t` | timestep, 0 (almost clean) to T − 1 (almost pure noise) |
//! | p | `…_prev` | the timestep visited after t; past the last one the data are clean |
//! | x_0 | `x_start` | clean data |
//! | x_t | `x_t` | √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε |
//! | ε | `eps`, `noise` | standard normal noise |
//! | v | `v` | velocity √ᾱ_t·ε − √(1 − ᾱ_t)·x_0; also, after the papers, the output of a learned variance |
//! | β_t | `betas` | share of noise that is added at t |
//! | ᾱ_t | `alphas_cumprod` | Π (1 − β) up to and including t: share of the clean data's variance |
//! | β̃_t | `posterior.variance` | variance of q(x_p given x_t and x_0) |
//! | η | `eta` | noisiness of DDIM |
//! | SNR | `snr` | ᾱ_t / (1 − ᾱ_t) |
//! | λ | `log_snr` | log(√ᾱ_t/√(1 − ᾱ_t)), half of log SNR |
//! | V_t | `AnalyticVariance` | mean square of what the network's estimate of x_0 misses |
//!
//! # Example
//! ```
//! use burn::prelude::*;
//! use dalle2_core::diffusion::*;
//!
//! # fn main() -> dalle2_core::Result<()> {
//! let device = Device::flex();
//! let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 1000)?;
//! let plan = SamplingPlan::new(&schedule, 25)?;
//! let options = SamplerOptions {
//!     prediction: PredictionType::XStart,
//!     variance: VarianceType::FixedSmall,
//!     sampler: Sampler::Ddim { eta: 0.0 },
//!     clip: Clip::Range(1.0),
//! };
//! let mut noise = SeededNoise::new(&[7], 0);
//! let x_t = draw(&mut noise, [1, 4], &device)?;
//! // A network that always answers "all ones".
//! let mut denoise = |x_t: Tensor<2>, _t: usize| Ok(x_t.ones_like().into());
//! let x = sample(&plan, &options, x_t, &mut denoise, &mut noise, &mut |_, _, _| Ok(()))?;
//! assert_eq!(x.into_data().try_to_vec::<f32>().unwrap(), [1.0; 4]);
//! # Ok(())
//! # }
//! ```

mod analytic;
mod config;
mod guidance;
mod inversion;
mod loss;
mod noise;
mod plan;
mod prediction;
mod repaint;
mod sampler;
mod schedule;
mod spacing;
mod variance;

pub use analytic::{AnalyticEstimator, AnalyticVariance};
pub use config::{DiffusionConfig, stratified_timesteps};
pub use guidance::{GuidanceInterval, guide, guide_halves};
pub use inversion::{InversionOptions, invert};
pub use loss::{LossWeight, item_mse, learned_range_vlb};
pub use noise::{NoiseSource, RecordedNoise, SeededNoise, draw, standard_normal};
pub use plan::{PlanStep, SamplingPlan};
pub use prediction::PredictionType;
pub use repaint::{Known, Resampling, repaint};
pub use sampler::{Clip, Denoise, OnStep, Prediction, Sampler, SamplerOptions, sample};
pub use schedule::{BetaSchedule, NoiseSchedule, Rounding};
pub use spacing::Spacing;
pub use variance::{PosteriorCoefficients, VarianceType};

use burn::prelude::*;

/// A number per batch item that depends on its timestep, shaped `[B, 1, …]` to broadcast against `like`, on its device
/// and in its precision.
///
/// # Panics
/// When `t` has another length than the batch of `like`.
pub fn coefficients<const D: usize>(t: &[usize], like: &Tensor<D>, value: impl Fn(usize) -> f64) -> Tensor<D> {
    let batch = like.dims()[0];
    assert_eq!(t.len(), batch, "a batch of {batch} needs one timestep for each item, found {}", t.len());
    let mut shape = [1; D];
    shape[0] = batch;
    let values: Vec<f32> = t.iter().map(|t| value(*t) as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), (&like.device(), like.dtype()))
}
