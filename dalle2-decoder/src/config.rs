//! Configurations of the diffusion process and of the decoder, and their presets.

use dalle2_core::diffusion::{
    BetaSchedule, Clip, GuidanceInterval, LossWeight, NoiseSchedule, PredictionType, Rounding, Sampler, SamplerOptions,
    Spacing, VarianceType,
};
use dalle2_core::{ConfigError, DiffusionOptions, EmbeddingScale};
use serde::{Deserialize, Serialize};

use crate::CaptionEncoderConfig;
use crate::channels::KNOWN_CHANNELS;
use crate::unet::{TimeConditioning, UNetConfig, UNetVariations};

/// Largest width of an embedding: a damaged configuration must not fill the memory.
const MAX_WIDTH: usize = 1 << 16;

/// The diffusion process that a network was trained for, and how it is sampled by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Timesteps T in training.
    pub train_steps: usize,
    /// Noise schedule.
    pub schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction: PredictionType,
    /// Variance of the reverse process; [`VarianceType::LearnedRange`] doubles the output channels.
    pub variance: VarianceType,
    /// Weight of the variational bound beside the mean squared error (λ, 1e-3 in improved DDPM); for a learned variance.
    pub vlb_weight: f64,
    /// How the errors of different timesteps are weighted in training; not given means all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_weight: Option<LossWeight>,
    /// Sampling steps when a request names none.
    pub sampling_steps: usize,
    /// Sampler when a request names none.
    pub sampler: Sampler,
    /// Guidance scale when a request names none; 1 is no guidance.
    pub guidance: f64,
    /// How the schedule's numbers are rounded; not given means to f64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Rounding>,
    /// Timesteps at which guidance acts when a request names none; not given means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_interval: Option<GuidanceInterval>,
    /// How timesteps are spread when a request does not say; not given means evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// What is done to estimates of the clean images when a request does not say; not given means clamping to [−1, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
}

impl DiffusionConfig {
    /// Cosine schedule of 1,000 steps, prediction of v, DDIM.
    pub fn cosine(variance: VarianceType, sampling_steps: usize, guidance: f64) -> Self {
        Self {
            train_steps: 1000,
            schedule: BetaSchedule::Cosine,
            prediction: PredictionType::V,
            variance,
            vlb_weight: 1e-3,
            loss_weight: None,
            sampling_steps,
            sampler: Sampler::Ddim { eta: 0.0 },
            guidance,
            rounding: None,
            guidance_interval: None,
            spacing: None,
            clip: None,
        }
    }

    /// The schedule's tables.
    ///
    /// # Errors
    /// When `train_steps` is out of range.
    pub fn noise_schedule(&self) -> Result<NoiseSchedule, ConfigError> {
        Ok(NoiseSchedule::new(self.schedule, self.train_steps)?.rounded(self.rounding.unwrap_or_default()))
    }

    /// Channels that the network puts out for an RGB image.
    pub fn out_channels(&self) -> usize {
        match self.variance {
            VarianceType::LearnedRange => 6,
            _ => 3,
        }
    }

    /// The defaults as options.
    pub fn defaults(&self) -> DiffusionOptions {
        DiffusionOptions {
            steps: Some(self.sampling_steps),
            guidance: Some(self.guidance),
            guidance_interval: self.guidance_interval,
            sampler: Some(self.sampler),
            spacing: self.spacing.clone(),
            clip: Some(self.clip.unwrap_or(Clip::Range(1.0))),
        }
    }

    /// How a sampler reads the network with these options.
    pub fn sampler_options(&self, options: &DiffusionOptions) -> SamplerOptions {
        SamplerOptions {
            prediction: self.prediction,
            variance: self.variance,
            sampler: options.sampler.unwrap_or(self.sampler),
            clip: options.clip.or(self.clip).unwrap_or(Clip::Range(1.0)),
        }
    }

