//! Presets of published architectures.

use dalle2_core::nn::Activation;

use crate::{ClipConfig, TextTransformerConfig, VisionTransformerConfig};

impl ClipConfig {
    /// ViT-B/32 (Radford et al. 2021, tables 19 and 20): 224 px, embeddings of 512 components, 151 M parameters.
    pub fn vit_b_32() -> Self {
        Self::openai([224, 32], [768, 12, 12], [512, 8, 12], 512)
    }

    /// ViT-B/16 (Radford et al. 2021, tables 19 and 20): 224 px, embeddings of 512 components, 150 M parameters.
    pub fn vit_b_16() -> Self {
        Self::openai([224, 16], [768, 12, 12], [512, 8, 12], 512)
    }

    /// ViT-L/14 (Radford et al. 2021, tables 19 and 20): 224 px, embeddings of 768 components, 428 M parameters.
    pub fn vit_l_14() -> Self {
        Self::openai([224, 14], [1024, 16, 24], [768, 12, 12], 768)
    }

    /// ViT-L/14 at 336 px (Radford et al. 2021, section 3.2).
    pub fn vit_l_14_336() -> Self {
        Self::openai([336, 14], [1024, 16, 24], [768, 12, 12], 768)
    }

    /// open_clip's ViT-H/14 (Cherti et al. 2022, arXiv 2212.07143, appendix B): 224 px, embeddings of 1024 components,
    /// 986 M parameters, exact GELU.
    pub fn vit_h_14() -> Self {
        Self::openai([224, 14], [1280, 16, 32], [1024, 16, 24], 1024).with_activation(Activation::Gelu)
    }

    /// open_clip's ViT-bigG/14: 224 px, embeddings of 1280 components, 2.54 G parameters, exact GELU.
    pub fn vit_big_g_14() -> Self {
        let mut config =
            Self::openai([224, 14], [1664, 16, 48], [1280, 20, 32], 1280).with_activation(Activation::Gelu);
        config.vision.d_ff = Some(8192);
        config
    }

    /// A configuration for one GPU and some hundred thousand pairs: 128 px, embeddings of 384 components, 44 M parameters.
    pub fn small() -> Self {
        Self::openai([128, 16], [384, 6, 8], [384, 6, 6], 384).with_activation(Activation::Gelu)
    }

    /// CLIP's smallest vision transformer, [`vit_b_32`](Self::vit_b_32), as its authors trained it.
    pub fn base() -> Self {
        Self::vit_b_32()
    }

    /// The CLIP of Karlo v1 alpha, [`vit_l_14`](Self::vit_l_14).
    pub fn karlo() -> Self {
        Self::vit_l_14()
    }

    /// The CLIP of the paper's largest models (DALL·E 2, appendix C): ViT-H/16 at 256 px and a text transformer of 24
    /// blocks of width 1024; the embeddings have the width of the text tower.
    pub fn paper() -> Self {
        Self::openai([256, 16], [1280, 16, 32], [1024, 16, 24], 1024)
    }

    /// Returns all published architectures with their names in [`preset`](Self::preset).
    pub(crate) fn published_by_name() -> [(&'static str, Self); 6] {
        [
            ("vit_b_32", Self::vit_b_32()),
            ("vit_b_16", Self::vit_b_16()),
            ("vit_l_14", Self::vit_l_14()),
            ("vit_l_14_336", Self::vit_l_14_336()),
            ("vit_h_14", Self::vit_h_14()),
            ("vit_big_g_14", Self::vit_big_g_14()),
        ]
    }

    /// Returns all published architectures.
    pub fn published() -> [Self; 6] {
        Self::published_by_name().map(|(_, config)| config)
    }

    fn openai(size: [usize; 2], vision: [usize; 3], text: [usize; 3], embed_dim: usize) -> Self {
        Self {
            vision: VisionTransformerConfig::new(size, vision, embed_dim),
            text: TextTransformerConfig::new(77, text, embed_dim),
        }
    }

    /// Sets the nonlinearity of both towers.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.vision.activation = activation;
        self.text.activation = activation;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted with open_clip 2.32.0 on PyTorch's meta device; nothing is allocated here either.
    #[test]
    fn presets_have_the_published_numbers_of_parameters() {
        let counts = [151_277_313, 149_620_737, 427_616_513, 427_944_193, 986_109_441, 2_539_567_105];
        for ((name, config), count) in ClipConfig::published_by_name().into_iter().zip(counts) {
            config.validate().unwrap();
            assert_eq!(config.num_params(), count, "{name}");
            assert_eq!(ClipConfig::preset(name).unwrap(), config);
        }
    }
}
