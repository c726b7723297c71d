//! The configuration of diffusers' `UnCLIPScheduler`: DDPM on strided timesteps of the cosine schedule.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{SCHEDULER_FILE, VERSION};
use crate::ConfigError;
use crate::Result;
use crate::diffusion::{BetaSchedule, Clip, DiffusionConfig, PredictionType, Sampler, VarianceType};
use crate::store::{Fields, write_json};

/// Class name of the scheduler.
const CLASS: &str = "UnCLIPScheduler";
/// Clipping when the file names none.
const DEFAULT_RANGE: f64 = 1.0;
/// A key that the reference ignores: the sampling defaults of the stage, where they are not the reference's own.
const DEFAULTS_KEY: &str = "_dalle2_defaults";

/// A stage's diffusion process as `scheduler_config.json` describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct UnclipScheduler {
    /// Timesteps T in training.
    pub train_steps: usize,
    /// Variance of the reverse process; never [`VarianceType::FixedLarge`].
    pub variance: VarianceType,
    /// The prediction of the network; never [`PredictionType::V`].
    pub prediction: PredictionType,
    /// Clipping of the clean data.
    pub clip: Clip,
    /// Sampling steps when a request names none; `None` means the reference's default.
    pub steps: Option<usize>,
    /// Guidance scale when a request names none; `None` means the reference's default.
    pub guidance: Option<f64>,
}

impl UnclipScheduler {
    /// Library and class in `model_index.json`.
    pub const ENTRY: [&'static str; 2] = ["diffusers", CLASS];

    /// Reads `dir/scheduler_config.json`.
    ///
    /// # Errors
    /// When the file is missing or damaged, is of another scheduler, or has a setting that is not known.
    pub fn read(dir: impl AsRef<Path>) -> Result<(Self, Map<String, Value>)> {
        let fields = Fields::read(dir.as_ref().join(SCHEDULER_FILE))?;
        fields.class(CLASS)?;
        fields.only("beta_schedule", &[json!("squaredcos_cap_v2")])?;
        fields.no_others(&[
            "num_train_timesteps",
            "variance_type",
            "prediction_type",
            "clip_sample",
            "clip_sample_range",
            "beta_schedule",
        ])?;
        let variance: String = fields.get("variance_type", "fixed_small_log".into())?;
        let variance = match variance.as_str() {
            "fixed_small_log" => VarianceType::FixedSmall,
            "learned_range" => VarianceType::LearnedRange,
            _ => {
                let expected = "expected \"fixed_small_log\" or \"learned_range\"";
                return Err(fields.error("variance_type", format!("is {variance:?}, {expected}")));
            }
        };
        let prediction: String = fields.get("prediction_type", "epsilon".into())?;
        let prediction = match prediction.as_str() {
            "epsilon" => PredictionType::Epsilon,
            "sample" => PredictionType::XStart,
            _ => {
                let expected = "expected \"epsilon\" or \"sample\"";
                return Err(fields.error("prediction_type", format!("is {prediction:?}, {expected}")));
            }
        };
        let range = fields.get("clip_sample_range", Some(DEFAULT_RANGE))?.unwrap_or(DEFAULT_RANGE);
        if !(range.is_finite() && range > 0.0) {
            return Err(fields.error("clip_sample_range", format!("is {range}, expected a number above 0")));
        }
        let clip = if fields.get("clip_sample", true)? { Clip::Range(range) } else { Clip::None };
        let train_steps = fields.get("num_train_timesteps", 1000)?;
        if !(1..=1_000_000).contains(&train_steps) {
            let message = format!("is {train_steps}, expected a number from 1 to 1000000");
            return Err(fields.error("num_train_timesteps", message));
        }
        let (steps, guidance) = fields.get(DEFAULTS_KEY, (None, None))?;
        Ok((Self { train_steps, variance, prediction, clip, steps, guidance }, fields.object().clone()))
    }

    /// The file's content.
    pub fn to_json(&self) -> Map<String, Value> {
        let (clip, range) = match self.clip {
            Clip::Range(range) => (true, range),
            _ => (false, DEFAULT_RANGE),
        };
        let value = json!({
            "_class_name": CLASS,
            "_diffusers_version": VERSION,
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": clip,
            "clip_sample_range": range,
            "num_train_timesteps": self.train_steps,
            "prediction_type": if self.prediction == PredictionType::XStart { "sample" } else { "epsilon" },
            "variance_type": match self.variance {
                VarianceType::LearnedRange => "learned_range",
                _ => "fixed_small_log",
            },
        });
        let Value::Object(mut object) = value else { return Map::new() };
        if self.steps.is_some() || self.guidance.is_some() {
            object.insert(DEFAULTS_KEY.into(), json!([self.steps, self.guidance]));
        }
        object
    }

    /// Writes a scheduler's file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(dir: &Path, object: &Map<String, Value>) -> Result<()> {
        write_json(dir.join(SCHEDULER_FILE), object)
    }

