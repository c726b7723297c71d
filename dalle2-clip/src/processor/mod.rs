//! What a checkpoint does to images before its vision tower: `preprocessor_config.json`.

mod resample;

use std::path::Path;

use burn::prelude::*;
use dalle2_core::image::from_tensor;
use dalle2_core::store::{read_json, write_json};
use dalle2_core::{ConfigError, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::resample::Filter;
use self::resample::Pixels;
use crate::VisionTransformerConfig;

/// Name of the file.
const FILE: &str = "preprocessor_config.json";
/// Longest side that a configuration may ask for, in pixels.
const MAX_SIDE: usize = 16_384;

/// The size that images are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ImageSize {
    /// The short side gets this length, the other one follows.
    ShortestEdge {
        /// Length in pixels.
        shortest_edge: usize,
    },
    /// Both sides are given.
    Exact {
        /// In pixels.
        height: usize,
        /// In pixels.
        width: usize,
    },
    /// Older files have a number: the short side of `size`, both sides of `crop_size`.
    Number(usize),
}

/// Rounding of the first pixel of a centre cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Centre {
    /// Down, as transformers does.
    #[default]
    Floor,
    /// To the nearest, ties to even, as torchvision does, which OpenAI's code and open_clip use.
    HalfEven,
}

/// Resizing, cropping and normalisation of a checkpoint, on 8-bit images with Pillow's rounding.
///
/// The fields are those of `preprocessor_config.json` as transformers writes it; what a file leaves out is CLIP's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageProcessor {
    /// Whether images are resized to `size`.
    pub do_resize: bool,
    /// Target of the resizing.
    pub size: ImageSize,
    /// Filter of the resizing.
    pub resample: Filter,
    /// Whether the centre is cut out.
    pub do_center_crop: bool,
    /// Size of the cut; images that are smaller get black borders.
    pub crop_size: ImageSize,
    /// Whether pixels are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// 1/255 brings bytes to [0, 1].
    pub rescale_factor: f64,
    /// Whether `image_mean` is subtracted and the result divided by `image_std`.
    pub do_normalize: bool,
    /// Per channel.
    pub image_mean: [f64; 3],
    /// Per channel.
    pub image_std: [f64; 3],
    /// Which pixel the cut starts at where the centre lies between two.
    #[serde(skip)]
    pub centre: Centre,
    /// What else the file has; written back as it was.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self::new(&VisionTransformerConfig::new([224, 14], [1024, 16, 24], 768))
    }
}

impl ImageProcessor {
    /// CLIP's: the short side to the tower's image size by the bicubic filter, the centre, the tower's statistics.
    pub fn new(config: &VisionTransformerConfig) -> Self {
        let size = config.image_size;
        Self {
            do_resize: true,
            size: ImageSize::ShortestEdge { shortest_edge: size },
            resample: Filter::Bicubic,
            do_center_crop: true,
            crop_size: ImageSize::Exact { height: size, width: size },
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: config.mean.map(shortest),
            image_std: config.std.map(shortest),
            centre: Centre::Floor,
            other: Map::new(),
        }
    }

