use super::*;
use burn::data::dataset::InMemDataset;
use burn::optim::AdamWConfig;
use dalle2_core::text::END;
use rand::SeedableRng;

use crate::{TextTransformerConfig, VisionTransformerConfig};

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

    let mut model = config.init(&device);
    let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0).init();
    let mut losses = Vec::new();
    for _ in 0..60 {
        let step = TrainStep::step(&model, batch.clone());
        losses.push(dalle2_core::train::LossOutput::loss(&step.item).into_scalar::<f32>());
        model = optimizer.step(3e-3, model, step.grads);
    }
    assert!(losses[0] > 1.0, "an untrained model knows nothing: {}", losses[0]);
    assert!(losses[59] < 0.05, "{losses:?}");
    let output = TrainStep::step(&model, batch).item;
    let metrics = dalle2_core::train::LossOutput::metrics(&output);
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
fn a_source_gives_equal_captions_one_class_and_depends_on_the_step_alone() {
    let device = Device::flex();
    let captions = ["red car", "blue car", "red car", "green house"];
    let items: Vec<CaptionedImage> = captions
        .iter()
        .enumerate()
        .map(|(seed, caption)| CaptionedImage { caption: caption.to_string(), image: image(seed as u64, 16) })
        .collect();
    let source = || {
        let batcher = ClipBatcher::new(config()).unwrap().with_jitter(Jitter { shift: 0.1, scale: 0.1 }).unwrap();
        ClipSource::new(InMemDataset::new(items.clone()), batcher, 4, 9).unwrap()
    };
    let warm = source();
    (0..5).for_each(|step| drop(warm.batch(step, &device).unwrap()));
    let [again, fresh] = [warm, source()].map(|source| source.batch(5, &device).unwrap());
    again.pixels.into_data().assert_eq(&fresh.pixels.into_data(), true);
    again.captions.rows.clone().into_data().assert_eq(&fresh.captions.rows.into_data(), true);

    let mut targets = fresh.targets;
    targets.sort_unstable();
    assert!([vec![0, 0, 1, 2], vec![0, 1, 1, 2], vec![0, 1, 2, 2]].contains(&targets), "{targets:?}");
    assert!(ClipSource::new(InMemDataset::new(items.clone()), ClipBatcher::new(config()).unwrap(), 1, 9).is_err());
}

#[test]
fn pairs_of_one_class_count_as_right_answers() {
    let device = Device::flex();
    let logits = Tensor::<2>::from_floats([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [3.0, 0.0, 1.0]], &device);
    let matches = match_probabilities(Some(&[7, 7, 8]), 3, &device);
    let share = nearest_is_match(logits, matches).into_scalar::<f32>();
    assert!((share - 2.0 / 3.0).abs() < 1e-6);
}
