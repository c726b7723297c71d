//! The contents of a shard, and the file that lists them.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::ShardOptions;
use super::scan::{self, MAX_CAPTION};
use dalle2_core::image::MAX_FILE;
use dalle2_core::store::{read_json, write_file};
use dalle2_core::{Error, Result};

/// Version of the form; another one is made anew.
const VERSION: u32 = 1;

/// A stretch of a (decompressed) shard, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span(pub u64, pub u64);

impl Span {
    pub(super) fn end(self) -> u64 {
        self.0.saturating_add(self.1)
    }
}

/// Where a sample is: its image, its caption, the field that the caption is of, and the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sample(pub Span, pub Span, pub u8, pub u32);

/// The samples of a shard, in order, and what is wrong with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardIndex {
    pub path: PathBuf,
    /// Whether the shard is compressed with gzip.
    pub compressed: bool,
    pub samples: Vec<Sample>,
    /// The names of the images, one after the other.
    pub names: String,
    /// Key of the sample, or nothing for the shard itself, and the reason.
    pub problems: Vec<(String, String)>,
}

impl ShardIndex {
    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    /// The name of a sample's image in the shard.
    pub(super) fn name(&self, number: usize) -> &str {
        let start = number.checked_sub(1).map_or(0, |before| self.samples[before].3 as usize);
        self.names.get(start..self.samples[number].3 as usize).unwrap_or_default()
    }

    /// The caption field of a sample, an index of [`ShardOptions::captions`].
    pub(super) fn field(&self, number: usize) -> usize {
        self.samples[number].2.into()
    }

    /// Bytes of all images and captions.
    pub(super) fn bytes(&self) -> u64 {
        self.samples.iter().map(|sample| sample.0.1 + sample.1.1).sum()
    }

    /// A shard without a usable sample.
    pub(super) fn unreadable(path: &Path, reason: impl ToString) -> Self {
        let problems = vec![(String::new(), reason.to_string())];
        Self { path: path.to_path_buf(), compressed: false, samples: vec![], names: String::new(), problems }
    }

    /// Whether an index that was read from a file can be one: lengths are within their limits, names and fields exist.
    fn holds_together(&self, options: &ShardOptions) -> bool {
        let ends = self.samples.iter().map(|sample| sample.3 as usize);
        let short = |sample: &Sample| sample.0.1 <= MAX_FILE && sample.1.1 <= MAX_CAPTION;
        ends.clone().is_sorted()
            && ends.max().unwrap_or(0) == self.names.len()
            && self.samples.iter().all(|sample| short(sample) && usize::from(sample.2) < options.captions.len())
            && (0..self.len()).all(|number| !self.name(number).is_empty())
    }
}

/// An index as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    shard: Identity,
    compressed: bool,
    samples: Vec<Sample>,
    names: String,
    problems: Vec<(String, String)>,
}

/// Which shard an index is of, and how it was read: an index of anything else is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    path: String,
    bytes: u64,
    modified_ns: u64,
    captions: Vec<String>,
    image: Option<String>,
}

impl Identity {
    fn of(path: &Path, options: &ShardOptions) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            path: std::path::absolute(path)?.display().to_string(),
            bytes: metadata.len(),
            modified_ns: u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX),
            captions: options.captions.iter().map(|field| format!("{field:?}")).collect(),
            image: options.image.clone(),
        })
    }

    /// Returns the name of the index: the shard's name with a checksum.
    fn file_name(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.path.as_bytes());
        self.captions.iter().chain(&self.image).for_each(|text| hasher.update(text.as_bytes()));
        let name = self.path.rsplit(['/', '\\']).next().unwrap_or_default();
        format!("{name}.{:08x}.json", hasher.finalize())
    }
}

/// The index of a shard: the one that was noted, if the shard is still the same, or a new one, which is noted then.
///
/// # Errors
/// When the new one cannot be written. A shard that cannot be read is an index with a problem.
pub(super) fn open(path: &Path, options: &ShardOptions) -> Result<ShardIndex> {
    let identity = match Identity::of(path, options) {
        Ok(identity) => identity,
        Err(e) => return Ok(ShardIndex::unreadable(path, e)),
    };
    let Some(dir) = &options.index_dir else {
        return Ok(scan::scan(path, options));
    };
    let noted = dir.join(identity.file_name());
    if let Some(index) = reread(&noted, path, &identity, options) {
        return Ok(index);
    }
    let index = scan::scan(path, options);
    let ShardIndex { compressed, samples, names, problems, .. } = index.clone();
    let file = File { version: VERSION, shard: identity, compressed, samples, names, problems };
    write_file(&noted, &serde_json::to_vec(&file).map_err(|e| Error::json(&noted, e))?)?;
    Ok(index)
}

fn reread(noted: &Path, path: &Path, identity: &Identity, options: &ShardOptions) -> Option<ShardIndex> {
    if !noted.exists() {
        return None;
    }
    let file =
        read_json::<File>(noted).inspect_err(|error| tracing::warn!(%error, "a damaged index is made anew")).ok()?;
    if file.version != VERSION || file.shard != *identity {
        return None;
    }
    let File { compressed, samples, names, problems, .. } = file;
    let index = ShardIndex { path: path.to_path_buf(), compressed, samples, names, problems };
    index.holds_together(options).then_some(index)
}
