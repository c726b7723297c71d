use super::*;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use dalle2_core::text::END;
use dalle2_core::train::TrainTask;
use rand::SeedableRng;
use std::collections::HashMap;

use crate::{TextTransformerConfig, VisionTransformerConfig};

mod devices;

const WORDS: [&str; 6] = ["red", "green", "blue", "apple", "car", "house"];

fn config() -> ClipConfig {
    let tokenizer = ClipTokenizer::openai().unwrap();
    ClipConfig {
        vision: VisionTransformerConfig::new([16, 8], [32, 4, 2], 16),
        text: TextTransformerConfig::new(12, [32, 4, 2], 16),
    }
    .with_vocabulary(WORDS.iter().flat_map(|word| tokenizer.encode(word).unwrap()))
}

/// An image of random pixels.
fn image(seed: u64, side: u32) -> RgbImage {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    RgbImage::from_fn(side, side, |_, _| [rng.random::<u8>(), rng.random(), rng.random()].into())
}

/// Captions that differ in one or two of six words.
fn captions() -> Vec<String> {
    let pairs = WORDS.iter().flat_map(|a| WORDS.iter().map(move |b| format!("{a} {b}")));
    pairs.take(16).collect()
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(3)
}

fn adamw(weight_decay: f32) -> ModuleOptimizer {
    AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(weight_decay).init()
}

#[test]
fn sixteen_random_pairs_are_learned_by_heart() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let config = config();
    let images: Vec<RgbImage> = (0..16).map(|seed| image(seed, 16)).collect();
    let captions = captions();
    let items: Vec<_> =
        captions.iter().zip(&images).enumerate().map(|(i, (c, image))| (c.as_str(), image, i)).collect();
    let batcher = ClipBatcher::new(config.clone()).unwrap().with_unknown_probability(0.0).unwrap();
    let batch = batcher.batch(&items, &mut rng(), &device).unwrap();

    let mut model = ClipTask::new(&config, &ClipTaskOptions::default(), &device).unwrap();
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0).init();
    let mut losses = Vec::new();
    for _ in 0..60 {
        let step = model.gradients(batch.clone(), 1.0);
        losses.push(step.output.loss.into_scalar::<f32>());
        model = optimizer.step(3e-3, model, step.grads);
    }
    assert!(losses[0] > 1.0, "an untrained model knows nothing: {}", losses[0]);
    assert!(losses[59] < 0.05, "{losses:?}");
    let output = model.gradients(batch, 1.0).output;
    let metrics = output.metrics;
    assert_eq!(metrics[0].0, "accuracy");
    assert_eq!(metrics[0].1.clone().into_scalar::<f32>(), 1.0);
}

#[test]
fn a_batch_is_as_wide_as_its_longest_caption() {
    let device = Device::flex();
    let batcher = ClipBatcher::new(config()).unwrap().with_unknown_probability(0.0).unwrap();
    let image = image(0, 24);
    let batch = batcher.batch(&[("red car", &image, 4), ("", &image, 4)], &mut rng(), &device).unwrap();
    assert_eq!(batch.pixels.dims(), [2, 3, 16, 16]);
    assert_eq!(batch.captions.rows.dims(), [2, 4]);
    assert_eq!((batch.captions.lengths, batch.targets), (vec![4, 2], vec![4, 4]));
}

#[test]
fn only_words_become_unknown_and_at_the_rate_asked_for() {
    let device = Device::flex();
    let config = config();
    let unknown = config.text.unknown_row().unwrap() as i64;
    let image = image(0, 16);
    let items = vec![("red apple blue car", &image, 0); 200];
    let rows = |probability: f64| -> Vec<i64> {
        let batcher = ClipBatcher::new(config.clone()).unwrap().with_unknown_probability(probability).unwrap();
        let batch = batcher.batch(&items, &mut rng(), &device).unwrap();
        batch.captions.rows.into_data().iter::<i64>().collect()
    };
    let end = config.text.row(END).unwrap() as i64;
    for row in rows(1.0).chunks(6) {
        assert_eq!(row[1..5], [unknown; 4]);
        assert_ne!(row[0], unknown);
        assert_eq!(row[5], end);
    }
    assert!(!rows(0.0).contains(&unknown));
    let share = rows(0.25).iter().filter(|row| **row == unknown).count() as f64 / 800.0;
    assert!((share - 0.25).abs() < 0.05, "{share}");
}

