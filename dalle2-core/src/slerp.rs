//! Interpolation on the sphere (Shoemake 1985, *Animating Rotation with Quaternion Curves*; DALL·E 2, section 3.2).

use burn::prelude::*;

use crate::{Error, Result};

/// Below this angle, in radians, the arc is a straight line to double precision.
const PARALLEL: f64 = 1e-7;
/// Distance from π, in radians, below which there is no shortest arc.
const OPPOSITE: f64 = 1e-3;

/// Interpolates from `a` to `b` along the shortest arc between their directions, and linearly between their lengths.
///
/// Each batch item is one vector over all its other axes; the angle is that between the two whole vectors. For vectors
/// of length 1 this is sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b. Computed on the host in `f64`.
///
/// # Shapes
/// - `a`, `b` and the output: `[B, …]`
/// - `t`: from 0, which gives `a`, to 1, which gives `b`
///
/// # Errors
/// [`Error::Mismatch`] when the shapes differ; [`Error::Input`] when `t` leaves 0 to 1, a value is not finite, a vector
/// is zero, or two vectors are opposite, so that no arc is the shortest.
pub fn slerp<const D: usize>(a: Tensor<D>, b: Tensor<D>, t: f64) -> Result<Tensor<D>> {
    if a.dims() != b.dims() {
        let message = format!("vectors of shape {:?} and {:?} cannot be interpolated", a.dims(), b.dims());
        return Err(Error::Mismatch(message));
    }
    if !(0.0..=1.0).contains(&t) {
        return Err(Error::Input(format!("cannot interpolate at {t}: must be between 0 and 1")));
    }
    let (shape, device) = (a.dims(), a.device());
    let width = shape[1..].iter().product::<usize>().max(1);
    let read = |x: Tensor<D>| -> Result<Vec<f64>> {
        let values: Vec<f32> = x.try_into_vec_as().map_err(|e| Error::Device(format!("reading vectors: {e}")))?;
        Ok(values.into_iter().map(f64::from).collect())
    };
    let (a, b) = (read(a)?, read(b)?);
    let mut values = Vec::with_capacity(a.len());
    for (item, (a, b)) in a.chunks_exact(width).zip(b.chunks_exact(width)).enumerate() {
        let arc =
            arc(a, b, t).map_err(|reason| Error::Input(format!("cannot interpolate vectors {item}: {reason}")))?;
        values.extend(arc.into_iter().map(|value| value as f32));
    }
    Ok(Tensor::from_data(TensorData::new(values, shape), &device))
}

/// One vector between two, or why there is none.
fn arc(a: &[f64], b: &[f64], t: f64) -> Result<Vec<f64>, String> {
    let length = |x: &[f64]| x.iter().map(|value| value * value).sum::<f64>().sqrt();
    let (length_a, length_b) = (length(a), length(b));
    for (name, length) in [("first", length_a), ("second", length_b)] {
        if !length.is_finite() {
            return Err(format!("the {name} holds a value that is not finite"));
        }
        if length == 0.0 {
            return Err(format!("the {name} is zero and has no direction"));
        }
    }
    // Kahan's form of the angle is exact also where the cosine is close to ±1.
    let pairs = || a.iter().zip(b).map(|(a, b)| (a / length_a, b / length_b));
    let apart = pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let along = pairs().map(|(a, b)| (a + b).powi(2)).sum::<f64>().sqrt();
    let angle = 2.0 * apart.atan2(along);
    if std::f64::consts::PI - angle < OPPOSITE {
        return Err("they are opposite, so there is no shortest arc".into());
    }
    let (weight_a, weight_b) = if angle < PARALLEL {
        (1.0 - t, t)
    } else {
        (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
    };
    let length = length_a + t * (length_b - length_a);
    Ok(pairs().map(|(a, b)| length * (weight_a * a + weight_b * b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors<const N: usize>(rows: [[f32; N]; 2]) -> Tensor<2> {
        Tensor::from_floats(rows, &Device::flex())
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().try_to_vec().unwrap()
    }

    fn assert_close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn unit_vectors_turn_by_an_even_angle() {
        let a = vectors([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
        let b = vectors([[0.0, 1.0, 0.0], [0.0, -0.5, 0.75f32.sqrt()]]);
        for i in 0..=8 {
            let t = f64::from(i) / 8.0;
            let quarter = t * std::f64::consts::FRAC_PI_2; // 90° and 120°
            let third = t * std::f64::consts::TAU / 3.0;
            let expected = [quarter.cos(), quarter.sin(), 0.0, 0.0, third.cos(), third.sin()];
            assert_close(&values(slerp(a.clone(), b.clone(), t).unwrap()), &expected);
        }
    }

    #[test]
    fn lengths_change_evenly_and_do_not_bend_the_arc() {
        let (a, b) = (vectors([[3.0, 0.0], [2.0, 0.0]]), vectors([[0.0, 5.0], [4.0, 0.0]]));
        let half = std::f64::consts::FRAC_1_SQRT_2;
        assert_close(&values(slerp(a, b, 0.5).unwrap()), &[4.0 * half, 4.0 * half, 3.0, 0.0]);
    }

    #[test]
    fn the_ends_are_the_vectors_themselves() {
        let device = Device::flex();
        let row = |seed: f32| (0..48).map(|i| (i as f32 * 1.3 + seed).sin()).collect::<Vec<_>>();
        let tensor = |seed| Tensor::<4>::from_data(TensorData::new(row(seed), [2, 3, 4, 2]), &device);
        let (a, b) = (tensor(0.2), tensor(1.9));
        for (t, end) in [(0.0, &a), (1.0, &b)] {
            let expected: Vec<f64> = values(end.clone()).into_iter().map(f64::from).collect();
            assert_close(&values(slerp(a.clone(), b.clone(), t).unwrap()), &expected);
        }
    }

    #[test]
    fn parallel_vectors_stay_parallel() {
        let a = vectors([[1.0, 2.0], [0.3, -0.1]]);
        assert_close(&values(slerp(a.clone(), a.clone(), 0.3).unwrap()), &[1.0, 2.0, 0.3, -0.1].map(|x: f32| x.into()));
        assert_close(&values(slerp(a.clone(), a * 3.0, 0.5).unwrap()), &[2.0, 4.0, 0.6, -0.2]);
        // Nearly parallel: neither branch loses digits.
        let (a, b) = (vectors([[1.0, 0.0], [1.0, 0.0]]), vectors([[1.0, 1e-3], [1.0, 1e-6]]));
        assert_close(&values(slerp(a, b, 0.5).unwrap()), &[1.0, 0.5e-3, 1.0, 0.5e-6]);
    }

    #[test]
    fn what_has_no_arc_is_refused() {
        let a = vectors([[1.0, 0.0], [0.5, 0.5]]);
        let message = |b: Tensor<2>, t| slerp(a.clone(), b, t).unwrap_err().to_string();
        let opposite = message(vectors([[0.0, 1.0], [-2.0, -2.0]]), 0.5);
        assert!(opposite.contains("vectors 1") && opposite.contains("opposite"), "{opposite}");
        assert!(message(vectors([[0.0, 0.0], [1.0, 1.0]]), 0.5).contains("zero"));
        assert!(message(vectors([[f32::NAN, 0.0], [1.0, 1.0]]), 0.5).contains("not finite"));
        assert!(message(a.clone(), 1.01).contains("1.01"));
        assert!(message(a.clone(), f64::NAN).contains("NaN"));
        assert!(message(vectors([[1.0], [2.0]]), 0.5).contains("[2, 1]"));
    }
}
