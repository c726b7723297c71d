//! Samplers against the exact solution for normally distributed data.

use super::super::{AnalyticVariance, BetaSchedule, NoiseSchedule, SeededNoise, Spacing};
use super::*;

const MEAN: f64 = 0.5;
const STD: f64 = 0.4;

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
}

fn options(sampler: Sampler, variance: VarianceType) -> SamplerOptions {
    SamplerOptions { prediction: PredictionType::XStart, variance, sampler, clip: Clip::None }
}

/// Deviation of x_t for data N([`MEAN`], [`STD`]²).
fn total_std(level: f64) -> f64 {
    (level * STD * STD + 1.0 - level).sqrt()
}

/// E[x_0 | x_t] = MEAN + gain·(x_t − √ᾱ·MEAN).
fn gain(level: f64) -> f64 {
    STD * STD * level.sqrt() / total_std(level).powi(2)
}

fn run(schedule: &NoiseSchedule, plan: &SamplingPlan, options: &SamplerOptions, x_t: Tensor<2>) -> Vec<f64> {
    let mut evaluations = 0;
    let mut denoise = |x_t: Tensor<2>, t: usize| {
        evaluations += 1;
        let level = schedule.alphas_cumprod()[t];
        Ok(((x_t - level.sqrt() * MEAN) * gain(level) + MEAN).into())
    };
    let mut noise = SeededNoise::new(&[3], 1);
    let out = sample(plan, options, x_t, &mut denoise, &mut noise, &mut |_, _, _| Ok(()));
    let out = out.unwrap().into_data().try_to_vec::<f32>().unwrap();
    assert_eq!(evaluations, plan.num_steps());
    out.into_iter().map(f64::from).collect()
}

/// Largest error of a generation in `intervals` steps of nearly the same growth of λ, from t = 0.9 T to t = 0.06 T and
/// then to the estimate of the clean data there, which is exact. T is large, so that rounding to timesteps matters little.
fn error(sampler: Sampler, intervals: usize) -> f64 {
    let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 10_000).unwrap();
    let lambda = |t: usize| schedule.snr(t).ln();
    let (first, last) = (9000, 600);
    let target = |i: usize| lambda(first) + (lambda(last) - lambda(first)) * i as f64 / intervals as f64;
    let distance = |t: &usize, i: usize| (lambda(*t) - target(i)).abs();
    let nearest = |i: usize| (last..=first).min_by(|a, b| distance(a, i).total_cmp(&distance(b, i))).unwrap();
    let timesteps: Vec<usize> = (0..=intervals).map(nearest).collect();
    let plan = SamplingPlan::from_timesteps(&schedule, &timesteps).unwrap();

    let z = [-1.5, 0.3, 2.0];
    let (from, to) = (schedule.alphas_cumprod()[first], schedule.alphas_cumprod()[last]);
    let start = z.map(|z| (from.sqrt() * MEAN + total_std(from) * z) as f32);
    let x_t = Tensor::from_floats([start], &Device::flex());
    let found = run(&schedule, &plan, &options(sampler, VarianceType::FixedSmall), x_t);
    // The flow keeps z; the last step gives the mean of the clean data there.
    let exact = |z: f64| MEAN + gain(to) * total_std(to) * z;
    found.iter().zip(z).map(|(x, z)| (x - exact(z)).abs()).fold(0.0, f64::max)
}

#[test]
fn orders_of_convergence_are_one_and_two() {
    for (sampler, order) in
        [(Sampler::Ddim { eta: 0.0 }, 1.0), (Sampler::DpmSolver2m, 2.0), (Sampler::DpmSolver2s, 2.0)]
    {
        let errors = [32, 64, 128].map(|n| error(sampler, n));
        let orders = [(errors[0] / errors[1]).log2(), (errors[1] / errors[2]).log2()];
        println!("{sampler:?}: errors {errors:?}, orders {orders:.2?}");
        assert!(orders.iter().all(|found| (found - order).abs() < 0.15), "{sampler:?}: {errors:?}, {orders:?}");
    }
}

