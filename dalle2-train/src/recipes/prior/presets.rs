//! Preset configurations of both priors.

use dalle2_core::{ConfigError, EmbeddingScale};
use dalle2_prior::{AutoregressivePriorConfig, DiffusionPriorConfig};

use super::super::args::Preset;
use super::super::frozen::ClipSizes;
use super::recipe::PriorKind;
use crate::TrainConfig;

/// Returns the preset of the diffusion prior. `scale` is used by the portable preset, which stores it.
pub(super) fn diffusion(preset: Preset, sizes: ClipSizes, scale: EmbeddingScale) -> DiffusionPriorConfig {
    let ClipSizes { embed_dim, token_width, context_length } = sizes;
    let of_clip = |config| DiffusionPriorConfig { embed_dim, token_width, context_length, ..config };
    match preset {
        Preset::Tiny => DiffusionPriorConfig::tiny(embed_dim, token_width, context_length),
        Preset::Portable => DiffusionPriorConfig::portable(embed_dim, context_length, scale),
        Preset::Emoji => DiffusionPriorConfig::emoji(embed_dim, token_width, context_length),
        Preset::Small => DiffusionPriorConfig::small(embed_dim, token_width, context_length),
        Preset::Base => DiffusionPriorConfig::base(embed_dim, token_width, context_length),
        Preset::Karlo => of_clip(DiffusionPriorConfig::karlo()),
        Preset::Paper => of_clip(DiffusionPriorConfig::paper()),
    }
}

/// Returns the preset of the autoregressive prior.
pub(super) fn autoregressive(preset: Preset, sizes: ClipSizes) -> Result<AutoregressivePriorConfig, ConfigError> {
    let ClipSizes { embed_dim, token_width, context_length } = sizes;
    let of_clip = |config: AutoregressivePriorConfig| {
        let components = config.components.min(embed_dim);
        AutoregressivePriorConfig { embed_dim, token_width, context_length, components, ..config }
    };
    Ok(match preset {
        Preset::Tiny => AutoregressivePriorConfig::tiny(embed_dim, token_width, context_length),
        Preset::Portable => {
            let expected = "cannot be autoregressive, which diffusers does not support: use another preset, or the diffusion prior";
            return Err(ConfigError::new("preset", "portable", expected));
        }
        Preset::Emoji | Preset::Small => AutoregressivePriorConfig::small(embed_dim, token_width, context_length),
        Preset::Base => AutoregressivePriorConfig::base(embed_dim, token_width, context_length),
        Preset::Karlo => of_clip(AutoregressivePriorConfig::karlo()),
        Preset::Paper => of_clip(AutoregressivePriorConfig::paper()),
    })
}

/// Returns the trainer's preset.
pub(super) fn train(preset: Preset, kind: PriorKind) -> TrainConfig {
    match preset {
        Preset::Tiny | Preset::Portable => TrainConfig { steps: 600, batch_size: 48, ..small(kind) },
        Preset::Emoji => TrainConfig { steps: 800, batch_size: 64, ..small(kind) },
        Preset::Small => TrainConfig { steps: 20_000, batch_size: 256, ..small(kind) },
        Preset::Base | Preset::Karlo | Preset::Paper => paper(kind),
    }
}

/// β2, ε and weight decay of DALL·E 2, table 3.
fn small(kind: PriorKind) -> TrainConfig {
    let (weight_decay, beta_2, epsilon) = match kind {
        PriorKind::Diffusion => (6.0e-2, 0.96, 1e-6),
        PriorKind::Autoregressive => (4.0e-2, 0.91, 1e-10),
    };
    TrainConfig {
        learning_rate: 1e-3,
        warmup: 100,
        weight_decay,
        beta_2,
        epsilon,
        ema_decay: Some(0.998),
        checkpoint_every: 250,
        validate_every: Some(500),
        ..Default::default()
    }
}

/// DALL·E 2, table 3.
fn paper(kind: PriorKind) -> TrainConfig {
    let (steps, learning_rate, ema_decay) = match kind {
        PriorKind::Diffusion => (600_000, 1.1e-4, 0.9999),
        PriorKind::Autoregressive => (1_000_000, 1.6e-4, 0.999),
    };
    TrainConfig {
        steps,
        batch_size: 4096,
        learning_rate,
        ema_decay: Some(ema_decay),
        checkpoint_every: 1000,
        validate_every: Some(1000),
        ..small(kind)
    }
}
