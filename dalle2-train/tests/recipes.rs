//! The recipes on a folder of small images.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, save_png};
use dalle2_train::data::EmbeddingSet;
use dalle2_train::recipes::{
    CLIP_JITTER, EmbedJob, FrozenClip, ImageData, Outcome, Preset, RecipeArgs, TrainData, Validation, Variations, clip,
    prior,
};
use dalle2_train::{DisplayMode, RunOptions, read_metrics};

/// Writes `count` images with one of `captions` captions each.
fn write_folder(dir: &Path, count: u8, captions: u8, tint: u8) {
    for i in 0..count {
        let path = dir.join(format!("{i:03}.png"));
        save_png(&RgbImage::from_pixel(8, 8, image::Rgb([i * 9, tint, 255 - i * 9])), &path).unwrap();
        std::fs::write(path.with_extension("txt"), format!("number {} of {tint}", i % captions)).unwrap();
    }
}

fn open(dir: &Path) -> Arc<ImageData> {
    Arc::new(ImageData::open(&[dir.to_str().unwrap()], Some(2)).unwrap())
}

fn args(out: &Path) -> RecipeArgs {
    let session = RunOptions { display: DisplayMode::Quiet, ..Default::default() };
    RecipeArgs::new(Preset::Tiny, out).steps(1).batch_size(4).device("flex").session(session)
}

fn train_clip(data: &Path, out: &Path, validation: Validation<Arc<dyn TrainData>>) {
    let recipe = clip::Recipe { validation, ..clip::Recipe::new(args(out)) };
    let outcome = recipe.run(open(data)).unwrap();
    assert!(matches!(outcome, Outcome::Trained(_)), "{outcome}");
}

#[test]
fn the_place_decides_the_part_and_nothing_replaces_a_broken_image() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), 20, 20, 0);
    for broken in ["008.png", "019.png"] {
        std::fs::write(dir.path().join(broken), b"broken").unwrap();
    }
    let data = open(dir.path());
    let splits = data.pair_splits(10).unwrap();
    let items = |pairs: &[dalle2_train::recipes::Pair]| pairs.iter().map(|pair| pair.item).collect::<Vec<_>>();
    assert_eq!(items(&splits.train), (0..8).chain(10..19).collect::<Vec<_>>());
    assert_eq!(items(&splits.held_out), [9]);
    let problems: Vec<String> = data.problems().into_iter().map(|problem| problem.item).collect();
    assert!(
        problems.len() == 2 && problems[0].ends_with("008.png") && problems[1].ends_with("019.png"),
        "{problems:?}"
    );
    assert!(data.pair_splits(1).is_err());
}

#[test]
fn equal_captions_have_one_class() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), 12, 3, 0);
    let items = open(dir.path()).batch(0, 0, 12, 8).unwrap();
    let classes: BTreeSet<u64> = items.iter().map(|item| item.class).collect();
    assert_eq!((items.len(), classes.len()), (12, 3));
}

/// Embeds a folder with the CLIP of `model`, and returns the image embeddings.
fn embed(data: &Path, model: &Path, out: &Path) -> EmbeddingSet {
    let data = open(data);
    let pairs = data.pair_splits(100).unwrap().train;
    let variations = Variations { count: 2, jitter: CLIP_JITTER, seed: 0 };
    let job = EmbedJob { source: "a folder".into(), images: &*data, pairs: &pairs, variations, shard_size: 5 };
    job.run(out, &FrozenClip::load(model, &Device::flex()).unwrap()).unwrap()
}

fn embeddings(set: &EmbeddingSet) -> Vec<f32> {
    let (image, text) = set.embeddings(&Device::flex());
    [image, text].into_iter().flat_map(|x| x.into_data().try_to_vec::<f32>().unwrap()).collect()
}

#[test]
fn embeddings_follow_data_and_weights() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_folder(first.path(), 12, 12, 0);
    write_folder(second.path(), 12, 12, 200);
    let model = tempfile::tempdir().unwrap();
    train_clip(first.path(), model.path(), Validation::Training);
    let export = model.path().join("export");
    let (cached, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = embeddings(&embed(first.path(), &export, cached.path()));
    assert_eq!(embeddings(&embed(first.path(), &export, cached.path())), before);
    // The same names and numbers, other images and captions.
    write_folder(first.path(), 12, 12, 200);
    let after = embeddings(&embed(first.path(), &export, cached.path()));
    assert_ne!(after, before);
    assert_eq!(after, embeddings(&embed(second.path(), &export, fresh.path())));

    // A prior refuses pairs of another CLIP than its pipeline's.
    let other = tempfile::tempdir().unwrap();
    train_clip(second.path(), other.path(), Validation::Training);
    let data = prior::PriorData::Embedded(Arc::new(EmbeddingSet::open(cached.path()).unwrap()));
    let error = prior::Recipe::new(args(other.path())).run(&data).unwrap_err().to_string();
    assert!(error.contains("other encoders") && error.contains("embed the data again"), "{error}");
    prior::Recipe::new(args(model.path())).run(&data).unwrap();
}

/// The names of the metrics of a run's validation.
fn validated(run: &Path) -> Vec<String> {
    let records = read_metrics(run.join("metrics.jsonl")).unwrap();
    records.last().unwrap().validation.keys().cloned().collect()
}

#[test]
fn metrics_on_training_data_are_labelled() {
    let data = tempfile::tempdir().unwrap();
    write_folder(data.path(), 12, 6, 0);
    let [labelled, share] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    train_clip(data.path(), labelled.path(), Validation::Training);
    assert!(validated(&labelled.path().join("clip")).iter().all(|name| name.starts_with("training_")));
    train_clip(data.path(), share.path(), Validation::Share(0.3));
    assert!(validated(&share.path().join("clip")).contains(&"zero_shot@1".to_owned()));

    let images = prior::PriorData::Images(open(data.path()));
    prior::Recipe::new(args(labelled.path())).run(&images).unwrap();
    assert!(validated(&labelled.path().join("prior")).contains(&"training_cosine".to_owned()));
    let recipe = prior::Recipe { validation: Validation::Share(0.3), ..prior::Recipe::new(args(share.path())) };
    recipe.run(&images).unwrap();
    assert!(validated(&share.path().join("prior")).contains(&"cosine".to_owned()));
}

#[test]
fn a_dry_run_describes_and_writes_nothing() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_folder(data.path(), 3, 3, 0);
    let args = RecipeArgs { dry_run: true, ..args(&out.path().join("run")) };
    let outcome = prior::Recipe::new(args).run(&prior::PriorData::Images(open(data.path()))).unwrap().to_string();
    assert!(outcome.contains("million parameters") && outcome.contains("\"steps\": 1"), "{outcome}");
    assert!(!out.path().join("run").exists());
}

#[test]
fn a_part_without_its_clip_names_the_recipe() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_folder(data.path(), 3, 3, 0);
    let error = prior::Recipe::new(args(out.path())).run(&prior::PriorData::Images(open(data.path()))).unwrap_err();
    assert!(error.to_string().contains("must be trained first: run the recipe `clip`"), "{error}");
}
