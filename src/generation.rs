//! Generated images.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn::prelude::*;
use dalle2_core::Result;
use dalle2_core::image::{RgbImage, save_png};

use crate::Stage;

/// The result of a generation.
#[derive(Clone)]
pub struct Generation {
    /// The images at full size, in order; empty if the request stops after the prior.
    pub images: Vec<RgbImage>,
    /// The image embeddings `[num_images, D]` in CLIP's space; `None` if the request starts from images.
    pub embeddings: Option<Tensor<2>>,
    /// The seed of each image.
    pub seeds: Vec<u64>,
    /// The time of each stage.
    pub times: Vec<StageTime>,
}

/// Time of a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// Wall-clock time over all batches.
    pub duration: Duration,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<_> = self.images.iter().map(RgbImage::dimensions).collect();
        f.debug_struct("Generation")
            .field("images", &sizes)
            .field("embeddings", &self.embeddings.as_ref().map(Tensor::dims))
            .field("seeds", &self.seeds)
            .field("times", &self.times)
            .finish()
    }
}

impl Generation {
    /// Writes the images as `{stem}-{seed}.png` into a directory, which is created if it does not exist; images of one
    /// seed get a further number. Returns the paths.
    ///
    /// # Errors
    /// If a file cannot be written, with its path.
    pub fn save_all(&self, dir: impl AsRef<Path>, stem: &str) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> = Vec::with_capacity(self.images.len());
        for (i, (image, seed)) in self.images.iter().zip(&self.seeds).enumerate() {
            let path = dir.as_ref().join(format!("{stem}-{seed}.png"));
            let path = if paths.contains(&path) { dir.as_ref().join(format!("{stem}-{seed}-{i}.png")) } else { path };
            save_png(image, &path)?;
            paths.push(path);
        }
        Ok(paths)
    }
}
