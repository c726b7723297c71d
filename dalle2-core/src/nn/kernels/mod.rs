//! Own kernels for f32 on the CPU backend, with hand-written gradients.
//!
//! Burn's CPU backend computes activations in scalar code and composes group normalisation of ten passes over memory;
//! in a U-Net these take longer than the convolutions. Here they are single sweeps that vectorise on whatever the
//! machine offers ([`macerator`] chooses at run time) and use all threads. They enter through Burn's backend
//! extensions: [`ops::NnOps`] is implemented for the backend `Flex`, in `autodiff` for its differentiable form, and
//! the generated dispatch picks between them.
//!
//! Every function here returns its input as `Err` where it does not apply (another backend, another dtype, kernels
//! switched off), and the caller composes the same result of Burn's operations.
//!
//! `math`, `elementwise` and `norm` work on slices and know nothing of Burn.

#[cfg(feature = "flex")]
mod autodiff;
#[cfg(feature = "flex")]
mod elementwise;
#[cfg(feature = "flex")]
mod math;
#[cfg(feature = "flex")]
mod norm;
#[cfg(feature = "flex")]
mod ops;
#[cfg(feature = "flex")]
mod parallel;
mod switch;

pub use switch::{kernels_enabled, set_kernels};

#[cfg(feature = "flex")]
pub use flex::{activation, group_norm};

#[cfg(not(feature = "flex"))]
pub use absent::{activation, group_norm};

/// An element-wise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elementwise {
    /// `x · σ(x)`
    Silu,
    /// `x · Φ(x)`
    Gelu,
    /// `x · σ(1.702 x)`
    QuickGelu,
}

#[cfg(feature = "flex")]
mod flex {
    //! The way from tensors to the operations and back.

    use burn::backend::{Dispatch, DispatchDevice};
    use burn::nn::GroupNorm;
    use burn::prelude::*;
    use burn::tensor::DType;

    use super::{Elementwise, kernels_enabled, norm::GroupNormShape, ops::NnOps};

    /// Whether the kernels can take this tensor.
    fn applies<const D: usize>(x: &Tensor<D>) -> bool {
        if !kernels_enabled() || x.dtype() != DType::F32 || x.shape().num_elements() == 0 {
            return false;
        }
        match x.device().as_dispatch() {
            DispatchDevice::Flex(_) => true,
            DispatchDevice::Autodiff(device) => matches!(**device, DispatchDevice::Flex(_)),
            #[allow(unreachable_patterns, reason = "which backends exist depends on the features of Burn")]
            _ => false,
        }
    }

    /// An element-wise function of a tensor of any shape.
    pub fn activation<const D: usize>(function: Elementwise, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
        if !applies(&x) {
            return Err(x);
        }
        Ok(Tensor::from_dispatch(Dispatch::elementwise(x.into_dispatch(), function)))
    }

    /// Group norm, then FiLM by (scale, shift) `[B, C]` if given, then SiLU if asked for.
    pub fn group_norm(
        layer: &GroupNorm,
        x: Tensor<4>,
        film: Option<(&Tensor<2>, &Tensor<2>)>,
        silu: bool,
    ) -> Result<Tensor<4>, Tensor<4>> {
        let (Some(gamma), Some(beta)) = (&layer.gamma, &layer.beta) else { return Err(x) };
        let (gamma, beta) = (gamma.val(), beta.val());
        let film_applies = film.is_none_or(|(scale, shift)| applies(scale) && applies(shift));
        if !(applies(&x) && applies(&gamma) && applies(&beta) && film_applies) {
            return Err(x);
        }
        let [_, channels, h, w] = x.dims();
        let epsilon = layer.epsilon as f32;
        let shape = GroupNormShape { channels, groups: layer.num_groups, pixels: h * w, epsilon, silu };
        let [x, gamma, beta] = [x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch()];
        Ok(Tensor::from_dispatch(match film {
            Some((scale, shift)) => {
                let (scale, shift) = (scale.clone().into_dispatch(), shift.clone().into_dispatch());
                Dispatch::group_norm_film(x, gamma, beta, scale, shift, shape)
            }
            None => Dispatch::group_norm(x, gamma, beta, shape),
        }))
    }
}

#[cfg(not(feature = "flex"))]
mod absent {
    //! Without the CPU backend nothing applies.

    use burn::nn::GroupNorm;
    use burn::prelude::*;

    use super::Elementwise;

    pub fn activation<const D: usize>(_: Elementwise, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
        Err(x)
    }

    pub fn group_norm(
        _: &GroupNorm,
        x: Tensor<4>,
        _: Option<(&Tensor<2>, &Tensor<2>)>,
        _: bool,
    ) -> Result<Tensor<4>, Tensor<4>> {
        Err(x)
    }
}
