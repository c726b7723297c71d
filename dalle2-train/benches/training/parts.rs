//! The parts and their batches, from fixed seeds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use burn::prelude::*;
use dalle2::FloatType;
use dalle2::base::diffusion::{DiffusionConfig, standard_normal};
use dalle2::base::store::WeightsWriter;
use dalle2::base::{Component, EmbeddingScale, TextCondition, TokenMask};
use dalle2::clip::train::{ClipBatch, ClipTask, ClipTaskOptions};
use dalle2::clip::{ClipConfig, ImportOptions, PretrainedClip};
use dalle2::decoder::train::{ConditionDropout, CropOptions, DecoderBatch, DecoderTask, UpsamplerBatch, UpsamplerTask};
use dalle2::decoder::{DecoderConfig, UnclipDecoder, UpsamplerConfig};
use dalle2::prior::train::{AutoregressiveBatch, AutoregressiveTask, CAPTION_DROPOUT, PriorBatch, PriorTask};
use dalle2::prior::{AutoregressivePriorConfig, DiffusionPriorConfig, EmbeddingQuantizer, QuantizerOptions};
use dalle2_train::{materialize, step_rng};
use rand::RngExt;

/// Batch size of decoder, upsampler and CLIP.
pub const BATCH: usize = 16;
/// Batch size of the priors.
pub const PRIOR_BATCH: usize = 64;
/// Width of embeddings and tokens, and number of caption tokens, of the bundled CLIP.
const WIDTH: usize = 128;
const TOKENS: usize = 32;
/// Start and end of text: the special tokens come after all others.
const START: u32 = 49406;
const END: u32 = 49407;
/// Seeds of weights and batches.
const WEIGHTS: u64 = 1;
const BATCHES: u64 = 2;

/// Returns the bundled decoder in a form that diffusers can express. Images of 16 × 16 pixels without the patch stem give
/// the same feature maps as 32 × 32 with it. Caption embeddings are added to the timestep embedding, and the network
/// predicts ε.
fn decoder_config() -> DecoderConfig {
    let mut config = DecoderConfig::emoji(WIDTH, WIDTH);
    config.image_size /= config.unet.patch;
    config.unet.patch = 1;
    config.pooled_text = true;
    config.embedding_scale = EmbeddingScale::None;
    let process = &config.diffusion;
    config.diffusion = DiffusionConfig::portable(process.variance, process.sampling_steps, process.guidance);
    config
}

