//! The norm of all gradients together, and scaling by it.

use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;
use rayon::prelude::*;

use super::host::{CHUNK, HostTensor, Sweep, vectorized};
use dalle2_core::{Error, Result};

/// Scales the gradients of `module` by `factor`, and then down to the norm `max_norm` if they exceed it together
/// (Pascanu et al. 2013). Gives the norm before clipping; when that is not finite the gradients are left unspecified
/// and must not be used.
///
/// Burn's own clipping by norm takes every tensor alone, which changes the direction of the step.
///
/// # Errors
/// When the device fails.
pub fn clip_global_norm<M: Module>(
    grads: &mut GradientsParams,
    module: &M,
    factor: f64,
    max_norm: Option<f64>,
) -> Result<f64> {
    let norm = global_norm(grads, module)? * factor;
    let clip = match max_norm {
        Some(max) if norm > max => max / norm,
        _ => 1.0,
    };
    if norm.is_finite() && factor * clip != 1.0 {
        module.visit(&mut Scale { grads, factor: factor * clip });
    }
    Ok(norm)
}

/// The square root of the sum of all squared gradients of `module`; not finite when one of them is not.
///
/// # Errors
/// When the device fails.
pub fn global_norm<M: Module>(grads: &mut GradientsParams, module: &M) -> Result<f64> {
    let mut visitor = SumOfSquares { grads, host: 0.0, device: None };
    module.visit(&mut visitor);
    let device = match visitor.device {
        Some(sum) => sum.try_into_scalar::<f32>().map_err(|e| Error::Device(e.to_string()))? as f64,
        None => 0.0,
    };
    Ok((visitor.host + device).sqrt())
}

struct SumOfSquares<'a> {
    grads: &'a mut GradientsParams,
    host: f64,
    device: Option<Tensor<1>>,
}

impl ModuleVisitor for SumOfSquares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.remove::<D>(param.id) else { return };
        let grad = if HostTensor::fits(&grad) {
            let host = HostTensor::new(grad);
            self.host += sum_of_squares(host.slice());
            host.into_tensor()
        } else {
            let sum = grad.clone().cast(FloatDType::F32).square().sum();
            self.device = Some(match self.device.take() {
                Some(total) => total + sum,
                None => sum,
            });
            grad
        };
        self.grads.register(param.id, grad);
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.remove::<D>(param.id) else { return };
        let grad = if HostTensor::fits(&grad) {
            let factor = self.factor as f32;
            let mut host = HostTensor::new(grad);
            host.slice_mut().par_chunks_mut(CHUNK).for_each(|chunk| vectorized(Scaled(chunk, factor)));
            host.into_tensor()
        } else {
            grad.mul_scalar(self.factor)
        };
        self.grads.register(param.id, grad);
    }
}

/// In f64 over chunks of a fixed size, so the sum does not depend on the number of threads.
fn sum_of_squares(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values.par_chunks(CHUNK).map(|chunk| vectorized(Squares(chunk))).collect();
    parts.into_iter().sum()
}

/// The sum of squares of a piece.
struct Squares<'a>(&'a [f32]);

impl Sweep for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = [0.0f64; 16];
        let (blocks, rest) = self.0.as_chunks::<16>();
        for block in blocks {
            for i in 0..16 {
                lanes[i] += f64::from(block[i]) * f64::from(block[i]);
            }
        }
        let mut sum = 0.0;
        for value in rest {
            sum += f64::from(*value) * f64::from(*value);
        }
        lanes.into_iter().sum::<f64>() + sum
    }
}

/// Multiplies a piece by a factor.
struct Scaled<'a>(&'a mut [f32], f32);

impl Sweep for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for value in self.0 {
            *value *= self.1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[derive(Module, Debug)]
    struct Two {
        a: Param<Tensor<1>>,
        b: Param<Tensor<2>>,
    }

    /// The gradient of a is 3 everywhere and of b 4: with four and nine elements the norm is √(4·9 + 9·16).
    fn two() -> (Two, GradientsParams) {
        let device = Device::flex().autodiff();
        let module = Two {
            a: Param::from_tensor(Tensor::zeros([4], &device)),
            b: Param::from_tensor(Tensor::zeros([3, 3], &device)),
        };
        let loss = module.a.val().sum() * 3.0 + module.b.val().transpose().sum() * 4.0;
        let grads = GradientsParams::from_grads(loss.backward(), &module);
        (module, grads)
    }

    #[test]
    fn clips_to_the_norm_of_all_together() {
        let (module, mut grads) = two();
        let expected = (4.0 * 9.0 + 9.0 * 16.0f64).sqrt();
        let norm = clip_global_norm(&mut grads, &module, 1.0, Some(1.0)).unwrap();
        assert!((norm - expected).abs() < 1e-9, "{norm}");
        let a = grads.get::<1>(module.a.id).unwrap().into_data();
        let b = grads.get::<2>(module.b.id).unwrap().into_data();
        let close = Tolerance::rel_abs(1e-6, 1e-7);
        a.assert_approx_eq::<f32>(&TensorData::new(vec![(3.0 / expected) as f32; 4], [4]), close);
        b.assert_approx_eq::<f32>(&TensorData::new(vec![(4.0 / expected) as f32; 9], [3, 3]), close);
        assert!((global_norm(&mut grads, &module).unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_small_norm_is_left_alone_and_the_factor_counts() {
        let (module, mut grads) = two();
        let norm = clip_global_norm(&mut grads, &module, 0.5, Some(100.0)).unwrap();
        assert!((norm - 180f64.sqrt() / 2.0).abs() < 1e-9);
        let a = grads.get::<1>(module.a.id).unwrap().into_data();
        a.assert_eq(&TensorData::new(vec![1.5f32; 4], [4]), true);
    }

    #[test]
    fn not_a_number_shows_in_the_norm() {
        let (module, mut grads) = two();
        let bad = Tensor::<1>::from_floats([0.0, f32::NAN, 0.0, 0.0], &Device::flex());
        grads.register(module.a.id, bad);
        assert!(!clip_global_norm(&mut grads, &module, 1.0, Some(1.0)).unwrap().is_finite());
    }

    #[test]
    fn the_sum_does_not_lose_small_values() {
        let values = vec![0.5f32; 3 * CHUNK + 7];
        assert_eq!(sum_of_squares(&values), (3 * CHUNK + 7) as f64 * 0.25);
    }
}
