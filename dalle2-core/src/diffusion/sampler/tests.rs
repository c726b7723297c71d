use super::super::{BetaSchedule, NoiseSchedule, RecordedNoise, SeededNoise};
use super::*;
use burn::tensor::Tolerance;

fn options(sampler: Sampler) -> SamplerOptions {
    SamplerOptions {
        prediction: PredictionType::Epsilon,
        variance: VarianceType::FixedSmall,
        sampler,
        clip: Clip::None,
    }
}

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
}

/// Data distributed as N(mean, std²), for which the best prediction is known in closed form.
struct Gaussian {
    mean: f64,
    std: f64,
}

impl Gaussian {
    /// E[x_0 | x_t], from which ε follows.
    fn eps(&self, level: f64, x_t: Tensor<2>) -> Tensor<2> {
        let gain = self.std.powi(2) * level.sqrt() / (self.std.powi(2) * level + 1.0 - level);
        let x_start = (x_t.clone() - level.sqrt() * self.mean) * gain + self.mean;
        (x_t - x_start * level.sqrt()) / (1.0 - level).sqrt()
    }

    fn sample(&self, options: &SamplerOptions, steps: usize, x_t: Tensor<2>) -> Vec<f32> {
        let schedule = schedule();
        let plan = SamplingPlan::new(&schedule, steps).unwrap();
        let mut noise = SeededNoise::new(&[3], 1);
        let mut denoise = |x_t, t: usize| Ok(self.eps(schedule.alphas_cumprod()[t], x_t).into());
        let out = sample(&plan, options, x_t, &mut denoise, &mut noise, &mut |_, _, _| Ok(()));
        out.unwrap().into_data().try_to_vec::<f32>().unwrap()
    }
}

#[test]
fn ddim_is_exact_for_a_point() {
    let x_t = Tensor::from_floats([[-2.0, 0.1, 1.7]], &Device::flex());
    for steps in [1, 2, 5, 25] {
        for value in (Gaussian { mean: 0.6, std: 0.0 }).sample(&options(Sampler::Ddim { eta: 0.0 }), steps, x_t.clone())
        {
            assert!((value - 0.6).abs() < 1e-3, "{value} after {steps} steps");
        }
    }
}

#[test]
fn ddim_is_exact_for_a_gaussian() {
    // The probability flow carries x_T = √ᾱ_T·μ + √(ᾱ_T·s² + 1 − ᾱ_T)·z to μ + s·z; with all 1,000 timesteps DDIM
    // follows it to a fraction of a percent, and its error falls with the number of steps.
    let data = Gaussian { mean: 0.5, std: 0.4 };
    let level = *schedule().alphas_cumprod().last().unwrap();
    let x_t = |z: f64| level.sqrt() * data.mean + (level * data.std.powi(2) + 1.0 - level).sqrt() * z;
    let z = [-1.5, 0.0, 2.0];
    let start = Tensor::<2>::from_floats([z.map(|z| x_t(z) as f32)], &Device::flex());
    let error = |steps| {
        let found = data.sample(&options(Sampler::Ddim { eta: 0.0 }), steps, start.clone());
        found.iter().zip(z).map(|(x, z)| (*x as f64 - data.mean - data.std * z).abs()).fold(0.0, f64::max)
    };
    let errors = [10, 50, 1000].map(error);
    assert!(errors[0] > errors[1] && errors[1] > errors[2], "{errors:?}");
    assert!(errors[2] < 3e-3, "{errors:?}");
}

#[test]
fn stochastic_samplers_reach_mean_and_spread_of_a_gaussian() {
    let data = Gaussian { mean: -0.3, std: 0.5 };
    let device = Device::flex();
    let start = draw(&mut SeededNoise::new(&[11], 0), [1, 20_000], &device).unwrap();
    let mut large = options(Sampler::Ddpm);
    large.variance = VarianceType::FixedLarge;
    for options in [options(Sampler::Ddpm), large, options(Sampler::Ddim { eta: 1.0 })] {
        let values = data.sample(&options, 200, start.clone());
        let n = values.len() as f64;
        let mean = values.iter().map(|v| *v as f64).sum::<f64>() / n;
        let std = (values.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean - data.mean).abs() < 0.02, "{options:?}: mean {mean}");
        assert!((std - data.std).abs() < 0.02, "{options:?}: deviation {std}");
    }
}

