//! Configuration of the autoregressive prior, and its presets.

use dalle2_core::nn::TransformerConfig;
use dalle2_core::{ConfigError, EmbeddingScale, PriorOptions};
use serde::{Deserialize, Serialize};

/// Tokens between the caption's and the components': z_t and the dot product.
pub(super) const MIDDLE_TOKENS: usize = 2;

/// Configuration of an [`AutoregressivePrior`](crate::AutoregressivePrior).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoregressivePriorConfig {
    /// Width D of CLIP's joint space.
    pub embed_dim: usize,
    /// Width W of the caption's token encodings.
    pub token_width: usize,
    /// Number S of caption tokens.
    pub context_length: usize,
    /// Number K of principal components that are predicted, at most D.
    pub components: usize,
    /// Buckets of each component, at least 2 (the paper: 1,024).
    pub buckets: usize,
    /// Buckets of the dot product z_i · z_t, even (the paper does not say).
    pub dot_buckets: usize,
    /// Width of the transformer, even.
    pub d_model: usize,
    /// Attention heads, a divisor of `d_model`.
    pub n_heads: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Dropout in the transformer's branches, while training.
    pub dropout: f64,
    /// Scale of the image embeddings whose components are predicted.
    pub image_scale: EmbeddingScale,
    /// Scale of the caption's embedding z_t that the network reads.
    pub text_scale: EmbeddingScale,
    /// Guidance scale when a request names none; 1 is no guidance.
    pub guidance: f64,
    /// Temperature when a request names none; 0 takes the most probable bucket, 1 the model's distribution.
    pub temperature: f64,
    /// Share of the probability that is drawn from when a request names none; 1 is all of it.
    pub top_p: f64,
    /// Embeddings drawn per caption when a request names no number; the one closest to z_t is kept.
    pub candidates: usize,
}

impl AutoregressivePriorConfig {
    /// The counterpart of [`DiffusionPriorConfig::small`](crate::DiffusionPriorConfig::small): 64 components, about 2 M
    /// parameters and the projections.
    pub fn small(embed_dim: usize, token_width: usize, context_length: usize) -> Self {
        Self {
            embed_dim,
            token_width,
            context_length,
            components: 64.min(embed_dim),
            buckets: 1024,
            dot_buckets: 32,
            d_model: 192,
            n_heads: 6,
            n_layers: 4,
            dropout: 0.0,
            image_scale: EmbeddingScale::L2,
            text_scale: EmbeddingScale::L2,
            guidance: 2.0,
            temperature: 1.0,
            top_p: 1.0,
            candidates: 2,
        }
    }

    /// Between [`Self::small`] and Karlo's size, for one GPU: 12 blocks of width 768 over 256 components.
    pub fn base(embed_dim: usize, token_width: usize, context_length: usize) -> Self {
        let small = Self::small(embed_dim, token_width, context_length);
        Self { d_model: 768, n_heads: 12, n_layers: 12, components: embed_dim.min(256), ..small }
    }

    /// The counterpart of [`DiffusionPriorConfig::tiny`](crate::DiffusionPriorConfig::tiny).
    pub fn tiny(embed_dim: usize, token_width: usize, context_length: usize) -> Self {
        Self {
            components: 32.min(embed_dim),
            d_model: 128,
            n_heads: 4,
            n_layers: 3,
            ..Self::small(embed_dim, token_width, context_length)
        }
    }

    /// For CLIP ViT-L/14, as large as Karlo v1 alpha's diffusion prior. Karlo itself has no such prior.
    pub fn karlo() -> Self {
        Self {
            embed_dim: 768,
            token_width: 768,
            context_length: 77,
            components: 256,
            d_model: 2048,
            n_heads: 32,
            n_layers: 20,
            image_scale: EmbeddingScale::None,
            text_scale: EmbeddingScale::None,
            guidance: 4.0,
            candidates: 1,
            ..Self::small(768, 768, 77)
        }
    }

    /// The paper's (table 3, "latent decoder"; section 2.2): 319 components of a CLIP of width 1024, width 1664, 24
    /// blocks, 26 heads. The paper's "1B" counts a text encoder of its own, which is the frozen CLIP's here.
    pub fn paper() -> Self {
        Self {
            embed_dim: 1024,
            token_width: 1024,
            context_length: 256,
            components: 319,
            d_model: 1664,
            n_heads: 26,
            n_layers: 24,
            image_scale: EmbeddingScale::Constant { factor: 17.2 },
            text_scale: EmbeddingScale::Constant { factor: 17.2 },
            candidates: 2,
            ..Self::karlo()
        }
    }

    /// The transformer.
    pub fn transformer(&self) -> TransformerConfig {
        TransformerConfig::new(self.d_model, self.n_heads, self.n_layers).with_dropout(self.dropout)
    }

    /// Length of the sequence that the transformer reads: the last component is predicted and never read.
    pub fn sequence_length(&self) -> usize {
        self.context_length + MIDDLE_TOKENS + self.components - 1
    }

    /// Number of parameters, computed without allocating them.
    pub fn num_params(&self) -> usize {
        let d = self.d_model;
        let projections = (self.token_width + 1) * d + (self.embed_dim + 1) * d;
        let tables = (self.dot_buckets + 1 + self.buckets + self.sequence_length()) * d;
        let output = (d + 1) * self.buckets;
        projections + tables + output + 2 * d + self.transformer().num_params()
    }

