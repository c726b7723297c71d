//! Captioned images in tar files, as webdataset lays them out.

mod fields;
mod index;
mod pattern;
mod read;
mod scan;

pub use fields::CaptionField;
pub use pattern::expand_shards;

use std::path::{Path, PathBuf};

use burn::data::dataset::{Dataset, DatasetError};
use rayon::prelude::*;

use self::index::ShardIndex;
use self::read::{Place, Reader};
use super::items::{Problems, StandIns, caption};
use super::{CaptionedImage, CaptionedImages, Groups, Problem};
use dalle2_core::{ConfigError, Error, Result, image};

/// How shards are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOptions {
    /// Where captions come from, the best first: a sample has the first that it has. `.txt`, then `caption` in `.json`,
    /// by default.
    pub captions: Vec<CaptionField>,
    /// Extension of the images; without it the first `jpg`, `jpeg`, `png` or `webp` of a sample.
    pub image: Option<String>,
    /// Samples that are shuffled together, see [`Order::in_windows`](super::Order::in_windows).
    pub window: usize,
    /// Memory for unpacked samples of compressed shards, in bytes. It should hold two windows.
    pub buffer: usize,
    /// Directory of the indices of the shards, so that they are not scanned again. `None` writes nothing.
    pub index_dir: Option<PathBuf>,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self { captions: CaptionField::defaults(), image: None, window: 8192, buffer: 1 << 30, index_dir: None }
    }
}

impl ShardOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.captions.is_empty() {
            return Err(ConfigError::new("captions", "[]", "at least one field that holds captions"));
        }
        self.captions.iter().try_for_each(CaptionField::validate)?;
        if self.image.as_deref() == Some("") {
            return Err(ConfigError::new("image", "", "an extension, such as `jpg`"));
        }
        if self.window == 0 {
            return Err(ConfigError::new("window", 0, "must be at least 1"));
        }
        Ok(())
    }
}

/// Shards in webdataset's layout: tar files, plain or compressed with gzip. Neighbouring members with the same name up to
/// the first dot form one sample, such as `0001.jpg` and `0001.txt`.
///
/// Opening a set scans the headers of all shards once. The scan numbers the samples, and finds samples without a usable
/// caption, links, names that lead outside, and duplicate keys. Nothing is unpacked to disk. Images are read by position
/// on demand; compressed shards are unpacked into memory up to the image. [`Dataset::get`] replaces an image that cannot be
/// decoded by the next one.
///
/// [`Self::order`] visits the shards in sequence, so that reads are nearly sequential and a compressed shard is unpacked
/// once per epoch.
#[derive(Debug)]
pub struct ShardDataset {
    shards: Vec<ShardIndex>,
    /// The number of the first sample of each shard, and the number of all samples.
    starts: Vec<usize>,
    options: ShardOptions,
    reader: Reader,
    stand_ins: StandIns,
}

impl ShardDataset {
    /// Opens the shards at `paths`, in this order; see [`expand_shards`] for patterns.
    ///
    /// Shards that cannot be read are reported and left out; of one that is cut off, what comes before is used.
    ///
    /// # Errors
    /// When an option cannot work, the index cannot be written, or no sample is left.
    pub fn open(paths: &[PathBuf], options: ShardOptions) -> Result<Self> {
        options.validate()?;
        let read: Vec<Result<ShardIndex>> = paths.par_iter().map(|path| index::open(path, &options)).collect();
        let mut problems = Problems::default();
        let (mut shards, mut starts) = (Vec::new(), vec![0]);
        for (path, shard) in paths.iter().zip(read) {
            let shard = shard?;
            for (name, reason) in &shard.problems {
                let item = if name.is_empty() { path.display().to_string() } else { member(path, name) };
                problems.report(item, reason);
            }
            starts.push(starts[starts.len() - 1] + shard.len());
            shards.push(shard);
        }
        let source = paths.first().map_or(Path::new("shards"), PathBuf::as_path);
        if starts[starts.len() - 1] == 0 {
            let captions: Vec<String> = options.captions.iter().map(ToString::to_string).collect();
            let expected = format!(
                "tar files whose samples have an image ({}) and a caption ({})",
                options.image.as_deref().unwrap_or("jpg, jpeg, png, webp"),
                captions.join(", ")
            );
            return Err(problems.nothing_left(source, &expected));
        }
        let (reader, stand_ins) = (Reader::new(options.buffer), StandIns::new(source, problems));
        let set = Self { shards, starts, options, reader, stand_ins };
        set.warn_of_a_small_buffer();
        Ok(set)
    }

