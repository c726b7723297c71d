//! The sizes of published networks, and of those between them and the bundled ones.

use dalle2_core::diffusion::{BetaSchedule, DiffusionConfig, PredictionType, Sampler, Spacing, VarianceType};
use dalle2_core::{ConfigError, EmbeddingScale};

use burn::module::Module;
use burn::prelude::Device;

use crate::unet::{TimeConditioning, UNetConfig, UNetVariations};
use crate::{CaptionEncoderConfig, DecoderConfig, UpsamplerConfig};

/// ADM's network (arXiv 2105.05233): FiLM, 32 groups, heads of 64 channels.
fn adm(base: usize, multiples: &[usize], attention: &[bool], n_res_blocks: usize) -> UNetConfig {
    UNetConfig {
        channels: multiples.iter().map(|multiple| base * multiple).collect(),
        attention: attention.to_vec(),
        n_res_blocks,
        patch: 1,
        head_dim: 64,
        n_groups: 32,
        time_dim: None,
        time_conditioning: TimeConditioning::Film,
        dropout: 0.0,
        context_dim: None,
        in_channels: 6,
        out_channels: 3,
        variations: UNetVariations::default(),
    }
}

impl DecoderConfig {
    /// A decoder for one GPU: 64 px, 110 M parameters with CLIP ViT-L/14.
    pub fn small(embed_dim: usize, token_width: usize) -> Self {
        Self {
            image_size: 64,
            unet: UNetConfig {
                context_dim: Some(512),
                in_channels: 3,
                out_channels: 6,
                ..adm(128, &[1, 2, 3, 4], &[false, true, true, true], 2)
            },
            ..Self::emoji(embed_dim, token_width)
        }
    }

    /// A decoder between [`Self::small`] and Karlo's: 64 px, 318 M parameters with CLIP ViT-L/14.
    pub fn base(embed_dim: usize, token_width: usize) -> Self {
        let small = Self::small(embed_dim, token_width);
        let unet = UNetConfig {
            context_dim: Some(768),
            in_channels: 3,
            out_channels: 6,
            ..adm(192, &[1, 2, 3, 4], &[false, true, true, true], 3)
        };
        Self { unet, ..small }
    }

    /// The size of Karlo v1 alpha's decoder with its projections, for CLIP ViT-L/14.
    pub fn karlo() -> Self {
        Self {
            image_size: 64,
            pooled_text: true,
            embedding_scale: EmbeddingScale::None,
            unet: UNetConfig {
                context_dim: Some(1536),
                in_channels: 3,
                out_channels: 6,
                ..adm(320, &[1, 2, 3, 4], &[false, true, true, true], 3)
            },
            diffusion: DiffusionConfig {
                prediction: PredictionType::Epsilon,
                sampler: Sampler::Ddpm,
                ..DiffusionConfig::cosine(VarianceType::LearnedRange, 25, 8.0)
            },
            ..Self::emoji(768, 768)
        }
    }

    /// The size of the paper's decoder (Table 3), "3.5B" there: GLIDE's network and a caption transformer of its own, for a
    /// CLIP of width 1024.
    pub fn paper() -> Self {
        Self {
            image_size: 64,
            embedding_scale: EmbeddingScale::Constant { factor: 17.2 },
            caption_encoder: Some(CaptionEncoderConfig::paper()),
            unet: UNetConfig {
                context_dim: Some(2048),
                in_channels: 3,
                out_channels: 6,
                dropout: 0.1,
                ..adm(512, &[1, 2, 3, 4], &[false, true, true, true], 3)
            },
            diffusion: DiffusionConfig {
                prediction: PredictionType::Epsilon,
                sampler: Sampler::Ddpm,
                ..DiffusionConfig::cosine(VarianceType::LearnedRange, 250, 4.0)
            },
            ..Self::emoji(1024, 1024)
        }
    }

    /// Number of parameters, computed without allocating them.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn num_params(&self) -> Result<usize, ConfigError> {
        // Parameters are made when they are first read, and counting reads their shapes only.
        self.validate()?;
        Ok(self.init(&Device::flex()).num_params())
    }
}

impl UpsamplerConfig {
    /// The bundled emoji upsampler from 128 px to 1024 px. Behind blocks of 8 × 8 pixels it works at 128 × 128 positions.
    pub fn emoji_1024() -> Self {
        let mut config = Self { input_size: 128, factor: 8, ..Self::emoji() };
        config.unet.patch = 8;
        config.unet.channels = vec![48, 48];
        config.diffusion.schedule = BetaSchedule::Linear;
        config
    }

    /// An upsampler for one GPU, 64 px to 256 px, 51 M parameters.
    pub fn small() -> Self {
        Self { unet: adm(96, &[1, 2, 3, 4], &[false; 4], 2), ..Self::paper_first() }
    }

