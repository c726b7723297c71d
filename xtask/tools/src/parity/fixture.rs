//! Recorded arrays.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::prelude::*;
use dalle2::RgbImage;
use safetensors::{Dtype, SafeTensors};

/// A file of recorded arrays.
pub struct Fixture {
    name: String,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Fixture {
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(Self { name: name.to_owned(), path, bytes })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the sorted names of the arrays with a prefix.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let file = SafeTensors::deserialize(&self.bytes).with_context(|| self.path.display().to_string())?;
        let mut names: Vec<String> =
            file.names().into_iter().filter(|name| name.starts_with(prefix)).map(|name| name.to_string()).collect();
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str) -> Result<(Dtype, Vec<usize>, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.bytes).with_context(|| self.path.display().to_string())?;
        let view = file.tensor(name).with_context(|| format!("{}: array {name}", self.path.display()))?;
        Ok((view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    }

    /// Returns shape and values of a float array.
    pub fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        match self.read(name)? {
            (Dtype::F32, shape, bytes) => {
                Ok((shape, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
            }
            (other, ..) => bail!("{}: array {name} has type {other:?}, expected F32", self.path.display()),
        }
    }

    /// Returns the values of an integer array.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        match self.read(name)? {
            (Dtype::I64, _, bytes) => Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            (Dtype::I32, _, bytes) => Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()),
            (Dtype::BOOL | Dtype::U8, _, bytes) => Ok(bytes.iter().map(|b| i64::from(*b)).collect()),
            (other, ..) => bail!("{}: array {name} has type {other:?}, expected integers", self.path.display()),
        }
    }

    /// Returns an integer array as timesteps.
    pub fn timesteps(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.integers(name)?.into_iter().map(usize::try_from).collect::<Result<_, _>>()?)
    }

    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Result<Tensor<D>> {
        let (shape, values) = self.floats(name)?;
        let Ok(shape) = <[usize; D]>::try_from(shape.as_slice()) else {
            bail!("{}: array {name} has shape {shape:?}, expected {D} axes", self.path.display());
        };
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Returns a mask of 0 and 1 `[B, S]`.
    pub fn mask(&self, name: &str, device: &Device) -> Result<Tensor<2, Bool>> {
        let (_, shape, _) = self.read(name)?;
        let [b, s] = shape.as_slice() else { bail!("{}: array {name} is not a matrix", self.path.display()) };
        let values: Vec<bool> = self.integers(name)?.into_iter().map(|v| v != 0).collect();
        Ok(Tensor::from_data(TensorData::new(values, [*b, *s]), device))
    }

    /// Returns the arrays stacked along the first axis.
    pub fn stack<const D: usize>(&self, name: &str, device: &Device) -> Result<Vec<Tensor<D>>> {
        let (shape, values) = self.floats(name)?;
        let Some(Ok(item)) = shape.get(1..).map(<[usize; D]>::try_from) else {
            bail!("{}: array {name} has shape {shape:?}, expected {} axes", self.path.display(), D + 1);
        };
        let size = item.iter().product::<usize>().max(1);
        Ok(values.chunks(size).map(|v| Tensor::from_data(TensorData::new(v.to_vec(), item), device)).collect())
    }

    /// Returns an 8-bit image `[H, W, 3]`.
    pub fn image(&self, name: &str) -> Result<RgbImage> {
        let (dtype, shape, bytes) = self.read(name)?;
        let (Dtype::U8, [height, width, 3]) = (dtype, shape.as_slice()) else {
            bail!("{}: array {name} is {dtype:?} {shape:?}, expected U8 [H, W, 3]", self.path.display());
        };
        let image = RgbImage::from_raw(u32::try_from(*width)?, u32::try_from(*height)?, bytes);
        image.with_context(|| format!("{}: array {name} is truncated", self.path.display()))
    }
}
