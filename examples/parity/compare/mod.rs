//! The comparison: for each recording, this library's result beside the reference's.

mod clip;
mod diffusion;
mod end_to_end;
mod fixture;
mod schedules;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::prelude::*;
use dalle2::LoadOptions;
use dalle2::clip::{ClipImageEncoder, ClipTextEncoder};
use dalle2::decoder::{DiffusionUpsampler, UnclipDecoder};
use dalle2::prior::DiffusionPrior;
use fixture::Fixture;
use serde::{Deserialize, Serialize};

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The recording and what of it is compared, such as `prior/predicted_image_embedding`.
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest absolute difference over the largest magnitude of the reference's values, where that is not 0.
    pub max_rel: f64,
    /// Whether the difference is within the tolerance.
    pub pass: bool,
}

/// What the recordings were made with.
#[derive(Debug, Deserialize)]
struct Manifest {
    prompts: Vec<String>,
    steps: Steps,
}

#[derive(Debug, Deserialize)]
struct Steps {
    prior: usize,
    decoder: usize,
    sr: usize,
}

/// The parts of both pipelines; those of image variation that do not differ are not there twice.
struct Parts {
    text_encoder: ClipTextEncoder,
    image_encoder: ClipImageEncoder,
    prior: DiffusionPrior,
    decoder: UnclipDecoder,
    upsampler: DiffusionUpsampler,
}

/// Everything that comparing needs, and the rows so far.
struct Comparison {
    dir: PathBuf,
    manifest: Manifest,
    parts: Parts,
    device: Device,
    tolerance: f64,
    rows: Vec<Row>,
}

/// Compares everything that is recorded in `dir/fixtures`.
///
/// # Errors
/// When a part or a recording cannot be read, or a recording is of something that is not known.
pub fn compare(dir: &Path, device: &Device, tolerance: f64) -> Result<Vec<Row>> {
    let manifest = dir.join("manifest.json");
    let manifest: Manifest = dalle2::core::store::read_json(&manifest)?;
    let options = LoadOptions::new(device);
    let (pipeline, variation) = (dir.join("pipeline"), dir.join("image_variation"));
    let parts = Parts {
        text_encoder: ClipTextEncoder::load_diffusers(&pipeline, device)?,
        image_encoder: ClipImageEncoder::load_diffusers(&variation, device)?,
        prior: DiffusionPrior::load_diffusers(&pipeline, &options)?,
        decoder: UnclipDecoder::load_diffusers(&pipeline, &options)?,
        upsampler: DiffusionUpsampler::load_diffusers(&pipeline, &options)?,
    };
    let dir = dir.to_owned();
    let mut comparison = Comparison { dir, manifest, parts, device: device.clone(), tolerance, rows: Vec::new() };
    for name in comparison.recordings()? {
        let before = comparison.rows.len();
        comparison.recording(&name).with_context(|| format!("recording {name}"))?;
        if comparison.rows.len() == before {
            bail!("recording {name} has nothing that could be compared");
        }
    }
    Ok(comparison.rows)
}

impl Comparison {
    /// Names of the recordings, in order.
    fn recordings(&self) -> Result<Vec<String>> {
        let dir = self.dir.join("fixtures");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
            }
        }
        names.sort();
        match names.is_empty() {
            true => bail!("{} holds no recordings", dir.display()),
            false => Ok(names),
        }
    }

    fn recording(&mut self, name: &str) -> Result<()> {
        let file = Fixture::open(&self.dir.join("fixtures"), name)?;
        match name {
            "text_encoder" => self.text_encoder(&file),
            "feature_extractor" => self.feature_extractor(&file),
            "image_encoder" => self.image_encoder(&file),
            "prior" => self.prior(&file),
            "text_proj" => self.text_proj(&file),
            "decoder" => self.decoder(&file),
            "super_res" => self.super_res(&file),
            "upscale" => self.upscale(&file),
            "timesteps" => self.timesteps(&file),
            "scheduler_prior" => self.prior_scheduler(&file),
            "scheduler_decoder" => self.decoder_scheduler(&file),
            "scheduler_super_res" => self.super_res_scheduler(&file),
            "e2e_text2img" => self.text_to_image(&file),
            "e2e_variation" => self.variation(&file),
            _ => bail!("is not one that this program knows"),
        }
    }

    /// Compares a result with the array of that name.
    fn check<const D: usize>(&mut self, file: &Fixture, name: &str, found: Tensor<D>) -> Result<()> {
        let expected = file.tensor::<D>(name, &self.device)?;
        self.row(format!("{}/{name}", file.name()), found, expected)
    }

    fn row<const D: usize>(&mut self, name: String, found: Tensor<D>, expected: Tensor<D>) -> Result<()> {
        if found.dims() != expected.dims() {
            bail!("{name}: the shape is {:?}, recorded is {:?}", found.dims(), expected.dims());
        }
        let found = found.into_data().try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        let expected = expected.into_data().try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        self.values(name, &widen(&found), &widen(&expected), self.tolerance);
        Ok(())
    }

    /// Compares integers, which must be equal.
    fn exact(&mut self, name: String, found: &[i64], expected: &[i64]) -> Result<()> {
        if found.len() != expected.len() {
            bail!("{name}: has {} values, recorded are {}", found.len(), expected.len());
        }
        let floats = |values: &[i64]| values.iter().map(|v| *v as f64).collect::<Vec<_>>();
        self.values(name, &floats(found), &floats(expected), 0.0);
        Ok(())
    }

    fn values(&mut self, name: String, found: &[f64], expected: &[f64], tolerance: f64) {
        let largest = expected.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        // NaN is a difference, which `max` would pass over.
        let difference = |(a, b): (&f64, &f64)| if (a - b).is_finite() { (a - b).abs() } else { f64::MAX };
        let max_abs = found.iter().zip(expected).map(difference).fold(0.0, f64::max);
        let max_rel = if largest > 0.0 { max_abs / largest } else { max_abs };
        self.rows.push(Row { name, max_abs, max_rel, pass: max_abs <= tolerance });
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}
