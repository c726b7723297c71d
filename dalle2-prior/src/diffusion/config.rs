//! Configuration of the diffusion prior, and its presets.

use dalle2_core::diffusion::{
    AnalyticVariance, Clip, DiffusionConfig, PredictionType, Rounding, Sampler, SamplerOptions, VarianceType,
};
use dalle2_core::nn::TransformerConfig;
use dalle2_core::{ConfigError, DiffusionOptions, EmbeddingScale, PriorOptions};
use serde::{Deserialize, Serialize};

use super::config_file::ConfigFile;

/// Tokens after the caption's: z_t, timestep, noised embedding, query.
pub(super) const EXTRA_TOKENS: usize = 4;

/// Largest width and number of anything: a damaged configuration must not fill the memory.
const MAX_WIDTH: usize = 1 << 16;

/// Configuration of a [`DiffusionPrior`](crate::DiffusionPrior).
///
/// On disk the fields of [`DiffusionConfig`] stand beside the others, and its `clip` is called `x_start_bound`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "ConfigFile", into = "ConfigFile")]
pub struct DiffusionPriorConfig {
    /// Width D of CLIP's joint space.
    pub embed_dim: usize,
    /// Width W of the caption's token encodings.
    pub token_width: usize,
    /// Number S of caption tokens.
    pub context_length: usize,
    /// Width of the transformer, even.
    pub d_model: usize,
    /// Attention heads, a divisor of `d_model`.
    pub n_heads: usize,
    /// Transformer blocks.
    pub n_layers: usize,
    /// Dropout in the transformer's branches, while training.
    pub dropout: f64,
    /// Scale of the image embeddings that are diffused.
    pub image_scale: EmbeddingScale,
    /// Scale of the caption's embedding z_t that the network reads.
    pub text_scale: EmbeddingScale,
    /// Default number of candidates per caption; the one with the highest cosine of z_i and z_t is returned.
    pub candidates: usize,
    /// Whether the network also reads its previous estimate (Chen et al. 2022, Analog Bits, arXiv 2208.04202, section
    /// 3.2).
    pub self_conditioning: bool,
    /// The variance of DDPM's steps that is optimal for the training data, if measured
    /// ([`DiffusionPrior::with_measured_variance`](crate::DiffusionPrior::with_measured_variance)); otherwise the
    /// posterior's is used.
    pub analytic_variance: Option<AnalyticVariance>,
    /// The diffusion process over scaled embeddings.
    pub diffusion: DiffusionConfig,
}

impl DiffusionPriorConfig {
    /// The size of the bundled prior, for things that a CPU can train in minutes to an hour: 1.8 M parameters and the
    /// projections.
    pub fn small(embed_dim: usize, token_width: usize, context_length: usize) -> Self {
        Self {
            embed_dim,
            token_width,
            context_length,
            d_model: 192,
            n_heads: 6,
            n_layers: 4,
            dropout: 0.0,
            image_scale: EmbeddingScale::L2,
            text_scale: EmbeddingScale::L2,
            candidates: 2,
            self_conditioning: false,
            analytic_variance: None,
            diffusion: DiffusionConfig {
                prediction: PredictionType::XStart,
                clip: Some(Clip::Ball),
                ..DiffusionConfig::cosine(VarianceType::FixedSmall, 25, 2.0)
            },
        }
    }

    /// Between the bundled prior and Karlo's, for one GPU: 12 blocks of width 768, 89 M parameters with CLIP ViT-L/14.
    pub fn base(embed_dim: usize, token_width: usize, context_length: usize) -> Self {
        let small = Self::small(embed_dim, token_width, context_length);
        let diffusion = DiffusionConfig { sampling_steps: 64, ..small.diffusion };
        Self { d_model: 768, n_heads: 12, n_layers: 12, diffusion, ..small }
    }

    /// The bundled emoji prior, [`Self::small`].
    pub fn emoji(embed_dim: usize, token_width: usize, context_length: usize) -> Self {
        Self::small(embed_dim, token_width, context_length)
    }

    /// A prior that learns a few dozen captions within minutes on a CPU.
    pub fn tiny(embed_dim: usize, token_width: usize, context_length: usize) -> Self {
        Self { d_model: 128, n_heads: 4, n_layers: 3, ..Self::small(embed_dim, token_width, context_length) }
    }

