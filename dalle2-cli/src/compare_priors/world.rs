//! Training, validation and test pairs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use burn::prelude::Tensor;
use dalle2::Device;
use dalle2::base::image::RgbImage;
use dalle2::base::{Decoder, TextEncoder};
use dalle2::decoder::UnclipDecoder;
use dalle2_emoji::{CACHE, EmojiStore, NearestIndex, pair_splits};
use dalle2_train::data::EmbeddingSet;

use super::settings::{Cli, Plan};
use dalle2_train::recipes::prior::ReferencePairs;
use dalle2_train::recipes::{CLIP_JITTER, EmbedJob, FrozenClip, Pair, Variations};

/// Pairs in a shard.
const SHARD: usize = 1024;
/// Of the held-out pairs, one in this number serves validation and the choice of the guidance scale; the rest is the test.
const VALIDATION: usize = 4;

/// Data, CLIP and decoder.
pub struct World {
    /// CLIP.
    pub encoders: FrozenClip,
    /// The decoder.
    pub decoder: UnclipDecoder,
    /// All renderings, for finding the nearest.
    pub nearest: NearestIndex,
    /// Where images come from.
    pub images: Arc<EmojiStore>,
    /// Embedded pairs for training.
    pub train: Arc<EmbeddingSet>,
    /// Held-out pairs for choices.
    pub validation: ReferencePairs,
    /// Held-out pairs for the table.
    pub test: ReferencePairs,
    /// The test pairs in order.
    pub test_pairs: Vec<Pair>,
    /// Other images of each test pair, for the diversity of the truth `[N, M, D]`.
    pub test_variations: Tensor<3>,
    /// The device.
    pub device: Device,
}

impl World {
    /// Loads the models and embeds the pairs, or reads them if they are there.
    pub fn open(cli: &Cli, plan: &Plan) -> Result<Self> {
        let device = dalle2::device(&cli.device)?;
        let encoders = FrozenClip::load(&cli.model, &device)?;
        let decoder = UnclipDecoder::load(cli.model.join("decoder"), &device)?;
        let (found, needed) =
            ([decoder.embed_dim(), decoder.token_width()], [encoders.text.embed_dim(), encoders.text.token_width()]);
        ensure!(found == needed, "the decoder reads embeddings and tokens of widths {found:?}, CLIP gives {needed:?}");
        let store = Arc::new(EmojiStore::open(&[64], Path::new(CACHE))?);
        let nearest = NearestIndex::new(&store)?;
        let splits = pair_splits(&store, plan.subset)?;
        let images = store;
        ensure!(splits.held_out.len() >= 2 * VALIDATION, "{} held-out captions are too few", splits.held_out.len());

        let source = |part: &str| format!("{} {} {part} of {}", cli.data, plan.subset, cli.model.display());
        let vary = |count, seed| Variations { count, jitter: CLIP_JITTER, seed };
        let dir = cli.out.join("embeddings");
        let embedded = |part: &str, pairs: &[Pair], variations: Variations| {
            let images = &*images;
            EmbedJob { source: source(part), images, pairs, variations, shard_size: SHARD }
                .run(&dir.join(part), &encoders)
        };
        let train = Arc::new(embedded("train", &splits.train, vary(plan.variations, 0))?);
        let held_out = embedded("held-out", &splits.held_out, vary(plan.samples, 1))?;

        let count = splits.held_out.len();
        let (validation, test): (Vec<usize>, Vec<usize>) = (0..count).partition(|i| i % VALIDATION == 0);
        // Item i of the set is pair i % count in variation i / count; the first variation is the truth.
        let variation = |m: usize| {
            let indices: Vec<usize> = test.iter().map(|i| i + m * count).collect();
            held_out.batch(&indices, &device).image
        };
        Ok(Self {
            validation: ReferencePairs::of_set(&held_out, &validation, &device),
            test: ReferencePairs::of_set(&held_out, &test, &device),
            test_variations: Tensor::stack((0..plan.samples).map(variation).collect(), 1),
            test_pairs: test.iter().map(|i| splits.held_out[*i].clone()).collect(),
            encoders,
            decoder,
            nearest,
            images,
            train,
            device,
        })
    }

    /// The rendering that belongs to a test pair.
    pub fn rendering(&self, pair: &Pair) -> Result<RgbImage> {
        Ok(self.images.image(pair.item, 64)?)
    }
}
