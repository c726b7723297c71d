//! The trained vision tower with its preprocessing, as a stage of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::store::{self, CONFIG_FILE, WEIGHTS_FILE};
use dalle2_core::{Component, ConfigError, Error, FloatType, ImageEncoder, Result, on_pool};
use serde_json::{Map, Value};

use crate::diffusers;
use crate::import::vision_tensor_name;
use crate::{Clip, ClipConfig, ImageProcessor, VisionTransformer, VisionTransformerConfig, preprocess};

/// Embeds images with CLIP's vision tower.
#[derive(Debug)]
pub struct ClipImageEncoder {
    config: VisionTransformerConfig,
    model: VisionTransformer,
    device: Device,
    /// How the checkpoint prepares images; `None` for models of our own, see [`preprocess`].
    processor: Option<ImageProcessor>,
    /// The configuration of the reference implementation's form that this encoder was read from.
    source: Option<Map<String, Value>>,
}

impl ClipImageEncoder {
    /// Class name on disk.
    pub const CLASS: &'static str = "ClipImageEncoder";

    /// From a model of `config`. Gradients are switched off.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: VisionTransformerConfig, model: &VisionTransformer) -> Result<Self> {
        config.validate()?;
        let model = model.valid();
        let device = model.class_embedding.val().device();
        Ok(Self { config, model, device, processor: None, source: None })
    }

    /// Prepares images as `processor` says, on 8-bit pixels, instead of by [`preprocess`].
    ///
    /// # Errors
    /// When the images would not have the size that the tower reads.
    pub fn with_processor(mut self, processor: ImageProcessor) -> Result<Self> {
        processor.validate()?;
        let size = self.config.image_size;
        // Without a cut the size can depend on the image; then the encoder checks it.
        let found = processor.output_size([size, size]);
        if found != [size, size] {
            let expected = format!("must be [{size}, {size}], which the vision tower reads");
            return Err(ConfigError::new("image_processor.size", format!("{found:?}"), expected).into());
        }
        self.processor = Some(processor);
        Ok(self)
    }

    /// How images are prepared, if by a checkpoint's rules.
    pub fn processor(&self) -> Option<&ImageProcessor> {
        self.processor.as_ref()
    }

    pub(crate) fn with_source(mut self, source: Map<String, Value>) -> Self {
        self.source = Some(source);
        self
    }

    pub(crate) fn source(&self) -> Option<&Map<String, Value>> {
        self.source.as_ref()
    }

    /// From the vision tower of a CLIP.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_clip(config: &ClipConfig, clip: &Clip) -> Result<Self> {
        Self::new(config.vision.clone(), &clip.vision)
    }

    /// Reads `config.json` and `model.safetensors` from a directory.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the weights are not those of the configuration.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config: VisionTransformerConfig = store::read_config(dir, Self::CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(CONFIG_FILE), e.to_string()))?;
        let model = store::load_module_as(config.init(device), dir.join(WEIGHTS_FILE), &vision_tensor_name)?;
        Self::new(config, &model)
    }

    /// The configuration of the vision tower.
    pub fn config(&self) -> &VisionTransformerConfig {
        &self.config
    }

    /// The vision tower.
    pub fn model(&self) -> &VisionTransformer {
        &self.model
    }
}

impl Component for ClipImageEncoder {
    fn class_name(&self) -> &str {
        Self::CLASS
    }

    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        let weights = dir.join(WEIGHTS_FILE);
        store::save_module_as(&self.model, weights, float_type, &BTreeMap::new(), &vision_tensor_name)?;
        store::write_config(dir, Self::CLASS, &self.config)
    }

    fn diffusers_faults(&self) -> Vec<String> {
        Vec::new()
    }

    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        diffusers::save_image(self, root, float_type)
    }
}

impl ImageEncoder for ClipImageEncoder {
    fn encode(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        let Some(processor) = &self.processor else {
            let pixels = preprocess(images.to_device(&self.device), &self.config)?;
            return Ok(on_pool(&self.device, || self.model.forward(pixels)));
        };
        let [_, _, h, w] = images.dims();
        let (found, size) = (processor.output_size([h, w]), self.config.image_size);
        if found != [size, size] {
            let message =
                format!("images of [{h}, {w}] become {found:?} by this preprocessor; the tower reads [{size}, {size}]");
            return Err(Error::Input(message));
        }
        let pixels = processor.forward(images)?.to_device(&self.device);
        Ok(on_pool(&self.device, || self.model.forward(pixels)))
    }

    fn embed_dim(&self) -> usize {
        self.config.embed_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn encoder() -> ClipImageEncoder {
        let config = VisionTransformerConfig::new([8, 4], [16, 4, 1], 12);
        let model = config.init(&Device::flex());
        ClipImageEncoder::new(config, &model).unwrap()
    }

    #[test]
    fn embeds_images_of_any_size() {
        for [h, w] in [[8, 8], [20, 16], [5, 9]] {
            let images = Tensor::random([2, 3, h, w], Distribution::Uniform(-1.0, 1.0), &Device::flex());
            assert_eq!(encoder().encode(images).unwrap().dims(), [2, 12]);
        }
        let grey = Tensor::zeros([2, 1, 8, 8], &Device::flex());
        assert!(matches!(encoder().encode(grey), Err(Error::Input(_))));
    }

    #[test]
    fn saved_and_loaded_is_the_same_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let encoder = encoder();
        encoder.save(dir.path(), FloatType::F32).unwrap();
        let loaded = ClipImageEncoder::load(dir.path(), &Device::flex()).unwrap();
        let images = Tensor::random([2, 3, 8, 8], Distribution::Uniform(-1.0, 1.0), &Device::flex());
        let embed = |encoder: &ClipImageEncoder| encoder.encode(images.clone()).unwrap().into_data();
        embed(&loaded).assert_eq(&embed(&encoder), true);

        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = ClipImageEncoder::load(dir.path(), &Device::flex()).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}