#[test]
fn jitter_moves_the_picture_and_keeps_its_colours() {
    // A red square on white, its centre in the middle.
    let picture = RgbImage::from_fn(32, 32, |x, y| {
        if (12..20).contains(&x) && (12..20).contains(&y) { [255, 0, 0].into() } else { [255; 3].into() }
    });
    let jitter = Jitter { shift: 0.1, scale: 0.2 };
    let mut rng = rng();
    let mut centres = Vec::new();
    for _ in 0..20 {
        let moved = jitter.apply(&picture, &mut rng);
        let red: Vec<_> = moved.enumerate_pixels().filter(|(_, _, pixel)| pixel[1] < 128).collect();
        assert!((30..110).contains(&red.len()), "{} red pixels", red.len());
        assert!(moved.pixels().all(|pixel| pixel[0] == 255 && pixel[1] == pixel[2]));
        let centre = red.iter().map(|(x, _, _)| f64::from(*x) + 0.5).sum::<f64>() / red.len() as f64;
        assert!((centre - 16.0).abs() <= 4.2, "{centre}");
        centres.push(centre);
    }
    let spread = centres.iter().copied().fold(f64::MIN, f64::max) - centres.iter().copied().fold(f64::MAX, f64::min);
    assert!(spread > 2.0, "{centres:?}");
    assert_eq!(Jitter::default().apply(&picture, &mut rng), picture);
    let batcher = || ClipBatcher::new(config()).unwrap();
    assert!(batcher().with_jitter(Jitter { shift: 0.5, scale: 0.0 }).is_err());
    assert!(batcher().with_unknown_probability(1.5).is_err());
}

#[test]
fn pairs_of_one_class_count_as_right_answers() {
    let device = Device::flex();
    let logits = Tensor::<2>::from_floats([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 1.0]], &device);
    assert_eq!(task::matched(logits.clone(), &[7, 7, 8], 0..3).into_scalar::<f32>(), 2.0);
    assert_eq!(task::matched(logits.slice_dim(0, 1..3), &[7, 7, 8], 1..3).into_scalar::<f32>(), 1.0);
}

/// A batch of sixteen pairs, some of one class.
fn batch(device: &Device, patch_dropout: f64) -> ClipBatch {
    let images: Vec<RgbImage> = (0..16).map(|seed| image(seed, 16)).collect();
    let captions = captions();
    let items: Vec<_> =
        captions.iter().zip(&images).enumerate().map(|(i, (c, image))| (c.as_str(), image, i % 11)).collect();
    let batcher = ClipBatcher::new(config()).unwrap().with_patch_dropout(patch_dropout).unwrap();
    batcher.batch(&items, &mut rng(), device).unwrap()
}

/// A model with dropout in both towers, always the same one.
fn task(options: &ClipTaskOptions, dropout: f64, device: &Device) -> ClipTask {
    let mut config = config();
    (config.vision.dropout, config.text.dropout) = (dropout, dropout);
    device.seed(5);
    let task = ClipTask::new(&config, options, device).unwrap();
    dalle2_core::train::materialize(&task, device, 5);
    task
}

/// All gradients, by the path of their parameter.
fn gradients(task: &ClipTask, grads: &GradientsParams) -> Vec<(String, TensorData)> {
    struct Collect<'a>(&'a GradientsParams, Vec<String>, Vec<(String, TensorData)>);
    impl burn::module::ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.1.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.1.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
            let grad = self.0.get::<D>(param.id).map(|grad| (self.1.join("."), grad.into_data()));
            self.2.extend(grad);
        }
    }
    let mut collect = Collect(grads, Vec::new(), Vec::new());
    task.visit(&mut collect);
    collect.2
}

#[track_caller]
fn assert_same_gradients(found: &[(String, TensorData)], expected: &[(String, TensorData)]) {
    let names = |of: &[(String, TensorData)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let largest = |data: &TensorData| data.iter::<f32>().fold(0.0f32, |most, v| most.max(v.abs()));
        let apart =
            found.iter::<f32>().zip(expected.iter::<f32>()).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest(expected) > 0.0 || name.ends_with("key"), "{name} has no gradient");
        assert!(apart <= 1e-5 * largest(expected).max(1.0), "{name}: {apart} apart of {}", largest(expected));
    }
}