    /// A process that diffusers' `UnCLIPScheduler` can express: prediction of ε on the cosine schedule, DDPM.
    pub fn portable(variance: VarianceType, sampling_steps: usize, guidance: f64) -> Self {
        Self {
            prediction: PredictionType::Epsilon,
            sampler: Sampler::Ddpm,
            rounding: Some(Rounding::Single),
            ..Self::cosine(variance, sampling_steps, guidance)
        }
    }

    /// Checks the values, and that the network has as many outputs as the variance needs.
    ///
    /// # Errors
    /// Names the first field that cannot work.
    pub fn validate(&self, unet: &UNetConfig) -> Result<(), ConfigError> {
        self.noise_schedule()?;
        self.sampler_options(&self.defaults()).validate().map_err(|e| e.within("diffusion"))?;
        if !(1..=self.train_steps).contains(&self.sampling_steps) {
            let expected = format!("must be between 1 and train_steps = {}", self.train_steps);
            return Err(ConfigError::new("diffusion.sampling_steps", self.sampling_steps, expected));
        }
        if !(self.guidance.is_finite() && self.guidance >= 0.0) {
            return Err(ConfigError::new("diffusion.guidance", self.guidance, "must be finite and at least 0"));
        }
        if self.variance == VarianceType::Analytic {
            let expected = "must be fixed_small, fixed_large or learned_range: the analytic variance is the prior's";
            return Err(ConfigError::new("diffusion.variance", "analytic", expected));
        }
        if let Some(weight) = &self.loss_weight {
            weight.validate().map_err(|e| e.within("diffusion"))?;
        }
        if let Some(interval) = &self.guidance_interval {
            interval.validate().map_err(|e| e.within("diffusion"))?;
        }
        if let Some(spacing) = &self.spacing {
            spacing.plan(&self.noise_schedule()?, Some(self.sampling_steps)).map_err(|e| e.within("diffusion"))?;
        }
        if !(self.vlb_weight.is_finite() && self.vlb_weight >= 0.0) {
            return Err(ConfigError::new("diffusion.vlb_weight", self.vlb_weight, "must be finite and at least 0"));
        }
        if unet.out_channels != self.out_channels() {
            let expected = format!("must be {} with variance {:?}", self.out_channels(), self.variance);
            return Err(ConfigError::new("unet.out_channels", unet.out_channels, expected));
        }
        Ok(())
    }
}

/// Configuration of the decoder P(x | z_i, y).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Side of the images in pixels.
    pub image_size: usize,
    /// Width D of CLIP's joint space.
    pub embed_dim: usize,
    /// Width W of the caption's token encodings.
    pub token_width: usize,
    /// Context tokens made from the image embedding (4 in the paper).
    pub context_tokens: usize,
    /// Whether the caption's embedding z_t is added to the timestep embedding too (Karlo does, the paper does not).
    pub pooled_text: bool,
    /// Whether the network reads its last estimate of the clean image too, three channels behind the noisy image
    /// (Chen et al. 2022, Analog Bits, arXiv 2208.04202, section 3.2).
    #[serde(default, skip_serializing_if = "is_false")]
    pub self_conditioning: bool,
    /// Whether the network reads known pixels and their mask, four channels behind all others, and so inpaints.
    #[serde(default, skip_serializing_if = "is_false")]
    pub inpainting: bool,
    /// A text transformer of the decoder's own, which reads the caption's tokens; without it the decoder reads the token
    /// encodings of the frozen CLIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_encoder: Option<CaptionEncoderConfig>,
    /// Scale of the image embeddings that the network reads.
    pub embedding_scale: EmbeddingScale,
    /// The network.
    pub unet: UNetConfig,
    /// The diffusion process.
    pub diffusion: DiffusionConfig,
}

