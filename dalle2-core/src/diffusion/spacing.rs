//! How a plan spreads its timesteps over the schedule.

use serde::{Deserialize, Serialize};

use super::{NoiseSchedule, SamplingPlan};
use crate::ConfigError;

/// Timesteps per section, cleanest first, of GLIDE's 27-step plan for upsamplers.
const FAST_27: [usize; 5] = [10, 10, 3, 2, 2];

/// λ of the noisiest timestep of [`Spacing::LogSnr`]; `lambda_min_clipped` in diffusers.
const MIN_LOG_SNR: f64 = -5.1;

/// How the timesteps of a generation are spread over the T of training.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Evenly from T − 1 to 0: see [`SamplingPlan::new`].
    #[default]
    Even,
    /// Evenly from T − 1 in steps of T/n, so that the last timestep is about T/n and not 0 (Lin et al. 2023, arXiv
    /// 2305.08891, section 3.3; `trailing` in diffusers).
    Trailing,
    /// Evenly in λ, half the logarithm of the signal-to-noise ratio, to t = 0 (DPM-Solver, arXiv 2206.00927, section
    /// 3.2). It begins at the noisiest timestep with λ ≥ −5.1, as in diffusers: the cosine schedule spends a third of its
    /// range of λ on the last few timesteps.
    LogSnr,
    /// The schedule in as many equal sections as there are numbers, the cleanest first, with so many even timesteps each
    /// (improved DDPM's respacing, which ADM and GLIDE use: "10,10,3,2,2").
    Sections(Vec<usize>),
    /// The 27 timesteps with which GLIDE samples its upsampler: sections 10, 10, 3, 2, 2, and T − 3 in place of T − 1,
    /// which spares DDIM an artefact of the noisiest timestep.
    Fast27,
}

impl Spacing {
    /// The plan of `num_steps` timesteps; sections know their own number, and `None` takes it.
    ///
    /// # Errors
    /// When the number is missing, differs from the sections' sum or leaves the schedule, or the sections do not fit.
    pub fn plan(&self, schedule: &NoiseSchedule, num_steps: Option<usize>) -> Result<SamplingPlan, ConfigError> {
        match (self, num_steps) {
            (Self::Sections(_) | Self::Fast27, _) => {
                let timesteps = match self {
                    Self::Sections(counts) => sections(schedule.num_steps(), counts)?,
                    _ => fast_27(schedule.num_steps())?,
                };
                match num_steps {
                    Some(n) if n != timesteps.len() => {
                        let expected =
                            format!("the sections have {} steps: leave it out or give that", timesteps.len());
                        Err(ConfigError::new("steps", n, expected))
                    }
                    _ => SamplingPlan::from_timesteps(schedule, &timesteps),
                }
            }
            (_, None) => Err(ConfigError::new("steps", "null", "this spacing needs a number of steps")),
            (Self::Even, Some(n)) => SamplingPlan::new(schedule, n),
            (Self::Trailing, Some(n)) => SamplingPlan::from_timesteps(schedule, &trailing(schedule.num_steps(), n)?),
            (Self::LogSnr, Some(n)) => SamplingPlan::from_timesteps(schedule, &log_snr(schedule, n)?),
        }
    }

    /// The number of steps where it is a property of the spacing.
    pub fn num_steps(&self) -> Option<usize> {
        match self {
            Self::Sections(counts) => Some(counts.iter().sum()),
            Self::Fast27 => Some(FAST_27.iter().sum()),
            Self::Even | Self::Trailing | Self::LogSnr => None,
        }
    }
}

/// Timesteps in decreasing order: each section's first and last, and the rest evenly between them, ties to even.
fn sections(total: usize, counts: &[usize]) -> Result<Vec<usize>, ConfigError> {
    let refuse = |expected: String| Err(ConfigError::new("spacing.sections", format!("{counts:?}"), expected));
    if counts.is_empty() || counts.contains(&0) {
        return refuse("needs at least one section and at least one step in each".into());
    }
    let (size, extra) = (total / counts.len(), total % counts.len());
    let mut first = 0;
    let mut timesteps = Vec::with_capacity(counts.iter().sum());
    for (i, &count) in counts.iter().enumerate() {
        let size = size + usize::from(i < extra);
        if count > size {
            return refuse(format!("section {i} has {size} of the {total} timesteps"));
        }
        let stride = if count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 0.0 };
        timesteps.extend((0..count).map(|k| first + (k as f64 * stride).round_ties_even() as usize));
        first += size;
    }
    timesteps.reverse();
    Ok(timesteps)
}

