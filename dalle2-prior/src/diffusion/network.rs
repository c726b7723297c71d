//! The denoising network of the diffusion prior (DALL·E 2, section 2.2).
//!
//! A causal transformer reads [encoded caption tokens, caption embedding z_t, timestep, noised image embedding,
//! learned query]; its output at the query is the clean image embedding. Where the paper leaves things open, this
//! follows Karlo: learned positions, exact GELU, a final layer norm.

use burn::module::{Initializer, Param};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use dalle2_core::nn::{LayerNorm, LayerNormConfig, Transformer, layer_norm, linear, silu, timestep_embedding};
use dalle2_core::{EmbeddingScale, TextCondition, TokenMask};

use super::{DiffusionPriorConfig, Prefix, config::EXTRA_TOKENS};
use crate::caption;

/// The network: noised embedding, timestep and caption to clean embedding, all in the scaled space.
#[derive(Module, Debug)]
pub struct PriorNetwork {
    /// Caption tokens to transformer tokens, `[W, d_model]`.
    pub token_proj: Linear,
    /// Caption embedding z_t to a token, `[D, d_model]`.
    pub text_proj: Linear,
    /// First layer over the sinusoidal timestep embedding, `[d_model, d_model]`.
    pub time_in: Linear,
    /// Second layer over the timestep embedding, `[d_model, d_model]`.
    pub time_out: Linear,
    /// Noised image embedding to a token, `[D, d_model]`.
    pub image_proj: Linear,
    /// The estimate of the last step, added to the noised embedding's token, `[D, d_model]` without bias; only with
    /// self-conditioning.
    pub estimate_proj: Option<Linear>,
    /// The query's token, `[1, d_model]`.
    pub query: Param<Tensor<2>>,
    /// Learned positions of all tokens, `[S + 4, d_model]`.
    pub positions: Param<Tensor<2>>,
    /// The transformer.
    pub transformer: Transformer,
    /// Norm before the output.
    pub norm: LayerNorm,
    /// Query token to clean embedding, `[d_model, D]`.
    pub output: Linear,
    #[module(skip)]
    pub(crate) text_scale: EmbeddingScale,
    pub(crate) n_heads: usize,
}

impl DiffusionPriorConfig {
    /// Builds the network of a [valid](Self::validate) configuration with fresh weights. Its first
    /// prediction is 0, the mean of the scaled embeddings.
    pub fn init(&self, device: &Device) -> PriorNetwork {
        let (d, embed) = (self.d_model, self.embed_dim);
        let small = Initializer::Normal { mean: 0.0, std: 0.02 };
        let linear = |d_input, d_output| LinearConfig::new(d_input, d_output).init(device);
        PriorNetwork {
            token_proj: linear(self.token_width, d),
            text_proj: linear(embed, d),
            time_in: linear(d, d),
            time_out: linear(d, d),
            image_proj: linear(embed, d),
            estimate_proj: self.self_conditioning.then(|| LinearConfig::new(embed, d).with_bias(false).init(device)),
            query: small.init([1, d], device),
            positions: small.init([self.context_length + EXTRA_TOKENS, d], device),
            transformer: self.transformer().init(device),
            norm: LayerNormConfig::new(d).init(device),
            output: LinearConfig::new(d, embed).with_initializer(Initializer::Zeros).init(device),
            text_scale: self.text_scale.clone(),
            n_heads: self.n_heads,
        }
    }
}

impl PriorNetwork {
    /// Predicts clean embeddings in the scaled space.
    ///
    /// # Shapes
    /// - x_t: `[B, D]`, noised embeddings in the scaled space
    /// - t: B timesteps
    /// - text: B captions of S tokens
    /// - output: `[B, D]`
    ///
    /// # Panics
    /// When a batch, a width or the number of tokens is another one than the configuration's.
    pub fn forward(&self, x_t: Tensor<2>, t: &[usize], text: &TextCondition) -> Tensor<2> {
        self.forward_with(x_t, t, text, None)
    }

