//! Samplers: from noise to data along a [`SamplingPlan`], over a denoising closure.
//!
//! DDPM is ancestral sampling (arXiv 2006.11239, algorithm 2) on the plan's timesteps; DDIM is arXiv 2010.02502,
//! equation 12; DPM-Solver++ is arXiv 2211.01095. They know nothing of networks, conditions or guidance: those live in the closure.

mod dpm_solver;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use self::dpm_solver::History;
use super::variance::FixedVariance;
use super::{NoiseSource, PlanStep, PredictionType, SamplingPlan, VarianceType, draw};
use crate::nn::l2_normalize;
use crate::{ConfigError, Error, Result};

/// How one step leads to the next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// Draws from the posterior, with the variance of [`SamplerOptions::variance`].
    Ddpm,
    /// Deterministic for `eta` 0; at 1 as noisy as DDPM with the small variance.
    Ddim {
        /// Share of the posterior's deviation that is drawn anew at each step, from 0 to 1.
        eta: f64,
    },
    /// DPM-Solver++(2M): deterministic, of second order through the estimate of the step before.
    #[serde(rename = "dpm_solver_2m")]
    DpmSolver2m,
    /// DPM-Solver++(2S): deterministic, of second order through an evaluation within the step. The timesteps of the plan
    /// are taken in pairs, so that a step of the plan is one evaluation of the network here too.
    #[serde(rename = "dpm_solver_2s")]
    DpmSolver2s,
}

/// What is done to the estimate of the clean data before each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Nothing.
    None,
    /// Clamps to ± this value.
    Range(f64),
    /// Clamps each item to ± s and divides by s, where s is this quantile of the item's absolute values, at least 1
    /// (Imagen, arXiv 2205.11487, section 2.3).
    DynamicThreshold {
        /// From 0 to 1, for example 0.995.
        quantile: f64,
    },
    /// Bounds the length of each item of n components by √n. Embeddings scaled to that length
    /// ([`EmbeddingScale::L2`](crate::EmbeddingScale::L2)) lie on the sphere, so their mean given the noise lies in the
    /// ball; this keeps strong guidance from leaving it, as clamping to [−1, 1] does for pixels.
    Ball,
}

impl Clip {
    /// Clips an estimate of the clean data.
    ///
    /// # Shapes
    /// `[B, …]` -> `[B, …]`
    pub fn apply<const D: usize>(self, x_start: Tensor<D>) -> Tensor<D> {
        match self {
            Self::None => x_start,
            Self::Range(range) => x_start.clamp(-range, range),
            Self::Ball => {
                let (shape, batch) = (x_start.dims(), x_start.dims()[0]);
                let count = shape.iter().product::<usize>() / batch;
                clip_to_ball(x_start.reshape([batch, count])).reshape(shape)
            }
            Self::DynamicThreshold { quantile } => {
                let bound = item_quantiles(x_start.clone().abs(), quantile).clamp_min(1.0);
                x_start.min_pair(bound.clone()).max_pair(bound.clone().neg()) / bound
            }
        }
    }
}

/// How to read a network's output and step with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerOptions {
    /// What the network predicts.
    pub prediction: PredictionType,
    /// The variance of DDPM's steps; DDIM has its own.
    pub variance: VarianceType,
    /// The sampler.
    pub sampler: Sampler,
    /// Clipping of the clean data.
    pub clip: Clip,
}

impl SamplerOptions {
    /// Checks the numbers.
    ///
    /// # Errors
    /// When `eta` or a quantile leaves 0 to 1, or a clipping range is not positive and finite.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self.sampler {
            Sampler::Ddim { eta } if !(0.0..=1.0).contains(&eta) => {
                return Err(ConfigError::new("sampler.eta", eta, "must be between 0 and 1"));
            }
            _ => {}
        }
        match self.clip {
            Clip::Range(range) if !(range.is_finite() && range > 0.0) => {
                Err(ConfigError::new("clip.range", range, "must be finite and above 0"))
            }
            Clip::DynamicThreshold { quantile } if !(0.0..=1.0).contains(&quantile) => {
                Err(ConfigError::new("clip.quantile", quantile, "must be between 0 and 1"))
            }
            _ => Ok(()),
        }
    }
}

