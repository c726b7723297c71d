//! The form of a [`DiffusionPriorConfig`] on disk: one level of fields, defaults left out.

use dalle2_core::EmbeddingScale;
use dalle2_core::diffusion::{
    AnalyticVariance, BetaSchedule, Clip, DiffusionConfig, GuidanceInterval, LossWeight, PredictionType, Rounding,
    Sampler, Spacing, VarianceType,
};
use serde::{Deserialize, Serialize};

use super::DiffusionPriorConfig;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    embed_dim: usize,
    token_width: usize,
    context_length: usize,
    d_model: usize,
    n_heads: usize,
    n_layers: usize,
    dropout: f64,
    image_scale: EmbeddingScale,
    text_scale: EmbeddingScale,
    x_start_bound: XStartBound,
    train_steps: usize,
    schedule: BetaSchedule,
    sampling_steps: usize,
    sampler: Sampler,
    guidance: f64,
    candidates: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prediction: Option<PredictionType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variance: Option<VarianceType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_weight: Option<LossWeight>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rounding: Option<Rounding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guidance_interval: Option<GuidanceInterval>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spacing: Option<Spacing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    self_conditioning: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    analytic_variance: Option<AnalyticVariance>,
}

/// [`Clip`] under the names that it has in these files.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum XStartBound {
    None,
    Range { value: f64 },
    DynamicThreshold { quantile: f64 },
    Ball,
}

impl From<ConfigFile> for DiffusionPriorConfig {
    fn from(file: ConfigFile) -> Self {
        let variance = file.variance.unwrap_or(VarianceType::FixedSmall);
        Self {
            embed_dim: file.embed_dim,
            token_width: file.token_width,
            context_length: file.context_length,
            d_model: file.d_model,
            n_heads: file.n_heads,
            n_layers: file.n_layers,
            dropout: file.dropout,
            image_scale: file.image_scale,
            text_scale: file.text_scale,
            candidates: file.candidates,
            self_conditioning: file.self_conditioning.unwrap_or(false),
            analytic_variance: file.analytic_variance,
            diffusion: DiffusionConfig {
                train_steps: file.train_steps,
                schedule: file.schedule,
                prediction: file.prediction.unwrap_or(PredictionType::XStart),
                sampler: file.sampler,
                loss_weight: file.loss_weight,
                rounding: file.rounding,
                guidance_interval: file.guidance_interval,
                spacing: file.spacing,
                clip: Some(match file.x_start_bound {
                    XStartBound::None => Clip::None,
                    XStartBound::Range { value } => Clip::Range(value),
                    XStartBound::DynamicThreshold { quantile } => Clip::DynamicThreshold { quantile },
                    XStartBound::Ball => Clip::Ball,
                }),
                ..DiffusionConfig::cosine(variance, file.sampling_steps, file.guidance)
            },
        }
    }
}

impl From<DiffusionPriorConfig> for ConfigFile {
    fn from(config: DiffusionPriorConfig) -> Self {
        let diffusion = config.diffusion;
        Self {
            embed_dim: config.embed_dim,
            token_width: config.token_width,
            context_length: config.context_length,
            d_model: config.d_model,
            n_heads: config.n_heads,
            n_layers: config.n_layers,
            dropout: config.dropout,
            image_scale: config.image_scale,
            text_scale: config.text_scale,
            x_start_bound: match diffusion.clip() {
                Clip::None => XStartBound::None,
                Clip::Range(value) => XStartBound::Range { value },
                Clip::DynamicThreshold { quantile } => XStartBound::DynamicThreshold { quantile },
                Clip::Ball => XStartBound::Ball,
            },
            train_steps: diffusion.train_steps,
            schedule: diffusion.schedule,
            sampling_steps: diffusion.sampling_steps,
            sampler: diffusion.sampler,
            guidance: diffusion.guidance,
            candidates: config.candidates,
            prediction: (diffusion.prediction != PredictionType::XStart).then_some(diffusion.prediction),
            variance: (diffusion.variance != VarianceType::FixedSmall).then_some(diffusion.variance),
            loss_weight: diffusion.loss_weight,
            rounding: diffusion.rounding,
            guidance_interval: diffusion.guidance_interval,
            spacing: diffusion.spacing,
            self_conditioning: config.self_conditioning.then_some(true),
            analytic_variance: config.analytic_variance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Every field that files of earlier versions have.
    fn earlier_file() -> Value {
        json!({
            "embed_dim": 128, "token_width": 96, "context_length": 32, "d_model": 192, "n_heads": 6, "n_layers": 4,
            "dropout": 0.0, "image_scale": "l2", "text_scale": "l2", "x_start_bound": "ball", "train_steps": 1000,
            "schedule": "cosine", "sampling_steps": 25, "sampler": {"ddim": {"eta": 0.0}}, "guidance": 2.0,
            "candidates": 2
        })
    }

    #[test]
    fn files_of_earlier_versions_load_and_are_written_unchanged() {
        let mut file = earlier_file();
        let read = |file: &Value| serde_json::from_value::<DiffusionPriorConfig>(file.clone()).unwrap();
        assert_eq!(read(&file), DiffusionPriorConfig::small(128, 96, 32));
        assert_eq!(serde_json::to_value(read(&file)).unwrap(), file);

        file["x_start_bound"] = json!({"range": {"value": 5.0}});
        file["self_conditioning"] = true.into();
        file["prediction"] = "epsilon".into();
        file["rounding"] = "single".into();
        file["analytic_variance"] = json!({"timesteps": [0, 999], "x_start_variance": [0.1, 0.9]});
        let config = read(&file);
        assert_eq!(config.diffusion.clip, Some(Clip::Range(5.0)));
        assert!(config.self_conditioning && config.analytic_variance.is_some());
        assert_eq!(serde_json::to_value(config).unwrap(), file);
    }

    #[test]
    fn every_option_of_the_process_round_trips() {
        let mut config = DiffusionPriorConfig::small(16, 8, 4);
        config.diffusion = DiffusionConfig {
            variance: VarianceType::FixedLarge,
            loss_weight: Some(LossWeight::MinSnr { gamma: 5.0 }),
            guidance_interval: Some(GuidanceInterval { low: 0.1, high: 0.9 }),
            spacing: Some(Spacing::LogSnr),
            ..config.diffusion
        };
        for clip in [Clip::None, Clip::Range(2.0), Clip::DynamicThreshold { quantile: 0.9 }, Clip::Ball] {
            config.diffusion.clip = Some(clip);
            let json = serde_json::to_value(&config).unwrap();
            assert_eq!(serde_json::from_value::<DiffusionPriorConfig>(json).unwrap(), config);
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut file = earlier_file();
        file["depth"] = 3.into();
        let message = serde_json::from_value::<DiffusionPriorConfig>(file).unwrap_err().to_string();
        assert!(message.contains("depth"), "{message}");
    }
}