fn fast_27(total: usize) -> Result<Vec<usize>, ConfigError> {
    let mut timesteps = sections(total, &FAST_27)?;
    // The section of the noisiest fifth has two timesteps, so T − 3 is free when that fifth has four.
    match timesteps.as_mut_slice() {
        [first, second, ..] if *second + 2 < *first => *first -= 2,
        _ => return Err(ConfigError::new("spacing", "fast27", "needs a schedule of at least 50 timesteps")),
    }
    Ok(timesteps)
}

fn check_steps(total: usize, n: usize) -> Result<(), ConfigError> {
    if (1..=total).contains(&n) {
        return Ok(());
    }
    Err(ConfigError::new("steps", n, format!("must be between 1 and {total}")))
}

/// round(T − i·T/n) − 1 for i from 0 to n − 1.
fn trailing(total: usize, n: usize) -> Result<Vec<usize>, ConfigError> {
    check_steps(total, n)?;
    let stride = total as f64 / n as f64;
    Ok((0..n).map(|i| (total as f64 - i as f64 * stride).round_ties_even() as usize - 1).collect())
}

/// The nearest timesteps to n even values of λ, moved apart where two would be equal.
fn log_snr(schedule: &NoiseSchedule, n: usize) -> Result<Vec<usize>, ConfigError> {
    let total = schedule.num_steps();
    check_steps(total, n)?;
    let values: Vec<f64> = (0..total).map(|t| schedule.snr(t).ln() / 2.0).collect();
    let start = values.iter().rposition(|lambda| *lambda >= MIN_LOG_SNR).unwrap_or(0);
    let (first, last) = (values[start], values[0]);
    let mut timesteps = Vec::with_capacity(n);
    let mut bound = total;
    for i in 0..n {
        let value = first + (last - first) * i as f64 / (n - 1).max(1) as f64;
        // Values decrease with t: `after` is the first timestep whose value is not above this one.
        let after = values.partition_point(|v| *v > value).min(total - 1);
        let nearest = match after {
            0 => 0,
            _ if values[after - 1] - value < value - values[after] => after - 1,
            _ => after,
        };
        bound = nearest.clamp(n - 1 - i, bound - 1);
        timesteps.push(bound);
    }
    Ok(timesteps)
}

#[cfg(test)]
mod tests {
    use super::super::BetaSchedule;
    use super::*;

    fn schedule(steps: usize) -> NoiseSchedule {
        NoiseSchedule::new(BetaSchedule::Cosine, steps).unwrap()
    }

    fn timesteps(spacing: Spacing, steps: Option<usize>) -> Vec<usize> {
        spacing.plan(&schedule(1000), steps).unwrap().timesteps()
    }

    #[test]
    fn sections_are_even_within_and_cleanest_first() {
        // Three sections of 100, 100 and 100 of 300 timesteps, as in the documentation of ADM's respacing.
        let plan = Spacing::Sections(vec![10, 15, 20]).plan(&schedule(300), None).unwrap();
        let mut found = plan.timesteps();
        found.reverse();
        assert_eq!(found.len(), 45);
        assert_eq!(found[..10], [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]);
        assert_eq!((found[10], found[24], found[25], found[44]), (100, 199, 200, 299));
        assert_eq!(timesteps(Spacing::Sections(vec![7]), Some(7)), timesteps(Spacing::Even, Some(7)));
        // 10 timesteps in 3 sections are 4, 3 and 3 of them; a section of one step takes its first timestep.
        assert_eq!(sections(10, &[2, 1, 3]).unwrap(), [9, 8, 7, 4, 3, 0]);
    }

