//! Training from webdataset shards with one broken sample in a hundred.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../dalle2-cli/src/webdataset.rs"]
mod webdataset;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use dalle2::base::image::{RgbImage, fit_square};
use dalle2::base::text::ClipTokenizer;
use dalle2::clip::train::{ClipBatch, ClipBatcher, ClipTask, ClipTaskOptions};
use dalle2::clip::{ClipConfig, TextTransformerConfig, VisionTransformerConfig};
use dalle2::{Device, Result};
use dalle2_train::data::{CaptionedImages, DataSpec, Decoders, Mixture, ShardDataset};
use dalle2_train::{BatchSource, DisplayMode, RunOptions, TrainConfig, TrainReport, Trainer, read_metrics, step_rng};
use webdataset::{Damage, Recipe, words, write_webdataset};

const BATCH: usize = 50;

/// The log of all tests of this file.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        log
    })
}

/// Batches for a CLIP of 16 px, decoded on two threads.
struct Source {
    mixture: Mixture,
    decoders: Decoders,
    batcher: ClipBatcher,
}

impl Source {
    fn open(data: &str) -> Self {
        let mixture = Mixture::open(7, &[data.parse().unwrap()]).unwrap();
        Self { mixture, decoders: Decoders::new(2).unwrap(), batcher: ClipBatcher::new(config()).unwrap() }
    }
}

impl BatchSource for Source {
    type Batch = ClipBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<ClipBatch> {
        let prepare = |_, _, item: dalle2_train::data::CaptionedImage| Ok((item.caption, fit_square(&item.image, 16)));
        let items: Vec<(String, RgbImage)> = self.decoders.batch(&self.mixture, step, BATCH, prepare)?;
        let mut classes = BTreeMap::new();
        for (caption, _) in &items {
            let next = classes.len();
            classes.entry(caption.as_str()).or_insert(next);
        }
        let triples: Vec<_> =
            items.iter().map(|(text, image)| (text.as_str(), image, classes[text.as_str()])).collect();
        self.batcher.batch(&triples, &mut step_rng(7, 0, step), device)
    }
}

fn config() -> ClipConfig {
    let tokenizer = ClipTokenizer::openai().unwrap();
    ClipConfig {
        vision: VisionTransformerConfig::new([16, 8], [32, 2, 2], 16),
        text: TextTransformerConfig::new(12, [32, 2, 2], 16),
    }
    .with_vocabulary(words().flat_map(|word| tokenizer.encode(word).unwrap()))
}

fn train(source: &Source, run: &Path, steps: u64, options: RunOptions) -> TrainReport {
    let device = Device::flex().autodiff();
    let train = TrainConfig { steps, batch_size: BATCH, learning_rate: 2e-3, warmup: 5, seed: 7, ..Default::default() };
    let options = RunOptions { display: DisplayMode::Quiet, ..options };
    device.seed(7);
    let model = ClipTask::new(&config(), &ClipTaskOptions::default(), &device).unwrap();
    Trainer::new(train, run).options(options).run(model, source, &mut ()).unwrap().report
}

/// Every file and link below a directory.
fn tree(dir: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            names.extend(tree(&path));
        } else {
            names.insert(path);
        }
    }
    names
}

/// Trains through all samples and looks at everything that the broken ones could have done.
fn trains_to_the_end(samples: usize) {
    let log = log();
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("deep/er/data");
    let recipe = Recipe { samples, shard_size: 250, side: 32, broken_every: 100, compressed: false, seed: 3 };
    let broken = write_webdataset(&data, &recipe).unwrap();
    assert_eq!(broken.len(), samples / 100);
    let before = tree(root.path());

    let source = Source::open(&format!("{}/*.tar", data.display()));
    let steps = samples.div_ceil(BATCH) as u64;
    let run = root.path().join("deep/run");
    let report = train(&source, &run, steps, RunOptions::default());
    assert_eq!((report.steps, report.skipped), (steps, 0));
    // Chance is the logarithm of the batch, less what equal captions take off.
    assert!(report.loss.unwrap() < f64::from(BATCH as u32).ln(), "{:?}", report.loss);

    let expected: BTreeSet<String> = broken.iter().map(|(item, _)| format!("{}/{item}", data.display())).collect();
    let problems = source.mixture.problems();
    let named: BTreeSet<String> = problems.iter().map(|problem| problem.item.clone()).collect();
    assert_eq!(named, expected);
    assert_eq!(problems.len(), broken.len(), "each once");
    let bomb = broken.iter().position(|(_, damage)| *damage == Damage::Bomb).map(|at| &broken[at].0);
    let reason = bomb.and_then(|bomb| problems.iter().find(|problem| problem.item.ends_with(bomb.as_str())));
    assert!(reason.unwrap().reason.contains("10000×10000"), "{reason:?}");

    // One line in the log for each.
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for item in &expected {
        let lines = text.lines().filter(|line| line.contains(&format!("item={item} "))).count();
        assert_eq!(lines, 1, "{item}");
    }
    // Nothing was written but the run; nothing of what the names asked for exists, and no link was made.
    let new: Vec<PathBuf> =
        tree(root.path()).difference(&before).filter(|path| !path.starts_with(&run)).cloned().collect();
    assert!(new.is_empty(), "{new:?}");
    assert!(tree(root.path()).iter().all(|path| !path.is_symlink()));
}

