//! Which timesteps a sampler visits.

use super::{AnalyticVariance, NoiseSchedule, PosteriorCoefficients};
use crate::ConfigError;

/// One step of a [`SamplingPlan`]: from timestep t to the one that the plan visits next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanStep {
    /// The timestep that the network is asked at.
    pub t: usize,
    /// ᾱ at this timestep.
    pub alpha_cumprod: f64,
    /// ᾱ at the timestep that this step leads to; 1 at the last step.
    pub alpha_cumprod_prev: f64,
    /// β recomputed between the two, and the posterior that follows from it.
    pub posterior: PosteriorCoefficients,
    /// Variance of the ancestral step that is best for the data, where the plan knows them.
    pub analytic_variance: Option<f64>,
}

/// The timesteps of a generation, from the noisiest to the cleanest, with every coefficient a sampler needs.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingPlan {
    steps: Vec<PlanStep>,
}

impl SamplingPlan {
    /// `num_steps` timesteps evenly spaced from T − 1 to 0: round(i·(T − 1)/(n − 1)), ties to even, as the published
    /// unCLIP weights are sampled. A single step is taken at T − 1.
    ///
    /// # Errors
    /// When `num_steps` is 0 or above the number of timesteps of the schedule.
    pub fn new(schedule: &NoiseSchedule, num_steps: usize) -> Result<Self, ConfigError> {
        let total = schedule.num_steps();
        if !(1..=total).contains(&num_steps) {
            return Err(ConfigError::new("steps", num_steps, format!("must be between 1 and {total}")));
        }
        let last = (total - 1) as f64;
        if num_steps == 1 {
            return Self::from_timesteps(schedule, &[total - 1]);
        }
        let stride = last / (num_steps - 1) as f64;
        let timesteps: Vec<usize> =
            (0..num_steps).rev().map(|i| (i as f64 * stride).round_ties_even() as usize).collect();
        Self::from_timesteps(schedule, &timesteps)
    }

    /// A list of timesteps of one's own, strictly decreasing. The step after the last one gives the clean data.
    ///
    /// # Errors
    /// When the list is empty, does not decrease strictly, or leaves the schedule.
    pub fn from_timesteps(schedule: &NoiseSchedule, timesteps: &[usize]) -> Result<Self, ConfigError> {
        let total = schedule.num_steps();
        let Some(first) = timesteps.first() else {
            return Err(ConfigError::new("timesteps", "[]", "needs at least one timestep"));
        };
        if *first >= total {
            return Err(ConfigError::new("timesteps", first, format!("must be below {total}")));
        }
        if let Some(pair) = timesteps.windows(2).find(|pair| pair[1] >= pair[0]) {
            return Err(ConfigError::new("timesteps", format!("{pair:?}"), "must decrease strictly"));
        }
        let levels = schedule.alphas_cumprod();
        let step = |(i, t): (usize, &usize)| {
            let alpha_cumprod = levels[*t];
            let alpha_cumprod_prev = timesteps.get(i + 1).map_or(1.0, |prev| levels[*prev]);
            let posterior = PosteriorCoefficients::new(alpha_cumprod, alpha_cumprod_prev);
            PlanStep { t: *t, alpha_cumprod, alpha_cumprod_prev, posterior, analytic_variance: None }
        };
        Ok(Self { steps: timesteps.iter().enumerate().map(step).collect() })
    }

    /// The same steps with coefficients rounded as by the reference implementation, which computes them in `f32`.
    ///
    /// At the noisiest step of a strided plan α is too small for `f32` and becomes 0, and near t = 0 the difference
    /// 1 − ᾱ loses digits, so that the reference's result is 0.05 % darker. Use it to compare with the reference.
    pub fn in_single_precision(mut self) -> Self {
        for i in 0..self.steps.len() {
            let next = self.steps.get(i + 1).map(|step| step.t);
            let step = &mut self.steps[i];
            let adjacent = next.map_or(step.t == 0, |next| next + 1 == step.t);
            let beta = adjacent.then_some(step.posterior.beta);
            step.posterior = PosteriorCoefficients::rounded(step.alpha_cumprod, step.alpha_cumprod_prev, beta);
        }
        self
    }

    /// The same steps with the variances that are best for the data that `table` was measured on, for
    /// [`VarianceType::Analytic`](super::VarianceType::Analytic).
    pub fn with_analytic_variance(mut self, table: &AnalyticVariance) -> Self {
        for step in &mut self.steps {
            let spread = step.posterior.x_start.powi(2) * table.at(step.t);
            step.analytic_variance = Some(step.posterior.variance + spread);
        }
        self
    }

    /// The steps in the order in which they are taken.
    pub fn steps(&self) -> &[PlanStep] {
        &self.steps
    }

    /// The timesteps in the order in which they are visited, so that what depends on them can be computed once.
    pub fn timesteps(&self) -> Vec<usize> {
        self.steps.iter().map(|step| step.t).collect()
    }

    /// Number of steps, at least 1.
    pub fn num_steps(&self) -> usize {
        self.steps.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::BetaSchedule;
    use super::*;

    fn schedule() -> NoiseSchedule {
        NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
    }

    #[test]
    fn timesteps_are_even_with_ties_to_even() {
        let timesteps = |n| SamplingPlan::new(&schedule(), n).unwrap().timesteps();
        assert_eq!(timesteps(7), [999, 832, 666, 500, 333, 166, 0]); // 832.5, 499.5 and 166.5 are ties
        assert_eq!(timesteps(2), [999, 0]);
        assert_eq!(timesteps(1), [999]);
        assert_eq!(timesteps(1000), (0..1000).rev().collect::<Vec<_>>());
    }

    #[test]
    fn adjacent_timesteps_recover_the_betas_of_the_schedule() {
        let schedule = schedule();
        for step in SamplingPlan::new(&schedule, 1000).unwrap().steps() {
            let beta = schedule.betas()[step.t];
            assert!((step.posterior.beta - beta).abs() < 1e-10, "beta {beta} at {}", step.t);
            assert_eq!(step.posterior, schedule.posterior(step.t));
        }
    }

    #[test]
    fn levels_chain_and_end_clean() {
        let plan = SamplingPlan::new(&schedule(), 25).unwrap();
        assert!(plan.steps().windows(2).all(|pair| pair[0].alpha_cumprod_prev == pair[1].alpha_cumprod));
        assert_eq!(plan.steps()[24].alpha_cumprod_prev, 1.0);
        assert_eq!(plan.num_steps(), 25);
    }

    #[test]
    fn single_precision_changes_the_third_digit_at_most() {
        let exact = SamplingPlan::new(&schedule(), 25).unwrap();
        let rounded = exact.clone().in_single_precision();
        for (a, b) in exact.steps().iter().zip(rounded.steps()) {
            let (a, b) = (a.posterior, b.posterior);
            for (a, b) in [(a.x_start, b.x_start), (a.x_t, b.x_t), (a.variance, b.variance), (a.beta, b.beta)] {
                assert!((a - b).abs() < 1e-3, "{a} became {b}");
            }
        }
        assert_ne!(exact, rounded);
    }

    #[test]
    fn unusable_plans_are_refused() {
        let schedule = schedule();
        assert_eq!(SamplingPlan::new(&schedule, 0).unwrap_err().field, "steps");
        assert!(SamplingPlan::new(&schedule, 1001).unwrap_err().to_string().contains("between 1 and 1000"));
        for timesteps in [vec![], vec![1000, 0], vec![5, 5], vec![3, 7]] {
            assert_eq!(SamplingPlan::from_timesteps(&schedule, &timesteps).unwrap_err().field, "timesteps");
        }
    }
}