    /// An upsampler between [`Self::small`] and Karlo's, 64 px to 256 px.
    pub fn base() -> Self {
        Self { unet: adm(192, &[1, 2, 3, 4], &[false; 4], 3), ..Self::paper_first() }
    }

    /// The size of Karlo v1 alpha's upsampler, 64 px to 256 px. The timestep is added in it, not FiLM.
    pub fn karlo() -> Self {
        let unet =
            UNetConfig { time_conditioning: TimeConditioning::Additive, ..adm(320, &[1, 2, 3, 4], &[false; 4], 3) };
        let diffusion = DiffusionConfig {
            prediction: PredictionType::Epsilon,
            sampler: Sampler::Ddpm,
            ..DiffusionConfig::cosine(VarianceType::FixedSmall, 7, 1.0)
        };
        Self { input_size: 64, factor: 4, residual: false, unet, diffusion, ..Self::emoji() }
    }

    /// The size of the paper's first upsampler (Table 3), 64 px to 256 px, "700M" there, sampled with GLIDE's 27 timesteps.
    pub fn paper_first() -> Self {
        let unet = UNetConfig { dropout: 0.1, ..adm(320, &[1, 2, 3, 4], &[false; 4], 3) };
        let diffusion = DiffusionConfig {
            prediction: PredictionType::Epsilon,
            spacing: Some(Spacing::Fast27),
            ..DiffusionConfig::cosine(VarianceType::FixedSmall, 27, 1.0)
        };
        Self { input_size: 64, factor: 4, residual: false, unet, diffusion, ..Self::emoji() }
    }

    /// The size of the paper's second upsampler (Table 3), 256 px to 1024 px, "300M" there.
    pub fn paper_second() -> Self {
        let unet = adm(192, &[1, 1, 2, 2, 4, 4], &[false; 6], 2);
        let diffusion = DiffusionConfig {
            prediction: PredictionType::Epsilon,
            schedule: BetaSchedule::Linear,
            ..DiffusionConfig::cosine(VarianceType::FixedSmall, 15, 1.0)
        };
        Self { input_size: 256, factor: 4, residual: false, unet, diffusion, ..Self::emoji() }
    }

    /// Number of parameters, computed without allocating them.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn num_params(&self) -> Result<usize, ConfigError> {
        self.validate()?;
        Ok(self.init(&Device::flex()).num_params())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_read_back_what_they_wrote() {
        for config in [
            DecoderConfig::tiny(64, 96),
            DecoderConfig::emoji(128, 128),
            DecoderConfig::small(768, 768),
            DecoderConfig::base(768, 768),
            DecoderConfig::karlo(),
            DecoderConfig::paper(),
        ] {
            config.validate().unwrap();
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<DecoderConfig>(&text).unwrap(), config);
        }
        for config in [
            UpsamplerConfig::tiny(),
            UpsamplerConfig::emoji(),
            UpsamplerConfig::emoji_1024(),
            UpsamplerConfig::small(),
            UpsamplerConfig::base(),
            UpsamplerConfig::karlo(),
            UpsamplerConfig::paper_first(),
            UpsamplerConfig::paper_second(),
        ] {
            config.validate().unwrap();
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<UpsamplerConfig>(&text).unwrap(), config);
        }
    }

    #[test]
    fn presets_have_the_published_numbers_of_parameters() {
        let millions = |n: Result<usize, ConfigError>| n.unwrap() as f64 / 1e6;
        let within = |found: f64, low: f64, high: f64| assert!((low..=high).contains(&found), "{found} M");
        // Karlo: 885 M and 7.9 M of projections; its upsamplers 692 M each.
        within(millions(DecoderConfig::karlo().num_params()), 892.0, 894.0);
        within(millions(UpsamplerConfig::karlo().num_params()), 691.0, 693.0);
        // The paper gives 3.5 B, 700 M and 300 M, rounded.
        within(millions(DecoderConfig::paper().num_params()), 3500.0, 3600.0);
        within(millions(UpsamplerConfig::paper_first().num_params()), 700.0, 750.0);
        within(millions(UpsamplerConfig::paper_second().num_params()), 250.0, 320.0);
        within(millions(DecoderConfig::small(768, 768).num_params()), 105.0, 115.0);
        within(millions(UpsamplerConfig::emoji_1024().num_params()), 0.7, 1.0);
    }

    #[test]
    fn counting_agrees_with_the_network() {
        let device = Device::flex();
        let config = DecoderConfig::tiny(8, 6);
        let network = config.init(&device);
        let mut allocated = Allocated(0);
        network.visit(&mut allocated);
        assert_eq!(config.num_params().unwrap(), allocated.0);
    }

    /// Counts values of parameters that are really there.
    struct Allocated(usize);

    impl burn::module::ModuleVisitor for Allocated {
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<burn::tensor::Tensor<D>>) {
            self.0 += param.val().dims().iter().product::<usize>();
        }
    }
}
