//! CLIP's vision transformer (Radford et al. 2021, section 2.4; Dosovitskiy et al. 2021 with a layer norm before the
//! transformer). The embedding is the final encoding of the class token, normalised and projected.

use burn::module::{Initializer, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::FloatDType;
use dalle2_core::ConfigError;
use dalle2_core::nn::{Activation, LayerNorm, Transformer, TransformerConfig, conv2d, layer_norm, linear, transpose};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_LAYERS, MAX_SIDE, MAX_WIDTH, at_most};

/// Mean and standard deviation of the pixels per channel, in [0, 1], in OpenAI's training.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Configuration of a [`VisionTransformer`] and of its input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionTransformerConfig {
    /// Side of the square images in pixels, a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width W of the patch encodings.
    pub d_model: usize,
    /// Number of attention heads, a divisor of `d_model`.
    pub n_heads: usize,
    /// Number of transformer blocks.
    pub n_layers: usize,
    /// Hidden width of the feed-forward layers; `None` means 4 · `d_model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Nonlinearity of the feed-forward layers.
    pub activation: Activation,
    /// Dropout probability in the residual branches during training.
    pub dropout: f64,
    /// ε of the layer norms; `None` means CLIP's 1e-5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_norm_eps: Option<f64>,
    /// Width D of the joint embedding space.
    pub embed_dim: usize,
    /// Mean of the pixels per channel, for pixels in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of the pixels per channel, for pixels in [0, 1].
    pub std: [f32; 3],
}

/// The vision tower.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Embedding of the class token, `[W]`.
    pub class_embedding: Param<Tensor<1>>,
    /// Embedding of the patches, without bias.
    pub patch_embedding: Conv2d,
    /// Position embeddings, the class token's first: `[1 + N, W]`.
    pub position_embedding: Embedding,
    /// Layer norm before the transformer.
    pub pre_norm: LayerNorm,
    /// The transformer blocks.
    pub transformer: Transformer,
    /// Layer norm of the final encoding of the class token.
    pub post_norm: LayerNorm,
    /// Projection to the joint space, without bias: `[W, D]`.
    pub projection: Linear,
    image_size: usize,
}