#[test]
fn a_batch_in_parts_has_the_gradients_of_the_whole() {
    let device = Device::flex().autodiff();
    for loss in [ClipLoss::Softmax, ClipLoss::Sigmoid] {
        for patch_dropout in [0.0, 0.5] {
            let batch = batch(&device, patch_dropout);
            let clip = task(&ClipTaskOptions { loss, ..Default::default() }, 0.0, &device).clip;
            let step = |chunk| {
                let options = ClipTaskOptions { loss, chunk, ..Default::default() };
                let task = ClipTask::with_clip(clip.clone(), &options).unwrap();
                let step = task.gradients(batch.clone(), 1.0);
                let value = step.output.loss.into_scalar::<f32>();
                let accuracy = step.output.metrics[0].1.clone().into_scalar::<f32>();
                (gradients(&task, &step.grads), value, accuracy)
            };
            let (whole, value, accuracy) = step(None);
            for chunk in [16, 8, 5, 1] {
                let (parts, of_parts, accuracy_of_parts) = step(Some(chunk));
                assert_same_gradients(&parts, &whole);
                assert!((value - of_parts).abs() < 1e-5, "{value} {of_parts}");
                assert_eq!(accuracy, accuracy_of_parts);
            }
        }
    }
}

/// Whether this is a process for the test `name` alone; if not, runs one and checks that it succeeds. Dropout draws from a
/// generator that all tests of a process share.
fn in_a_process_of_its_own(name: &str) -> bool {
    const ALONE: &str = "DALLE2_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let args = ["--exact", &format!("train::tests::{name}"), "--nocapture"];
    let output = std::process::Command::new(program).args(args).env(ALONE, "1").output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

#[test]
fn both_passes_drop_the_same_elements() {
    if !in_a_process_of_its_own("both_passes_drop_the_same_elements") {
        return;
    }
    // The gradients with dropout are those of one graph that draws in the order of the parts with their seeds.
    let device = Device::flex().autodiff();
    let batch = batch(&device, 0.25);
    let chunk = 6;
    let cached = task(&ClipTaskOptions { chunk: Some(chunk), ..Default::default() }, 0.3, &device);
    device.seed(1);
    let found = cached.gradients(batch.clone(), 1.0);

    let (images, texts): (Vec<_>, Vec<_>) = (0..16usize.div_ceil(chunk))
        .map(|i| {
            let part = batch.part(&(i * chunk..(i * chunk + chunk).min(16)));
            device.seed(dalle2_core::train::mix_seed(batch.seed, cached::DROPOUT, i as u64));
            (cached.embed_images(&part), cached.embed_captions(&part))
        })
        .unzip();
    let (images, texts) = (Tensor::cat(images, 0), Tensor::cat(texts, 0));
    let loss = cached.objective().loss(images, texts, Some(&batch.targets));
    assert!((loss.clone().into_scalar::<f32>() - found.output.loss.into_scalar::<f32>()).abs() < 1e-5);
    let expected = GradientsParams::from_grads(loss.backward(), &cached);
    assert_same_gradients(&gradients(&cached, &found.grads), &gradients(&cached, &expected));
    // And dropout matters.
    let other = cached.gradients(ClipBatch { seed: batch.seed + 1, ..batch }, 1.0);
    assert_ne!(gradients(&cached, &other.grads), gradients(&cached, &found.grads));
}

#[test]
fn patch_dropout_keeps_the_share_and_draws_for_each_image() {
    let device = Device::flex();
    let [quarter, most] = [0.75, 0.99].map(|share| batch(&device, share).patches.unwrap());
    assert_eq!((quarter.dims(), most.dims()), ([16, 1], [16, 1]), "one of four patches is the least");
    let half = batch(&device, 0.5).patches.unwrap();
    let rows: Vec<Vec<i64>> =
        half.into_data().iter::<i64>().collect::<Vec<_>>().chunks(2).map(<[i64]>::to_vec).collect();
    assert!(rows.iter().all(|row| 0 <= row[0] && row[0] < row[1] && row[1] < 4), "{rows:?}");
    assert!(rows.iter().any(|row| *row != rows[0]));
    assert!(batch(&device, 0.0).patches.is_none());
    assert!(ClipBatcher::new(config()).unwrap().with_patch_dropout(1.0).is_err());
}

#[test]
fn a_locked_image_tower_stays_and_the_text_tower_learns_to_fit_it() {
    let device = Device::flex().autodiff();
    for chunk in [None, Some(4)] {
        let options = ClipTaskOptions { image_tower: ImageTower::Locked, chunk, ..Default::default() };
        let mut task = task(&options, 0.1, &device);
        let batch = ClipBatch { targets: (0..16).collect(), ..batch(&device, 0.0) };
        let before = task.embed_images(&batch).into_data();
        let mut optimizer = adamw(0.1);
        let mut losses = Vec::new();
        for _ in 0..40 {
            let step = task.gradients(batch.clone(), 1.0);
            losses.push(step.output.loss.into_scalar::<f32>());
            let paths: Vec<String> = gradients(&task, &step.grads).into_iter().map(|(path, _)| path).collect();
            assert!(!paths.iter().any(|path| path.starts_with("clip.vision")), "{paths:?}");
            task = optimizer.step(3e-3, task, step.grads).after_step();
        }
        task.embed_images(&batch).into_data().assert_eq(&before, true);
        assert!(losses[39] < 0.5 * losses[0], "{losses:?}");
    }
}

#[test]
fn the_sigmoid_loss_learns_and_its_bias_with_it() {
    let device = Device::flex().autodiff();
    let options = ClipTaskOptions { loss: ClipLoss::Sigmoid, ..Default::default() };
    let mut task = task(&options, 0.0, &device);
    let batch = ClipBatch { targets: (0..16).collect(), ..batch(&device, 0.0) };
    let mut optimizer = adamw(0.0);
    let mut first = None;
    for _ in 0..80 {
        let step = task.gradients(batch.clone(), 1.0);
        first.get_or_insert(step.output.loss.into_scalar::<f32>());
        task = optimizer.step(3e-3, task, step.grads).after_step();
    }
    let output = task.valid().loss(batch);
    let metrics: HashMap<&str, f32> =
        output.metrics.into_iter().map(|(name, value)| (name, value.into_scalar::<f32>())).collect();
    // Two captions may have become alike: some words of a batch are hidden.
    assert!(metrics["accuracy"] > 0.9, "{metrics:?}");
    let last = output.loss.into_scalar::<f32>();
    assert!(last < 0.25 * first.unwrap(), "from {first:?} to {last}, {metrics:?}");
    assert!(metrics["logit_bias"] != -10.0 && metrics["logit_scale"] != 10.0, "{metrics:?}");
}

#[test]
fn the_temperature_comes_back_from_its_limit() {
    let device = Device::flex().autodiff();
    let mut task = task(&ClipTaskOptions::default(), 0.0, &device);
    let mut optimizer = adamw(0.0);
    let step = |task: ClipTask, optimizer: &mut ModuleOptimizer, gradient: f32| {
        let mut grads = GradientsParams::new();
        grads.register(task.clip.logit_scale.id, Tensor::<1>::from_floats([gradient], &Device::flex()));
        optimizer.step(0.5, task, grads).after_step()
    };
    let read = |task: &ClipTask| f64::from(task.clip.logit_scale.val().into_scalar::<f32>());
    for _ in 0..20 {
        task = step(task, &mut optimizer, -1.0);
    }
    assert!((read(&task) - crate::loss::MAX_LOGIT_SCALE).abs() < 1e-6, "{}", read(&task));
    assert!(task.clip.logit_scale.is_require_grad());
    // All pairs alike: the loss wants lower logits, and has a gradient at the limit.
    let loss = task.objective().loss(
        Tensor::from_floats([[1.0, 0.0], [0.9, 0.1]], &device),
        Tensor::from_floats([[0.9, 0.1], [1.0, 0.0]], &device),
        None,
    );
    let grads = GradientsParams::from_grads(loss.backward(), &task);
    let slope = grads.get::<1>(task.clip.logit_scale.id).unwrap().into_scalar::<f32>();
    assert!(slope > 0.0, "{slope}");
    for _ in 0..60 {
        task = step(task, &mut optimizer, 1.0);
    }
    assert_eq!(read(&task), 0.0, "and stops at a factor of 1");
}

#[test]
fn options_are_checked_and_read_back() {
    let options: ClipTaskOptions = serde_json::from_str(r#"{"loss": "sigmoid", "chunk": 64}"#).unwrap();
    assert_eq!(options, ClipTaskOptions { loss: ClipLoss::Sigmoid, chunk: Some(64), ..Default::default() });
    assert!(serde_json::from_str::<ClipTaskOptions>(r#"{"chunks": 64}"#).is_err());
    let none = ClipTaskOptions { chunk: Some(0), ..Default::default() };
    assert!(ClipTask::new(&config(), &none, &Device::flex()).unwrap_err().to_string().contains("`chunk` = 0"));
}