    /// [`Self::forward`] with the network's own last estimate `[B, D]`, which a network with self-conditioning reads and
    /// others ignore; none stands for zeros.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_with(
        &self,
        x_t: Tensor<2>,
        t: &[usize],
        text: &TextCondition,
        estimate: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let step = self.step_tokens(x_t, t, estimate);
        let tokens = Tensor::cat(vec![self.caption_tokens(text), step], 1); // [B, S + 4, d_model]
        let hidden = self.transformer.forward(tokens, Some(attention_mask(&text.mask)));
        self.read_query(hidden)
    }

    /// [`Self::forward`] with attention among all tokens, padding included: what the reference implementation computes
    /// when it is given no mask. Nothing samples in this way.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_unmasked(&self, x_t: Tensor<2>, t: &[usize], text: &TextCondition) -> Tensor<2> {
        let tokens = Tensor::cat(vec![self.caption_tokens(text), self.step_tokens(x_t, t, None)], 1);
        self.read_query(self.transformer.forward(tokens, None))
    }

    /// What does not change from step to step: the caption's way through the transformer.
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn prefix(&self, text: &TextCondition) -> Prefix {
        let mask = attention_mask(&text.mask);
        Prefix::new(&self.transformer, self.n_heads, self.caption_tokens(text), mask)
    }

    /// [`Self::forward`] for a caption whose prefix is known: of the S + 4 tokens only three are computed.
    ///
    /// # Shapes
    /// - x_t: `[B, D]`
    /// - t: one timestep for the whole batch
    /// - estimate: as for [`Self::forward_with`]
    /// - output: `[B, D]`
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_from(&self, prefix: &Prefix, x_t: Tensor<2>, t: usize, estimate: Option<Tensor<2>>) -> Tensor<2> {
        let hidden = prefix.forward(&self.transformer, self.step_tokens(x_t, &[t], estimate));
        self.read_query(hidden)
    }

    /// The first S + 1 tokens, with their positions.
    fn caption_tokens(&self, text: &TextCondition) -> Tensor<3> {
        let dtype = self.dtype();
        let pooled = linear(&self.text_proj, self.text_scale.scale(text.pooled.clone()).cast(dtype));
        let tokens = linear(&self.token_proj, text.tokens.clone().cast(dtype));
        let tokens = Tensor::cat(vec![tokens, pooled.unsqueeze_dim::<3>(1)], 1);
        let caption = tokens.dims()[1];
        tokens + self.positions.val().narrow(0, 0, caption).unsqueeze::<3>()
    }

    /// The last three tokens, with their positions; `t` holds one timestep per item or one for all.
    fn step_tokens(&self, x_t: Tensor<2>, t: &[usize], estimate: Option<Tensor<2>>) -> Tensor<3> {
        let (batch, d) = (x_t.dims()[0], self.query.dims()[1]);
        let x_t = x_t.cast(self.dtype());
        let time = timestep_embedding(t, d, &x_t.device()).cast(self.dtype());
        let time = linear(&self.time_out, silu(linear(&self.time_in, time))).expand([batch, d]);
        let image = match &self.estimate_proj {
            Some(layer) => {
                let estimate = estimate.map_or_else(|| x_t.zeros_like(), |estimate| estimate.cast(self.dtype()));
                linear(&self.image_proj, x_t) + linear(layer, estimate)
            }
            None => linear(&self.image_proj, x_t),
        };
        let tokens = vec![time, image, self.query.val().expand([batch, d])];
        let total = self.positions.dims()[0];
        let positions = self.positions.val().narrow(0, total - (EXTRA_TOKENS - 1), EXTRA_TOKENS - 1);
        Tensor::stack::<3>(tokens, 1) + positions.unsqueeze::<3>()
    }

    /// `[B, any, d_model]` -> `[B, D]`, from the last token, in f32 for the arithmetic of the sampler.
    fn read_query(&self, hidden: Tensor<3>) -> Tensor<2> {
        let last = hidden.dims()[1] - 1;
        let query = layer_norm(&self.norm, hidden.narrow(1, last, 1).squeeze_dim::<2>(1));
        linear(&self.output, query).cast(FloatDType::F32)
    }

    /// Element type of the weights, in which everything between inputs and output is computed.
    fn dtype(&self) -> DType {
        self.query.val().dtype()
    }
}

