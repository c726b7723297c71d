//! Configuration of the upsamplers, and its presets.

use dalle2_core::ConfigError;
use dalle2_core::diffusion::{DiffusionConfig, PredictionType, VarianceType};
use serde::{Deserialize, Serialize};

use crate::NoiseLevel;
use crate::channels::KNOWN_CHANNELS;
use crate::config::{check_process, check_size, is_false};
use crate::unet::{TimeConditioning, UNetConfig, UNetVariations};

/// Configuration of an upsampler P(x_high | x_low).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpsamplerConfig {
    /// Side of the small images in pixels, as in training.
    pub input_size: usize,
    /// How many times larger the result is along each side.
    pub factor: usize,
    /// Whether the network is told how much noise the small image was given, in one further channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_level: Option<NoiseLevel>,
    /// Whether the network reads known pixels and their mask, four channels behind all others, and so inpaints.
    #[serde(default, skip_serializing_if = "is_false")]
    pub inpainting: bool,
    /// The network; it reads six channels, the noisy image and the enlarged small one, and those of the options above.
    pub unet: UNetConfig,
    /// A second network of the same inputs and outputs, which takes the last sampling step (Karlo's is trained for it).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_step: Option<UNetConfig>,
    /// How the small image is enlarged; not given means [`Enlargement::Clamped`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enlargement: Option<Enlargement>,
    /// Whether the network predicts what the enlarged image lacks, which is added to that image (as in SRDiff, arXiv
    /// 2104.14951, but in the prediction, so that the process stays one over images). For [`PredictionType::XStart`] only.
    #[serde(default)]
    pub residual: bool,
    /// The diffusion process.
    pub diffusion: DiffusionConfig,
}

/// How the small image is brought to the size of the large one; both are bicubic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enlargement {
    /// Clamped to [−1, 1] before and after.
    #[default]
    Clamped,
    /// Clamped to [−1, 1] before only, so that it may overshoot at edges: as the reference implementation does it.
    Overshooting,
}

impl UpsamplerConfig {
    /// The bundled emoji upsampler, 32 px to 128 px.
    pub fn emoji() -> Self {
        Self {
            input_size: 32,
            factor: 4,
            noise_level: None,
            inpainting: false,
            unet: UNetConfig {
                in_channels: 6,
                out_channels: 3,
                channels: vec![64, 64],
                attention: vec![false, false],
                n_res_blocks: 1,
                patch: 4,
                head_dim: 32,
                n_groups: 16,
                context_dim: None,
                time_dim: Some(128),
                time_conditioning: TimeConditioning::Film,
                dropout: 0.0,
                variations: UNetVariations::default(),
            },
            last_step: None,
            enlargement: None,
            // Bicubic enlargement of a drawing is right almost everywhere, so only what it lacks is predicted.
            residual: true,
            // 64 channels cannot carry the noise of blocks of 48 values, which predicting v would ask for.
            diffusion: DiffusionConfig {
                prediction: PredictionType::XStart,
                ..DiffusionConfig::cosine(VarianceType::FixedSmall, 8, 1.0)
            },
        }
    }

    /// A smaller one for the tiny decoder, 32 px to 128 px.
    pub fn tiny() -> Self {
        let mut config = Self::emoji();
        config.unet.channels = vec![32, 64];
        config
    }

    /// One in a form that diffusers can express, 32 px to 64 px without a stem. The same network takes the last step.
    pub fn portable() -> Self {
        Self {
            factor: 2,
            unet: UNetConfig {
                channels: vec![16, 32, 64],
                attention: vec![false; 3],
                patch: 1,
                n_groups: 8,
                time_dim: None,
                time_conditioning: TimeConditioning::Additive,
                ..Self::emoji().unet
            },
            enlargement: Some(Enlargement::Overshooting),
            residual: false,
            diffusion: DiffusionConfig::portable(VarianceType::FixedSmall, 7, 1.0),
            ..Self::emoji()
        }
    }

    /// The networks with the names of their fields.
    pub(crate) fn networks(&self) -> impl Iterator<Item = (&'static str, &UNetConfig)> {
        [("unet", &self.unet)].into_iter().chain(self.last_step.as_ref().map(|unet| ("last_step", unet)))
    }

    /// Sides of the large images must be divisible by this.
    pub fn stride(&self) -> usize {
        self.networks().map(|(_, unet)| unet.stride()).max().unwrap_or(1)
    }

    /// The channels that the network reads.
    pub fn in_channels(&self) -> usize {
        6 + usize::from(self.noise_level.is_some()) + if self.inpainting { KNOWN_CHANNELS } else { 0 }
    }

    /// The same upsampler with channels for known pixels; see [`DecoderConfig::with_inpainting`](crate::DecoderConfig::with_inpainting).
    pub fn with_inpainting(mut self) -> Self {
        self.inpainting = true;
        self.unet.in_channels = self.in_channels();
        self
    }

    /// Side of the large images in pixels, as in training.
    pub fn output_size(&self) -> usize {
        self.input_size * self.factor
    }

    /// Checks that the parts fit.
    ///
    /// # Errors
    /// Names the first field that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, unet) in self.networks() {
            unet.validate().map_err(|e| e.within(name))?;
            check_process(&self.diffusion, unet)?;
            if unet.in_channels != self.in_channels() {
                let expected = format!(
                    "must be {}: 6 for the noisy image and the enlarged small one, 1 more with noise_level, \
                     {KNOWN_CHANNELS} more with inpainting",
                    self.in_channels()
                );
                return Err(ConfigError::new(format!("{name}.in_channels"), unet.in_channels, expected));
            }
            if unet.context_dim.is_some() {
                let expected = "must be null: an upsampler reads no context";
                return Err(ConfigError::new(
                    format!("{name}.context_dim"),
                    format!("{:?}", unet.context_dim),
                    expected,
                ));
            }
            if unet.attention.contains(&true) || (0..unet.channels.len()).any(|level| unet.up_attention(level)) {
                let expected = "an upsampler has no attention, so that it runs at any size";
                return Err(ConfigError::new(format!("{name}.attention"), format!("{:?}", unet.attention), expected));
            }
        }
        if !(2..=16).contains(&self.factor) {
            return Err(ConfigError::new("factor", self.factor, "must be between 2 and 16"));
        }
        if let Some(level) = &self.noise_level {
            level.validate()?;
        }
        if self.residual && self.diffusion.prediction != PredictionType::XStart {
            let expected = format!(
                "needs the prediction {:?}: noise is no departure from the enlarged image",
                PredictionType::XStart
            );
            return Err(ConfigError::new("residual", format!("true, with {:?}", self.diffusion.prediction), expected));
        }
        let stride = self.stride();
        check_size("input_size", self.input_size, stride.div_ceil(self.factor))?;
        match self.output_size().is_multiple_of(stride) {
            true => Ok(()),
            false => {
                let expected = format!("times factor = {} must be a multiple of {stride}", self.factor);
                Err(ConfigError::new("input_size", self.input_size, expected))
            }
        }
    }
}
