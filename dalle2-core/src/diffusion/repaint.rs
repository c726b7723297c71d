//! Inpainting with a network that was not trained for it: RePaint (Lugmayr et al. 2022, arXiv 2201.09865).
//!
//! After every step the known part is replaced by the known data at that noise level. What is drawn around it fits it
//! poorly at first, because the step did not know the known part of its own result; so stretches of the way are noised
//! again and repeated, and the parts grow together.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::sampler::Steps;
use super::{Denoise, NoiseSource, OnStep, Sampler, SamplerOptions, SamplingPlan, draw};
use crate::{ConfigError, Result};

/// Data of which a part is given.
#[derive(Debug, Clone)]
pub struct Known<const D: usize> {
    /// The data `[B or 1, …]`; what they hold outside the known part does not matter.
    pub x_start: Tensor<D>,
    /// 1 where the data are known and 0 elsewhere, broadcasting against the data.
    pub keep: Tensor<D>,
}

impl<const D: usize> Known<D> {
    /// `x` with the known part replaced by that of `known`.
    ///
    /// # Shapes
    /// `[B, …]` -> `[B, …]`
    pub fn replace(&self, x: Tensor<D>, known: Tensor<D>) -> Tensor<D> {
        let keep = self.keep.clone().expand(x.dims()).greater_scalar(0.5);
        let known = known.expand(x.dims());
        // By choice, not by sum, so that known values come back bit for bit.
        x.mask_where(keep, known)
    }
}

/// How often stretches of the way are repeated (algorithm 1 and appendix B there).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resampling {
    /// How often each stretch is gone through, at least 1; 1 repeats nothing.
    pub rounds: usize,
    /// Steps of a stretch, at least 1.
    pub jump: usize,
}

impl Default for Resampling {
    /// The paper's, 10 rounds of 10 steps, is for plans of 250 steps; this one is for some dozens.
    fn default() -> Self {
        Self { rounds: 4, jump: 3 }
    }
}

/// One move of a resampled generation over the steps of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// Takes this step.
    Denoise(usize),
    /// Adds noise until this step is the next to be taken.
    Renoise { from: usize, to: usize },
}

impl Resampling {
    /// Checks the numbers.
    ///
    /// # Errors
    /// When one of them is 0.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [("resampling.rounds", self.rounds), ("resampling.jump", self.jump)] {
            if value == 0 {
                return Err(ConfigError::new(field, value, "must be at least 1"));
            }
        }
        Ok(())
    }

    /// How often the network is asked in a plan of `num_steps` steps.
    pub fn evaluations(&self, num_steps: usize) -> usize {
        self.moves(num_steps).iter().filter(|m| matches!(m, Move::Denoise(_))).count()
    }

    /// The moves: whenever the steps that remain are a multiple of `jump`, back by `jump` steps, `rounds − 1` times.
    fn moves(&self, num_steps: usize) -> Vec<Move> {
        let jumps_at =
            |next: usize| next >= self.jump && next < num_steps && (num_steps - next).is_multiple_of(self.jump);
        let mut left: Vec<usize> =
            (0..num_steps).map(|next| if jumps_at(next) { self.rounds - 1 } else { 0 }).collect();
        let mut moves = Vec::new();
        let mut next = 0;
        while next < num_steps {
            moves.push(Move::Denoise(next));
            next += 1;
            if next < num_steps && left[next] > 0 {
                left[next] -= 1;
                moves.push(Move::Renoise { from: next, to: next - self.jump });
                next -= self.jump;
            }
        }
        moves
    }
}

