//! Configuration of the decoder, and its presets.

use dalle2_core::diffusion::{DiffusionConfig, VarianceType};
use dalle2_core::{ConfigError, EmbeddingScale};
use serde::{Deserialize, Serialize};

use crate::CaptionEncoderConfig;
use crate::channels::KNOWN_CHANNELS;
use crate::unet::{TimeConditioning, UNetConfig, UNetVariations};

/// Largest width of an embedding: a damaged configuration must not fill the memory.
const MAX_WIDTH: usize = 1 << 16;

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
        check_process(&self.diffusion, &self.unet)?;
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

/// Checks a process over RGB images and the number of outputs that it needs.
pub(crate) fn check_process(diffusion: &DiffusionConfig, unet: &UNetConfig) -> Result<(), ConfigError> {
    diffusion.validate().map_err(|e| e.within("diffusion"))?;
    let out_channels = diffusion.out_channels(3);
    if unet.out_channels != out_channels {
        let expected = format!("must be {out_channels} with variance {:?}", diffusion.variance);
        return Err(ConfigError::new("unet.out_channels", unet.out_channels, expected));
    }
    Ok(())
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