/// What a denoising network says about x_t.
#[derive(Debug, Clone)]
pub struct Prediction<const D: usize> {
    /// `[B, …]`: noise, clean data or velocity, as [`SamplerOptions::prediction`] says.
    pub output: Tensor<D>,
    /// `[B, …]`: v in [−1, 1] for [`VarianceType::LearnedRange`].
    pub variance: Option<Tensor<D>>,
}

impl<const D: usize> From<Tensor<D>> for Prediction<D> {
    fn from(output: Tensor<D>) -> Self {
        Self { output, variance: None }
    }
}

/// A network as samplers see it: what it says about x_t at timestep t.
pub type Denoise<'a, const D: usize> = &'a mut dyn FnMut(Tensor<D>, usize) -> Result<Prediction<D>>;

/// A callback after each step with the finished steps, their total and the estimate of the clean data `[B, …]`. An error
/// stops the loop.
pub type OnStep<'a, const D: usize> = &'a mut dyn FnMut(usize, usize, &Tensor<D>) -> Result<()>;

/// Turns noise into data.
///
/// One array of x_t's shape is drawn from `noise` in every step that needs one: DDPM's and, for `eta` above 0, DDIM's
/// steps except the last, which gives the clean data. DPM-Solver++ draws nothing. The starting noise is the caller's:
/// see [`draw`].
///
/// # Shapes
/// - x_t and the output: `[B, …]`
///
/// # Errors
/// When the options are out of range, the closure or the noise source fails, a learned or analytic variance is missing,
/// or `on_step` returns an error.
pub fn sample<const D: usize>(
    plan: &SamplingPlan,
    options: &SamplerOptions,
    mut x_t: Tensor<D>,
    denoise: Denoise<'_, D>,
    noise: &mut dyn NoiseSource,
    on_step: OnStep<'_, D>,
) -> Result<Tensor<D>> {
    options.validate()?;
    let mut steps = Steps::new(options);
    for (i, step) in plan.steps().iter().enumerate() {
        let prediction = denoise(x_t.clone(), step.t)?;
        let (next, x_start) = steps.take(step, x_t, prediction, noise)?;
        x_t = next;
        on_step(i + 1, plan.num_steps(), &x_start)?;
    }
    Ok(x_t)
}

/// Takes steps one after the other.
pub(super) struct Steps<'a, const D: usize> {
    options: &'a SamplerOptions,
    history: History<D>,
}

impl<'a, const D: usize> Steps<'a, D> {
    pub fn new(options: &'a SamplerOptions) -> Self {
        Self { options, history: History::default() }
    }

    /// From x_t to x_p. Gives x_p and the estimate of the clean data.
    pub fn take(
        &mut self,
        step: &PlanStep,
        x_t: Tensor<D>,
        prediction: Prediction<D>,
        noise: &mut dyn NoiseSource,
    ) -> Result<(Tensor<D>, Tensor<D>)> {
        let (shape, device, options) = (x_t.dims(), x_t.device(), self.options);
        let Prediction { output, variance } = prediction;
        let x_start = options.prediction.x_start_at(step.alpha_cumprod, output, x_t.clone());
        let x_start = options.clip.apply(x_start);
        let (mean, sigma) = match options.sampler {
            Sampler::Ddpm => (step.posterior.mean(x_start.clone(), x_t), ddpm_sigma(step, options.variance, variance)?),
            Sampler::Ddim { eta } => ddim(step, eta, x_start.clone(), x_t),
            Sampler::DpmSolver2m => (self.history.multistep(step, x_start.clone(), x_t), Sigma::Zero),
            Sampler::DpmSolver2s => (self.history.singlestep(step, x_start.clone(), x_t), Sigma::Zero),
        };
        let next = match sigma {
            Sigma::Zero => mean,
            Sigma::Fixed(sigma) => mean + draw(noise, shape, &device)? * sigma,
            Sigma::Learned(sigma) => mean + draw(noise, shape, &device)? * sigma,
        };
        Ok((next, x_start))
    }
}