    #[test]
    fn fast27_is_the_published_list() {
        let mut found = timesteps(Spacing::Fast27, None);
        found.reverse();
        // Sections of 200: strides 199/9 twice, 199/2, then both ends twice, the last of all moved by 2.
        let mut expected: Vec<usize> = (0..2)
            .flat_map(|s| (0..10).map(move |k| 200 * s + (k as f64 * 199.0 / 9.0).round_ties_even() as usize))
            .collect();
        expected.extend([400, 500, 599, 600, 799, 800, 997]);
        assert_eq!(found, expected);
        assert_eq!(Spacing::Fast27.num_steps(), Some(27));
    }

    #[test]
    fn trailing_ends_before_the_clean_data() {
        // As diffusers' `DDIMScheduler(timestep_spacing="trailing")`.
        assert_eq!(timesteps(Spacing::Trailing, Some(4)), [999, 749, 499, 249]);
        assert_eq!(timesteps(Spacing::Trailing, Some(3)), [999, 666, 332]);
        assert_eq!(timesteps(Spacing::Trailing, Some(1)), [999]);
        assert_eq!(timesteps(Spacing::Trailing, Some(1000)), (0..1000).rev().collect::<Vec<_>>());
    }

    #[test]
    fn log_snr_is_even_in_lambda() {
        let schedule = schedule(1000);
        let found = timesteps(Spacing::LogSnr, Some(20));
        let lambda = |t: usize| schedule.snr(t).ln() / 2.0;
        let start = (0..1000).rev().find(|t| lambda(*t) >= -5.1).unwrap();
        assert_eq!((found[0], found[19]), (start, 0));
        let step = (lambda(0) - lambda(start)) / 19.0;
        // Where timesteps are dense, rounding to one moves λ little; the noisiest ones are far apart in λ.
        for pair in found.windows(2).filter(|pair| (50..900).contains(&pair[0]) && pair[1] >= 50) {
            let h = lambda(pair[1]) - lambda(pair[0]);
            assert!((h - step).abs() < 0.05 * step, "{pair:?}: {h} is not {step}");
        }
        // With one step per timestep the plan visits all of them.
        assert_eq!(timesteps(Spacing::LogSnr, Some(1000)), (0..1000).rev().collect::<Vec<_>>());
        assert_eq!(timesteps(Spacing::LogSnr, Some(1)), [start]);
    }

    #[test]
    fn log_snr_of_the_cosine_schedule_does_not_crowd_at_the_noisiest_timesteps() {
        let noisiest = timesteps(Spacing::LogSnr, Some(20)).iter().filter(|t| **t >= 990).count();
        assert!(noisiest <= 3, "{noisiest} of 20 steps");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |spacing: Spacing, total, steps| spacing.plan(&schedule(total), steps).unwrap_err();
        assert_eq!(error(Spacing::Even, 100, None).field, "steps");
        assert_eq!(error(Spacing::LogSnr, 100, Some(101)).field, "steps");
        assert_eq!(error(Spacing::Fast27, 100, Some(25)).field, "steps");
        assert_eq!(error(Spacing::Fast27, 20, None).field, "spacing.sections");
        for counts in [vec![], vec![3, 0], vec![60, 1]] {
            assert_eq!(error(Spacing::Sections(counts), 100, None).field, "spacing.sections");
        }
        assert!(Spacing::Fast27.plan(&schedule(50), None).is_ok());
    }

    #[test]
    fn spacings_read_back_what_they_wrote() {
        for (spacing, text) in [
            (Spacing::Even, "\"even\""),
            (Spacing::LogSnr, "\"log_snr\""),
            (Spacing::Trailing, "\"trailing\""),
            (Spacing::Fast27, "\"fast27\""),
            (Spacing::Sections(vec![10, 5]), "{\"sections\":[10,5]}"),
        ] {
            assert_eq!(serde_json::to_string(&spacing).unwrap(), text);
            assert_eq!(serde_json::from_str::<Spacing>(text).unwrap(), spacing);
        }
    }
}