/// Turns noise into data of which a part is given; the known part comes back bit for bit.
///
/// As [`sample`](super::sample), and from `noise` one array for the known part after every step but the last, and one
/// for every jump back. `on_step` sees estimates with the known part in place.
///
/// # Shapes
/// - x_t and the output: `[B, …]`
///
/// # Errors
/// As [`sample`](super::sample), and when a number of `resampling` is 0 or the sampler is DPM-Solver++, whose steps build
/// on one another and do not survive that the data are changed between them.
pub fn repaint<const D: usize>(
    plan: &SamplingPlan,
    options: &SamplerOptions,
    (known, resampling): (&Known<D>, Resampling),
    mut x_t: Tensor<D>,
    denoise: Denoise<'_, D>,
    noise: &mut dyn NoiseSource,
    on_step: OnStep<'_, D>,
) -> Result<Tensor<D>> {
    options.validate()?;
    resampling.validate()?;
    if matches!(options.sampler, Sampler::DpmSolver2m | Sampler::DpmSolver2s) {
        let expected = "must be ddpm or ddim where a known part replaces what is drawn after every step";
        return Err(ConfigError::new("sampler", format!("{:?}", options.sampler), expected).into());
    }
    let (shape, device) = (x_t.dims(), x_t.device());
    let (moves, steps) = (resampling.moves(plan.num_steps()), plan.steps());
    let total = resampling.evaluations(plan.num_steps());
    let mut stepper = Steps::new(options);
    let mut done = 0;
    for action in moves {
        match action {
            Move::Denoise(i) => {
                let step = &steps[i];
                let prediction = denoise(x_t.clone(), step.t)?;
                let (next, x_start) = stepper.take(step, x_t, prediction, noise)?;
                let level = step.alpha_cumprod_prev;
                let part = known.x_start.clone().expand(shape);
                let part = match level < 1.0 {
                    true => part * level.sqrt() + draw(noise, shape, &device)? * (1.0 - level).sqrt(),
                    false => part,
                };
                x_t = known.replace(next, part);
                done += 1;
                on_step(done, total, &known.replace(x_start, known.x_start.clone()))?;
            }
            Move::Renoise { from, to } => {
                let ratio = steps[to].alpha_cumprod / steps[from].alpha_cumprod;
                x_t = x_t * ratio.sqrt() + draw(noise, shape, &device)? * (1.0 - ratio).sqrt();
            }
        }
    }
    Ok(x_t)
}

#[cfg(test)]
mod tests {

    use super::super::{BetaSchedule, Clip, NoiseSchedule, PredictionType, SeededNoise, VarianceType};
    use super::*;

    fn schedule() -> NoiseSchedule {
        NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
    }

    fn options(sampler: Sampler) -> SamplerOptions {
        SamplerOptions {
            prediction: PredictionType::XStart,
            variance: VarianceType::FixedSmall,
            sampler,
            clip: Clip::None,
        }
    }

    #[test]
    fn without_repetition_every_step_is_taken_once() {
        let moves = Resampling { rounds: 1, jump: 2 }.moves(5);
        assert_eq!(moves, (0..5).map(Move::Denoise).collect::<Vec<_>>());
    }

    #[test]
    fn stretches_are_repeated_and_every_move_starts_where_the_last_one_ended() {
        use Move::Denoise as D;
        let moves = Resampling { rounds: 2, jump: 2 }.moves(5);
        assert_eq!(moves, [D(0), D(1), D(2), Move::Renoise { from: 3, to: 1 }, D(1), D(2), D(3), D(4)]);
        for (rounds, jump, n) in [(3, 1, 4), (2, 3, 10), (4, 3, 25), (2, 20, 10)] {
            let resampling = Resampling { rounds, jump };
            let mut position = 0;
            for action in resampling.moves(n) {
                position = match action {
                    Move::Denoise(i) => {
                        assert_eq!(i, position);
                        i + 1
                    }
                    Move::Renoise { from, to } => {
                        assert_eq!((from, from - to), (position, jump));
                        to
                    }
                };
            }
            assert_eq!(position, n);
            let stretches = (1..n).filter(|next| *next >= jump && (n - next).is_multiple_of(jump)).count();
            assert_eq!(resampling.evaluations(n), n + stretches * (rounds - 1) * jump);
        }
    }

    /// Two values with deviation 1 and correlation `RHO`: given the first, the second has mean RHO·first and variance
    /// 1 − RHO².
    const RHO: f64 = 0.8;

    /// E[x_0 | x_t] for such pairs, `[B, 2]`: Σ√ᾱ(ᾱΣ + (1−ᾱ)I)⁻¹ x_t.
    fn pair_mean(level: f64, x_t: Tensor<2>) -> Tensor<2> {
        // Σ has the eigenvectors (1, ±1)/√2 with eigenvalues 1 ± RHO.
        let gain = |eigen: f64| level.sqrt() * eigen / (level * eigen + 1.0 - level);
        let (a, b) = (gain(1.0 + RHO), gain(1.0 - RHO));
        let matrix = Tensor::<2>::from_floats(
            [[(a + b) / 2.0, (a - b) / 2.0], [(a - b) / 2.0, (a + b) / 2.0]].map(|row| row.map(|v| v as f32)),
            &x_t.device(),
        );
        x_t.matmul(matrix)
    }

