//! One file of embedded pairs.

use std::collections::HashMap;
use std::path::Path;

use burn::prelude::*;
use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{EmbeddedPairs, EmbeddingInfo};
use dalle2_core::store::write_file;
use dalle2_core::{Error, Result, TextCondition, TokenMask};

/// Key of the checksum in the header.
const CHECKSUM: &str = "crc32";
/// Key of the captions in the header, a JSON array.
const CAPTIONS: &str = "captions";

/// The values of a shard on the host, row-major; token encodings stay in 16 bits.
#[derive(Debug, Clone, Default)]
pub(super) struct Shard {
    pub captions: Vec<String>,
    pub text: Vec<f32>,
    pub tokens: Vec<f16>,
    pub mask: Vec<u8>,
    /// Empty for the encoded empty caption.
    pub image: Vec<f32>,
}

impl Shard {
    /// Reads pairs back from their device.
    pub(super) fn of(pairs: &EmbeddedPairs) -> Result<Self> {
        let image = floats(pairs.image.clone())?;
        Ok(Self { image, ..Self::of_text(&pairs.captions, &pairs.text)? })
    }

    /// Captions without images.
    pub(super) fn of_text(captions: &[String], text: &TextCondition) -> Result<Self> {
        let mask: Vec<u8> = text.mask.keep().into_data().iter::<bool>().map(u8::from).collect();
        let tokens = floats(text.tokens.clone())?;
        Ok(Self {
            captions: captions.to_vec(),
            text: floats(text.pooled.clone())?,
            tokens: tokens.into_iter().map(f16::from_f32).collect(),
            mask,
            image: Vec::new(),
        })
    }

    /// Number of captions.
    pub(super) fn len(&self) -> usize {
        self.captions.len()
    }

    /// The row that holds a value which is not finite, if there is one.
    fn bad_row(&self, info: &EmbeddingInfo) -> Option<(usize, &'static str)> {
        let row = |position: Option<usize>, width: usize, name| position.map(|i| (i / width.max(1), name));
        let not_finite = |values: &[f32]| values.iter().position(|v| !v.is_finite());
        row(not_finite(&self.text), info.embed_dim, "text")
            .or_else(|| row(not_finite(&self.image), info.embed_dim, "image"))
            .or_else(|| {
                let bad = self.tokens.iter().position(|v| !v.is_finite());
                row(bad, info.token_width * info.context_length, "tokens")
            })
    }

    /// Refuses values that are not finite, naming the caption.
    pub(super) fn check_finite(&self, info: &EmbeddingInfo) -> Result<(), String> {
        match self.bad_row(info) {
            Some((row, name)) => {
                let caption = self.captions.get(row).map_or("", String::as_str);
                Err(format!("tensor {name}, row {row} (`{caption}`) holds a value that is not finite"))
            }
            None => Ok(()),
        }
    }