#[test]
fn second_order_is_closer_with_the_same_evaluations() {
    let ddim = error(Sampler::Ddim { eta: 0.0 }, 32);
    for sampler in [Sampler::DpmSolver2m, Sampler::DpmSolver2s] {
        assert!(error(sampler, 32) < ddim / 5.0, "{sampler:?}");
    }
}

#[test]
fn a_step_much_longer_than_the_one_before_is_not_extrapolated() {
    // λ grows by 1 and then by 5: 2M takes the second step as DDIM does, from the estimate there alone.
    let level = |lambda: f64| 1.0 / (1.0 + (-2.0 * lambda).exp());
    let schedule = schedule();
    let nearest = |lambda: f64| {
        let distance = |t: &usize| (schedule.alphas_cumprod()[*t] - level(lambda)).abs();
        (0..1000).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
    };
    let run_with = |timesteps: &[usize], sampler| {
        let plan = SamplingPlan::from_timesteps(&schedule, timesteps).unwrap();
        let x_t = Tensor::from_floats([[1.0, -0.4]], &Device::flex());
        run(&schedule, &plan, &options(sampler, VarianceType::FixedSmall), x_t)
    };
    let long = [nearest(-2.0), nearest(-1.0), nearest(4.0)];
    let difference = |timesteps: &[usize]| {
        let (a, b) = (run_with(timesteps, Sampler::DpmSolver2m), run_with(timesteps, Sampler::Ddim { eta: 0.0 }));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(difference(&long) < 1e-6);
    let even = [nearest(-2.0), nearest(-1.0), nearest(0.0)];
    assert!(difference(&even) > 1e-3);
}

#[test]
fn solvers_give_the_estimate_at_the_end_for_any_number_of_steps() {
    // The last step leads to clean data; pairs that end there and lone timesteps fall back to first order.
    let schedule = schedule();
    for sampler in [Sampler::DpmSolver2m, Sampler::DpmSolver2s] {
        for steps in 1..6 {
            let plan = SamplingPlan::new(&schedule, steps).unwrap();
            let x_t = Tensor::zeros([1, 1], &Device::flex());
            let found = run(&schedule, &plan, &options(sampler, VarianceType::FixedSmall), x_t);
            // z = −√ᾱ·MEAN/std is as good as 0 at T − 1, so the flow ends near the mean.
            assert!(found[0].is_finite() && (found[0] - MEAN).abs() < 0.05, "{sampler:?}, {steps} steps: {found:?}");
        }
    }
}

/// Mean and deviation of 40,000 generations from noise.
fn moments(plan: &SamplingPlan, variance: VarianceType) -> (f64, f64) {
    let start = draw(&mut SeededNoise::new(&[11], 0), [1, 40_000], &Device::flex()).unwrap();
    let values = run(&schedule(), plan, &options(Sampler::Ddpm, variance), start);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

#[test]
fn the_analytic_variance_is_exact_for_a_gaussian_in_few_steps() {
    // Every reverse step of a Gaussian is Gaussian, so its right variance makes ancestral sampling exact. The last step
    // adds no noise: at t = 0 that costs the share of the spread that is left there, under a thousandth.
    let schedule = schedule();
    let spread = |t: usize| {
        let level = schedule.alphas_cumprod()[t];
        STD * STD * (1.0 - level) / total_std(level).powi(2)
    };
    let timesteps: Vec<usize> = (0..1000).collect();
    let values = timesteps.iter().map(|t| spread(*t)).collect();
    let table = AnalyticVariance::new(timesteps, values).unwrap();
    let plan = SamplingPlan::new(&schedule, 6).unwrap().with_analytic_variance(&table);
    let (mean, std) = moments(&plan, VarianceType::Analytic);
    assert!((mean - MEAN).abs() < 0.01 && (std - STD).abs() < 0.01, "mean {mean}, deviation {std}");
    let (_, small) = moments(&plan, VarianceType::FixedSmall);
    let (_, large) = moments(&plan, VarianceType::FixedLarge);
    assert!(small < STD - 0.05 && large > STD + 0.05, "deviations {small} and {large}");
}

#[test]
fn a_plan_without_the_analytic_variance_is_an_error() {
    let plan = Spacing::Even.plan(&schedule(), Some(3)).unwrap();
    let x_t = Tensor::<2>::zeros([1, 1], &Device::flex());
    let mut noise = SeededNoise::new(&[0], 0);
    let options = options(Sampler::Ddpm, VarianceType::Analytic);
    let result = sample(&plan, &options, x_t, &mut |x, _| Ok(x.into()), &mut noise, &mut |_, _, _| Ok(()));
    assert!(matches!(result, Err(Error::Mismatch(message)) if message.contains("table")));
}

#[test]
fn samplers_read_the_forms_on_disk() {
    for (sampler, text) in [
        (Sampler::Ddpm, "\"ddpm\""),
        (Sampler::Ddim { eta: 0.5 }, "{\"ddim\":{\"eta\":0.5}}"),
        (Sampler::DpmSolver2m, "\"dpm_solver_2m\""),
        (Sampler::DpmSolver2s, "\"dpm_solver_2s\""),
    ] {
        assert_eq!(serde_json::to_string(&sampler).unwrap(), text);
        assert_eq!(serde_json::from_str::<Sampler>(text).unwrap(), sampler);
    }
}

/// E[x_0 | x_t] for a mixture of three normal distributions of one component.
fn mixture_mean(level: f64, x_t: f64) -> f64 {
    const MIXTURE: [(f64, f64); 3] = [(-1.0, 0.3), (0.2, 0.4), (1.0, 0.3)]; // means and weights
    const DEVIATION: f64 = 0.05;
    let variance = level * DEVIATION * DEVIATION + 1.0 - level;
    let (mut total, mut sum) = (0.0, 0.0);
    let exponents = MIXTURE.map(|(mean, _)| -0.5 * (x_t - level.sqrt() * mean).powi(2) / variance);
    let largest = exponents.into_iter().fold(f64::NEG_INFINITY, f64::max);
    for ((mean, weight), exponent) in MIXTURE.into_iter().zip(exponents) {
        let weight = weight * (exponent - largest).exp();
        let posterior = mean + level.sqrt() * DEVIATION * DEVIATION / variance * (x_t - level.sqrt() * mean);
        (total, sum) = (total + weight * posterior, sum + weight);
    }
    total / sum
}

/// Samples of the mixture for even quantiles of the starting noise.
fn mixture_samples(plan: &SamplingPlan, schedule: &NoiseSchedule, sampler: Sampler) -> Vec<f64> {
    let start: Vec<f32> = (0..401).map(|i| -2.5 + i as f32 * 0.0125).collect();
    let x_t = Tensor::<2>::from_data(TensorData::new(start, [401, 1]), &Device::flex());
    let mut denoise = |x_t: Tensor<2>, t: usize| {
        let level = schedule.alphas_cumprod()[t];
        let values = x_t.clone().into_data().try_to_vec::<f32>().unwrap();
        let means: Vec<f32> = values.iter().map(|x| mixture_mean(level, f64::from(*x)) as f32).collect();
        Ok(Tensor::from_data(TensorData::new(means, [401, 1]), &x_t.device()).into())
    };
    let options = SamplerOptions { prediction: PredictionType::XStart, ..options(sampler, VarianceType::FixedSmall) };
    let mut noise = SeededNoise::new(&[3], 1);
    let x = sample(plan, &options, x_t, &mut denoise, &mut noise, &mut |_, _, _| Ok(())).unwrap();
    x.into_data().try_to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn singlestep_is_not_worse_than_ddim_with_few_steps() {
    let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap();
    let ddim = Sampler::Ddim { eta: 0.0 };
    let exact = mixture_samples(&SamplingPlan::new(&schedule, 1000).unwrap(), &schedule, Sampler::DpmSolver2m);
    for steps in 4..15 {
        let plan = SamplingPlan::new(&schedule, steps).unwrap();
        let error = |sampler| {
            let errors =
                mixture_samples(&plan, &schedule, sampler).into_iter().zip(&exact).map(|(a, b)| (a - b).powi(2));
            (errors.sum::<f64>() / exact.len() as f64).sqrt()
        };
        let (second, first) = (error(Sampler::DpmSolver2s), error(ddim));
        assert!(second <= first * 1.01, "{steps} steps: {second} against {first} of DDIM");
    }
}