    /// Draws the second value of 20,000 pairs whose first one is 1.5. Gives mean and deviation.
    fn second_value(resampling: Resampling) -> (f64, f64) {
        let (schedule, device) = (schedule(), Device::flex());
        let plan = SamplingPlan::new(&schedule, 30).unwrap();
        let n = 20_000;
        let known = Known {
            x_start: Tensor::from_floats([[1.5, 0.0]], &device),
            keep: Tensor::from_floats([[1.0, 0.0]], &device),
        };
        let mut noise = SeededNoise::new(&[4], 0);
        let x_t = draw(&mut noise, [n, 2], &device).unwrap();
        let mut denoise = |x_t, t: usize| Ok(pair_mean(schedule.alphas_cumprod()[t], x_t).into());
        let out = repaint(
            &plan,
            &options(Sampler::Ddpm),
            (&known, resampling),
            x_t,
            &mut denoise,
            &mut noise,
            &mut |_, _, _| Ok(()),
        );
        let values = out.unwrap();
        let first = values.clone().slice_dim(1, 0..1).into_data().try_to_vec::<f32>().unwrap();
        assert!(first.iter().all(|v| *v == 1.5), "the known value must come back bit for bit");
        let second = values.slice_dim(1, 1..2).into_data().try_to_vec::<f32>().unwrap();
        let mean = second.iter().map(|v| *v as f64).sum::<f64>() / n as f64;
        (mean, (second.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / n as f64).sqrt())
    }

    #[test]
    fn resampling_brings_what_is_drawn_into_line_with_what_is_known() {
        let right = (RHO * 1.5, (1.0 - RHO * RHO).sqrt());
        let once = second_value(Resampling { rounds: 1, jump: 1 });
        let resampled = second_value(Resampling { rounds: 8, jump: 3 });
        let off = |found: (f64, f64)| (found.0 - right.0).abs();
        assert!(off(once) > 0.1, "one pass takes up too little of the known value: {once:?}, right is {right:?}");
        assert!(off(resampled) < 0.5 * off(once), "{once:?} -> {resampled:?}, right is {right:?}");
        assert!((resampled.1 - right.1).abs() < 0.15, "{resampled:?}, right is {right:?}");
    }

    #[test]
    fn everything_known_and_nothing_known_are_the_limits() {
        let (schedule, device) = (schedule(), Device::flex());
        let plan = SamplingPlan::new(&schedule, 6).unwrap();
        let data = Tensor::<2>::from_floats([[0.3, -0.7, 0.25]], &device);
        let run = |keep: f32| {
            let known = Known { x_start: data.clone(), keep: Tensor::full([1, 1], keep, &device) };
            let mut denoise = |x: Tensor<2>, _| Ok((x * 0.5).into());
            let mut noise = SeededNoise::new(&[1], 0);
            let options = options(Sampler::Ddim { eta: 0.0 });
            let resampling = Resampling { rounds: 1, jump: 1 };
            repaint(
                &plan,
                &options,
                (&known, resampling),
                data.ones_like(),
                &mut denoise,
                &mut noise,
                &mut |_, _, _| Ok(()),
            )
            .unwrap()
        };
        assert_eq!(run(1.0).into_data(), data.clone().into_data());
        let mut noise = SeededNoise::new(&[1], 0);
        let free = super::super::sample(
            &plan,
            &options(Sampler::Ddim { eta: 0.0 }),
            data.ones_like(),
            &mut |x, _| Ok((x * 0.5).into()),
            &mut noise,
            &mut |_, _, _| Ok(()),
        );
        assert_eq!(run(0.0).into_data(), free.unwrap().into_data());
    }

    #[test]
    fn what_cannot_work_is_named() {
        let device = Device::flex();
        let plan = SamplingPlan::new(&schedule(), 2).unwrap();
        let known = Known { x_start: Tensor::<2>::zeros([1, 1], &device), keep: Tensor::zeros([1, 1], &device) };
        let error = |sampler, resampling| {
            let mut noise = SeededNoise::new(&[0], 0);
            let x_t = Tensor::zeros([1, 1], &device);
            repaint(
                &plan,
                &options(sampler),
                (&known, resampling),
                x_t,
                &mut |x, _| Ok(x.into()),
                &mut noise,
                &mut |_, _, _| Ok(()),
            )
            .unwrap_err()
            .to_string()
        };
        assert!(error(Sampler::DpmSolver2m, Resampling::default()).contains("sampler"));
        assert!(error(Sampler::Ddpm, Resampling { rounds: 0, jump: 1 }).contains("rounds"));
        assert!(error(Sampler::Ddpm, Resampling { rounds: 1, jump: 0 }).contains("jump"));
    }
}
