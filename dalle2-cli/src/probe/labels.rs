//! CLIP similarities and label probabilities.

use anyhow::{Context, Result};
use burn::prelude::Tensor;
use burn::tensor::activation::softmax;
use dalle2::Pipeline;
use dalle2::base::image::{RgbImage, fit_square, to_tensor};
use dalle2::base::metrics::similarity_matrix;

/// Images per batch.
const BATCH: usize = 64;
/// Factor on the cosines: the upper bound in CLIP training.
const LOGIT_SCALE: f32 = 100.0;

/// Embeddings `[N, D]` of square images, resized to one size.
pub fn embed(pipeline: &Pipeline, images: &[RgbImage], size: usize) -> Result<Tensor<2>> {
    let encoder = pipeline.image_encoder().context("CLIP similarities need a pipeline with an image encoder")?;
    let encode = |images: &[RgbImage]| -> Result<Tensor<2>> {
        let images: Vec<RgbImage> = images.iter().map(|image| fit_square(image, size as u32)).collect();
        Ok(encoder.encode(to_tensor(&images, pipeline.device())?)?)
    };
    Ok(Tensor::cat(images.chunks(BATCH).map(encode).collect::<Result<Vec<_>>>()?, 0))
}

/// Cosines of embeddings `[N, D]` with captions, row by row.
pub fn similarities(pipeline: &Pipeline, embeddings: Tensor<2>, captions: &[&str]) -> Result<Vec<Vec<f64>>> {
    let text = pipeline.text_encoder().encode(captions)?.pooled;
    rows(similarity_matrix(embeddings, text)?)
}

/// Softmax probabilities of the labels, row by row.
pub fn probabilities(pipeline: &Pipeline, embeddings: Tensor<2>, labels: &[&str]) -> Result<Vec<Vec<f64>>> {
    let text = pipeline.text_encoder().encode(labels)?.pooled;
    rows(softmax(similarity_matrix(embeddings, text)? * LOGIT_SCALE, 1))
}

fn rows(matrix: Tensor<2>) -> Result<Vec<Vec<f64>>> {
    let width = matrix.dims()[1];
    let values: Vec<f32> = matrix.try_into_vec_as().context("reading similarities")?;
    Ok(values.chunks_exact(width).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect())
}
