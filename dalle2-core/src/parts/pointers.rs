//! The part traits for `Box<T>` and `Arc<T>`, so that a part can be chosen at run time.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;

use super::{
    Component, DdimInversion, Decoder, DiffusionOptions, ImageEncoder, Prior, PriorOptions, TextEncoder, Upsampler,
    UpsamplerOptions,
};
use crate::diffusion::{NoiseSource, Resampling};
use crate::{Captions, FloatType, Inpainting, Result, StepHook, TextCondition, diffusers::IndexEntry};

/// Implements every part trait for a smart pointer by delegation.
macro_rules! delegate {
    ($pointer:ident) => {
        impl<T: Component + ?Sized> Component for $pointer<T> {
            fn class_name(&self) -> &str {
                (**self).class_name()
            }
            fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
                (**self).save(dir, float_type)
            }
            fn diffusers_faults(&self) -> Vec<String> {
                (**self).diffusers_faults()
            }
            fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
                (**self).save_diffusers(root, float_type)
            }
        }

        impl<T: TextEncoder + ?Sized> TextEncoder for $pointer<T> {
            fn encode(&self, captions: &[&str]) -> Result<TextCondition> {
                (**self).encode(captions)
            }
            fn encode_truncated(&self, captions: &[&str]) -> Result<(TextCondition, usize)> {
                (**self).encode_truncated(captions)
            }
            fn count_tokens(&self, caption: &str) -> Result<usize> {
                (**self).count_tokens(caption)
            }
            fn embed_dim(&self) -> usize {
                (**self).embed_dim()
            }
            fn token_width(&self) -> usize {
                (**self).token_width()
            }
            fn context_length(&self) -> usize {
                (**self).context_length()
            }
        }

        impl<T: ImageEncoder + ?Sized> ImageEncoder for $pointer<T> {
            fn encode(&self, images: Tensor<4>) -> Result<Tensor<2>> {
                (**self).encode(images)
            }
            fn embed_dim(&self) -> usize {
                (**self).embed_dim()
            }
        }

        impl<T: Prior + ?Sized> Prior for $pointer<T> {
            fn sample(
                &self,
                captions: Captions<'_>,
                options: &PriorOptions,
                noise: &mut dyn NoiseSource,
                hook: StepHook<'_>,
            ) -> Result<Tensor<2>> {
                (**self).sample(captions, options, noise, hook)
            }
            fn embed_dim(&self) -> usize {
                (**self).embed_dim()
            }
            fn token_width(&self) -> usize {
                (**self).token_width()
            }
            fn context_length(&self) -> usize {
                (**self).context_length()
            }
            fn defaults(&self) -> PriorOptions {
                (**self).defaults()
            }
            fn num_steps(&self, options: &PriorOptions) -> Result<usize> {
                (**self).num_steps(options)
            }
        }

        impl<T: Decoder + ?Sized> Decoder for $pointer<T> {
            fn sample(
                &self,
                embedding: &Tensor<2>,
                captions: Captions<'_>,
                keep: Option<&Inpainting>,
                options: &DiffusionOptions,
                noise: &mut dyn NoiseSource,
                hook: StepHook<'_>,
            ) -> Result<Tensor<4>> {
                (**self).sample(embedding, captions, keep, options, noise, hook)
            }
            fn invert(
                &self,
                images: &Tensor<4>,
                embedding: &Tensor<2>,
                captions: Captions<'_>,
                options: &DdimInversion<DiffusionOptions>,
                hook: StepHook<'_>,
            ) -> Result<Tensor<4>> {
                (**self).invert(images, embedding, captions, options, hook)
            }
            fn embed_dim(&self) -> usize {
                (**self).embed_dim()
            }
            fn token_width(&self) -> usize {
                (**self).token_width()
            }
            fn image_size(&self) -> usize {
                (**self).image_size()
            }
            fn defaults(&self) -> DiffusionOptions {
                (**self).defaults()
            }
            fn num_steps(&self, options: &DiffusionOptions, resampling: Option<Resampling>) -> Result<usize> {
                (**self).num_steps(options, resampling)
            }
        }

        impl<T: Upsampler + ?Sized> Upsampler for $pointer<T> {
            fn sample(
                &self,
                low: &Tensor<4>,
                keep: Option<&Inpainting>,
                options: &UpsamplerOptions,
                noise: &mut dyn NoiseSource,
                hook: StepHook<'_>,
            ) -> Result<Tensor<4>> {
                (**self).sample(low, keep, options, noise, hook)
            }
            fn invert(
                &self,
                images: &Tensor<4>,
                low: &Tensor<4>,
                options: &DdimInversion<UpsamplerOptions>,
                hook: StepHook<'_>,
            ) -> Result<Tensor<4>> {
                (**self).invert(images, low, options, hook)
            }
            fn input_size(&self) -> usize {
                (**self).input_size()
            }
            fn factor(&self) -> usize {
                (**self).factor()
            }
            fn defaults(&self) -> UpsamplerOptions {
                (**self).defaults()
            }
            fn num_steps(&self, options: &UpsamplerOptions, resampling: Option<Resampling>) -> Result<usize> {
                (**self).num_steps(options, resampling)
            }
        }
    };
}

delegate!(Arc);
delegate!(Box);
