//! Compares this library's result with each recording of the reference implementation.

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

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The recording and the array, such as `prior/predicted_image_embedding`.
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest absolute difference divided by the largest reference magnitude, if that is not 0.
    pub max_rel: f64,
    /// Whether the difference is within the tolerance.
    pub pass: bool,
}

/// The settings of the recordings: `manifest.json`.
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

/// The components of both pipelines, shared where they do not differ.
struct Parts {
    text_encoder: ClipTextEncoder,
    image_encoder: ClipImageEncoder,
    prior: DiffusionPrior,
    decoder: UnclipDecoder,
    upsampler: DiffusionUpsampler,
}

/// The loaded components and the rows compared so far.
struct Comparison {
    dir: PathBuf,
    manifest: Manifest,
    parts: Parts,
    device: Device,
    tolerance: f64,
    rows: Vec<Row>,
}

/// Compares every recording in `dir/fixtures`.
///
/// # Errors
/// When a component or a recording cannot be read, or the name of a recording is unknown.
pub fn compare(dir: &Path, device: &Device, tolerance: f64) -> Result<Vec<Row>> {
    let manifest = dir.join("manifest.json");
    let manifest: Manifest = dalle2::base::store::read_json(&manifest)?;
    let options = LoadOptions::new(device);
    let (pipeline, variation) = (dir.join("pipeline"), dir.join("image_variation"));
    let parts = Parts {
        text_encoder: ClipTextEncoder::load(&pipeline, device)?,
        image_encoder: ClipImageEncoder::load(&variation, device)?,
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
            bail!("recording {name} contains no array to compare");
        }
    }
    Ok(comparison.rows)
}

impl Comparison {
    /// Returns the names of the recordings, sorted.
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
        if names.is_empty() {
            bail!("{}: no recordings (*.safetensors)", dir.display());
        }
        Ok(names)
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
            _ => bail!("unknown name: expected a component of the reference pipelines"),
        }
    }

    /// Compares a result with the array `name`.
    fn check<const D: usize>(&mut self, file: &Fixture, name: &str, result: Tensor<D>) -> Result<()> {
        let expected = file.tensor::<D>(name, &self.device)?;
        self.row(format!("{}/{name}", file.name()), result, expected)
    }

    fn row<const D: usize>(&mut self, name: String, result: Tensor<D>, expected: Tensor<D>) -> Result<()> {
        if result.dims() != expected.dims() {
            bail!("{name}: shape {:?}, expected the recorded {:?}", result.dims(), expected.dims());
        }
        let result = result.into_data().try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        let expected = expected.into_data().try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        self.values(name, &to_f64(&result), &to_f64(&expected), self.tolerance);
        Ok(())
    }

    /// Compares integers, which must be equal.
    fn exact(&mut self, name: String, result: &[i64], expected: &[i64]) -> Result<()> {
        if result.len() != expected.len() {
            bail!("{name}: {} values, expected the recorded {}", result.len(), expected.len());
        }
        let floats = |values: &[i64]| values.iter().map(|v| *v as f64).collect::<Vec<_>>();
        self.values(name, &floats(result), &floats(expected), 0.0);
        Ok(())
    }

    fn values(&mut self, name: String, result: &[f64], expected: &[f64], tolerance: f64) {
        let largest = expected.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        // `max` ignores NaN, which must count as a difference.
        let difference = |(a, b): (&f64, &f64)| if (a - b).is_finite() { (a - b).abs() } else { f64::MAX };
        let max_abs = result.iter().zip(expected).map(difference).fold(0.0, f64::max);
        let max_rel = if largest > 0.0 { max_abs / largest } else { max_abs };
        self.rows.push(Row { name, max_abs, max_rel, pass: max_abs <= tolerance });
    }
}

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}
