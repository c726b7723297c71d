//! Writing a set of embedded pairs shard by shard, and reading it.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::EmbeddedPairs;
use super::shard::Shard;
use crate::data::Problem;
use crate::data::items::reason;
use dalle2_core::store::{read_json, write_json};
use dalle2_core::{ConfigError, Error, Result, TextCondition};

const INFO: &str = "embeddings.json";
const NULL: &str = "null.safetensors";

/// Description of a set of embedded pairs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingInfo {
    /// Width D of CLIP's joint space.
    pub embed_dim: usize,
    /// Width W of the token encodings.
    pub token_width: usize,
    /// Number S of caption tokens.
    pub context_length: usize,
    /// Number of pairs.
    pub items: usize,
    /// Pairs in one shard; the last one has the rest.
    pub shard_size: usize,
    /// Description of data, encoders and settings. An interrupted set is only resumed with the same description.
    pub source: String,
    /// Fingerprint of captions, images and settings, where it is known. A set with another one is written anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_fingerprint: Option<String>,
    /// Fingerprint of the encoders' weights, where it is known. A set with another one is written anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_fingerprint: Option<String>,
}

impl EmbeddingInfo {
    /// Checks that the numbers can be.
    ///
    /// # Errors
    /// Names the first field that is zero.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("embed_dim", self.embed_dim),
            ("token_width", self.token_width),
            ("context_length", self.context_length),
            ("items", self.items),
            ("shard_size", self.shard_size),
        ] {
            if value == 0 {
                return Err(ConfigError::new(field, value, "must be at least 1"));
            }
        }
        Ok(())
    }

    /// Number of shards.
    pub fn num_shards(&self) -> usize {
        self.items.div_ceil(self.shard_size)
    }

    /// The pairs that belong to a shard.
    pub fn items_of(&self, shard: usize) -> std::ops::Range<usize> {
        let start = (shard * self.shard_size).min(self.items);
        start..(start + self.shard_size).min(self.items)
    }

    /// Whether two descriptions differ in their fingerprints only.
    fn differs_in_fingerprint(&self, other: &Self) -> bool {
        let (data_fingerprint, encoder_fingerprint) = (self.data_fingerprint.clone(), self.encoder_fingerprint.clone());
        self != other && *self == Self { data_fingerprint, encoder_fingerprint, ..other.clone() }
    }

    /// Refuses text of another form.
    fn check_text(&self, text: &TextCondition) -> Result<()> {
        let ([_, d], [_, s, w]) = (text.pooled.dims(), text.tokens.dims());
        if [d, s, w] == [self.embed_dim, self.context_length, self.token_width] {
            return Ok(());
        }
        Err(Error::Mismatch(format!(
            "the set holds embeddings of width {} and {} tokens of width {}; these captions have {d}, {s} and {w}",
            self.embed_dim, self.context_length, self.token_width
        )))
    }
}

/// Writes a set of embedded pairs, or resumes one that was interrupted.
#[derive(Debug)]
pub struct EmbeddingWriter {
    dir: PathBuf,
    info: EmbeddingInfo,
    pending: Vec<usize>,
}

