//! The input channels beside the noisy image, and how a trained network gets more of them.
//!
//! Inpainting is GLIDE's (arXiv 2112.10741, section 2.5): the known pixels and the mask are four further channels, whose
//! weights start at zero, so that a network begins as what it was without them.

use burn::module::Param;
use burn::prelude::*;
use dalle2_core::diffusion::Known;

use crate::unet::UNet;

/// Channels of the known pixels and the mask.
pub(crate) const KNOWN_CHANNELS: usize = 4;

/// The known pixels, zero elsewhere, and the mask, 1 where they are known; without any, zeros.
///
/// # Shapes
/// `[B, 4, H, W]` for `like: [B, _, H, W]`
pub(crate) fn known_channels(known: Option<&Known<4>>, like: &Tensor<4>) -> Tensor<4> {
    let [b, _, h, w] = like.dims();
    match known {
        None => Tensor::zeros([b, KNOWN_CHANNELS, h, w], &like.device()),
        Some(Known { x_start, keep }) => {
            let pixels = x_start.clone() * keep.clone();
            Tensor::cat(vec![pixels.expand([b, 3, h, w]), keep.clone().expand([b, 1, h, w])], 1)
        }
    }
}

impl UNet {
    /// The same network with more input channels, behind those it has: it ignores them until it is trained on.
    ///
    /// # Panics
    /// When it already has more than `channels`.
    pub fn with_input_channels(mut self, channels: usize) -> Self {
        let [out, old, kh, kw] = self.conv_in.weight.dims();
        let pixels = self.patch * self.patch;
        assert!(old <= channels * pixels, "the network reads {} channels, more than {channels}", old / pixels);
        let added = channels * pixels - old;
        if added > 0 {
            let weight = self.conv_in.weight.val();
            let (device, dtype) = (weight.device(), weight.dtype());
            let zeros = Tensor::zeros([out, added, kh, kw], (&device, dtype));
            // A new parameter, not a changed one: an optimizer's state of the old shape must not find it. It goes through
            // the host because a parameter must not be the result of an operation that is tracked.
            let wider = Tensor::cat(vec![weight, zeros], 1).into_data();
            self.conv_in.weight = Param::from_tensor(Tensor::from_data(wider, (&device, dtype)));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::*;
    use crate::UpsamplerConfig;

    #[test]
    fn added_channels_change_nothing_until_they_are_trained() {
        let device = Device::flex();
        let mut config = UpsamplerConfig::tiny();
        config.unet.channels = vec![16, 16];
        let noise = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let mut net = config.unet.init(&device);
        // The last convolution starts at zero and would hide everything.
        net.conv_out.weight = Param::from_tensor(noise(net.conv_out.weight.dims()));
        let x = noise([2, 6, 16, 24]);
        let emb = net.time_embedding(&[10, 700], &device);
        let before = net.forward(x.clone(), emb.clone(), None);
        let wider = net.with_input_channels(10);
        let after = wider.forward(Tensor::cat(vec![x, noise([2, 4, 16, 24])], 1), emb, None);
        assert!(before.clone().abs().max().into_scalar::<f32>() > 0.1);
        after.into_data().assert_approx_eq::<f32>(&before.into_data(), Tolerance::rel_abs(1e-4, 1e-4));
    }

    #[test]
    fn known_pixels_and_mask_stand_in_their_channels() {
        let device = Device::flex();
        let like = Tensor::<4>::zeros([2, 3, 1, 2], &device);
        let known = Known {
            x_start: Tensor::full([1, 3, 1, 2], 0.5, &device),
            keep: Tensor::<1>::from_floats([1.0, 0.0], &device).reshape([1, 1, 1, 2]),
        };
        let found = known_channels(Some(&known), &like);
        assert_eq!(found.dims(), [2, 4, 1, 2]);
        let values = found.slice_dim(0, 1..2).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(values, [0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 1.0, 0.0]);
        assert_eq!(known_channels(None, &like).abs().sum().into_scalar::<f32>(), 0.0);
    }

    #[test]
    #[should_panic(expected = "more than 5")]
    fn fewer_channels_are_a_bug() {
        UpsamplerConfig::tiny().unet.init(&Device::flex()).with_input_channels(5);
    }
}