    /// Returns the process of a stage; `steps` and `guidance` are the reference's defaults for it.
    pub fn diffusion_config(&self, steps: usize, guidance: f64) -> DiffusionConfig {
        DiffusionConfig {
            train_steps: self.train_steps,
            prediction: self.prediction,
            clip: Some(self.clip),
            ..DiffusionConfig::portable(
                self.variance,
                self.steps.unwrap_or(steps).min(self.train_steps),
                self.guidance.unwrap_or(guidance),
            )
        }
    }

    /// Returns the scheduler of a process without [faults](Self::faults); steps and guidance that equal the reference's
    /// defaults are left out.
    pub fn new(diffusion: &DiffusionConfig, steps: usize, guidance: f64) -> Self {
        let steps = steps.min(diffusion.train_steps);
        Self {
            train_steps: diffusion.train_steps,
            variance: diffusion.variance,
            prediction: diffusion.prediction,
            clip: diffusion.clip(),
            steps: (diffusion.sampling_steps != steps).then_some(diffusion.sampling_steps),
            guidance: (diffusion.guidance != guidance).then_some(diffusion.guidance),
        }
    }

    /// Returns the settings of a process that this scheduler does not have.
    pub fn faults(diffusion: &DiffusionConfig) -> Vec<String> {
        let mut faults = Vec::new();
        let mut needs = |holds: bool, field: &str, value: String, needed: &str| {
            if !holds {
                faults.push(ConfigError::new(field, value, needed).to_string());
            }
        };
        let DiffusionConfig { schedule, prediction, variance, sampler, guidance_interval, spacing, .. } = diffusion;
        let cosine = *schedule == BetaSchedule::Cosine;
        needs(cosine, "schedule", format!("{schedule:?}"), "UnCLIPScheduler has Cosine only");
        let known = *prediction != PredictionType::V;
        needs(known, "prediction", format!("{prediction:?}"), "UnCLIPScheduler has Epsilon and XStart only");
        let known = *variance != VarianceType::FixedLarge;
        let needed = "UnCLIPScheduler has FixedSmall and LearnedRange only";
        needs(known, "variance", format!("{variance:?}"), needed);
        needs(*sampler == Sampler::Ddpm, "sampler", format!("{sampler:?}"), "UnCLIPScheduler has Ddpm only");
        let clip = diffusion.clip();
        let known = matches!(clip, Clip::None | Clip::Range(_));
        needs(known, "clip", format!("{clip:?}"), "UnCLIPScheduler clamps to a range or not at all");
        for (field, unset) in [("guidance_interval", guidance_interval.is_none()), ("spacing", spacing.is_none())] {
            let needed = "UnCLIPScheduler guides at every timestep and spaces them evenly: leave it out";
            needs(unset, field, "set".into(), needed);
        }
        faults
    }
}
