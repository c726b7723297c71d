//! The trained vision tower with its preprocessing, as a stage of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::store::{self, WEIGHTS_FILE};
use dalle2_core::{Component, ConfigError, Error, FloatType, ImageEncoder, Result, on_pool};
use serde_json::{Map, Value};

use crate::diffusers;
use crate::import::vision_tensor_name;
use crate::pretrained::load_image_encoder;
use crate::{ImageProcessor, VisionTransformer, VisionTransformerConfig, preprocess};

/// Embeds images with CLIP's vision tower.
#[derive(Debug)]
pub struct ClipImageEncoder {
    config: VisionTransformerConfig,
    model: VisionTransformer,
    device: Device,
    /// Image processor of the checkpoint; `None` for models of this library, which use [`preprocess`].
    processor: Option<ImageProcessor>,
    /// The `config.json` in transformers' form that this encoder was read from.
    source: Option<Map<String, Value>>,
}

impl ClipImageEncoder {
    /// Class name on disk.
    pub const CLASS: &'static str = "ClipImageEncoder";

    /// Creates an encoder from a vision tower and its configuration, without gradients.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn new(config: VisionTransformerConfig, model: &VisionTransformer) -> Result<Self> {
        config.validate()?;
        let model = model.valid();
        let device = model.class_embedding.val().device();
        Ok(Self { config, model, device, processor: None, source: None })
    }

    /// Reads an image encoder and its image processor from a directory.
    ///
    /// | directory | recognised by | image processor |
    /// |---|---|---|
    /// | written by this library | `config.json` with `_class_name` | [`preprocess`] |
    /// | transformers' `CLIPVisionModelWithProjection` | `config.json` without `_class_name` | `preprocessor_config.json` beside it, otherwise CLIP's |
    /// | a pipeline of diffusers or of this library | a subdirectory `image_encoder` | subdirectory `feature_extractor`, otherwise CLIP's |
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration names another class or has a value that this model does not
    /// support, or a tensor does not match the configuration.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        load_image_encoder(dir.as_ref(), device)
    }

    /// Prepares images by `processor`, on 8-bit pixels, in place of [`preprocess`].
    ///
    /// # Errors
    /// If the processor is invalid or its output does not have the image size of the tower.
    pub fn with_processor(mut self, processor: ImageProcessor) -> Result<Self> {
        processor.validate()?;
        let size = self.config.image_size;
        // Without a crop, the size can depend on the image; `encode` checks it then.
        let output = processor.output_size([size, size]);
        if output != [size, size] {
            let expected = format!("must be [{size}, {size}], the image size of the vision tower");
            return Err(ConfigError::new("image_processor.size", format!("{output:?}"), expected).into());
        }
        self.processor = Some(processor);
        Ok(self)
    }

    /// Returns the image processor of the checkpoint, if it has one.
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

    /// Returns the configuration of the vision tower.
    pub fn config(&self) -> &VisionTransformerConfig {
        &self.config
    }

    /// Returns the vision tower.
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
        let (output, size) = (processor.output_size([h, w]), self.config.image_size);
        if output != [size, size] {
            let message = format!(
                "the image processor turns images of [{h}, {w}] into {output:?}, the vision tower expects [{size}, {size}]"
            );
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
    fn saved_and_loaded_encoders_are_equal_and_damage_is_refused() {
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