    /// [`tiny`](Self::tiny) in a form that diffusers can express, for a CLIP whose captions' tokens are as wide as its
    /// embeddings. `image_scale` should be measured on the embeddings to be learned, see [`EmbeddingScale::measure`].
    pub fn portable(embed_dim: usize, context_length: usize, image_scale: EmbeddingScale) -> Self {
        let tiny = Self::tiny(embed_dim, embed_dim, context_length);
        Self {
            image_scale,
            text_scale: EmbeddingScale::None,
            candidates: 1,
            diffusion: DiffusionConfig {
                sampler: Sampler::Ddpm,
                rounding: Some(Rounding::Single),
                clip: Some(Clip::Range(5.0)),
                ..tiny.diffusion
            },
            ..tiny
        }
    }

    /// The size of Karlo v1 alpha's prior, 1.02 billion parameters, for CLIP ViT-L/14. The statistics of its
    /// [`EmbeddingScale::MeanStd`] come with its weights; here the embeddings stay as they are.
    pub fn karlo() -> Self {
        Self {
            embed_dim: 768,
            token_width: 768,
            context_length: 77,
            d_model: 2048,
            n_heads: 32,
            n_layers: 20,
            dropout: 0.0,
            image_scale: EmbeddingScale::None,
            text_scale: EmbeddingScale::None,
            candidates: 1,
            self_conditioning: false,
            analytic_variance: None,
            diffusion: DiffusionConfig {
                prediction: PredictionType::XStart,
                clip: Some(Clip::Range(5.0)),
                ..DiffusionConfig::portable(VarianceType::FixedSmall, 25, 4.0)
            },
        }
    }

    /// The size of the paper's diffusion prior (table 3), "1B" there, for a CLIP of width 1024. It samples with the
    /// posterior's variance until the paper's analytic one is measured.
    pub fn paper() -> Self {
        Self {
            embed_dim: 1024,
            token_width: 1024,
            context_length: 256,
            n_layers: 24,
            image_scale: EmbeddingScale::Constant { factor: 17.2 },
            text_scale: EmbeddingScale::Constant { factor: 17.2 },
            candidates: 2,
            diffusion: DiffusionConfig {
                sampling_steps: 64,
                rounding: None,
                clip: Some(Clip::None),
                ..Self::karlo().diffusion
            },
            ..Self::karlo()
        }
    }

    /// The transformer.
    pub fn transformer(&self) -> TransformerConfig {
        TransformerConfig::new(self.d_model, self.n_heads, self.n_layers).with_dropout(self.dropout)
    }

    /// Number of parameters, computed without allocating them.
    pub fn num_params(&self) -> usize {
        let (d, e) = (self.d_model, self.embed_dim);
        let projections = (self.token_width + 1) * d + 2 * (e + 1) * d + (d + 1) * e;
        let time = 2 * (d + 1) * d;
        let tokens = (self.context_length + EXTRA_TOKENS + 1) * d;
        let own_estimate = if self.self_conditioning { e * d } else { 0 };
        projections + time + tokens + 2 * d + own_estimate + self.transformer().num_params()
    }

    /// Length of the sequence that the transformer reads.
    pub fn sequence_length(&self) -> usize {
        self.context_length + EXTRA_TOKENS
    }

    /// Multiply-accumulates of one forward pass for one caption; a training step takes about three times as many, with
    /// self-conditioning half a pass more.
    pub fn num_macs(&self) -> u64 {
        let [s, w, e, d] = [self.context_length, self.token_width, self.embed_dim, self.d_model].map(|n| n as u64);
        let own_estimate = if self.self_conditioning { e * d } else { 0 };
        s * w * d + 3 * e * d + 2 * d * d + own_estimate + self.transformer().num_macs(self.sequence_length())
    }

    /// Returns the sampling defaults.
    pub fn defaults(&self) -> PriorOptions {
        let DiffusionOptions { steps, guidance, guidance_interval, sampler, spacing, .. } = self.diffusion.defaults();
        let candidates = Some(self.candidates);
        PriorOptions { steps, guidance, guidance_interval, sampler, spacing, candidates, ..Default::default() }
    }