    /// Reads `preprocessor_config.json` from a directory.
    ///
    /// # Errors
    /// When the file cannot be read, a value has the wrong type or is out of range.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join(FILE);
        let processor: Self = read_json(&path)?;
        processor.validate().map_err(|e| Error::format(&path, e.to_string()))?;
        Ok(processor)
    }

    /// Writes `preprocessor_config.json` to a directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let mut processor = self.clone();
        if processor.other.is_empty() {
            processor.other.insert("image_processor_type".into(), "CLIPImageProcessor".into());
            processor.other.insert("do_convert_rgb".into(), true.into());
        }
        write_json(dir.as_ref().join(FILE), &processor)
    }

    /// Checks that the values can work.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, size) in [("size", self.size), ("crop_size", self.crop_size)] {
            let [height, width] = match size {
                ImageSize::Exact { height, width } => [height, width],
                ImageSize::ShortestEdge { shortest_edge: side } | ImageSize::Number(side) => [side, side],
            };
            if !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) {
                let found = format!("{height} x {width}");
                return Err(ConfigError::new(field, found, format!("sides must be between 1 and {MAX_SIDE} pixels")));
            }
        }
        if let ImageSize::ShortestEdge { shortest_edge } = self.crop_size {
            return Err(ConfigError::new("crop_size.shortest_edge", shortest_edge, "needs a height and a width"));
        }
        if let Some(std) = self.image_std.iter().find(|v| !v.is_finite() || **v <= 0.0) {
            return Err(ConfigError::new("image_std", std, "must be finite and above 0"));
        }
        if let Some(value) = self.image_mean.iter().find(|v| !v.is_finite()) {
            return Err(ConfigError::new("image_mean", value, "must be finite"));
        }
        if !self.rescale_factor.is_finite() {
            return Err(ConfigError::new("rescale_factor", self.rescale_factor, "must be finite"));
        }
        Ok(())
    }

    /// Sides `[H, W]` of the result for an image of `[height, width]`.
    pub fn output_size(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        match (self.do_center_crop, self.crop_size) {
            (true, ImageSize::Exact { height, width }) => [height, width],
            (true, ImageSize::Number(side) | ImageSize::ShortestEdge { shortest_edge: side }) => [side, side],
            (false, _) if self.do_resize => self.resized([height, width]),
            (false, _) => [height, width],
        }
    }

    /// Turns images into what the vision tower reads. Values are rounded to 8 bits first.
    ///
    /// # Shapes
    /// `[B, 3, H, W]` in [−1, 1] -> `[B, 3, height, width]`
    ///
    /// # Errors
    /// When the tensor is no RGB batch or holds values that are not finite.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        let [b, c, h, w] = images.dims();
        if c != 3 || b * h * w == 0 {
            let found = format!("[{b}, {c}, {h}, {w}]");
            return Err(Error::Input(format!("images of shape {found}: CLIP reads RGB batches [B, 3, H, W]")));
        }
        let device = images.device();
        let [height, width] = self.output_size([h, w]);
        let mut values = Vec::with_capacity(b * 3 * height * width);
        for image in from_tensor(images)? {
            let pixels = Pixels { height: h, width: w, values: image.into_raw() };
            let pixels = self.crop(self.resize(pixels));
            for channel in 0..3 {
                values.extend(pixels.values.iter().skip(channel).step_by(3).map(|byte| self.value(*byte, channel)));
            }
        }
        Ok(Tensor::from_data(TensorData::new(values, [b, 3, height, width]), &device))
    }

    fn resized(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self.size {
            ImageSize::Exact { height, width } => [height, width],
            ImageSize::ShortestEdge { shortest_edge: side } | ImageSize::Number(side) => {
                let long = |long: usize, short: usize| (side as u64 * long as u64 / short as u64) as usize;
                if height <= width { [side, long(width, height)] } else { [long(height, width), side] }
            }
        }
    }

    fn resize(&self, pixels: Pixels) -> Pixels {
        if !self.do_resize {
            return pixels;
        }
        let [height, width] = self.resized([pixels.height, pixels.width]);
        pixels.resize(height, width, self.resample)
    }

    /// Cuts out the centre; where the image is smaller, it sits in the middle of black (one pixel lower and further to
    /// the right where that cannot be).
    fn crop(&self, pixels: Pixels) -> Pixels {
        let [height, width] = self.output_size([pixels.height, pixels.width]);
        if !self.do_center_crop || [height, width] == [pixels.height, pixels.width] {
            return pixels;
        }
        let offset = |found: usize, wanted: usize| {
            let twice = found as i64 - wanted as i64;
            match self.centre {
                Centre::HalfEven if twice > 0 => twice / 2 + i64::from(twice % 4 == 3),
                _ => twice.div_euclid(2),
            }
        };
        let (top, left) = (offset(pixels.height, height), offset(pixels.width, width));
        let inside = |at: i64, n: usize| usize::try_from(at).ok().filter(|at| *at < n);
        let mut values = vec![0; height * width * 3];
        for (y, row) in values.chunks_exact_mut(width * 3).enumerate() {
            let Some(from_y) = inside(y as i64 + top, pixels.height) else { continue };
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                if let Some(from_x) = inside(x as i64 + left, pixels.width) {
                    let at = (from_y * pixels.width + from_x) * 3;
                    pixel.copy_from_slice(&pixels.values[at..at + 3]);
                }
            }
        }
        Pixels { height, width, values }
    }

    fn value(&self, byte: u8, channel: usize) -> f32 {
        let value = if self.do_rescale { (f64::from(byte) * self.rescale_factor) as f32 } else { f32::from(byte) };
        match self.do_normalize {
            true => (value - self.image_mean[channel] as f32) / self.image_std[channel] as f32,
            false => value,
        }
    }
}