    /// Number of shards.
    pub fn num_shards(&self) -> usize {
        self.shards.len()
    }

    fn warn_of_a_small_buffer(&self) {
        let compressed: Vec<&ShardIndex> = self.shards.iter().filter(|shard| shard.compressed).collect();
        let samples: usize = compressed.iter().map(|shard| shard.len()).sum();
        let bytes: u64 = compressed.iter().map(|shard| shard.bytes()).sum();
        let window = self.options.window.min(samples) as u64;
        let needed = if samples == 0 { 0 } else { (bytes / samples as u64).saturating_mul(2 * window) };
        if needed > self.options.buffer as u64 {
            tracing::warn!(
                "two windows of {window} samples take about {needed} bytes, the buffer for compressed shards has {}: \
                 shards will be unpacked again and again; use a smaller window, a larger buffer or plain tar files",
                self.options.buffer
            );
        }
    }

    fn place(&self, index: usize) -> Place<'_> {
        let id = self.starts.partition_point(|start| *start <= index) - 1;
        Place { id, shard: &self.shards[id], number: index - self.starts[id] }
    }

    fn name(&self, index: usize) -> String {
        let Place { shard, number, .. } = self.place(index);
        member(&shard.path, shard.name(number))
    }

    fn load(&self, index: usize) -> Result<CaptionedImage> {
        let place @ Place { shard, number, .. } = self.place(index);
        let fetched = self.reader.fetch(place).map_err(|e| Error::io(&shard.path, e))?;
        let caption = self.text(shard, number, &fetched.caption)?;
        Ok(CaptionedImage { caption, image: image::decode(&fetched.image, self.name(index))? })
    }

    fn text(&self, shard: &ShardIndex, number: usize, bytes: &[u8]) -> Result<String> {
        let field = &self.options.captions[shard.field(number)];
        let text = field.text(bytes).map_err(|reason| Error::format(&shard.path, reason))?;
        // The index pass has seen it: it can only fail if the shard was changed since.
        caption(&text).ok_or_else(|| Error::format(&shard.path, "the caption is empty"))
    }
}

/// The name of a member in messages.
fn member(shard: &Path, name: &str) -> String {
    format!("{}:{name}", shard.display())
}

impl Dataset<CaptionedImage> for ShardDataset {
    fn get(&self, index: usize) -> Result<CaptionedImage, DatasetError> {
        self.stand_ins.get(index, self.len(), |i| self.name(i), |i| self.load(i))
    }

    fn len(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }
}

impl CaptionedImages for ShardDataset {
    fn caption(&self, index: usize) -> Result<String> {
        let place @ Place { shard, number, .. } = self.place(index);
        let bytes = self.reader.fetch_caption(place).map_err(|e| Error::io(&shard.path, e))?;
        self.text(shard, number, &bytes)
    }

    fn problems(&self) -> Vec<Problem> {
        self.stand_ins.problems()
    }

    fn key(&self, index: usize) -> String {
        self.name(index)
    }

    fn groups(&self) -> Option<Groups> {
        Some(Groups { sizes: self.shards.iter().map(ShardIndex::len).collect(), window: self.options.window })
    }

    fn exact(&self, index: usize) -> Result<CaptionedImage> {
        self.stand_ins.check(index)?;
        self.load(index).inspect_err(|error| self.stand_ins.note(index, self.name(index), error))
    }
}

#[cfg(test)]
mod tests;
