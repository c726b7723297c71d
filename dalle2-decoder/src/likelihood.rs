//! What a decoder's images cost under its own model: the variational bound in bits per dimension
//! (improved DDPM, arXiv 2102.09672, section 3).

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSource, draw, learned_range_vlb};
use dalle2_core::{ConfigError, Error, Result, TextCondition};

use crate::UnclipDecoder;

/// Bits per dimension of images under the variances that a reverse process can have: the prediction is the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BitsPerDimension {
    /// With the variance that the network gives.
    pub learned: f64,
    /// With β̃_t, the posterior's.
    pub fixed_small: f64,
    /// With β_t.
    pub fixed_large: f64,
    /// What the noisiest timestep costs, which is in all three: how far x_T is from pure noise.
    pub prior: f64,
}

impl UnclipDecoder {
    /// The bound on the bits per dimension of images, as the mean over `timesteps` times T. Timesteps spread evenly over
    /// the schedule, 0 among them, give an estimate; all of them the bound itself.
    ///
    /// # Shapes
    /// `images: [B, 3, size, size]` in [−1, 1], `embedding: [B, D]`, `text` of batch B
    ///
    /// # Errors
    /// When the variance is not learned, there is no timestep or one leaves the schedule, shapes do not fit, or the noise
    /// source fails.
    pub fn bits_per_dimension(
        &self,
        images: Tensor<4>,
        embedding: Tensor<2>,
        text: &TextCondition,
        timesteps: &[usize],
        noise: &mut dyn NoiseSource,
    ) -> Result<BitsPerDimension> {
        let (shape, device, config) = (images.dims(), images.device(), self.config());
        let (schedule, total) = (self.schedule(), self.config().diffusion.train_steps);
        if config.unet.out_channels != 6 {
            return Err(Error::Mismatch("bits per dimension compare a learned variance: this decoder has none".into()));
        }
        if shape[0] != text.batch_size() || shape[0] != embedding.dims()[0] {
            let found =
                format!("{} images, {} embeddings, {} captions", shape[0], embedding.dims()[0], text.batch_size());
            return Err(Error::Input(format!("{found}: there must be one of each")));
        }
        if timesteps.is_empty() || timesteps.iter().any(|t| *t >= total) {
            let expected = format!("needs at least one, each below {total}");
            return Err(ConfigError::new("timesteps", format!("{timesteps:?}"), expected).into());
        }
        let conditioning = &self.network().conditioning;
        let prepared = self.network().prepare(conditioning.forward(conditioning.scale(embedding), text));
        let mut sums = [0.0; 3];
        for &step in timesteps {
            let t = vec![step; shape[0]];
            let x_t = schedule.q_sample(images.clone(), &t, draw(noise, shape, &device)?);
            let out = self.network().forward(config.input(x_t.clone(), None, None), &t, &prepared);
            let x_start =
                config.diffusion.prediction.x_start(schedule, out.clone().slice_dim(1, 0..3), x_t.clone(), &t);
            let x_start = x_start.clamp(-1.0, 1.0);
            let learned = out.slice_dim(1, 3..6);
            // The fixed variances are the ends of the learned range.
            let ends = [learned.clone(), learned.ones_like().neg(), learned.ones_like()];
            for (sum, v) in sums.iter_mut().zip(ends) {
                let bits = learned_range_vlb(schedule, images.clone(), x_t.clone(), &t, x_start.clone(), v);
                *sum += f64::from(bits.mean().into_scalar::<f32>());
            }
        }
        let level = schedule.alphas_cumprod()[total - 1];
        let power = f64::from(images.square().mean().into_scalar::<f32>());
        // KL(N(√ᾱ·x_0, 1 − ᾱ) ‖ N(0, 1)) in bits.
        let prior = 0.5 * (level * power - level - (1.0 - level).ln()) / std::f64::consts::LN_2;
        let [learned, fixed_small, fixed_large] = sums.map(|sum| sum / timesteps.len() as f64 * total as f64 + prior);
        Ok(BitsPerDimension { learned, fixed_small, fixed_large, prior })
    }
}

#[cfg(test)]
mod tests {
    use dalle2_core::TokenMask;
    use dalle2_core::diffusion::SeededNoise;

    use super::*;
    use crate::DecoderConfig;

    #[test]
    fn a_network_that_knows_nothing_pays_what_its_variances_cost() {
        let device = Device::flex();
        let mut config = DecoderConfig::tiny(4, 6);
        config.image_size = 8;
        config.unet.channels = vec![16, 16];
        config.unet.n_groups = 8;
        config.unet.head_dim = 16;
        config.unet.context_dim = Some(16);
        // A fresh network predicts v = 0 and the middle of the learned range.
        let decoder = UnclipDecoder::new(config.clone(), config.init(&device).unwrap()).unwrap();
        let text = TextCondition {
            pooled: Tensor::zeros([2, 4], &device),
            tokens: Tensor::zeros([2, 3, 6], &device),
            mask: TokenMask::from_lengths(&[2, 2], 3, &device),
        };
        let images = Tensor::<4>::full([2, 3, 8, 8], 0.2, &device);
        let run = |timesteps: &[usize]| {
            let mut noise = SeededNoise::new(&[1, 2], 0);
            decoder.bits_per_dimension(images.clone(), Tensor::zeros([2, 4], &device), &text, timesteps, &mut noise)
        };
        let timesteps: Vec<usize> = (0..1000).step_by(50).collect();
        let bits = run(&timesteps).unwrap();
        assert!(bits.prior > 0.0 && bits.prior < 1e-3, "{bits:?}");
        // Wrong predictions are punished by small variances most, and by the middle of the range in between.
        assert!(bits.fixed_large < bits.learned && bits.learned < bits.fixed_small, "{bits:?}");
        assert!(run(&[1000]).is_err() && run(&[]).is_err());
    }
}