/// The mask of the whole sequence, `[B, 1, S + 4, S + 4]`.
fn attention_mask(mask: &TokenMask) -> Tensor<4, Bool> {
    caption::attention_mask(mask, EXTRA_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    const S: usize = 5;

    fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
    }

    fn text(lengths: &[usize], device: &Device) -> TextCondition {
        TextCondition {
            pooled: random([lengths.len(), 12], device),
            tokens: random([lengths.len(), S, 10], device),
            mask: TokenMask::from_lengths(lengths, S, device),
        }
    }

    /// A network whose output layer is not zero.
    fn network(device: &Device) -> PriorNetwork {
        let mut network = DiffusionPriorConfig::tiny(12, 10, S).init(device);
        network.output = LinearConfig::new(128, 12).init(device);
        network
    }

    fn difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn the_first_prediction_is_zero() {
        let device = Device::flex();
        let network = DiffusionPriorConfig::tiny(12, 10, S).init(&device);
        let out = network.forward(random([2, 12], &device), &[3, 800], &text(&[5, 2], &device));
        assert_eq!(out.dims(), [2, 12]);
        assert_eq!(out.abs().max().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn padding_does_not_change_the_prediction_and_text_does() {
        let device = Device::flex();
        let network = network(&device);
        let (text, x_t) = (text(&[3, 5], &device), random([2, 12], &device));
        let before = network.forward(x_t.clone(), &[40, 900], &text);
        let changed = |position: usize| {
            let mut text = text.clone();
            text.tokens = text.tokens.slice_assign(s![0..1, position..position + 1, ..], random([1, 1, 10], &device));
            network.forward(x_t.clone(), &[40, 900], &text)
        };
        assert_eq!(difference(changed(3), before.clone()), 0.0);
        assert_eq!(difference(changed(4), before.clone()), 0.0);
        assert!(difference(changed(2), before) > 1e-4);
    }

    #[test]
    fn every_input_reaches_the_query_of_its_own_item_only() {
        let device = Device::flex();
        let network = network(&device);
        let (base, x_t) = (text(&[3, 5], &device), random([2, 12], &device));
        let before = network.forward(x_t.clone(), &[40, 40], &base);
        let mut other_pooled = base.clone();
        other_pooled.pooled = base.pooled.clone().slice_assign(s![0..1, ..], random([1, 12], &device));
        let other_x = x_t.clone().slice_assign(s![0..1, ..], random([1, 12], &device));
        for after in [
            network.forward(x_t.clone(), &[40, 40], &other_pooled),
            network.forward(other_x, &[40, 40], &base),
            network.forward(x_t, &[600, 40], &base),
        ] {
            assert!(difference(after.clone().narrow(0, 0, 1), before.clone().narrow(0, 0, 1)) > 1e-4);
            assert_eq!(difference(after.narrow(0, 1, 1), before.clone().narrow(0, 1, 1)), 0.0);
        }
    }

    #[test]
    fn the_caption_does_not_read_what_follows_it() {
        // The order of the sequence: nothing of a step may reach the tokens before it, or no prefix could be kept.
        let device = Device::flex();
        let network = network(&device);
        let text = text(&[4], &device);
        let hidden = |x_t: Tensor<2>, t: usize| {
            let tokens = Tensor::cat(vec![network.caption_tokens(&text), network.step_tokens(x_t, &[t], None)], 1);
            network.transformer.forward(tokens, Some(attention_mask(&text.mask)))
        };
        let change = (hidden(random([1, 12], &device), 10) - hidden(random([1, 12], &device), 700)).abs().max_dim(2);
        let change = change.into_data().try_to_vec::<f32>().unwrap();
        assert!(change[..S + 1].iter().all(|c| *c == 0.0), "{change:?}");
        assert!(change[S + 1..].iter().all(|c| *c > 1e-4), "{change:?}");
    }

    #[test]
    fn an_own_estimate_is_read_with_self_conditioning_alone() {
        let device = Device::flex();
        let (text, x_t) = (text(&[3, 5], &device), random([2, 12], &device));
        let estimate = Some(random([2, 12], &device));
        let plain = network(&device);
        let both = [None, estimate.clone()].map(|e| plain.forward_with(x_t.clone(), &[40, 900], &text, e));
        let [without, with] = both;
        assert_eq!(difference(without, with), 0.0);

        let config = DiffusionPriorConfig { self_conditioning: true, ..DiffusionPriorConfig::tiny(12, 10, S) };
        let mut network = config.init(&device);
        network.output = LinearConfig::new(128, 12).init(&device);
        let zeros = network.forward_with(x_t.clone(), &[7; 2], &text, Some(x_t.zeros_like()));
        assert_eq!(difference(network.forward(x_t.clone(), &[7; 2], &text), zeros.clone()), 0.0);
        let whole = network.forward_with(x_t.clone(), &[7; 2], &text, estimate.clone());
        assert!(difference(whole.clone(), zeros) > 1e-4);
        let stepped = network.forward_from(&network.prefix(&text), x_t, 7, estimate);
        stepped.into_data().assert_approx_eq::<f32>(&whole.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
    }

    #[test]
    fn the_prefix_gives_the_same_prediction() {
        let device = Device::flex();
        let network = network(&device);
        let (text, x_t) = (text(&[1, 3, 5], &device), random([3, 12], &device));
        let prefix = network.prefix(&text);
        for t in [0, 999] {
            let whole = network.forward(x_t.clone(), &[t; 3], &text);
            let stepped = network.forward_from(&prefix, x_t.clone(), t, None);
            stepped.into_data().assert_approx_eq::<f32>(&whole.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
        }
    }
}