#[test]
fn ddim_with_eta_one_takes_the_posterior_step() {
    let device = Device::flex();
    let schedule = schedule();
    let plan = SamplingPlan::new(&schedule, 5).unwrap();
    let (x_start, x_t) = (Tensor::<1>::from_floats([0.7, -0.2], &device), Tensor::from_floats([-1.0, 0.4], &device));
    for step in &plan.steps()[..4] {
        let (mean, sigma) = ddim(step, 1.0, x_start.clone(), x_t.clone());
        let expected = step.posterior.mean(x_start.clone(), x_t.clone());
        mean.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::rel_abs(1e-5, 1e-6));
        let Sigma::Fixed(sigma) = sigma else { panic!("eta 1 draws noise") };
        assert!((sigma.powi(2) - step.posterior.variance).abs() < 1e-12);
    }
}

#[test]
fn the_last_step_returns_the_estimate_and_draws_nothing() {
    let device = Device::flex();
    let plan = SamplingPlan::new(&schedule(), 1).unwrap();
    for sampler in [Sampler::Ddpm, Sampler::Ddim { eta: 1.0 }] {
        let options = SamplerOptions { prediction: PredictionType::XStart, ..options(sampler) };
        let mut denoise = |_, _| Ok(Tensor::<2>::from_floats([[0.25, -3.0]], &device).into());
        let x_t = Tensor::from_floats([[5.0, 5.0]], &device);
        let out = sample(&plan, &options, x_t, &mut denoise, &mut RecordedNoise::new(), &mut |_, _, _| Ok(()));
        let expected = TensorData::from([[0.25f32, -3.0]]);
        out.unwrap().into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
    }
}

#[test]
fn progress_counts_up_and_can_break_off() {
    let device = Device::flex();
    let plan = SamplingPlan::new(&schedule(), 6).unwrap();
    let mut seen = Vec::new();
    let mut denoise = |x: Tensor<2>, t: usize| Ok(Prediction { output: x.zeros_like() + t as f64, variance: None });
    let options =
        SamplerOptions { prediction: PredictionType::XStart, clip: Clip::Range(1.0), ..options(Sampler::Ddpm) };
    let result = sample(
        &plan,
        &options,
        Tensor::zeros([1, 1], &device),
        &mut denoise,
        &mut SeededNoise::new(&[0], 0),
        &mut |done, total, x_start| {
            seen.push((done, total, x_start.clone().into_scalar::<f32>()));
            if done == 3 { Err(Error::Cancelled) } else { Ok(()) }
        },
    );
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(seen, [(1, 6, 1.0), (2, 6, 1.0), (3, 6, 1.0)]);
}

#[test]
fn a_missing_learned_variance_is_an_error() {
    let plan = SamplingPlan::new(&schedule(), 2).unwrap();
    let options = SamplerOptions { variance: VarianceType::LearnedRange, ..options(Sampler::Ddpm) };
    let x_t = Tensor::<2>::zeros([1, 1], &Device::flex());
    let mut noise = SeededNoise::new(&[0], 0);
    let result = sample(&plan, &options, x_t, &mut |x, _| Ok(x.into()), &mut noise, &mut |_, _, _| Ok(()));
    assert!(matches!(result, Err(Error::Mismatch(_))));
}

#[test]
fn dynamic_threshold_works_per_item() {
    let device = Device::flex();
    let x = Tensor::<3>::from_floats([[[0.0, 1.0, -2.0, 3.0, -4.0]], [[0.1, -0.2, 0.3, 0.0, 0.5]]], &device);
    // The 0.625 quantile of 0, 1, 2, 3, 4 lies at 2.5; the second item stays because its bound is at least 1.
    let out = Clip::DynamicThreshold { quantile: 0.625 }.apply(x);
    let expected = TensorData::from([[[0.0f32, 0.4, -0.8, 1.0, -1.0]], [[0.1, -0.2, 0.3, 0.0, 0.5]]]);
    out.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
}

#[test]
fn options_out_of_range_are_named() {
    let bad = |sampler, clip| SamplerOptions { clip, ..options(sampler) }.validate().unwrap_err().field;
    assert_eq!(bad(Sampler::Ddim { eta: -0.1 }, Clip::None), "sampler.eta");
    assert_eq!(bad(Sampler::Ddim { eta: f64::NAN }, Clip::None), "sampler.eta");
    assert_eq!(bad(Sampler::Ddpm, Clip::Range(0.0)), "clip.range");
    assert_eq!(bad(Sampler::Ddpm, Clip::DynamicThreshold { quantile: 1.5 }), "clip.quantile");
}

#[test]
fn the_ball_moves_only_items_outside_of_it() {
    let x = Tensor::<2>::from_floats([[3.0, 4.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.5]], &Device::flex());
    let expected = TensorData::from([[1.2f32, 1.6, 0.0, 0.0], [0.0, 1.0, -1.0, 0.5]]);
    let clipped = Clip::Ball.apply(x).into_data();
    clipped.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
}