fn normal<const D: usize>(stream: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = standard_normal(&mut step_rng(BATCHES, stream, 0), shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Returns `count` captions of different lengths.
fn captions(stream: u64, count: usize, device: &Device) -> TextCondition {
    let mut rng = step_rng(BATCHES, stream, 1);
    let lengths: Vec<usize> = (0..count).map(|_| rng.random_range(3..=TOKENS)).collect();
    TextCondition {
        pooled: normal(stream + 1, [count, WIDTH], device),
        tokens: normal(stream + 2, [count, TOKENS, WIDTH], device),
        mask: TokenMask::from_lengths(&lengths, TOKENS, device),
    }
}

pub fn decoder(device: &Device) -> Result<(DecoderTask, DecoderBatch)> {
    let config = decoder_config();
    let task = DecoderTask::new(&config, device)?;
    materialize(&task, device, WEIGHTS);
    let images = normal(10, [BATCH, 3, config.image_size, config.image_size], device).clamp(-1.0, 1.0);
    let batch = DecoderBatch::draw(
        BATCHES,
        images,
        normal(11, [BATCH, WIDTH], device),
        &captions(20, BATCH, device),
        &captions(30, 1, device),
        ConditionDropout::default(),
        config.diffusion.train_steps,
    );
    Ok((task, batch))
}

/// The preset `small`, with captions of every length up to the context length.
pub fn clip(device: &Device) -> Result<(ClipTask, ClipBatch)> {
    let config = ClipConfig::small();
    let task = ClipTask::new(&config, &ClipTaskOptions::default(), device)?;
    materialize(&task, device, WEIGHTS);
    let (side, context) = (config.vision.image_size, config.text.context_length);
    let mut rng = step_rng(BATCHES, 40, 0);
    let tokens: Vec<(Vec<u32>, usize)> = (0..BATCH)
        .map(|_| {
            let length = rng.random_range(3..=context);
            let mut ids = vec![END; context];
            ids[0] = START;
            ids[1..length - 1].fill_with(|| rng.random_range(0..START));
            (ids, length)
        })
        .collect();
    let batch = ClipBatch {
        pixels: normal(41, [BATCH, 3, side, side], device),
        captions: config.text.batch(&tokens, device)?,
        targets: (0..BATCH).collect(),
        patches: None,
        seed: BATCHES,
    };
    Ok((task, batch))
}

pub fn prior(device: &Device) -> Result<(PriorTask, PriorBatch)> {
    let config = DiffusionPriorConfig::emoji(WIDTH, WIDTH, TOKENS);
    let task = PriorTask::new(&config, device)?;
    materialize(&task, device, WEIGHTS);
    let (text, null) = (captions(50, PRIOR_BATCH, device), captions(60, 1, device));
    let embedding = normal(70, [PRIOR_BATCH, WIDTH], device);
    let batch = PriorBatch::draw(BATCHES, &text, &null, embedding, CAPTION_DROPOUT, config.diffusion.train_steps);
    Ok((task, batch))
}

pub fn autoregressive_prior(device: &Device) -> Result<(AutoregressiveTask, AutoregressiveBatch)> {
    let config = AutoregressivePriorConfig::small(WIDTH, WIDTH, TOKENS);
    let plain = device.clone().inner();
    let [image, text] = [80, 81].map(|stream| normal(stream, [512, WIDTH], &plain));
    let quantizer = EmbeddingQuantizer::fit(image, text, &QuantizerOptions::of(&config))?;
    let embedding = normal(90, [PRIOR_BATCH, WIDTH], device);
    let (text, null) = (captions(50, PRIOR_BATCH, device), captions(60, 1, device));
    let batch = AutoregressiveBatch::draw(BATCHES, &text, &null, embedding, CAPTION_DROPOUT, &quantizer)?;
    let task = AutoregressiveTask::new(&config, quantizer, device)?;
    materialize(&task, device, WEIGHTS);
    Ok((task, batch))
}

/// The bundled upsampler.
pub fn upsampler(device: &Device) -> Result<(UpsamplerTask, UpsamplerBatch)> {
    let config = UpsamplerConfig::emoji();
    let task = UpsamplerTask::new(&config, device)?;
    materialize(&task, device, WEIGHTS);
    let side = config.output_size();
    let images = normal(100, [BATCH, 3, side, side], device).clamp(-1.0, 1.0);
    let batch = UpsamplerBatch::draw(BATCHES, images, CropOptions::default(), &config)?;
    Ok((task, batch))
}

/// Writes the decoder's folders in the layout of diffusers, and its batch as `decoder_batch.safetensors`.
pub fn export_decoder(dir: &Path, device: &Device) -> Result<()> {
    let (task, batch) = decoder(device)?;
    UnclipDecoder::new(decoder_config(), task.network)?.save_diffusers(dir, FloatType::F32)?;
    let numbers = |values: Vec<f32>| Tensor::<1>::from_data(TensorData::new(values, [BATCH]), device);
    let (t, drop) = (&batch.images.t, &batch.drop_image);
    let mut file = Batch::default();
    file.add("t", numbers(t.iter().map(|t| *t as f32).collect()))?;
    file.add("drop_image", numbers(drop.iter().map(|drop| f32::from(*drop)).collect()))?;
    file.add("x_start", batch.images.x_start)?;
    file.add("noise", batch.images.noise)?;
    file.add("embedding", batch.embedding)?;
    file.add("pooled", batch.text.pooled)?;
    file.add("tokens", batch.text.tokens)?;
    file.add("mask", batch.text.mask.keep().float())?;
    file.write(&dir.join("decoder_batch.safetensors"))
}

/// Writes CLIP in the layout of transformers into the folder `clip`, and its batch as `clip_batch.safetensors`.
pub fn export_clip(dir: &Path, device: &Device) -> Result<()> {
    let (task, batch) = clip(device)?;
    let folder = dir.join("clip");
    task.clip.valid().save(&ClipConfig::small(), &folder, FloatType::F32)?;
    let options = ImportOptions::default();
    PretrainedClip::load(&folder, &options, &device.clone().inner())?.save(&folder, FloatType::F32)?;
    let mut file = Batch::default();
    file.add("pixels", batch.pixels)?;
    file.add("ids", batch.captions.rows.float())?;
    file.write(&dir.join("clip_batch.safetensors"))
}

/// Tensors to be written to a file.
#[derive(Default)]
struct Batch(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Batch {
    fn add<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Result<()> {
        let shape = tensor.dims().to_vec();
        self.0.insert(name.into(), (shape, tensor.into_data().try_to_vec::<f32>()?));
        Ok(())
    }

    fn write(self, path: &Path) -> Result<()> {
        let shapes = self.0.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
        let mut writer = WeightsWriter::create(path, FloatType::F32, shapes, &BTreeMap::new())?;
        for (name, (_, values)) in &self.0 {
            writer.write(name, values)?;
        }
        Ok(writer.finish()?)
    }
}
