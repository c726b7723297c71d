//! Training of the real models, small: resuming them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;
use dalle2::FloatType;
use dalle2::base::diffusion::standard_normal;
use dalle2::base::image::RgbImage;
use dalle2::base::{TextCondition, TokenMask};
use dalle2::clip::train::{ClipBatch, ClipBatcher, ClipTask, ClipTaskOptions, ImageTower};
use dalle2::clip::{ClipConfig, TextTransformerConfig, VisionTransformerConfig};
use dalle2::decoder::train::{ConditionDropout, CropOptions, DecoderBatch, DecoderTask, UpsamplerBatch, UpsamplerTask};
use dalle2::decoder::{DecoderConfig, UpsamplerConfig};
use dalle2::prior::train::{AutoregressiveBatch, AutoregressiveTask, PriorBatch, PriorTask};
use dalle2::prior::{AutoregressivePriorConfig, DiffusionPriorConfig, EmbeddingQuantizer, QuantizerOptions};
use dalle2_train::{
    BatchSource, DisplayMode, LossScaling, RunOptions, StepRecord, TrainConfig, TrainTask, Trained, Trainer,
    materialize, read_metrics, step_rng,
};
use rand::RngExt;

/// Width of embeddings, width of captions' tokens, tokens of a caption.
const D: usize = 12;
const W: usize = 8;
const S: usize = 4;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Dropout uses a generator that all tests share.
fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// A source that is a function of the step.
struct Batches<F>(F);

impl<B: Send + 'static, F: Fn(u64, &Device) -> B + Send + Sync> BatchSource for Batches<F> {
    type Batch = B;

    fn batch(&self, step: u64, device: &Device) -> dalle2::Result<B> {
        Ok((self.0)(step, device))
    }
}

