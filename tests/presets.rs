//! The numbers of parameters that the documentation of the presets gives, in millions.
#![allow(clippy::unwrap_used)]

use dalle2::clip::ClipConfig;
use dalle2::decoder::{DecoderConfig, UpsamplerConfig};
use dalle2::prior::DiffusionPriorConfig;

#[test]
fn presets_have_the_sizes_that_their_documentation_gives() {
    let millions = |n: usize| (n as f64 / 1e6).round() as usize;
    let decoder = |config: DecoderConfig| millions(config.num_params().unwrap());
    let upsampler = |config: UpsamplerConfig| millions(config.num_params().unwrap());
    assert_eq!(
        [
            millions(ClipConfig::small().num_params()),
            millions(DiffusionPriorConfig::base(768, 768, 77).num_params()),
            decoder(DecoderConfig::small(768, 768)),
            decoder(DecoderConfig::base(768, 768)),
            upsampler(UpsamplerConfig::small()),
        ],
        [44, 89, 110, 318, 51]
    );
}