#[test]
fn ten_thousand_samples_train_to_the_end_and_broken_ones_are_named_once() {
    trains_to_the_end(10_000);
}

/// A run from plain shards, and one from the same shards compressed that was stopped and resumed, are the same.
#[test]
fn a_resumed_run_from_compressed_shards_equals_an_uninterrupted_one_from_plain_shards() {
    log();
    let root = tempfile::tempdir().unwrap();
    let (plain, packed) = (root.path().join("plain"), root.path().join("packed"));
    let recipe = Recipe { samples: 330, shard_size: 70, side: 24, broken_every: 40, compressed: false, seed: 1 };
    let broken = write_webdataset(&plain, &recipe).unwrap();
    write_webdataset(&packed, &Recipe { compressed: true, ..recipe }).unwrap();
    let (steps, window) = (10, "#window=64");
    let source = Source::open(&format!("{}/*.tar{window}", plain.display()));
    let uninterrupted = train(&source, &root.path().join("uninterrupted"), steps, RunOptions::default());
    assert_eq!(source.mixture.problems().len(), broken.len());

    let open = || Source::open(&format!("{}/*.tar.gz{window}", packed.display()));
    let run = root.path().join("parts");
    train(&open(), &run, steps, RunOptions { stop_after: Some(4), ..Default::default() });
    let resumed = train(&open(), &run, steps, RunOptions { resume: true, ..Default::default() });
    assert_eq!(resumed.loss, uninterrupted.loss);
    // Every step of both saw the same batch and the same weights.
    let losses = |dir: &str| {
        read_metrics(root.path().join(dir).join("metrics.jsonl"))
            .unwrap()
            .iter()
            .map(|step| step.loss)
            .collect::<Vec<_>>()
    };
    assert_eq!((losses("parts").len(), losses("parts")), (10, losses("uninterrupted")));
}

/// Shares of sources in what training sees.
#[test]
fn sources_are_mixed_by_weight_on_one_command_line() {
    log();
    let root = tempfile::tempdir().unwrap();
    let recipe = Recipe { samples: 60, shard_size: 30, side: 16, broken_every: 0, compressed: false, seed: 1 };
    write_webdataset(&root.path().join("a"), &recipe).unwrap();
    write_webdataset(&root.path().join("b"), &Recipe { seed: 2, compressed: true, ..recipe }).unwrap();
    let specs: Vec<DataSpec> = ["a/{00000..00001}.tar:0.75", "b/*.tar.gz:0.25"]
        .map(|spec| format!("{}/{spec}", root.path().display()).parse().unwrap())
        .to_vec();
    let mixture = Mixture::open(5, &specs).unwrap();
    assert_eq!((mixture.len(), mixture.problems().len()), (120, 0));
    let decoders = Decoders::new(2).unwrap();
    let sets = decoders.batch(&mixture, 3, 400, |_, item, _| Ok(item.set)).unwrap();
    let first = sets.iter().filter(|set| **set == 0).count();
    assert!((260..340).contains(&first), "{first} of 400");
    let set: &dyn CaptionedImages =
        &ShardDataset::open(&[root.path().join("a/00000.tar")], Default::default()).unwrap();
    assert_eq!(set.caption(4).unwrap(), mixture.caption(mixture.nth(4)).unwrap());
}
