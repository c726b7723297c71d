//! DDIM inversion: from data to the noise that DDIM turns into it (arXiv 2010.02502, section 5.4; DALL·E 2, section
//! 3.1).

use burn::prelude::*;

use super::{Clip, Denoise, OnStep, PredictionType, SamplingPlan};
use crate::{ConfigError, Result};

/// Most evaluations per step.
const MAX_EVALUATIONS: usize = 100;
/// About the variance of data in [−1, 1]; only the speed of convergence depends on it.
const DATA_VARIANCE: f64 = 0.25;

/// How to read a network's output, and how exactly its steps are inverted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InversionOptions {
    /// What the network predicts.
    pub prediction: PredictionType,
    /// What the sampler does to its estimates of the clean data.
    pub clip: Clip,
    /// Evaluations of the network per step. A step of DDIM from x_t to x_p takes the noise that the network sees in x_t,
    /// which is not known yet: the first evaluation takes x_p in its place, as the paper does. Each further one looks at
    /// what the one before gave, and converges to the exact inverse of the step (as Pan et al. 2023, arXiv 2309.04907, do by
    /// plain fixed-point iteration).
    pub evaluations: usize,
}

impl InversionOptions {
    /// Checks the number of evaluations.
    ///
    /// # Errors
    /// When it is not between 1 and 100.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match (1..=MAX_EVALUATIONS).contains(&self.evaluations) {
            true => Ok(()),
            false => {
                let expected = format!("must be between 1 and {MAX_EVALUATIONS}");
                Err(ConfigError::new("evaluations", self.evaluations, expected))
            }
        }
    }
}

/// Turns data into the noise from which DDIM with η = 0 on the same plan makes them again.
///
/// `on_step` is called after every evaluation of the network; it may stop the inversion.
///
/// # Shapes
/// - `x_start` and the output: `[B, …]`
///
/// # Errors
/// When the options are out of range, the closure fails, or `on_step` returns an error.
pub fn invert<const D: usize>(
    plan: &SamplingPlan,
    options: &InversionOptions,
    x_start: Tensor<D>,
    denoise: Denoise<'_, D>,
    on_step: OnStep<'_, D>,
) -> Result<Tensor<D>> {
    options.validate()?;
    let total = plan.num_steps() * options.evaluations;
    let mut done = 0;
    let mut x_p = x_start;
    for step in plan.steps().iter().rev() {
        let (level, previous) = (step.alpha_cumprod, step.alpha_cumprod_prev);
        let (signal, sigma) = (level.sqrt(), (1.0 - level).sqrt());
        // x_t = √ᾱ_t · (x_p − √(1−ᾱ_p)·ε) / √ᾱ_p + √(1−ᾱ_t)·ε, where ε = (x_t − √ᾱ_t·x_0) / √(1−ᾱ_t)
        let shrink = signal / previous.sqrt();
        let share = 1.0 - shrink * (1.0 - previous).sqrt() / sigma;
        // The right side's derivative by x_t is share · (1 − √ᾱ_t · dx_0/dx_t): a Newton step with what the derivative would
        // be for normally distributed data. Without it the noisiest steps, whose share is near 1, would not converge.
        let slope = share * (1.0 - level * DATA_VARIANCE / (level * DATA_VARIANCE + 1.0 - level));
        let mut x_t = x_p.clone();
        for evaluation in 0..options.evaluations {
            let output = denoise(x_t.clone(), step.t)?.output;
            let x_start = options.clip.apply(options.prediction.x_start_at(level, output, x_t.clone()));
            let right = x_p.clone() * shrink + (x_t.clone() - x_start.clone() * signal) * share;
            x_t = match evaluation {
                0 => right,
                _ => x_t.clone() + (right - x_t) / (1.0 - slope),
            };
            done += 1;
            on_step(done, total, &x_start)?;
        }
        x_p = x_t;
    }
    Ok(x_p)
}

#[cfg(test)]
mod tests {

    use super::super::{BetaSchedule, NoiseSchedule, RecordedNoise, Sampler, SamplerOptions, VarianceType, sample};
    use super::*;
    use crate::Error;

    const MEAN: f64 = 0.4;
    const STD: f64 = 0.3;

    fn schedule() -> NoiseSchedule {
        NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
    }

