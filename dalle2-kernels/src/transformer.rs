//! The pre-norm transformer that CLIP's two towers and both priors share (Radford et al. 2021, arXiv 2103.00020,
//! section 2.4; block layout of GPT-2).
//!
//! The final layer norm belongs to the models that use this block, because they differ in where it sits. Query, key
//! and value are separate layers, which is how the public checkpoints store them.

use burn::module::Initializer;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    LayerNorm, LayerNormConfig, attention, gelu, layer_norm, linear, linear_add, merge_heads, quick_gelu, split_heads,
};
use crate::ConfigError;

/// Upper bounds of a configuration, checked before anything is allocated.
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 16;

/// Nonlinearity between the two layers of a transformer's feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Exact GELU, x·Φ(x).
    #[default]
    Gelu,
    /// x·σ(1.702 x), the activation of OpenAI's CLIP weights.
    QuickGelu,
}

impl Activation {
    /// Applies the function to each element.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => gelu(x),
            Self::QuickGelu => quick_gelu(x),
        }
    }
}

/// Configuration of a [`Transformer`].
#[derive(Config, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Width D of the token encodings.
    pub d_model: usize,
    /// Number of attention heads, a divisor of `d_model`.
    pub n_heads: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width inside the feed-forward part; `None` means 4 · `d_model`.
    pub d_ff: Option<usize>,
    /// Nonlinearity of the feed-forward part.
    #[config(default = "Activation::Gelu")]
    pub activation: Activation,
    /// Probability of dropping an element of a block's two branches in training.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// ε of the layer norms; `None` means 1e-5, CLIP's.
    pub layer_norm_eps: Option<f64>,
}

/// A stack of [`TransformerBlock`]s.
#[derive(Module, Debug)]
pub struct Transformer {
    /// The blocks, first applied first.
    pub layers: Vec<TransformerBlock>,
}

/// One block: x + attention(norm(x)), then x + mlp(norm(x)).
#[derive(Module, Debug)]
pub struct TransformerBlock {
    /// Norm before the attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn: SelfAttention,
    /// Norm before the feed-forward part.
    pub norm2: LayerNorm,
    /// Feed-forward part.
    pub mlp: Mlp,
    dropout: Dropout,
}

/// Multi-head self-attention with biases on all four projections.
#[derive(Module, Debug)]
pub struct SelfAttention {
    /// Queries, `[D, D]`.
    pub query: Linear,
    /// Keys, `[D, D]`.
    pub key: Linear,
    /// Values, `[D, D]`.
    pub value: Linear,
    /// Output projection, `[D, D]`.
    pub output: Linear,
    n_heads: usize,
}

/// Two linear layers with a nonlinearity between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[D, F]`.
    pub up: Linear,
    /// `[F, D]`.
    pub down: Linear,
    #[module(skip)]
    activation: Activation,
}

impl TransformerConfig {
    /// Width inside the feed-forward part.
    pub fn feed_forward_width(&self) -> usize {
        self.d_ff.unwrap_or(4 * self.d_model)
    }

    /// A layer norm of width D with this configuration's ε.
    pub fn norm(&self, device: &Device) -> LayerNorm {
        LayerNormConfig::new(self.d_model).with_epsilon(self.layer_norm_eps.unwrap_or(1e-5)).init(device)
    }

    /// Number of parameters, computed without allocating them.
    pub fn num_params(&self) -> usize {
        let (d, f) = (self.d_model, self.feed_forward_width());
        let norms = 2 * 2 * d;
        let attention = 4 * (d * d + d);
        let mlp = d * f + f + f * d + d;
        self.n_layers * (norms + attention + mlp)
    }