impl VisionTransformerConfig {
    /// Creates a configuration with CLIP's feed-forward width, pixel statistics and QuickGELU, and no dropout.
    ///
    /// `size` is `[image_size, patch_size]` in pixels, `transformer` is `[d_model, n_heads, n_layers]`.
    pub fn new(size: [usize; 2], transformer: [usize; 3], embed_dim: usize) -> Self {
        Self {
            image_size: size[0],
            patch_size: size[1],
            d_model: transformer[0],
            n_heads: transformer[1],
            n_layers: transformer[2],
            d_ff: None,
            activation: Activation::QuickGelu,
            dropout: 0.0,
            layer_norm_eps: None,
            embed_dim,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// Returns the number of patches N of an image.
    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Computes the number of parameters without allocating them.
    pub fn num_params(&self) -> usize {
        let w = self.d_model;
        let patches = w * 3 * self.patch_size.pow(2);
        let positions = (1 + self.n_patches()) * w;
        w + patches + positions + 2 * 2 * w + self.transformer().num_params() + w * self.embed_dim
    }

    /// Checks all fields.
    ///
    /// # Errors
    /// Names the first field that is zero, out of range or not divisible.
    pub fn validate(&self) -> Result<(), ConfigError> {
        at_most("image_size", self.image_size, MAX_SIDE)?;
        at_most("d_model", self.d_model, MAX_WIDTH)?;
        at_most("n_layers", self.n_layers, MAX_LAYERS)?;
        at_most("d_ff", self.d_ff.unwrap_or(0), MAX_WIDTH)?;
        at_most("embed_dim", self.embed_dim, MAX_WIDTH)?;
        if self.patch_size == 0 {
            return Err(ConfigError::new("patch_size", 0, "must be at least 1"));
        }
        if self.image_size == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            let expected = format!("must be a positive multiple of patch_size = {}", self.patch_size);
            return Err(ConfigError::new("image_size", self.image_size, expected));
        }
        if self.embed_dim == 0 {
            return Err(ConfigError::new("embed_dim", 0, "must be at least 1"));
        }
        if let Some(mean) = self.mean.iter().find(|v| !v.is_finite()) {
            return Err(ConfigError::new("mean", mean, "must be finite"));
        }
        if let Some(std) = self.std.iter().find(|v| !v.is_finite() || **v <= 0.0) {
            return Err(ConfigError::new("std", std, "must be finite and above 0"));
        }
        self.transformer().validate()
    }

    /// Returns the configuration of the transformer.
    pub fn transformer(&self) -> TransformerConfig {
        TransformerConfig::new(self.d_model, self.n_heads, self.n_layers)
            .with_d_ff(self.d_ff)
            .with_activation(self.activation)
            .with_dropout(self.dropout)
            .with_layer_norm_eps(self.layer_norm_eps)
    }

    /// Initializes a tower with random weights: patches, class token and positions of standard deviation 0.02, the rest as
    /// in CLIP. The configuration must be valid, see [`validate`](Self::validate).
    pub fn init(&self, device: &Device) -> VisionTransformer {
        let (w, p) = (self.d_model, self.patch_size);
        let small = Initializer::Normal { mean: 0.0, std: 0.02 };
        let projection = Initializer::Normal { mean: 0.0, std: (w as f64).powf(-0.5) };
        VisionTransformer {
            class_embedding: small.init([w], device),
            patch_embedding: Conv2dConfig::new([3, w], [p, p])
                .with_stride([p, p])
                .with_bias(false)
                .with_initializer(small.clone())
                .init(device),
            position_embedding: EmbeddingConfig::new(1 + self.n_patches(), w).with_initializer(small).init(device),
            pre_norm: self.transformer().norm(device),
            transformer: self.transformer().init(device),
            post_norm: self.transformer().norm(device),
            projection: LinearConfig::new(w, self.embed_dim).with_bias(false).with_initializer(projection).init(device),
            image_size: self.image_size,
        }
    }
}

impl VisionTransformer {
    /// Embeds preprocessed images (see [`preprocess`](crate::preprocess)); the result is not normalised.
    ///
    /// # Shapes
    /// `[B, 3, image_size, image_size]` -> `[B, D]`
    ///
    /// # Panics
    /// If the images have another size or number of channels.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        let class_token = self.encode_patches(pixels).slice_dim(1, 0..1).squeeze_dim::<2>(1); // [B, 1 + N, W] -> [B, W]
        linear(&self.projection, layer_norm(&self.post_norm, class_token))
    }

    /// Encodes the class token and the patches, before the final norm.
    ///
    /// # Shapes
    /// `[B, 3, image_size, image_size]` -> `[B, 1 + N, W]`
    ///
    /// # Panics
    /// If the images have another size or number of channels.
    pub fn encode_patches(&self, pixels: Tensor<4>) -> Tensor<3> {
        let patches = self.embed_patches(pixels);
        let [b, _, w] = patches.dims();
        let class = self.class_embedding.val().reshape([1, 1, w]).expand([b, 1, w]);
        let positions = self.position_embedding.weight.val().unsqueeze::<3>();
        let x = Tensor::cat(vec![class, patches], 1) + positions; // [B, 1 + N, W]
        self.transformer.forward(layer_norm(&self.pre_norm, x), None)
    }

    /// Embeds images from a subset of their patches, each with its position in the image (patch dropout: Liu et al. 2022,
    /// arXiv 2208.07220; Li et al. 2023, arXiv 2212.00794).
    ///
    /// # Shapes
    /// pixels `[B, 3, image_size, image_size]`, patch indices `[B, K]` -> `[B, D]`
    ///
    /// # Panics
    /// If the images have another size or number of channels, or the indices another batch size.
    pub fn forward_patches(&self, pixels: Tensor<4>, patch_indices: Tensor<2, Int>) -> Tensor<2> {
        let patches = self.embed_patches(pixels);
        let [b, n, w] = patches.dims();
        let k = patch_indices.dims()[1];
        assert_shape!(patch_indices, [b, k]);
        let positions = self.position_embedding.weight.val().unsqueeze::<3>(); // [1, 1 + N, W]
        let patches = patches + positions.clone().slice_dim(1, 1..n + 1);
        let patches = patches.gather(1, patch_indices.unsqueeze_dim::<3>(2).expand([b, k, w])); // [B, N, W] -> [B, K, W]
        let class = self.class_embedding.val().reshape([1, 1, w]) + positions.slice_dim(1, 0..1);
        let x = Tensor::cat(vec![class.expand([b, 1, w]), patches], 1); // [B, 1 + K, W]
        let x = self.transformer.forward(layer_norm(&self.pre_norm, x), None);
        let class_token = x.slice_dim(1, 0..1).squeeze_dim::<2>(1); // [B, 1 + K, W] -> [B, W]
        linear(&self.projection, layer_norm(&self.post_norm, class_token))
    }