    /// Returns the options of a sampler. The variance of DDPM is the analytic one if it was measured, otherwise the
    /// posterior's.
    pub fn sampler_options(&self, sampler: Option<Sampler>) -> SamplerOptions {
        let options = self.diffusion.sampler_options(&DiffusionOptions { sampler, ..Default::default() });
        match self.analytic_variance {
            Some(_) => SamplerOptions { variance: VarianceType::Analytic, ..options },
            None => options,
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
            if !(1..=MAX_WIDTH).contains(&value) {
                return Err(ConfigError::new(field, value, format!("must be between 1 and {MAX_WIDTH}")));
            }
        }
        self.transformer().validate()?;
        if !self.d_model.is_multiple_of(2) {
            return Err(ConfigError::new(
                "d_model",
                self.d_model,
                "must be even: half cosines, half sines of the timestep",
            ));
        }
        self.image_scale.validate(self.embed_dim).map_err(|e| e.within("image_scale"))?;
        self.text_scale.validate(self.embed_dim).map_err(|e| e.within("text_scale"))?;
        if self.diffusion.clip() == Clip::Ball && self.image_scale != EmbeddingScale::L2 {
            let expected = "a ball bounds embeddings of image_scale \"l2\" only: use \"none\" or a range";
            return Err(ConfigError::new("x_start_bound", "ball", expected));
        }
        if self.diffusion.variance == VarianceType::LearnedRange {
            let expected = "must be fixed_small or fixed_large: a prior has no variance output";
            return Err(ConfigError::new("variance", "learned_range", expected));
        }
        if let Some(table) = &self.analytic_variance {
            table.validate(self.diffusion.train_steps)?;
        }
        self.diffusion.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::prelude::*;

    #[test]
    fn presets_are_valid_and_have_the_stated_sizes() {
        let emoji = DiffusionPriorConfig::emoji(192, 256, 32);
        for config in [
            &emoji,
            &DiffusionPriorConfig::tiny(128, 128, 24),
            &DiffusionPriorConfig::karlo(),
            &DiffusionPriorConfig::paper(),
        ] {
            config.validate().unwrap();
        }
        assert!(emoji.num_params() <= 2_500_000, "{}", emoji.num_params());
        // Karlo's file holds 2 · 768 numbers more, the statistics of the embeddings; here they are configuration.
        assert_eq!(DiffusionPriorConfig::karlo().num_params(), 1_022_030_080 - 2 * 768);
        assert_eq!(DiffusionPriorConfig::paper().num_params(), 1_225_925_632);
    }

    #[test]
    fn the_parameters_are_counted_exactly() {
        let config = DiffusionPriorConfig::tiny(12, 10, 5);
        assert_eq!(config.init(&Device::flex()).num_params(), config.num_params());
        let own = DiffusionPriorConfig { self_conditioning: true, ..config };
        assert_eq!(own.init(&Device::flex()).num_params(), own.num_params());
        let transformer = 3 * (9 * 12 * 128 * 128 + 2 * 9 * 9 * 128);
        assert_eq!(own.num_macs(), 5 * 10 * 128 + 4 * 12 * 128 + 2 * 128 * 128 + transformer);
    }

    #[test]
    fn json_round_trips_and_unknown_fields_are_refused() {
        let config = DiffusionPriorConfig::karlo();
        let mut json = serde_json::to_value(&config).unwrap();
        assert_eq!(serde_json::from_value::<DiffusionPriorConfig>(json.clone()).unwrap(), config);
        json["depth"] = 3.into();
        let message = serde_json::from_value::<DiffusionPriorConfig>(json).unwrap_err().to_string();
        assert!(message.contains("depth"), "{message}");
    }

    #[test]
    fn bad_values_are_named() {
        let field = |change: fn(&mut DiffusionPriorConfig)| {
            let mut config = DiffusionPriorConfig::tiny(16, 8, 4);
            change(&mut config);
            config.validate().unwrap_err().field
        };
        assert_eq!(field(|c| c.embed_dim = 0), "embed_dim");
        assert_eq!(field(|c| c.n_heads = 3), "n_heads");
        assert_eq!(field(|c| (c.d_model, c.n_heads) = (33, 3)), "d_model");
        assert_eq!(field(|c| c.image_scale = EmbeddingScale::None), "x_start_bound");
        assert_eq!(field(|c| c.diffusion.clip = Some(Clip::Range(-1.0))), "clip.range");
        assert_eq!(field(|c| c.diffusion.variance = VarianceType::LearnedRange), "variance");
        assert_eq!(field(|c| c.diffusion.sampling_steps = 1001), "sampling_steps");
        assert_eq!(field(|c| c.diffusion.guidance = f64::INFINITY), "guidance");
        assert_eq!(field(|c| c.candidates = 0), "candidates");
        assert_eq!(
            field(|c| c.text_scale = EmbeddingScale::Constant { factor: 0.0 }),
            "text_scale.embedding_scale.factor"
        );
    }
}
