//! Sampling one token from logits over buckets.

use dalle2_core::{Error, Result};
use statrs::distribution::{ContinuousCDF, Normal};

/// The sampling of a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f64,
    /// Total probability of the most probable tokens that remain.
    pub top_p: f64,
}

/// The share of a standard normal distribution below `value`: a number uniform on [0, 1) for a normal `value`.
pub(super) fn uniform(value: f32) -> f64 {
    // The largest double below 1, so that a share is never all of the distribution.
    Normal::standard().cdf(f64::from(value)).min(1.0 - f64::EPSILON / 2.0)
}

impl Choice {
    /// The token at which the probabilities, summed up in the order of the buckets, exceed `u` in [0, 1).
    ///
    /// One number per token, in the order of the values that buckets stand for: a small change of the logits moves the
    /// result by a small step.
    ///
    /// # Errors
    /// If a logit is not finite.
    pub fn sample(self, logits: &[f32], u: f64) -> Result<usize> {
        if let Some(i) = logits.iter().position(|v| !v.is_finite()) {
            let message = format!("the network gave the logit {} for bucket {i}: its weights are damaged", logits[i]);
            return Err(Error::Input(message));
        }
        let best = logits.iter().enumerate().fold(0, |best, (i, v)| if *v > logits[best] { i } else { best });
        if self.temperature == 0.0 {
            return Ok(best);
        }
        let largest = f64::from(logits[best]);
        let mut weights: Vec<f64> =
            logits.iter().map(|v| ((f64::from(*v) - largest) / self.temperature).exp()).collect();
        if self.top_p < 1.0 {
            truncate_to_nucleus(&mut weights, self.top_p);
        }
        let target = u * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let reached = weights.iter().position(|weight| {
            sum += weight;
            *weight > 0.0 && sum > target
        });
        // Rounding can leave the sum short of the target: the last bucket with any weight is then the one.
        Ok(reached.or_else(|| weights.iter().rposition(|w| *w > 0.0)).unwrap_or(best))
    }
}

/// Zeroes all but the largest weights that sum to `share` of the total (Holtzman et al. 2019, arXiv 1904.09751,
/// section 3.1); at least one remains.
fn truncate_to_nucleus(weights: &mut [f64], share: f64) {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    let target = share * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    for i in order {
        if sum >= target {
            weights[i] = 0.0;
        } else {
            sum += weights[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    fn shares(choice: Choice, logits: &[f32]) -> Vec<f64> {
        const N: usize = 10_000;
        let mut counts = vec![0usize; logits.len()];
        for i in 0..N {
            counts[choice.sample(logits, (i as f64 + 0.5) / N as f64).unwrap()] += 1;
        }
        counts.into_iter().map(|count| count as f64 / N as f64).collect()
    }

    fn assert_shares(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-4), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn tokens_occur_with_their_probabilities() {
        let logits = logits(&[0.1, 0.5, 0.15, 0.25]);
        let choice = Choice { temperature: 1.0, top_p: 1.0 };
        assert_shares(&shares(choice, &logits), &[0.1, 0.5, 0.15, 0.25]);
        // Temperature ½ squares the probabilities.
        let squares = [0.01, 0.25, 0.0225, 0.0625].map(|p| p / 0.345);
        assert_shares(&shares(Choice { temperature: 0.5, ..choice }, &logits), &squares);
        assert_shares(&shares(Choice { temperature: 0.0, ..choice }, &logits), &[0.0, 1.0, 0.0, 0.0]);
        assert_shares(&shares(Choice { top_p: 0.7, ..choice }, &logits), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        assert_shares(&shares(Choice { top_p: 1e-9, ..choice }, &logits), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn normal_numbers_become_uniform_ones() {
        assert!((uniform(0.0) - 0.5).abs() < 1e-12);
        assert!((uniform(1.959_964) - 0.975).abs() < 1e-7 && (uniform(-1.0) - 0.158_655_254).abs() < 1e-7);
        assert!(uniform(40.0) < 1.0 && uniform(-40.0) >= 0.0);
        let choice = Choice { temperature: 1.0, top_p: 1.0 };
        assert_eq!(choice.sample(&[0.0, 0.0, f32::MIN], uniform(40.0)).unwrap(), 1);
        assert_eq!(choice.sample(&[f32::MIN, 0.0, 0.0], uniform(-40.0)).unwrap(), 1);
    }

    #[test]
    fn damaged_logits_are_refused() {
        let choice = Choice { temperature: 1.0, top_p: 1.0 };
        let message = choice.sample(&[0.0, f32::NAN], 0.5).unwrap_err().to_string();
        assert!(message.contains("bucket 1"), "{message}");
    }
}
