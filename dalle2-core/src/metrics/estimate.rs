//! Means over repetitions, with their uncertainty.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::{Error, Result};

/// A mean over repetitions with its 95 % interval, mean ± `half_width`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of the interval, by Student's t with `n` − 1 degrees of freedom; none for a single value.
    pub half_width: Option<f64>,
    /// Number of repetitions.
    pub n: usize,
}

impl Estimate {
    /// Of independent repetitions, for example one for each seed.
    ///
    /// # Errors
    /// [`Error::Input`] for no value, or one that is not finite.
    pub fn of(values: &[f64]) -> Result<Self> {
        let n = values.len();
        if n == 0 {
            return Err(Error::Input("a mean needs at least one value".into()));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::Input(format!("the mean of {n} values: one of them is {value}")));
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Ok(Self { mean, half_width: None, n });
        }
        let freedom = (n - 1) as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom;
        let student = StudentsT::new(0.0, 1.0, freedom).map_err(|e| Error::Input(format!("{n} values: {e}")))?;
        let half_width = student.inverse_cdf(0.975) * (variance / n as f64).sqrt();
        Ok(Self { mean, half_width: Some(half_width), n })
    }

    /// Whether this mean lies above another by more than both intervals together.
    pub fn is_above(&self, other: &Self) -> bool {
        self.mean - self.half_width.unwrap_or(0.0) > other.mean + other.half_width.unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        let three = Estimate::of(&[1.0, 2.0, 3.0]).unwrap();
        // t(0.975, 2) = 4.302653, deviation 1, three values.
        assert!((three.mean - 2.0).abs() < 1e-12);
        assert!((three.half_width.unwrap() - 4.302_653 / 3f64.sqrt()).abs() < 1e-4, "{three:?}");
        let many = Estimate::of(&(0..1001).map(|i| f64::from(i % 2)).collect::<Vec<_>>()).unwrap();
        assert!((many.half_width.unwrap() - 1.962_3 * 0.5 / 1000f64.sqrt()).abs() < 1e-4, "{many:?}");
        assert_eq!(Estimate::of(&[5.0]).unwrap(), Estimate { mean: 5.0, half_width: None, n: 1 });
    }

    #[test]
    fn intervals_must_not_touch_to_be_apart() {
        let estimate = |mean, half_width| Estimate { mean, half_width: Some(half_width), n: 3 };
        assert!(estimate(1.0, 0.2).is_above(&estimate(0.5, 0.2)));
        assert!(!estimate(1.0, 0.3).is_above(&estimate(0.5, 0.2)));
        assert!(!estimate(0.5, 0.0).is_above(&estimate(1.0, 0.0)));
    }

    #[test]
    fn values_without_a_mean_are_refused() {
        assert!(Estimate::of(&[]).is_err());
        assert!(Estimate::of(&[1.0, f64::NAN]).unwrap_err().to_string().contains("NaN"));
    }
}