impl DecoderConfig {
    /// The bundled emoji decoder: 32 px, all convolutions at 16 × 16 and 8 × 8 behind a pixel-unshuffle stem.
    pub fn emoji(embed_dim: usize, token_width: usize) -> Self {
        Self {
            image_size: 32,
            embed_dim,
            token_width,
            context_tokens: 4,
            pooled_text: false,
            caption_encoder: None,
            self_conditioning: false,
            inpainting: false,
            embedding_scale: EmbeddingScale::L2,
            unet: UNetConfig {
                in_channels: 3,
                out_channels: 6,
                channels: vec![96, 128],
                attention: vec![false, true],
                n_res_blocks: 2,
                patch: 2,
                head_dim: 32,
                n_groups: 16,
                context_dim: Some(128),
                time_dim: Some(256),
                time_conditioning: TimeConditioning::Film,
                dropout: 0.0,
                variations: UNetVariations::default(),
            },
            diffusion: DiffusionConfig::cosine(VarianceType::LearnedRange, 30, 2.0),
        }
    }

    /// A decoder that learns a few dozen images within minutes on a CPU.
    pub fn tiny(embed_dim: usize, token_width: usize) -> Self {
        let mut config = Self::emoji(embed_dim, token_width);
        config.unet.channels = vec![48, 96];
        config.unet.n_res_blocks = 1;
        config.unet.context_dim = Some(96);
        config.unet.time_dim = Some(128);
        config
    }

    /// A small decoder in a form that diffusers can express: 32 px without a stem, attention at 8 × 8.
    pub fn portable(embed_dim: usize) -> Self {
        Self {
            pooled_text: true,
            embedding_scale: EmbeddingScale::None,
            unet: UNetConfig {
                channels: vec![32, 48, 96],
                attention: vec![false, false, true],
                n_res_blocks: 1,
                patch: 1,
                context_dim: Some(96),
                time_dim: None,
                ..Self::emoji(embed_dim, embed_dim).unet
            },
            diffusion: DiffusionConfig::portable(VarianceType::LearnedRange, 25, 3.0),
            ..Self::emoji(embed_dim, embed_dim)
        }
    }

    /// The channels that the network reads.
    pub fn in_channels(&self) -> usize {
        3 + if self.self_conditioning { 3 } else { 0 } + if self.inpainting { KNOWN_CHANNELS } else { 0 }
    }

    /// The same decoder with channels for known pixels; [`UNet::with_input_channels`](crate::unet::UNet::with_input_channels)
    /// makes the network fit.
    pub fn with_inpainting(mut self) -> Self {
        self.inpainting = true;
        self.unet.in_channels = self.in_channels();
        self
    }

    /// The same decoder with channels for its last estimate.
    pub fn with_self_conditioning(mut self) -> Self {
        self.self_conditioning = true;
        self.unet.in_channels = self.in_channels();
        self
    }

    /// Checks that the parts fit.
    ///
    /// # Errors
    /// Names the first field that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.unet.validate().map_err(|e| e.within("unet"))?;
        self.diffusion.validate(&self.unet)?;
        self.embedding_scale.validate(self.embed_dim)?;
        if let Some(encoder) = &self.caption_encoder {
            encoder.validate().map_err(|e| e.within("caption_encoder"))?;
        }
        for (field, value) in
            [("embed_dim", self.embed_dim), ("token_width", self.token_width), ("context_tokens", self.context_tokens)]
        {
            if !(1..=MAX_WIDTH).contains(&value) {
                return Err(ConfigError::new(field, value, format!("must be between 1 and {MAX_WIDTH}")));
            }
        }
        if self.unet.context_dim.is_none() {
            return Err(ConfigError::new(
                "unet.context_dim",
                "null",
                "a decoder reads context tokens: give their width",
            ));
        }
        if self.unet.in_channels != self.in_channels() {
            let expected = format!(
                "must be {}: 3 for the noisy image, 3 more with self_conditioning, {KNOWN_CHANNELS} more with inpainting",
                self.in_channels()
            );
            return Err(ConfigError::new("unet.in_channels", self.unet.in_channels, expected));
        }
        check_size("image_size", self.image_size, self.unet.stride())
    }
}

pub(crate) fn check_size(field: &str, size: usize, stride: usize) -> Result<(), ConfigError> {
    match size > 0 && size.is_multiple_of(stride) && size <= 8192 {
        true => Ok(()),
        false => Err(ConfigError::new(field, size, format!("must be a multiple of {stride} and at most 8192"))),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}
