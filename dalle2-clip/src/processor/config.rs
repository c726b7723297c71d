//! `preprocessor_config.json`: its fields, their checks, reading and writing.

use std::path::Path;

use dalle2_core::store::{read_json, write_json};
use dalle2_core::{ConfigError, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Resampling;
use crate::VisionTransformerConfig;
use crate::limits::MAX_SIDE;

/// Name of the file.
const FILE: &str = "preprocessor_config.json";

/// A target size of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ImageSize {
    /// The length of the short side; the long side follows from the aspect ratio.
    ShortestEdge {
        /// Length in pixels.
        shortest_edge: usize,
    },
    /// Both sides.
    Exact {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
    },
    /// A single number, as in older files: the short side in `size`, both sides in `crop_size`.
    Number(usize),
}

/// Rounding of the first pixel of a centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum CropRounding {
    /// Down, like transformers.
    #[default]
    Floor,
    /// To the nearest, ties to even, like torchvision, OpenAI's code and open_clip.
    HalfEven,
}

/// Resizing, cropping and normalisation of images for a checkpoint, on 8-bit pixels with Pillow's rounding.
///
/// The fields are those of transformers' `preprocessor_config.json`; absent fields have CLIP's values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageProcessor {
    /// Whether images are resized to `size`.
    pub do_resize: bool,
    /// Target size of resizing.
    pub size: ImageSize,
    /// Filter of resizing.
    pub resample: Resampling,
    /// Whether the centre is cropped.
    pub do_center_crop: bool,
    /// Size of the crop; smaller images are padded with black.
    pub crop_size: ImageSize,
    /// Whether pixels are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// Factor on the bytes; 1/255 maps them to [0, 1].
    pub rescale_factor: f64,
    /// Whether `image_mean` is subtracted and the result divided by `image_std`.
    pub do_normalize: bool,
    /// Mean per channel.
    pub image_mean: [f64; 3],
    /// Standard deviation per channel.
    pub image_std: [f64; 3],
    /// Rounding of the crop's first pixel where the margin is odd.
    #[serde(skip)]
    pub(super) crop_rounding: CropRounding,
    /// Other fields of the file, which are written back unchanged.
    #[serde(flatten)]
    pub(super) other: Map<String, Value>,
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self::new(&VisionTransformerConfig::new([224, 14], [1024, 16, 24], 768))
    }
}

impl ImageProcessor {
    /// Creates CLIP's image processor: the short side resized to the tower's image size by the bicubic filter, a centre
    /// crop, the tower's statistics.
    pub fn new(config: &VisionTransformerConfig) -> Self {
        let size = config.image_size;
        Self {
            do_resize: true,
            size: ImageSize::ShortestEdge { shortest_edge: size },
            resample: Resampling::Bicubic,
            do_center_crop: true,
            crop_size: ImageSize::Exact { height: size, width: size },
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: config.mean.map(shortest_decimal),
            image_std: config.std.map(shortest_decimal),
            crop_rounding: CropRounding::Floor,
            other: Map::new(),
        }
    }

    pub(crate) fn with_crop_rounding(mut self, crop_rounding: CropRounding) -> Self {
        self.crop_rounding = crop_rounding;
        self
    }

    /// Reads `preprocessor_config.json` from a directory.
    ///
    /// # Errors
    /// If the file cannot be read, or a value has the wrong type or is out of range.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join(FILE);
        let processor: Self = read_json(&path)?;
        processor.validate().map_err(|e| Error::format(&path, e.to_string()))?;
        Ok(processor)
    }

    /// Returns whether a directory has a `preprocessor_config.json`.
    pub(crate) fn is_in(dir: &Path) -> bool {
        dir.join(FILE).is_file()
    }

    /// Writes `preprocessor_config.json` to a directory.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let mut processor = self.clone();
        if processor.other.is_empty() {
            processor.other.insert("image_processor_type".into(), "CLIPImageProcessor".into());
            processor.other.insert("do_convert_rgb".into(), true.into());
        }
        write_json(dir.as_ref().join(FILE), &processor)
    }

    /// Checks all fields.
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
                let size = format!("{height} x {width}");
                return Err(ConfigError::new(field, size, format!("sides must be between 1 and {MAX_SIDE} pixels")));
            }
        }
        if let ImageSize::ShortestEdge { shortest_edge } = self.crop_size {
            return Err(ConfigError::new("crop_size.shortest_edge", shortest_edge, "must be a height and a width"));
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

    /// Returns the output size `[H, W]` for an image of `[height, width]`.
    pub fn output_size(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        match (self.do_center_crop, self.crop_size) {
            (true, ImageSize::Exact { height, width }) => [height, width],
            (true, ImageSize::Number(side) | ImageSize::ShortestEdge { shortest_edge: side }) => [side, side],
            (false, _) if self.do_resize => self.resized([height, width]),
            (false, _) => [height, width],
        }
    }

    /// Returns the size after resizing.
    pub(super) fn resized(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self.size {
            ImageSize::Exact { height, width } => [height, width],
            ImageSize::ShortestEdge { shortest_edge: side } | ImageSize::Number(side) => {
                let long = |long: usize, short: usize| (side as u64 * long as u64 / short as u64) as usize;
                if height <= width { [side, long(width, height)] } else { [long(height, width), side] }
            }
        }
    }
}

/// Converts an f32 by its shortest decimal form: 0.481_454_66 without the next seven digits.
fn shortest_decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> serde_json::Result<ImageProcessor> {
        serde_json::from_str(json)
    }

    #[test]
    fn sizes_are_read_in_all_forms() {
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
    fn a_file_is_written_back_unchanged() {
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
        // A new one has all required fields.
        ImageProcessor::default().save(dir.path()).unwrap();
        let written: Map<String, Value> = read_json(dir.path().join(FILE)).unwrap();
        assert_eq!(written["image_processor_type"], "CLIPImageProcessor");
        assert!(written.contains_key("do_convert_rgb") && !written.contains_key("feature_extractor_type"));
    }
}