impl EmbeddingWriter {
    /// Opens `dir` for the set that `info` describes. Complete shards stay; missing and damaged ones are
    /// [`pending`](Self::pending).
    ///
    /// A set with the same description but other fingerprints was made from data or weights that have changed since: its
    /// shards are deleted, with a warning, and all are pending.
    ///
    /// # Errors
    /// If the description is not valid, `dir` holds another set, or a file cannot be read or written.
    pub fn open(dir: impl AsRef<Path>, info: EmbeddingInfo) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        info.validate()?;
        let path = dir.join(INFO);
        if path.exists() {
            let stored: EmbeddingInfo = read_json(&path)?;
            if info.differs_in_fingerprint(&stored) {
                let changed = if info.encoder_fingerprint == stored.encoder_fingerprint { "data" } else { "encoders" };
                tracing::warn!(dir = %dir.display(), "the {changed} have changed since they were embedded: embedding anew");
                // The description last, so that an interruption leaves the old one and the rest is deleted next time.
                delete_shards(&dir, &stored)?;
                write_json(&path, &info)?;
            } else if stored != info {
                let message = format!("describes another set ({stored:?}) than {info:?}: choose another directory");
                return Err(Error::format(&path, message));
            }
        } else {
            write_json(&path, &info)?;
        }
        let is_complete = |shard: &usize| {
            let path = shard_path(&dir, *shard);
            if !path.exists() {
                return false;
            }
            let read = Shard::read(&path, &info).and_then(|found| expect_len(&path, &found, &info, *shard));
            if let Err(error) = &read {
                tracing::warn!(%error, "a damaged shard will be written again");
            }
            read.is_ok()
        };
        let pending = (0..info.num_shards()).filter(|shard| !is_complete(shard)).collect();
        Ok(Self { dir, info, pending })
    }

    /// The shards that are still to be written, in order.
    pub fn pending(&self) -> &[usize] {
        &self.pending
    }

    /// The description of the set.
    pub fn info(&self) -> &EmbeddingInfo {
        &self.info
    }

    /// Writes the encoded empty caption, batch 1.
    ///
    /// # Errors
    /// When its form is not the set's, a value is not finite, or the file cannot be written.
    pub fn write_null(&self, null: &TextCondition) -> Result<()> {
        self.info.check_text(null)?;
        if null.batch_size() != 1 {
            return Err(Error::Input(format!("one empty caption is needed, got {}", null.batch_size())));
        }
        Shard::of_text(&[String::new()], null)?.write(&self.dir.join(NULL), &self.info)
    }

    /// Writes a shard: the pairs [`EmbeddingInfo::items_of`] it.
    ///
    /// # Errors
    /// When the form or the number of the pairs is not the set's, a value is not finite (the caption is named), or the
    /// file cannot be written.
    pub fn write(&mut self, shard: usize, pairs: &EmbeddedPairs) -> Result<()> {
        pairs.check()?;
        self.info.check_text(&pairs.text)?;
        if pairs.image.dims()[1] != self.info.embed_dim {
            let (found, d) = (pairs.image.dims()[1], self.info.embed_dim);
            return Err(Error::Mismatch(format!("image embeddings of width {found} for a set of width {d}")));
        }
        let path = shard_path(&self.dir, shard);
        let values = Shard::of(pairs)?;
        expect_len(&path, &values, &self.info, shard)?;
        values.write(&path, &self.info)?;
        self.pending.retain(|pending| *pending != shard);
        Ok(())
    }
}

/// A set of embedded pairs in memory: token encodings in 16 bits, about 2·S·W bytes for each pair.
#[derive(Debug)]
pub struct EmbeddingSet {
    info: EmbeddingInfo,
    pairs: Shard,
    null: Shard,
    problems: Vec<Problem>,
}