/// The number that a person would write: 0.481_454_66, not the f32's next seven digits.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> serde_json::Result<ImageProcessor> {
        serde_json::from_str(json)
    }

    #[test]
    fn sizes_are_read_in_every_form() {
        let old =
            parse(r#"{"size": 224, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}"#).unwrap();
        assert_eq!((old.output_size([300, 500]), old.resized([300, 500])), ([224, 224], [224, 373]));
        assert_eq!(old.resized([500, 300]), [373, 224]);
        let new = parse(r#"{"size": {"height": 20, "width": 30}, "do_center_crop": false}"#).unwrap();
        assert_eq!(new.output_size([300, 500]), [20, 30]);
        assert_eq!(ImageProcessor::default().output_size([7, 9]), [224, 224]);
        for (json, field) in [
            (r#"{"size": {"shortest_edge": 0}}"#, "size"),
            (r#"{"crop_size": {"shortest_edge": 24}}"#, "crop_size"),
            (r#"{"crop_size": 99999999}"#, "crop_size"),
            (r#"{"image_std": [1, 0, 1]}"#, "image_std"),
        ] {
            let error = parse(json).unwrap().validate().unwrap_err();
            assert!(error.field.starts_with(field), "{error}");
        }
        assert!(parse(r#"{"resample": 9}"#).unwrap_err().to_string().contains("resample = 9"));
        assert!(parse(r#"{"size": "big"}"#).is_err() && parse(r#"{"image_mean": [0.5]}"#).is_err());
    }

    #[test]
    fn small_images_get_black_borders() {
        let processor = ImageProcessor {
            do_resize: false,
            crop_size: ImageSize::Number(5),
            do_normalize: false,
            ..ImageProcessor::default()
        };
        let white = Tensor::<4>::ones([1, 3, 2, 9], &Device::flex());
        let pixels = processor.forward(white).unwrap();
        assert_eq!(pixels.dims(), [1, 3, 5, 5]);
        let rows: Vec<f32> = pixels.slice(s![0, 0, .., 2]).try_into_vec_as().unwrap();
        assert_eq!(rows, [0.0, 0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn what_was_read_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let json = serde_json::json!({
            "crop_size": {"height": 24, "width": 24}, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true,
            "do_rescale": true, "do_resize": true, "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPImageProcessor", "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 24}, "processor_class": "X"
        });
        write_json(dir.path().join(FILE), &json).unwrap();
        let processor = ImageProcessor::load(dir.path()).unwrap();
        processor.save(dir.path()).unwrap();
        assert_eq!(read_json::<Value>(dir.path().join(FILE)).unwrap(), json);
        // One of our own is complete.
        ImageProcessor::default().save(dir.path()).unwrap();
        let written: Map<String, Value> = read_json(dir.path().join(FILE)).unwrap();
        assert_eq!(written["image_processor_type"], "CLIPImageProcessor");
        assert!(written.contains_key("do_convert_rgb") && !written.contains_key("feature_extractor_type"));
    }
}
