//! Decoding of each row's embeddings by one decoder: same captions, same noise.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::prelude::Tensor;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::image::{LabelledImage, RgbImage, contact_sheet, from_tensor};
use dalle2::base::metrics::EmbeddingMetrics;
use dalle2::base::{Captions, Decoder, DiffusionOptions};

use super::measure::{named, rows, select};
use super::world::World;
use dalle2_train::recipes::prior::ReferencePairs;
use dalle2_train::recipes::{Pair, continue_sampling};

/// Images per batch.
const BATCH: usize = 8;
/// Side of an image on a sheet.
const CELL: u32 = 96;

/// The captions that are decoded.
pub struct Gallery {
    /// Rows of the test pairs.
    pub rows: Vec<usize>,
    /// The captions and true embeddings.
    pub truth: ReferencePairs,
    /// The pairs.
    pub pairs: Vec<Pair>,
}

impl Gallery {
    /// `count` of the test pairs, half of them compositions as far as there are enough, spread over the set.
    pub fn new(world: &World, count: usize) -> Result<Self> {
        let of = |composition: bool| -> Vec<usize> {
            (0..world.test_pairs.len()).filter(|i| world.test_pairs[*i].composition == composition).collect()
        };
        let (wordings, compositions) = (of(false), of(true));
        let count = count.min(world.test_pairs.len());
        let from_compositions = (count / 2).min(compositions.len()).max(count.saturating_sub(wordings.len()));
        let mut rows = spread(&wordings, count - from_compositions);
        rows.extend(spread(&compositions, from_compositions));
        let text = rows
            .iter()
            .map(|row| self::rows(&world.test.text, *row, 1))
            .reduce(|all, next| all.cat(next))
            .context("no caption to decode")?;
        Ok(Self {
            truth: ReferencePairs { text, null: world.test.null.clone(), image: select(&world.test.image, &rows) },
            pairs: rows.iter().map(|row| world.test_pairs[*row].clone()).collect(),
            rows,
        })
    }

    /// The images of one row. Without embeddings they are conditioned on the captions alone. Image i has the
    /// noise of seed `seed + i`, independent of the row.
    pub fn decode(
        &self,
        world: &World,
        embeddings: Option<&Tensor<2>>,
        steps: usize,
        seed: u64,
    ) -> Result<Vec<RgbImage>> {
        let options = DiffusionOptions { steps: Some(steps), ..Default::default() };
        let mut images = Vec::with_capacity(self.pairs.len());
        for first in (0..self.pairs.len()).step_by(BATCH) {
            let count = BATCH.min(self.pairs.len() - first);
            let text = rows(&self.truth.text, first, count);
            let captions = Captions { text: &text, null: &self.truth.null };
            let mut noise = SeededNoise::consecutive(seed + first as u64, count, 2);
            let decoded = match embeddings {
                Some(z) => {
                    let z = z.clone().narrow(0, first, count);
                    world.decoder.sample(&z, captions, None, &options, &mut noise, &mut continue_sampling)?
                }
                None => world.decoder.sample_captions(captions, &options, &mut noise, &mut continue_sampling)?,
            };
            images.extend(from_tensor(decoded)?);
        }
        Ok(images)
    }

    /// Metrics of images by CLIP and by the nearest rendering.
    pub fn judge(&self, world: &World, images: &[RgbImage]) -> Result<Vec<(String, f64)>> {
        let embeddings = world.encoders.encode_images(images)?;
        let truth = &self.truth;
        let metrics = EmbeddingMetrics::new(embeddings, truth.image.clone(), truth.text.pooled.clone())?;
        let mut metrics_by_name = named(&metrics);
        let mut ranks = Vec::with_capacity(images.len());
        for (image, pair) in images.iter().zip(&self.pairs) {
            ranks.push(world.nearest.rank(image)?.rank_of(&world.nearest, pair.item));
        }
        let share = |k: usize| ranks.iter().filter(|rank| **rank < k).count() as f64 / ranks.len() as f64;
        metrics_by_name.push(("nearest_top1".into(), share(1)));
        metrics_by_name.push(("nearest_top10".into(), share(10)));
        Ok(metrics_by_name)
    }

    /// One line per caption: the image of every row, then the data set's image.
    pub fn sheet(&self, world: &World, columns: &[(&str, Vec<RgbImage>)]) -> Result<RgbImage> {
        let mut lines = Vec::with_capacity(self.pairs.len());
        for (i, pair) in self.pairs.iter().enumerate() {
            let mut line = vec![LabelledImage::new(world.rendering(pair)?, pair.caption.clone())];
            line.extend(
                columns.iter().map(|(name, images)| LabelledImage::new(images[i].clone(), name.replace('_', " "))),
            );
            lines.push(line);
        }
        Ok(contact_sheet(&lines, CELL))
    }

    /// Seconds that the decoder takes for an image.
    pub fn seconds_per_image(&self, world: &World, steps: usize) -> Result<f64> {
        let count = BATCH.min(self.pairs.len());
        let few = Self {
            rows: self.rows[..count].to_vec(),
            truth: ReferencePairs {
                text: rows(&self.truth.text, 0, count),
                null: self.truth.null.clone(),
                image: self.truth.image.clone().narrow(0, 0, count),
            },
            pairs: self.pairs[..count].to_vec(),
        };
        let start = Instant::now();
        few.decode(world, Some(&few.truth.image), steps.min(3), 0)?;
        Ok(start.elapsed().as_secs_f64() / count as f64 * steps as f64 / steps.min(3) as f64)
    }
}

/// `count` of `items`, evenly spread.
fn spread(items: &[usize], count: usize) -> Vec<usize> {
    (0..count).map(|i| items[i * items.len() / count]).collect()
}