impl EmbeddingSet {
    /// Reads a set. Shards that are missing or damaged are reported, left out and listed in [`Self::problems`].
    ///
    /// # Errors
    /// When the description or the empty caption cannot be read, or no pair is left.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.join(INFO).is_file() {
            return Err(Error::format(dir, format!("is not a set of embedded pairs: {INFO} is missing")));
        }
        let info: EmbeddingInfo = read_json(dir.join(INFO))?;
        info.validate().map_err(|e| Error::format(dir.join(INFO), e.to_string()))?;
        let null = Shard::read(&dir.join(NULL), &info)?;
        if null.len() != 1 {
            return Err(Error::format(dir.join(NULL), format!("holds {} captions, expected one", null.len())));
        }
        let (mut pairs, mut problems) = (Shard::default(), Vec::new());
        for shard in 0..info.num_shards() {
            let path = shard_path(dir, shard);
            match Shard::read(&path, &info).and_then(|found| expect_len(&path, &found, &info, shard).map(|()| found)) {
                Ok(found) => pairs.append(found),
                Err(error) => {
                    let problem = Problem { item: path.display().to_string(), reason: reason(&error) };
                    tracing::warn!(item = %problem.item, reason = %problem.reason, "shard left out");
                    problems.push(problem);
                }
            }
        }
        if pairs.len() == 0 {
            let first = problems.first().map(|p| format!("; {}: {}", p.item, p.reason)).unwrap_or_default();
            return Err(Error::format(dir, format!("the set of embedded pairs is empty{first}")));
        }
        Ok(Self { info, pairs, null, problems })
    }

    /// Creates a set in memory from your own arrays. `null` is the encoded empty caption, batch 1.
    ///
    /// # Errors
    /// If the arrays are empty or of different lengths, `null` has other sizes, or a value is not finite.
    pub fn from_pairs(pairs: &EmbeddedPairs, null: &TextCondition) -> Result<Self> {
        pairs.check()?;
        let [items, embed_dim] = pairs.image.dims();
        let [_, context_length, token_width] = pairs.text.tokens.dims();
        let (source, shard_size) = ("arrays in memory".to_owned(), items);
        let (data_fingerprint, encoder_fingerprint) = (None, None);
        let info = EmbeddingInfo {
            embed_dim,
            token_width,
            context_length,
            items,
            shard_size,
            source,
            data_fingerprint,
            encoder_fingerprint,
        };
        info.validate()?;
        info.check_text(&pairs.text)?;
        info.check_text(null)?;
        if null.batch_size() != 1 {
            return Err(Error::Input(format!("{} empty captions: expected one", null.batch_size())));
        }
        let (pairs, null) = (Shard::of(pairs)?, Shard::of_text(&[String::new()], null)?);
        pairs.check_finite(&info).and(null.check_finite(&info)).map_err(Error::Input)?;
        Ok(Self { info, pairs, null, problems: Vec::new() })
    }

    /// The description; it counts the pairs that the set should have.
    pub fn info(&self) -> &EmbeddingInfo {
        &self.info
    }

    /// Number of pairs that could be read, at least 1.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Never: a set without pairs is not opened.
    pub fn is_empty(&self) -> bool {
        self.pairs.len() == 0
    }

    /// The shards that were left out.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The captions.
    pub fn captions(&self) -> &[String] {
        &self.pairs.captions
    }

    /// The pairs at `indices`, in that order.
    ///
    /// # Panics
    /// When an index is not below [`Self::len`].
    pub fn batch(&self, indices: &[usize], device: &Device) -> EmbeddedPairs {
        EmbeddedPairs {
            captions: indices.iter().map(|i| self.pairs.captions[*i].clone()).collect(),
            text: self.pairs.text(indices, &self.info, device),
            image: self.pairs.image(indices, &self.info, device),
        }
    }

    /// All image embeddings and the captions' embeddings, `[N, D]` each.
    pub fn embeddings(&self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let (n, d) = (self.len(), self.info.embed_dim);
        let tensor = |values: &[f32]| Tensor::from_data(TensorData::new(values.to_vec(), [n, d]), device);
        (tensor(&self.pairs.image), tensor(&self.pairs.text))
    }

    /// The encoded empty caption, batch 1.
    pub fn null(&self, device: &Device) -> TextCondition {
        self.null.text(&[0], &self.info, device)
    }

    /// Refuses a set that a prior of these sizes cannot read.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with both numbers.
    pub fn check_sizes(&self, embed_dim: usize, token_width: usize, context_length: usize) -> Result<()> {
        let info = &self.info;
        if [info.embed_dim, info.token_width, info.context_length] == [embed_dim, token_width, context_length] {
            return Ok(());
        }
        Err(Error::Mismatch(format!(
            "the set holds embeddings of width {} and {} tokens of width {}; the prior reads width {embed_dim} and \
             {context_length} tokens of width {token_width}",
            info.embed_dim, info.context_length, info.token_width
        )))
    }
}

fn shard_path(dir: &Path, shard: usize) -> PathBuf {
    dir.join(format!("shard-{shard:05}.safetensors"))
}

/// Deletes the shards of a set that is to be written anew.
fn delete_shards(dir: &Path, info: &EmbeddingInfo) -> Result<()> {
    (0..info.num_shards())
        .map(|shard| shard_path(dir, shard))
        .filter(|path| path.exists())
        .try_for_each(|path| std::fs::remove_file(&path).map_err(|e| Error::io(&path, e)))
}

fn expect_len(path: &Path, found: &Shard, info: &EmbeddingInfo, shard: usize) -> Result<()> {
    let expected = info.items_of(shard).len();
    if found.len() == expected && found.image.len() == expected * info.embed_dim {
        return Ok(());
    }
    let images = found.image.len() / info.embed_dim;
    let message = format!("holds {} captions and {images} image embeddings, expected {expected} pairs", found.len());
    Err(Error::format(path, message))
}