/// Deviation of the noise that a step adds.
#[expect(clippy::large_enum_variant, reason = "one value lives per step")]
enum Sigma<const D: usize> {
    Zero,
    Fixed(f64),
    Learned(Tensor<D>),
}

fn ddpm_sigma<const D: usize>(step: &PlanStep, kind: VarianceType, v: Option<Tensor<D>>) -> Result<Sigma<D>> {
    if step.alpha_cumprod_prev == 1.0 {
        return Ok(Sigma::Zero);
    }
    match (kind, v) {
        (VarianceType::FixedSmall, _) => Ok(Sigma::Fixed(step.posterior.fixed_sigma(FixedVariance::Small))),
        (VarianceType::FixedLarge, _) => Ok(Sigma::Fixed(step.posterior.fixed_sigma(FixedVariance::Large))),
        (VarianceType::LearnedRange, Some(v)) => Ok(Sigma::Learned(step.posterior.learned_sigma(v))),
        (VarianceType::LearnedRange, None) => {
            Err(Error::Mismatch("the sampler expects a learned variance, but the network gives none".into()))
        }
        (VarianceType::Analytic, _) => match step.analytic_variance {
            Some(variance) => Ok(Sigma::Fixed(variance.sqrt())),
            None => Err(Error::Mismatch(
                "the sampler expects the analytic variance, but the plan has no table of it".into(),
            )),
        },
    }
}

/// Mean and deviation of x_p given x_t: the noise in x_t is computed from the (clipped) clean data.
fn ddim<const D: usize>(step: &PlanStep, eta: f64, x_start: Tensor<D>, x_t: Tensor<D>) -> (Tensor<D>, Sigma<D>) {
    let (level, previous) = (step.alpha_cumprod, step.alpha_cumprod_prev);
    let sigma = eta * step.posterior.variance.sqrt();
    // √(1−ᾱ_p−σ²) · (x_t − √ᾱ_t·x_0) / √(1−ᾱ_t), as factors of x_t and x_0
    let direction = (1.0 - previous - sigma * sigma).max(0.0).sqrt() / (1.0 - level).sqrt();
    let mean = x_start * (previous.sqrt() - direction * level.sqrt()) + x_t * direction;
    (mean, if sigma > 0.0 { Sigma::Fixed(sigma) } else { Sigma::Zero })
}

/// Scales the rows `[B, N]` that are longer than √N down to that length.
fn clip_to_ball(x: Tensor<2>) -> Tensor<2> {
    let radius = (x.dims()[1] as f64).sqrt();
    let length = x.clone().powi_scalar(2).sum_dim(1).sqrt();
    let outside = length.greater_scalar(radius).expand(x.dims());
    let surface = l2_normalize(x.clone()) * radius;
    x.mask_where(outside, surface)
}

/// Quantile of each batch item, between the two neighbouring values by linear interpolation.
///
/// # Shapes
/// `[B, …]` -> `[B, 1, …]`
fn item_quantiles<const D: usize>(x: Tensor<D>, quantile: f64) -> Tensor<D> {
    let batch = x.dims()[0];
    let count = x.dims().iter().product::<usize>() / batch;
    let sorted = x.reshape([batch, count]).sort(1); // [B, …] -> [B, N]
    let position = quantile * (count - 1) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    let value =
        sorted.clone().narrow(1, low, 1) * (1.0 - position.fract()) + sorted.narrow(1, high, 1) * position.fract();
    let mut shape = [1; D];
    shape[0] = batch;
    value.reshape(shape)
}

#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod tests;