    pub(super) fn write(&self, path: &Path, info: &EmbeddingInfo) -> Result<()> {
        self.check_finite(info).map_err(|message| Error::format(path, message))?;
        let n = self.len();
        let tensors = [
            ("text", Dtype::F32, vec![n, info.embed_dim], bytes(&self.text)),
            ("tokens", Dtype::F16, vec![n, info.context_length, info.token_width], half_bytes(&self.tokens)),
            ("mask", Dtype::U8, vec![n, info.context_length], self.mask.clone()),
            ("image", Dtype::F32, vec![n, info.embed_dim], bytes(&self.image)),
        ];
        let mut views = Vec::with_capacity(tensors.len());
        for (name, dtype, shape, data) in tensors.iter().filter(|(.., data)| !data.is_empty()) {
            let view = TensorView::new(*dtype, shape.clone(), data);
            views.push((*name, view.map_err(|e| Error::format(path, format!("tensor {name}: {e}")))?));
        }
        let captions = serde_json::to_string(&self.captions).map_err(|e| Error::json(path, e))?;
        let checksum = checksum(views.iter().map(|(_, view)| view.data()), &captions);
        let header = HashMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (CHECKSUM.to_owned(), checksum),
            (CAPTIONS.to_owned(), captions),
        ]);
        let bytes = safetensors::serialize(views, Some(header)).map_err(|e| Error::format(path, e.to_string()))?;
        write_file(path, &bytes)
    }

    /// Reads a shard and checks it against the set's description.
    pub(super) fn read(path: &Path, info: &EmbeddingInfo) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Self::parse(&bytes, info).map_err(|message| Error::format(path, message))
    }

    fn parse(bytes: &[u8], info: &EmbeddingInfo) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| format!("is damaged ({e})"))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| format!("is damaged ({e})"))?;
        let header = header.metadata().clone().unwrap_or_default();
        let text = header.get(CAPTIONS).ok_or("lacks captions in its header")?;
        let captions: Vec<String> = serde_json::from_str(text).map_err(|e| format!("captions in the header: {e}"))?;
        let n = captions.len();
        let tensor = |name: &str, dtype: Dtype, shape: &[usize]| {
            let view = file.tensor(name).map_err(|_| format!("tensor {name} is missing"))?;
            if (view.dtype(), view.shape()) != (dtype, shape) {
                let (found, found_shape) = (view.dtype(), view.shape().to_vec());
                return Err(format!("tensor {name} is {found:?} {found_shape:?}, expected {dtype:?} {shape:?}"));
            }
            Ok(view.data().to_vec())
        };
        let embedding = [n, info.embed_dim];
        let text = tensor("text", Dtype::F32, &embedding)?;
        let tokens = tensor("tokens", Dtype::F16, &[n, info.context_length, info.token_width])?;
        let mask = tensor("mask", Dtype::U8, &[n, info.context_length])?;
        let image = match file.tensor("image") {
            Ok(_) => tensor("image", Dtype::F32, &embedding)?,
            Err(_) => Vec::new(),
        };
        let parts = [&text, &tokens, &mask, &image];
        let actual = checksum(parts.into_iter().filter(|p| !p.is_empty()).map(Vec::as_slice), &header[CAPTIONS]);
        if header.get(CHECKSUM) != Some(&actual) {
            return Err("is damaged: the checksum in the header does not match the contents".into());
        }
        let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let shard = Self {
            captions,
            text: text.chunks_exact(4).map(float).collect(),
            tokens: tokens.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect(),
            mask,
            image: image.chunks_exact(4).map(float).collect(),
        };
        shard.check_finite(info)?;
        Ok(shard)
    }

    /// Appends the rows of another shard.
    pub(super) fn append(&mut self, other: Self) {
        self.captions.extend(other.captions);
        self.text.extend(other.text);
        self.tokens.extend(other.tokens);
        self.mask.extend(other.mask);
        self.image.extend(other.image);
    }

    /// The captions of some rows as tensors.
    pub(super) fn text(&self, rows: &[usize], info: &EmbeddingInfo, device: &Device) -> TextCondition {
        let (n, d, s, w) = (rows.len(), info.embed_dim, info.context_length, info.token_width);
        let tokens: Vec<f32> = pick(&self.tokens, rows, s * w).map(|v| v.to_f32()).collect();
        let keep: Vec<bool> = pick(&self.mask, rows, s).map(|v| v != 0).collect();
        TextCondition {
            pooled: Tensor::from_data(TensorData::new(pick(&self.text, rows, d).collect::<Vec<_>>(), [n, d]), device),
            tokens: Tensor::from_data(TensorData::new(tokens, [n, s, w]), device),
            mask: TokenMask::from_keep(Tensor::from_data(TensorData::new(keep, [n, s]), device)),
        }
    }

    /// The image embeddings of some rows.
    pub(super) fn image(&self, rows: &[usize], info: &EmbeddingInfo, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = pick(&self.image, rows, info.embed_dim).collect();
        Tensor::from_data(TensorData::new(values, [rows.len(), info.embed_dim]), device)
    }
}

fn pick<'a, T: Copy>(values: &'a [T], rows: &'a [usize], width: usize) -> impl Iterator<Item = T> + 'a {
    rows.iter().flat_map(move |row| values[row * width..(row + 1) * width].iter().copied())
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as().map_err(|e| Error::Device(format!("reading embeddings back: {e}")))
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn half_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// CRC-32 of the tensors in the order text, tokens, mask, image, then of the captions.
fn checksum<'a>(parts: impl Iterator<Item = &'a [u8]>, captions: &str) -> String {
    let mut hasher = crc32fast::Hasher::new();
    parts.for_each(|part| hasher.update(part));
    hasher.update(captions.as_bytes());
    format!("{:08x}", hasher.finalize())
}
