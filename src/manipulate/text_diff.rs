//! Text differences (DALL·E 2, section 3.3).

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, Error, Result, slerp};

use super::Operation;
use super::inversion::{DEFAULT_EVALUATIONS, deterministic};
use super::mix::read;
use crate::run::Inputs;
use crate::{Generation, Pipeline};

/// Share of the captions' length below which their difference counts as zero.
const IDENTICAL: f64 = 1e-4;

/// A change of an image along the difference of two captions.
#[derive(Debug, Clone)]
pub struct TextDiff {
    image: RgbImage,
    from: String,
    to: String,
    strength: f64,
    frames: usize,
    evaluations: usize,
}

impl TextDiff {
    pub(super) fn new(image: RgbImage, from: String, to: String) -> Self {
        Self { image, from, to, strength: 0.4, frames: 1, evaluations: DEFAULT_EVALUATIONS }
    }
}

impl Operation<'_, TextDiff> {
    /// Sets how far the embedding turns towards the difference, from 0, the image, to 1, the difference alone; 0.4 by
    /// default. The paper uses 0.25 to 0.5.
    pub fn strength(mut self, strength: f64) -> Self {
        self.kind.strength = strength;
        self
    }

    /// Sets the number of frames; the last one has the full strength, the others even fractions of it; 1 by default.
    pub fn frames(mut self, n: usize) -> Self {
        self.kind.frames = n;
        self
    }

    /// Sets the evaluations per step of the inversion.
    pub fn evaluations(mut self, n: usize) -> Self {
        self.kind.evaluations = n;
        self
    }

    /// Generates the changed images.
    ///
    /// # Errors
    /// If the captions have the same embedding, their difference is opposite to the image, an option is out of range, the
    /// image cannot be inverted, or the hook returns an error.
    pub fn run(self) -> Result<Generation> {
        let Self { pipeline, request, mut controls, kind } = self;
        let TextDiff { image, from, to, strength, frames, evaluations } = kind;
        if !(0.0..=1.0).contains(&strength) {
            return Err(ConfigError::new("strength", strength, "must be between 0 and 1").into());
        }
        if frames == 0 {
            return Err(ConfigError::new("frames", 0, "must be at least 1").into());
        }
        let request = request.without_start()?.num_images(1).with_seed();
        let checked = pipeline.check(deterministic(request.clone()).frames(frames), None)?;
        controls.reserve(checked.steps());
        pipeline.reserve_inversion(evaluations, &request, &mut controls)?;
        pipeline.filter_caption(&to)?;
        if !from.is_empty() {
            pipeline.filter_caption(&from)?;
        }
        let direction = pipeline.difference(&from, &to)?;
        let x_t = pipeline.find_noise(&image, evaluations, &request, &mut controls)?;
        let embedding = pipeline.embed_image(&image)?;
        // A direction has no length: it takes the image's, so that only the angle changes.
        let direction = direction * embedding.clone().square().sum_dim(1).sqrt();
        let mut embeddings = Vec::with_capacity(frames);
        for i in 1..=frames {
            embeddings.push(slerp(embedding.clone(), direction.clone(), strength * i as f64 / frames as f64)?);
        }
        let checked = checked.with_embeddings(Tensor::cat(embeddings, 0));
        pipeline.execute(&checked, Inputs { x_t: Some(&x_t), ..Default::default() }, &mut controls)
    }
}

impl Pipeline {
    /// The unit vector `[1, D]` between the normalised embeddings of two captions.
    fn difference(&self, from: &str, to: &str) -> Result<Tensor<2>> {
        let unit = |caption: &str| -> Result<Vec<f64>> {
            let values = read(self.embed_text(caption)?)?;
            let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            Ok(values.into_iter().map(|value| f64::from(value) / norm).collect())
        };
        let difference: Vec<f64> = unit(to)?.into_iter().zip(unit(from)?).map(|(to, from)| to - from).collect();
        let norm = difference.iter().map(|value| value * value).sum::<f64>().sqrt();
        if norm.is_nan() || norm < IDENTICAL {
            let message = format!("{from:?} and {to:?} have the same embedding: there is nothing to change");
            return Err(Error::Input(message));
        }
        let values: Vec<f32> = difference.into_iter().map(|value| (value / norm) as f32).collect();
        let width = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [1, width]), &self.device))
    }
}