    /// E[x_0 | x_t] for data distributed as N(MEAN, STD²).
    fn x_start(level: f64, x_t: Tensor<2>) -> Tensor<2> {
        let gain = STD.powi(2) * level.sqrt() / (STD.powi(2) * level + 1.0 - level);
        (x_t - level.sqrt() * MEAN) * gain + MEAN
    }

    fn data() -> Tensor<2> {
        Tensor::from_floats([[-0.3, 0.1, 0.4], [0.55, 0.8, 0.0]], &Device::flex())
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_to_vec().unwrap()
    }

    fn options(evaluations: usize, clip: Clip) -> InversionOptions {
        InversionOptions { prediction: PredictionType::XStart, clip, evaluations }
    }

    fn inverted(steps: usize, options: &InversionOptions) -> Tensor<2> {
        let schedule = schedule();
        let plan = SamplingPlan::new(&schedule, steps).unwrap();
        let mut denoise = |x_t, t: usize| Ok(x_start(schedule.alphas_cumprod()[t], x_t).into());
        invert(&plan, options, data(), &mut denoise, &mut |_, _, _| Ok(())).unwrap()
    }

    /// Largest error of what DDIM makes of the inverted data.
    fn error(steps: usize, options: &InversionOptions) -> f32 {
        let schedule = schedule();
        let plan = SamplingPlan::new(&schedule, steps).unwrap();
        let sampler = SamplerOptions {
            prediction: PredictionType::XStart,
            variance: VarianceType::FixedSmall,
            sampler: Sampler::Ddim { eta: 0.0 },
            clip: options.clip,
        };
        let mut denoise = |x_t, t: usize| Ok(x_start(schedule.alphas_cumprod()[t], x_t).into());
        let x_t = inverted(steps, options);
        let mut go_on = |_: usize, _: usize, _: &Tensor<2>| Ok(());
        let back = sample(&plan, &sampler, x_t, &mut denoise, &mut RecordedNoise::new(), &mut go_on).unwrap();
        values((back - data()).abs()).into_iter().fold(0.0, f32::max)
    }

    #[test]
    fn the_noise_of_gaussian_data_has_its_closed_form() {
        // The flow maps every quantile of the data to the same quantile of x_T.
        let schedule = schedule();
        let level = schedule.alphas_cumprod()[999];
        let spread = (STD.powi(2) * level + 1.0 - level).sqrt();
        for (found, x) in values(inverted(1000, &options(1, Clip::None))).into_iter().zip(values(data())) {
            let expected = (f64::from(x) - MEAN) / STD * spread + level.sqrt() * MEAN;
            assert!((f64::from(found) - expected).abs() < 0.02, "{found} is not {expected}");
        }
    }

    #[test]
    fn more_steps_reconstruct_better() {
        let errors = [10, 40, 160].map(|steps| error(steps, &options(1, Clip::None)));
        assert!(errors[1] < 0.5 * errors[0] && errors[2] < 0.5 * errors[1], "{errors:?}");
        assert!(errors[2] < 0.03, "{errors:?}");
    }

    #[test]
    fn more_evaluations_reconstruct_exactly() {
        for clip in [Clip::None, Clip::Range(0.9)] {
            let errors = [1, 2, 3].map(|evaluations| error(20, &options(evaluations, clip)));
            assert!(errors[1] < 0.1 * errors[0] && errors[2] < 0.2 * errors[1], "{clip:?}: {errors:?}");
        }
        assert!(error(20, &options(8, Clip::None)) < 1e-3);
    }

    #[test]
    fn every_evaluation_is_reported_and_can_be_the_last() {
        let plan = SamplingPlan::new(&schedule(), 4).unwrap();
        let (mut evaluations, mut seen) = (0, Vec::new());
        let mut denoise = |x_t: Tensor<2>, _: usize| {
            evaluations += 1;
            Ok(x_t.into())
        };
        let result = invert(&plan, &options(2, Clip::None), data(), &mut denoise, &mut |done, total, _| {
            seen.push((done, total));
            if done == 5 { Err(Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        assert_eq!((evaluations, seen), (5, (1..=5).map(|done| (done, 8)).collect()));
        for evaluations in [0, 101] {
            assert_eq!(options(evaluations, Clip::None).validate().unwrap_err().field, "evaluations");
        }
    }
}