    /// Multiply-accumulates of one forward pass over a sequence of `tokens`: the products with weights, and attention's
    /// two products, which are computed in full under a causal mask.
    pub fn num_macs(&self, tokens: usize) -> u64 {
        let (d, f) = (self.d_model as u64, self.feed_forward_width() as u64);
        let tokens = tokens as u64;
        self.n_layers as u64 * (tokens * (4 * d * d + 2 * d * f) + 2 * tokens * tokens * d)
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that is zero, not a divisor, or out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_layers", self.n_layers),
            ("d_ff", self.feed_forward_width()),
        ] {
            if value == 0 {
                return Err(ConfigError::new(field, value, "must be at least 1"));
            }
        }
        for (field, value, max) in [("n_layers", self.n_layers, MAX_LAYERS), ("d_model", self.d_model, MAX_WIDTH)] {
            if value > max {
                return Err(ConfigError::new(field, value, format!("must be at most {max}")));
            }
        }
        if self.feed_forward_width() > 16 * MAX_WIDTH {
            let expected = format!("must be at most {}", 16 * MAX_WIDTH);
            return Err(ConfigError::new("d_ff", self.feed_forward_width(), expected));
        }
        if !self.d_model.is_multiple_of(self.n_heads) {
            let expected = format!("must divide d_model = {}", self.d_model);
            return Err(ConfigError::new("n_heads", self.n_heads, expected));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "must be at least 0 and below 1"));
        }
        if let Some(eps) = self.layer_norm_eps.filter(|eps| !(eps.is_finite() && *eps > 0.0)) {
            return Err(ConfigError::new("layer_norm_eps", eps, "must be finite and above 0"));
        }
        Ok(())
    }

    /// Creates a transformer with CLIP's initialisation: normal weights of deviation D^-½ for query, key and value,
    /// (2 D)^-½ for the first feed-forward layer and D^-½ (2 L)^-½ for both output layers; biases are zero.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) fails.
    pub fn init(&self, device: &Device) -> Transformer {
        Transformer { layers: (0..self.n_layers).map(|_| self.init_block(device)).collect() }
    }

    fn init_block(&self, device: &Device) -> TransformerBlock {
        let (d, f) = (self.d_model, self.feed_forward_width());
        assert!(d.is_multiple_of(self.n_heads), "d_model {d} is not a multiple of n_heads {}", self.n_heads);
        let width = (d as f64).powf(-0.5);
        let output_std = width * (2.0 * self.n_layers as f64).powf(-0.5);
        TransformerBlock {
            norm1: self.norm(device),
            attn: SelfAttention {
                query: init_linear([d, d], width, device),
                key: init_linear([d, d], width, device),
                value: init_linear([d, d], width, device),
                output: init_linear([d, d], output_std, device),
                n_heads: self.n_heads,
            },
            norm2: self.norm(device),
            mlp: Mlp {
                up: init_linear([d, f], (2.0 * d as f64).powf(-0.5), device),
                down: init_linear([f, d], output_std, device),
                activation: self.activation,
            },
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

/// A linear layer with normal weights of deviation `std` and a zero bias.
fn init_linear([d_input, d_output]: [usize; 2], std: f64, device: &Device) -> Linear {
    let mut layer = LinearConfig::new(d_input, d_output)
        .with_initializer(Initializer::Normal { mean: 0.0, std })
        .with_bias(false)
        .init(device);
    layer.bias = Some(Initializer::Zeros.init([d_output], device));
    layer
}

impl Transformer {
    /// Runs the blocks in order.
    ///
    /// `mask` is `true` where a query must not attend to a key. It broadcasts over heads and, with a leading 1, over the
    /// batch. Every row must leave at least one key.
    ///
    /// # Shapes
    /// - `x`: `[B, S, D]`
    /// - `mask`: `[B or 1, 1, S, S]`
    /// - result: `[B, S, D]`
    ///
    /// # Panics
    /// If the width of `x` is not `d_model`.
    pub fn forward(&self, x: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        self.layers.iter().fold(x, |x, layer| layer.forward(x, mask.clone()))
    }

    /// Whether dropout is active in training.
    pub fn has_dropout(&self) -> bool {
        self.layers.iter().any(|layer| layer.dropout.prob > 0.0)
    }
}

impl TransformerBlock {
    /// Applies the block; shapes as in [`Transformer::forward`].
    pub fn forward(&self, x: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        let normed = layer_norm(&self.norm1, x.clone());
        if self.dropout.prob > 0.0 && x.device().is_autodiff() {
            let x = x + self.dropout.forward(self.attn.forward(normed, mask));
            let fed_forward = self.mlp.forward(layer_norm(&self.norm2, x.clone()));
            return x + self.dropout.forward(fed_forward);
        }
        let x = self.attn.forward_add(normed, mask, x);
        let normed = layer_norm(&self.norm2, x.clone());
        self.mlp.forward_add(normed, x)
    }
}

impl SelfAttention {
    /// Self-attention; shapes as in [`Transformer::forward`].
    pub fn forward(&self, x: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        linear(&self.output, self.attended(x, mask))
    }

    /// [`forward`](Self::forward) plus `residual`, of the same shape.
    pub fn forward_add(&self, x: Tensor<3>, mask: Option<Tensor<4, Bool>>, residual: Tensor<3>) -> Tensor<3> {
        linear_add(&self.output, self.attended(x, mask), residual)
    }

    fn attended(&self, x: Tensor<3>, mask: Option<Tensor<4, Bool>>) -> Tensor<3> {
        let heads = |layer: &Linear| split_heads(linear(layer, x.clone()), self.n_heads);
        merge_heads(attention(heads(&self.query), heads(&self.key), heads(&self.value), mask))
    }
}

impl Mlp {
    /// `[B, S, D]` -> `[B, S, D]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        linear(&self.down, self.hidden(x))
    }

    /// [`forward`](Self::forward) plus `residual` `[B, S, D]`.
    pub fn forward_add(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        linear_add(&self.down, self.hidden(x), residual)
    }

    fn hidden(&self, x: Tensor<3>) -> Tensor<3> {
        self.activation.forward(linear(&self.up, x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causal_mask;
    use burn::tensor::{Distribution, Tolerance};

    fn config() -> TransformerConfig {
        TransformerConfig::new(16, 4, 2)
    }

    fn random(shape: [usize; 3], device: &Device) -> Tensor<3> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
    }

    #[test]
    fn counts_its_parameters() {
        for config in [config(), config().with_d_ff(Some(24)).with_activation(Activation::QuickGelu)] {
            assert_eq!(config.init(&Device::flex()).num_params(), config.num_params());
        }
    }

    #[test]
    fn counts_its_multiplications() {
        // Two blocks over three tokens: four products of 16 × 16 and two of 16 × 64 for each token, 3 × 3 scores twice.
        assert_eq!(config().num_macs(3), 2 * (3 * (4 * 16 * 16 + 2 * 16 * 64) + 2 * 9 * 16));
    }

    #[test]
    fn a_causal_mask_hides_later_tokens() {
        let device = Device::flex();
        let model = config().init(&device);
        let x = random([2, 6, 16], &device);
        let changed = x.clone().slice_assign(s![.., 4..5, ..], random([2, 1, 16], &device));
        let mask = Some(causal_mask(6, &device));

        let before = model.forward(x.clone(), mask.clone());
        let after = model.forward(changed.clone(), mask);
        let difference = (before - after).abs().max_dim(2);
        let early = difference.clone().slice(s![.., 0..4, ..]).max().into_scalar::<f32>();
        let late = difference.slice(s![.., 4..6, ..]).min().into_scalar::<f32>();
        assert_eq!(early, 0.0);
        assert!(late > 1e-4, "the changed token and those after it must differ, smallest change {late}");

        let open = (model.forward(x, None) - model.forward(changed, None)).abs().max_dim(2);
        assert!(open.min().into_scalar::<f32>() > 1e-6, "without a mask every token reads every other");
    }

    #[test]
    fn permuting_the_tokens_permutes_the_result() {
        let device = Device::flex();
        let model = config().with_activation(Activation::QuickGelu).init(&device);
        let x = random([1, 5, 16], &device);
        let flipped = model.forward(x.clone().flip([1]), None).flip([1]);
        let tolerance = Tolerance::rel_abs(1e-4, 1e-5);
        flipped.into_data().assert_approx_eq::<f32>(&model.forward(x, None).into_data(), tolerance);
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let device = Device::flex().autodiff();
        let model = config().init(&device);
        let loss = model.forward(random([2, 5, 16], &device), Some(causal_mask(5, &device))).powi_scalar(2).mean();
        let grads = burn::optim::GradientsParams::from_grads(loss.backward(), &model);
        // Per block: 2 norms, 4 + 2 linear layers, each with weight and bias.
        assert_eq!(grads.len(), 2 * 2 * (2 + 6));
    }

    #[test]
    fn invalid_values_are_named() {
        let field = |config: TransformerConfig| config.validate().unwrap_err().field;
        assert_eq!(field(TransformerConfig::new(16, 3, 1)), "n_heads");
        assert_eq!(field(TransformerConfig::new(16, 4, 0)), "n_layers");
        assert_eq!(field(config().with_d_ff(Some(0))), "d_ff");
        assert_eq!(field(config().with_dropout(1.0)), "dropout");
        assert_eq!(config().validate(), Ok(()));
    }
}