    /// Multiply-accumulates of one forward pass for one caption; a training step takes about three times as many.
    pub fn num_macs(&self) -> u64 {
        let [s, w, e, d, k] =
            [self.context_length, self.token_width, self.embed_dim, self.d_model, self.components].map(|n| n as u64);
        let projections = s * w * d + e * d;
        projections + self.transformer().num_macs(self.sequence_length()) + k * d * self.buckets as u64
    }

    /// The sampling defaults as options.
    pub fn defaults(&self) -> PriorOptions {
        PriorOptions {
            guidance: Some(self.guidance),
            candidates: Some(self.candidates),
            temperature: Some(self.temperature),
            top_p: Some(self.top_p),
            ..Default::default()
        }
    }

    /// Checks that the values can work together.
    ///
    /// # Errors
    /// Names the first field that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("embed_dim", self.embed_dim),
            ("token_width", self.token_width),
            ("context_length", self.context_length),
            ("candidates", self.candidates),
        ] {
            if value == 0 {
                return Err(ConfigError::new(field, value, "must be at least 1"));
            }
        }
        if !(1..=self.embed_dim).contains(&self.components) {
            let expected = format!("must be between 1 and embed_dim = {}", self.embed_dim);
            return Err(ConfigError::new("components", self.components, expected));
        }
        if self.buckets < 2 {
            return Err(ConfigError::new("buckets", self.buckets, "must be at least 2"));
        }
        if self.dot_buckets < 2 || !self.dot_buckets.is_multiple_of(2) {
            let expected = "must be even and at least 2: sampling draws from the upper half";
            return Err(ConfigError::new("dot_buckets", self.dot_buckets, expected));
        }
        self.transformer().validate()?;
        if !self.d_model.is_multiple_of(2) {
            let expected = "must be even: half cosines, half sines of a bucket's number";
            return Err(ConfigError::new("d_model", self.d_model, expected));
        }
        self.image_scale.validate(self.embed_dim).map_err(|e| e.within("image_scale"))?;
        self.text_scale.validate(self.embed_dim).map_err(|e| e.within("text_scale"))?;
        check_sampling(&self.defaults())
    }
}

/// Checks the values of a request that this prior reads.
pub(super) fn check_sampling(options: &PriorOptions) -> Result<(), ConfigError> {
    let check = |field: &str, value: Option<f64>, fits: fn(f64) -> bool, expected: &str| match value {
        Some(value) if !fits(value) => Err(ConfigError::new(field, value, expected)),
        _ => Ok(()),
    };
    check("guidance", options.guidance, |v| v.is_finite() && v >= 0.0, "must be finite and at least 0")?;
    check("temperature", options.temperature, |v| v.is_finite() && v >= 0.0, "must be finite and at least 0")?;
    check("top_p", options.top_p, |v| v > 0.0 && v <= 1.0, "must be above 0 and at most 1")?;
    if options.candidates == Some(0) {
        return Err(ConfigError::new("candidates", 0, "must be at least 1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;
    use burn::prelude::Device;

    #[test]
    fn presets_are_valid_and_have_the_stated_sizes() {
        let small = AutoregressivePriorConfig::small(128, 128, 32);
        for config in [
            &small,
            &AutoregressivePriorConfig::tiny(64, 96, 24),
            &AutoregressivePriorConfig::karlo(),
            &AutoregressivePriorConfig::paper(),
        ] {
            config.validate().unwrap();
        }
        assert_eq!((small.components, small.num_params()), (64, 2_248_576));
        assert_eq!(AutoregressivePriorConfig::karlo().num_params(), 1_015_266_304);
        assert_eq!(AutoregressivePriorConfig::paper().num_params(), 805_798_016);
    }

    #[test]
    fn parameters_and_multiplications_are_counted_exactly() {
        let config = AutoregressivePriorConfig::tiny(12, 10, 5);
        assert_eq!(config.init(&Device::flex()).num_params(), config.num_params());
        assert_eq!((config.components, config.sequence_length()), (12, 5 + 2 + 11));
        let transformer = 3 * (18 * 12 * 128 * 128 + 2 * 18 * 18 * 128);
        assert_eq!(config.num_macs(), 5 * 10 * 128 + 12 * 128 + transformer + 12 * 128 * 1024);
    }

    #[test]
    fn json_round_trips_and_unknown_fields_are_refused() {
        let config = AutoregressivePriorConfig::paper();
        let mut json = serde_json::to_value(&config).unwrap();
        assert_eq!(serde_json::from_value::<AutoregressivePriorConfig>(json.clone()).unwrap(), config);
        json["depth"] = 3.into();
        assert!(serde_json::from_value::<AutoregressivePriorConfig>(json).unwrap_err().to_string().contains("depth"));
    }

    #[test]
    fn bad_values_are_named() {
        let field = |change: fn(&mut AutoregressivePriorConfig)| {
            let mut config = AutoregressivePriorConfig::tiny(16, 8, 4);
            change(&mut config);
            config.validate().unwrap_err().field
        };
        assert_eq!(field(|c| c.components = 17), "components");
        assert_eq!(field(|c| c.buckets = 1), "buckets");
        assert_eq!(field(|c| c.dot_buckets = 7), "dot_buckets");
        assert_eq!(field(|c| (c.d_model, c.n_heads) = (33, 3)), "d_model");
        assert_eq!(field(|c| c.guidance = f64::INFINITY), "guidance");
        assert_eq!(field(|c| c.temperature = f64::NAN), "temperature");
        assert_eq!(field(|c| c.top_p = 0.0), "top_p");
        assert_eq!(field(|c| c.candidates = 0), "candidates");
    }
}
