//! The whole training path in small: CLIP and the decoder learn sixteen emoji, which come back from their embeddings.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::module::Module;
use burn::tensor::Tensor;
use dalle2::base::diffusion::{DiffusionConfig, PredictionType, SeededNoise, VarianceType};
use dalle2::base::image::{RgbImage, to_tensor};
use dalle2::base::metrics::psnr;
use dalle2::base::text::ClipTokenizer;
use dalle2::base::{Captions, Decoder, DiffusionOptions, ImageEncoder, StepEvent, TextCondition, TextEncoder};
use dalle2::clip::train::{ClipBatch, ClipBatcher, ClipTask, ClipTaskOptions};
use dalle2::clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder};
use dalle2::decoder::train::{ConditionDropout, DecoderBatch, DecoderTask};
use dalle2::decoder::{DecoderConfig, UnclipDecoder};
use dalle2::{Device, Result};
use dalle2_emoji::EmojiStore;
use dalle2_train::{BatchSource, TrainConfig, Trainer, materialize, mix_seed, step_rng};

const NAMES: [&str; 16] = [
    "red apple",
    "koala",
    "red heart",
    "blue heart",
    "rose",
    "pizza",
    "rocket",
    "octopus",
    "cat face",
    "dog face",
    "sunflower",
    "lemon",
    "soccer ball",
    "guitar",
    "key",
    "umbrella",
];
/// Side of the images in pixels.
const SIZE: usize = 16;
/// Decibel that every image must reach on its own.
const LOWEST: f64 = 25.0;

/// Captioned images in one batch, always the same.
struct Pairs {
    batcher: ClipBatcher,
    images: Vec<RgbImage>,
}

impl BatchSource for Pairs {
    type Batch = ClipBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<ClipBatch> {
        let items: Vec<_> =
            NAMES.iter().zip(&self.images).enumerate().map(|(i, (name, image))| (*name, image, i)).collect();
        self.batcher.batch(&items, &mut step_rng(3, 0, step), device)
    }
}

/// The same images for the decoder, with the embeddings that CLIP gives of them.
struct Embedded {
    images: Tensor<4>,
    embedding: Tensor<2>,
    text: TextCondition,
    null: TextCondition,
}

impl BatchSource for Embedded {
    type Batch = DecoderBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<DecoderBatch> {
        Ok(DecoderBatch::draw(
            mix_seed(5, 1, step),
            self.images.clone().to_device(device),
            self.embedding.clone().to_device(device),
            &self.text.to_device(device),
            &self.null.to_device(device),
            ConditionDropout::default(),
            1000,
        ))
    }
}

fn train_clip(images: &[RgbImage], dir: &std::path::Path, device: &Device) -> (ClipTextEncoder, ClipImageEncoder) {
    let tokenizer = ClipTokenizer::openai().unwrap();
    let words = NAMES.iter().flat_map(|name| tokenizer.encode(name).unwrap()).collect::<Vec<_>>();
    let config = ClipConfig::tiny().with_vocabulary(words);
    let task = ClipTask::new(&config, &ClipTaskOptions::default(), &device.clone().autodiff()).unwrap();
    materialize(&task, device, 1);
    let source = Pairs { batcher: ClipBatcher::new(config.clone()).unwrap(), images: images.to_vec() };
    let train = TrainConfig {
        steps: 60,
        batch_size: 16,
        learning_rate: 1e-3,
        warmup: 10,
        ema_decay: None,
        ..Default::default()
    };
    let model = Trainer::new(train, dir).run(task, &source, &mut ()).unwrap().model.clip.valid();
    (
        ClipTextEncoder::new(config.text.clone(), &model.text).unwrap(),
        ClipImageEncoder::new(config.vision.clone(), &model.vision).unwrap(),
    )
}

#[test]
fn sixteen_images_come_back_from_their_own_embeddings() {
    let device = Device::flex();
    let runs = tempfile::tempdir().unwrap();
    let store = EmojiStore::in_memory(&[32]).unwrap();
    let pictures = |size: u32| -> Vec<RgbImage> {
        NAMES.iter().map(|name| store.image(store.find(name).expect(name), size).unwrap()).collect()
    };
    let (text, image) = train_clip(&pictures(32), &runs.path().join("clip"), &device);
    let embedding = image.encode(to_tensor(&pictures(32), &device).unwrap()).unwrap();

    let mut config = DecoderConfig::tiny(embedding.dims()[1], text.token_width());
    config.image_size = SIZE;
    config.unet.out_channels = 3;
    config.diffusion = DiffusionConfig {
        prediction: PredictionType::XStart,
        ..DiffusionConfig::cosine(VarianceType::FixedSmall, 20, 1.0)
    };
    let task = DecoderTask::new(&config, &device.clone().autodiff()).unwrap();
    materialize(&task, &device, 2);
    let source = Embedded {
        images: to_tensor(&pictures(SIZE as u32), &device).unwrap(),
        embedding,
        text: text.encode(&NAMES).unwrap(),
        null: text.encode(&[""]).unwrap(),
    };
    let train = TrainConfig {
        steps: 600,
        batch_size: 16,
        learning_rate: 2e-3,
        warmup: 20,
        ema_decay: Some(0.95),
        ..Default::default()
    };
    let trained = Trainer::new(train, runs.path().join("decoder")).run(task, &source, &mut ()).unwrap().best();
    let decoder = UnclipDecoder::new(config, trained.network).unwrap();

    let options = DiffusionOptions::default();
    let mut noise = SeededNoise::new(&(0..16).collect::<Vec<u64>>(), 2);
    let mut go_on = |_: StepEvent<'_>| Ok(());
    let Embedded { images, embedding, text, null } = source;
    let captions = Captions { text: &text, null: &null };
    let drawn = decoder.sample(&embedding, captions, None, &options, &mut noise, &mut go_on).unwrap();
    let found = psnr(drawn, images.clone()).unwrap();
    assert!(found.iter().all(|psnr| *psnr > LOWEST), "PSNR in dB: {found:.1?}");

    // The embedding decides: without captions, the embedding of another image gives that image.
    let next = |x: Tensor<4>| Tensor::cat(vec![x.clone().slice_dim(0, 1..16), x.slice_dim(0, 0..1)], 0);
    let rolled = Tensor::cat(vec![embedding.clone().slice_dim(0, 1..16), embedding.slice_dim(0, 0..1)], 0);
    let dropped = text.replace_rows(&null, &[true; 16]);
    let mut noise = SeededNoise::new(&(0..16).collect::<Vec<u64>>(), 2);
    let captions = Captions { text: &dropped, null: &null };
    let drawn = decoder.sample(&rolled, captions, None, &options, &mut noise, &mut go_on).unwrap();
    let (own, others) = (psnr(drawn.clone(), next(images.clone())).unwrap(), psnr(drawn, images).unwrap());
    assert!(own.iter().zip(&others).all(|(own, other)| *own > other + 5.0), "PSNR in dB: {own:.1?}, {others:.1?}");
}