fn random<const N: usize>(seed: u64, shape: [usize; N], device: &Device) -> Tensor<N> {
    let values = standard_normal(&mut step_rng(seed, 9, 0), shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn text(seed: u64, count: usize, device: &Device) -> TextCondition {
    let lengths: Vec<usize> = (0..count).map(|i| 2 + i % (S - 1)).collect();
    TextCondition {
        pooled: random(seed, [count, D], device),
        tokens: random(seed + 1, [count, S, W], device),
        mask: TokenMask::from_lengths(&lengths, S, device),
    }
}

fn clip_config() -> ClipConfig {
    let mut config = ClipConfig {
        vision: VisionTransformerConfig::new([16, 8], [16, 2, 1], 8),
        text: TextTransformerConfig::new(8, [16, 2, 1], 8),
    }
    .with_vocabulary([320, 736, 3055]);
    (config.vision.dropout, config.text.dropout) = (0.1, 0.1);
    config
}

fn clip_source() -> Batches<impl Fn(u64, &Device) -> ClipBatch + Send + Sync> {
    let batcher = ClipBatcher::new(clip_config()).unwrap().with_patch_dropout(0.5).unwrap();
    Batches(move |step, device: &Device| {
        let mut rng = step_rng(4, 0, step);
        let images: Vec<RgbImage> =
            (0..6).map(|_| RgbImage::from_fn(16, 16, |_, _| rng.random::<[u8; 3]>().into())).collect();
        let captions = ["a red apple", "a", "red", "apple", "red a", "apple red"];
        let items: Vec<_> = captions.iter().zip(&images).enumerate().map(|(i, (c, image))| (*c, image, i)).collect();
        batcher.batch(&items, &mut rng, device).unwrap()
    })
}

fn prior_config() -> DiffusionPriorConfig {
    let tiny = DiffusionPriorConfig::tiny(D, W, S);
    DiffusionPriorConfig { d_model: 16, n_heads: 2, n_layers: 1, dropout: 0.1, self_conditioning: true, ..tiny }
}

fn prior_source() -> Batches<impl Fn(u64, &Device) -> PriorBatch + Send + Sync> {
    Batches(|step, device: &Device| {
        let (captions, null) = (text(step % 3, 4, device), text(9, 1, device));
        PriorBatch::draw(step, &captions, &null, random(step % 3, [4, D], device), 0.1, 1000)
    })
}

fn decoder_config() -> DecoderConfig {
    let mut config = DecoderConfig::tiny(D, W);
    config.image_size = 8;
    config.unet.channels = vec![16, 16];
    config.unet.n_groups = 8;
    config.unet.head_dim = 16;
    config.unet.context_dim = Some(16);
    config.unet.dropout = 0.1;
    config
}

fn decoder_source() -> Batches<impl Fn(u64, &Device) -> DecoderBatch + Send + Sync> {
    Batches(|step, device: &Device| {
        let images = random(step % 3, [4, 3, 8, 8], device).clamp(-1.0, 1.0);
        let (captions, null) = (text(step % 3, 4, device), text(9, 1, device));
        let embedding = random(step % 3 + 5, [4, D], device);
        DecoderBatch::draw(step, images, embedding, &captions, &null, ConditionDropout::default(), 1000)
    })
}

/// All parameters as bits, in the order of the fields.
fn bits<M: Module>(module: &M) -> Vec<u32> {
    struct Collect(Vec<u32>);
    impl ModuleVisitor for Collect {
        fn visit_float<const N: usize>(&mut self, param: &Param<Tensor<N>>) {
            let values = param.val().into_data().try_to_vec::<f32>().unwrap();
            self.0.extend(values.iter().map(|v| v.to_bits()));
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

/// Trains eight steps at once, and again in three sessions, and compares model, average and losses bit for bit.
fn assert_resumes<M, S>(make: impl Fn() -> M, source: &S)
where
    M: TrainTask<Batch = S::Batch>,
    S: BatchSource,
{
    let _alone = alone();
    let config = TrainConfig {
        steps: 8,
        accumulation: 2,
        learning_rate: 0.01,
        warmup: 2,
        weight_decay: 0.01,
        ema_decay: Some(0.9),
        checkpoint_every: 3,
        ..Default::default()
    };
    let train = |dir: &Path, stop_after: Option<u64>| -> Trained<M> {
        let options = RunOptions { resume: true, stop_after, display: DisplayMode::Quiet, ..Default::default() };
        let model = make();
        materialize(&model, &device(), 3);
        Trainer::new(config.clone(), dir).options(options).run(model, source, &mut ()).unwrap()
    };
    let (uninterrupted, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(uninterrupted.path(), None);
    for stop in [2, 5] {
        train(parts.path(), Some(stop));
    }
    let actual = train(parts.path(), None);
    assert!(bits(&actual.model) == bits(&expected.model), "the models differ");
    assert!(bits(actual.ema.as_ref().unwrap()) == bits(expected.ema.as_ref().unwrap()), "the averages differ");
    let losses = |dir: &Path| -> Vec<_> {
        read_metrics(dir.join("metrics.jsonl")).unwrap().into_iter().map(|record| (record.step, record.loss)).collect()
    };
    assert_eq!(losses(parts.path()), losses(uninterrupted.path()));
    assert!(losses(uninterrupted.path()).iter().all(|(_, loss)| loss.is_some()));
    let start = make();
    materialize(&start, &device(), 3);
    assert!(bits(&start) != bits(&expected.model), "nothing was learned");
}

#[test]
fn clip_resumes_bit_for_bit() {
    for (chunk, image_tower) in [(None, ImageTower::Trained), (Some(4), ImageTower::Locked)] {
        let options = ClipTaskOptions { chunk, image_tower, ..Default::default() };
        assert_resumes(|| ClipTask::new(&clip_config(), &options, &device()).unwrap(), &clip_source());
    }
}

#[test]
fn the_diffusion_prior_resumes_bit_for_bit() {
    assert_resumes(|| PriorTask::new(&prior_config(), &device()).unwrap(), &prior_source());
}

fn autoregressive() -> (AutoregressivePriorConfig, EmbeddingQuantizer) {
    let tiny = AutoregressivePriorConfig::tiny(D, W, S);
    let config =
        AutoregressivePriorConfig { d_model: 16, n_heads: 2, n_layers: 1, components: 5, dropout: 0.1, ..tiny };
    let plain = Device::flex();
    let (images, captions) = (random(1, [64, D], &plain), random(2, [64, D], &plain));
    let quantizer = EmbeddingQuantizer::fit(images, captions, &QuantizerOptions::of(&config)).unwrap();
    (config, quantizer)
}

fn autoregressive_source(
    quantizer: &EmbeddingQuantizer,
) -> Batches<impl Fn(u64, &Device) -> AutoregressiveBatch + Send + Sync + use<>> {
    let quantizer = quantizer.clone();
    Batches(move |step, device: &Device| {
        let (captions, null) = (text(step % 3, 4, device), text(9, 1, device));
        let embedding = random(step % 3, [4, D], device);
        AutoregressiveBatch::draw(step, &captions, &null, embedding, 0.1, &quantizer).unwrap()
    })
}

#[test]
fn the_autoregressive_prior_resumes_bit_for_bit() {
    let (config, quantizer) = autoregressive();
    let make = || AutoregressiveTask::new(&config, quantizer.clone(), &device()).unwrap();
    assert_resumes(make, &autoregressive_source(&quantizer));
}

#[test]
fn the_decoder_resumes_bit_for_bit() {
    assert_resumes(|| DecoderTask::new(&decoder_config(), &device()).unwrap(), &decoder_source());
}

fn upsampler_config() -> UpsamplerConfig {
    let mut config = UpsamplerConfig::tiny();
    config.input_size = 8;
    config.unet.channels = vec![16, 16];
    config.unet.n_groups = 8;
    config.unet.dropout = 0.1;
    config
}

fn upsampler_source(
    config: &UpsamplerConfig,
) -> Batches<impl Fn(u64, &Device) -> UpsamplerBatch + Send + Sync + use<>> {
    let config = config.clone();
    Batches(move |step, device: &Device| {
        let size = config.output_size();
        let images = random(step % 3, [2, 3, size, size], device).clamp(-1.0, 1.0);
        let options = CropOptions { fraction: 1.0, ..Default::default() };
        UpsamplerBatch::draw(step, images, options, &config).unwrap()
    })
}

#[test]
fn the_upsampler_resumes_bit_for_bit() {
    let config = upsampler_config();
    assert_resumes(|| UpsamplerTask::new(&config, &device()).unwrap(), &upsampler_source(&config));
}

#[test]
fn the_prior_trains_on_two_devices_as_on_one() {
    let _alone = alone();
    let config = TrainConfig { steps: 4, accumulation: 2, learning_rate: 0.01, warmup: 1, ..Default::default() };
    let options = RunOptions { display: DisplayMode::Quiet, ..Default::default() };
    let temp = tempfile::tempdir().unwrap();
    let trainer = |name: &str| Trainer::new(config.clone(), temp.path().join(name)).options(options.clone());
    let make = || {
        let task = PriorTask::new(&DiffusionPriorConfig { dropout: 0.0, ..prior_config() }, &device()).unwrap();
        materialize(&task, &device(), 3);
        task
    };
    let one = trainer("one").run(make(), &prior_source(), &mut ()).unwrap();
    let two = trainer("two").run_on(&[Device::flex(), Device::flex()], make(), &prior_source(), &mut ()).unwrap();
    assert!(bits(&one.model) == bits(&two.model));
}

/// Trains twelve steps in f32 and in a 16-bit type, and compares the losses and what the weights are.
fn assert_trains_in<M, S>(precision: FloatType, make: impl Fn() -> M, source: &S)
where
    M: TrainTask<Batch = S::Batch>,
    S: BatchSource,
{
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: 12, learning_rate: 0.003, warmup: 1, ..Default::default() };
    let run = |precision: FloatType| {
        let dir = temp.path().join(format!("{precision:?}"));
        // A factor that no gradient overflows with: a step left out would make another run of it.
        let loss_scaling = (precision == FloatType::F16).then(|| LossScaling { initial: 1024.0, ..Default::default() });
        let config = TrainConfig { loss_scaling, precision, ..config.clone() };
        let options = RunOptions { display: DisplayMode::Quiet, ..Default::default() };
        let task = make();
        materialize(&task, &device(), 3);
        let trained = Trainer::new(config, &dir).options(options).run(task, source, &mut ()).unwrap();
        let steps = read_metrics(dir.join("metrics.jsonl")).unwrap();
        (trained.model, steps)
    };
    let ((full, expected), (mixed, found)) = (run(FloatType::F32), run(precision));
    let losses = |steps: &[StepRecord]| steps.iter().map(|step| step.loss.unwrap()).collect::<Vec<_>>();
    assert!(found.iter().all(|step| step.overflows.unwrap_or(0) == 0), "{found:?}");
    for (found, expected) in losses(&found).iter().zip(&losses(&expected)) {
        assert!((found / expected - 1.0).abs() < 0.05, "{found} {expected}");
    }
    assert_ne!(losses(&found), losses(&expected), "it did compute in another type");
    // The weights are f32: a 16-bit type would leave the low bits empty.
    let low = |module: &M| bits(module).iter().filter(|bits| **bits & 0x1fff != 0).count();
    assert!(low(&mixed) * 10 > low(&full) * 9);
}

/// Every part in a 16-bit type.
fn assert_all_train_in(precision: FloatType) {
    let mut decoder = decoder_config();
    decoder.unet.dropout = 0.0;
    assert_trains_in(precision, || DecoderTask::new(&decoder, &device()).unwrap(), &decoder_source());
    let prior = DiffusionPriorConfig { dropout: 0.0, ..prior_config() };
    assert_trains_in(precision, || PriorTask::new(&prior, &device()).unwrap(), &prior_source());
    let (config, quantizer) = autoregressive();
    let config = AutoregressivePriorConfig { dropout: 0.0, ..config };
    let make = || AutoregressiveTask::new(&config, quantizer.clone(), &device()).unwrap();
    assert_trains_in(precision, make, &autoregressive_source(&quantizer));
    let mut upsampler = upsampler_config();
    upsampler.unet.dropout = 0.0;
    let make = || UpsamplerTask::new(&upsampler, &device()).unwrap();
    assert_trains_in(precision, make, &upsampler_source(&upsampler));
    for (chunk, devices) in [(None, 1), (Some(4), 1), (None, 2)] {
        let mut config = clip_config();
        (config.vision.dropout, config.text.dropout) = (0.0, 0.0);
        let options = ClipTaskOptions { chunk, ..Default::default() };
        let make = || ClipTask::new(&config, &options, &device()).unwrap().with_devices(&vec![Device::flex(); devices]);
        assert_trains_in(precision, || make().unwrap(), &clip_source());
    }
}

#[test]
fn bf16_trains_f32_weights_to_nearly_the_same_losses() {
    assert_all_train_in(FloatType::Bf16);
}

#[test]
fn f16_trains_f32_weights_to_nearly_the_same_losses() {
    assert_all_train_in(FloatType::F16);
}

#[test]
fn gradient_checkpointing_changes_no_bit_of_a_decoder_or_a_clip() {
    let _alone = alone();
    let temp = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: 3, learning_rate: 0.01, warmup: 1, ..Default::default() };
    let trainer = |name: &str| {
        let options = RunOptions { display: DisplayMode::Quiet, ..Default::default() };
        Trainer::new(config.clone(), temp.path().join(name)).options(options)
    };
    let devices = [device(), device().gradient_checkpointing()];
    let decoders = devices.clone().map(|device| {
        let task = DecoderTask::new(&decoder_config(), &device).unwrap();
        let name = format!("decoder {:?}", device.gradient_checkpointing_strategy());
        bits(&trainer(&name).run(task, &decoder_source(), &mut ()).unwrap().model)
    });
    assert!(decoders[0] == decoders[1]);
    let clips = devices.map(|device| {
        let options = ClipTaskOptions { chunk: Some(4), ..Default::default() };
        let task = ClipTask::new(&clip_config(), &options, &device).unwrap();
        let name = format!("clip {:?}", device.gradient_checkpointing_strategy());
        bits(&trainer(&name).run(task, &clip_source(), &mut ()).unwrap().model)
    });
    assert!(clips[0] == clips[1]);
}

#[test]
fn clip_trains_on_two_devices_as_on_one_and_resumes() {
    let _alone = alone();
    let mut config = clip_config();
    (config.vision.dropout, config.text.dropout) = (0.0, 0.0);
    let train = TrainConfig { steps: 6, learning_rate: 0.003, warmup: 1, ..Default::default() };
    let temp = tempfile::tempdir().unwrap();
    let run = |name: &str, devices: usize, stop_after: Option<u64>| {
        let options = RunOptions { resume: true, stop_after, display: DisplayMode::Quiet, ..Default::default() };
        let task = ClipTask::new(&config, &ClipTaskOptions::default(), &device()).unwrap();
        let task = task.with_devices(&vec![Device::flex(); devices]).unwrap();
        materialize(&task, &device(), 3);
        let dir = temp.path().join(name);
        let trained = Trainer::new(train.clone(), &dir).options(options).run(task, &clip_source(), &mut ()).unwrap();
        let losses = read_metrics(dir.join("metrics.jsonl")).unwrap().into_iter().map(|step| step.loss.unwrap());
        (bits(&trained.model), losses.collect::<Vec<_>>())
    };
    let (one, two) = (run("one", 1, None), run("two", 2, None));
    for (a, b) in one.1.iter().zip(&two.1) {
        assert!((a - b).abs() < 1e-5, "{:?} {:?}", one.1, two.1);
    }
    run("parts", 2, Some(2));
    assert!(run("parts", 2, None) == two, "a run on two devices resumes bit for bit");
    // Another number of devices resumes it too.
    run("changed", 1, Some(3));
    let changed = run("changed", 2, None);
    assert!(changed.1.iter().zip(&one.1).all(|(a, b)| (a - b).abs() < 1e-5), "{:?} {:?}", changed.1, one.1);
}