    /// `[B, 3, H, W]` -> `[B, W, rows, columns]` -> `[B, N, W]`
    fn embed_patches(&self, pixels: Tensor<4>) -> Tensor<3> {
        let [b, _, _, _] = pixels.dims();
        assert_shape!(pixels, [b, 3, self.image_size, self.image_size]);
        let pixels = pixels.cast(FloatDType::from(self.class_embedding.val().dtype()));
        transpose(conv2d(&self.patch_embedding, pixels).flatten::<3>(2, 3))
    }

    /// Returns the side of the input images in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn config() -> VisionTransformerConfig {
        VisionTransformerConfig::new([16, 4], [24, 3, 2], 20)
    }

    #[test]
    fn shapes_and_parameters_are_as_configured() {
        let device = Device::flex();
        let config = config();
        let model = config.init(&device);
        assert_eq!(model.num_params(), config.num_params());
        let pixels = Tensor::random([2, 3, 16, 16], Distribution::Normal(0.0, 1.0), &device);
        assert_eq!(model.encode_patches(pixels.clone()).dims(), [2, 17, 24]);
        assert_eq!(model.forward(pixels).dims(), [2, 20]);
    }

    #[test]
    fn moving_a_patch_changes_the_embedding() {
        let device = Device::flex();
        let model = config().init(&device);
        let pixels = Tensor::random([1, 3, 16, 16], Distribution::Normal(0.0, 1.0), &device);
        let [left, right] = [0..8, 8..16].map(|columns| pixels.clone().slice_dim(3, columns));
        let swapped = Tensor::cat(vec![right, left], 3);
        let change = (model.forward(pixels) - model.forward(swapped)).abs().max().into_scalar::<f32>();
        assert!(change > 1e-4, "positions must matter, change {change}");
    }

    #[test]
    fn all_patches_in_any_order_embed_as_without_dropout() {
        let device = Device::flex();
        let model = config().init(&device);
        let pixels = Tensor::random([2, 3, 16, 16], Distribution::Normal(0.0, 1.0), &device);
        let order: Vec<i64> = (0..32).map(|i| if i < 16 { (i * 5) % 16 } else { 31 - i }).collect();
        let order = Tensor::<2, Int>::from_data(TensorData::new(order, [2, 16]), &device);
        let close = burn::tensor::Tolerance::rel_abs(1e-4, 1e-5);
        let expected = model.forward(pixels.clone()).into_data();
        model.forward_patches(pixels.clone(), order.clone()).into_data().assert_approx_eq::<f32>(&expected, close);
        // Other patches have no effect.
        let indices = order.slice_dim(1, 0..4); // patches 0, 5, 10, 15 of the first image
        let one = |pixels: Tensor<4>| model.forward_patches(pixels, indices.clone()).slice_dim(0, 0..1).into_data();
        let dark_other = pixels.clone().slice_assign(s![0..1, .., 0..4, 4..8], Tensor::zeros([1, 3, 4, 4], &device));
        one(pixels.clone()).assert_eq(&one(dark_other), true);
        let dark_selected = pixels.clone().slice_assign(s![0..1, .., 4..8, 4..8], Tensor::zeros([1, 3, 4, 4], &device));
        assert_ne!(one(pixels), one(dark_selected));
    }

    #[test]
    #[should_panic]
    fn refuses_images_of_another_size() {
        let device = Device::flex();
        config().init(&device).forward(Tensor::zeros([1, 3, 20, 16], &device));
    }

    #[test]
    fn invalid_values_are_named() {
        let field = |config: VisionTransformerConfig| config.validate().unwrap_err().field;
        assert_eq!(field(VisionTransformerConfig { image_size: 18, ..config() }), "image_size");
        assert_eq!(field(VisionTransformerConfig { patch_size: 0, ..config() }), "patch_size");
        assert_eq!(field(VisionTransformerConfig { n_heads: 5, ..config() }), "n_heads");
        assert_eq!(field(VisionTransformerConfig { std: [1.0, 0.0, 1.0], ..config() }), "std");
        assert_eq!(config().validate(), Ok(()));
    }
}
