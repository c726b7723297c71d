//! Layer normalisation (Ba et al. 2016, arXiv 1607.06450, section 3).

use burn::module::{Initializer, Param};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType, module};

use super::kernels;

/// Configuration of a [`LayerNorm`].
#[derive(Config, Debug, PartialEq)]
pub struct LayerNormConfig {
    /// Width D of the rows.
    pub d_model: usize,
    /// ε, added to the variance.
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

/// `(x − mean) / √(variance + ε) · γ + β` over the last axis.
///
/// The parameters have the names and shapes of [`burn::nn::LayerNorm`], so records and weight files of one fit the
/// other. Unlike that layer, this one exposes ε, which the CPU kernels need.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// γ, `[D]`.
    pub gamma: Param<Tensor<1>>,
    /// β, `[D]`.
    pub beta: Param<Tensor<1>>,
    /// ε, not a parameter and not part of a record.
    pub epsilon: f64,
}

impl LayerNormConfig {
    /// Creates a layer with γ = 1 and β = 0.
    pub fn init(&self, device: &Device) -> LayerNorm {
        LayerNorm {
            gamma: Initializer::Ones.init([self.d_model], device),
            beta: Initializer::Zeros.init([self.d_model], device),
            epsilon: self.epsilon,
        }
    }
}

/// Applies a layer norm over the last axis; inputs in f16 are normalised in f32.
///
/// # Shapes
/// - `x`, result: `[.., D]`
///
/// # Panics
/// If the last axis of `x` is not the layer's width.
pub fn layer_norm<const D: usize>(layer: &LayerNorm, x: Tensor<D>) -> Tensor<D> {
    kernels::layer_norm(layer, x).unwrap_or_else(|x| composed(layer, x))
}

/// [`layer_norm`] by Burn's operation.
fn composed<const D: usize>(layer: &LayerNorm, x: Tensor<D>) -> Tensor<D> {
    let (gamma, beta) = (layer.gamma.val(), layer.beta.val());
    let ([width], shape) = (gamma.dims(), x.dims());
    assert_eq!(shape[D - 1], width, "layer_norm: the last axis of {shape:?} must be {width}");
    // The squares of f16 activations overflow from 256 on.
    if x.dtype() == DType::F16 {
        let [gamma, beta] = [gamma, beta].map(|parameter| parameter.cast(FloatDType::F32));
        let y = module::layer_norm(x.cast(FloatDType::F32), gamma, Some(beta), layer.epsilon);
        return y.cast(FloatDType::F16);
    }
    module::layer_norm(x, gamma, Some(beta), layer.epsilon)
}

#[cfg(test)]
mod tests {
    use burn::module::ModuleVisitor;

    use super::*;

    fn layers(epsilon: f64) -> (LayerNorm, nn::LayerNorm) {
        let device = Device::flex();
        let ours = LayerNormConfig::new(9).with_epsilon(epsilon).init(&device);
        (ours, nn::LayerNormConfig::new(9).with_epsilon(epsilon).init(&device))
    }

    fn input() -> Tensor<3> {
        let data: Vec<f32> = (0..2 * 3 * 9).map(|i| (i as f32 * 0.7).sin()).collect();
        Tensor::from_data(TensorData::new(data, [2, 3, 9]), &Device::flex())
    }

    fn max_difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
        (a - b).cast(FloatDType::F32).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn every_epsilon_gives_the_result_of_burns_layer() {
        for epsilon in [1e-6, 1e-5, 1e-3, 0.5] {
            let (ours, burns) = layers(epsilon);
            let expected = burns.forward(input());
            assert!(max_difference(layer_norm(&ours, input()), expected.clone()) < 1e-5, "epsilon {epsilon}");
            assert_eq!(max_difference(composed(&ours, input()), expected), 0.0, "epsilon {epsilon}");
        }
    }

    #[test]
    fn a_different_epsilon_gives_a_different_result() {
        let [(small, _), (large, _)] = [1e-5, 0.5].map(layers);
        assert!(max_difference(layer_norm(&small, input()), layer_norm(&large, input())) > 0.1);
        assert!(max_difference(composed(&small, input()), composed(&large, input())) > 0.1);
        #[cfg(all(feature = "flex", feature = "kernels"))]
        if kernels::kernels_enabled() {
            let [small, large] = [small, large].map(|layer| kernels::layer_norm(&layer, input()).unwrap());
            assert!(max_difference(small, large) > 0.1, "the kernels must read epsilon");
        }
    }

    #[test]
    fn f16_inputs_do_not_overflow() {
        let x = (input() * 1000.0).cast(FloatDType::F16);
        let (ours, burns) = layers(1e-5);
        assert_eq!(max_difference(layer_norm(&ours, x.clone()), burns.forward(x)), 0.0);
    }

    #[test]
    #[should_panic(expected = "the last axis of [2, 3, 9] must be 8")]
    fn another_width_is_refused() {
        layer_norm(&LayerNormConfig::new(8).init(&Device::flex()), input());
    }

    /// Paths, containers and shapes of all parameters.
    #[derive(Default)]
    struct Parameters(Vec<String>);

    impl ModuleVisitor for Parameters {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.push(format!("{container}.{name}"));
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(format!("{:?}", param.lazy_shape()));
        }
    }

    #[test]
    fn parameters_have_the_names_of_burns_layer() {
        let (ours, burns) = layers(1e-5);
        let (mut a, mut b) = (Parameters::default(), Parameters::default());
        ours.visit(&mut a);
        burns.visit(&mut b);
        assert_eq!(a.0, b.0);
    }
}
