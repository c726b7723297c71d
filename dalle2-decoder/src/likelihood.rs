//! The variational bound of a decoder's images in bits per dimension (improved DDPM, arXiv 2102.09672, section 3).

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
    /// The term of the noisiest timestep, included in all three: the divergence of x_T from pure noise.
    pub prior: f64,
}

impl UnclipDecoder {
    /// Bounds the bits per dimension of images by the sum of its terms over all timesteps. The terms of `timesteps` are
    /// computed, the others interpolated. Terms change fast at the cleanest timesteps, so choose these
    /// densely; 0, the likelihood of the pixels, must be among them.
    ///
    /// # Shapes
    /// `images: [B, 3, size, size]` in [−1, 1], `embedding: [B, D]`, `text` of batch B
    ///
    /// # Errors
    /// If the variance is not learned, `timesteps` do not increase strictly from 0 within the schedule, shapes do not fit,
    /// or the noise source fails.
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
            let counts =
                format!("{} images, {} embeddings, {} captions", shape[0], embedding.dims()[0], text.batch_size());
            return Err(Error::Input(format!("{counts}: there must be one of each")));
        }
        let weights = weights(timesteps, total)?;
        let network = self.network()?;
        let conditioning = &network.conditioning;
        let prepared = network.prepare(conditioning.forward(conditioning.scale(embedding), text));
        let mut sums = [0.0; 3];
        for (&step, weight) in timesteps.iter().zip(weights) {
            let t = vec![step; shape[0]];
            let x_t = schedule.q_sample(images.clone(), &t, draw(noise, shape, &device)?);
            let out = network.forward(config.input(x_t.clone(), None, None), &t, &prepared);
            let x_start =
                config.diffusion.prediction.x_start(schedule, out.clone().slice_dim(1, 0..3), x_t.clone(), &t);
            let x_start = x_start.clamp(-1.0, 1.0);
            let learned = out.slice_dim(1, 3..6);
            // The fixed variances are the ends of the learned range.
            let ends = [learned.clone(), learned.ones_like().neg(), learned.ones_like()];
            for (sum, v) in sums.iter_mut().zip(ends) {
                let bits = learned_range_vlb(schedule, images.clone(), x_t.clone(), &t, x_start.clone(), v);
                *sum += weight * f64::from(bits.mean().into_scalar::<f32>());
            }
        }
        let level = schedule.alphas_cumprod()[total - 1];
        let power = f64::from(images.square().mean().into_scalar::<f32>());
        // KL(N(√ᾱ·x_0, 1 − ᾱ) ‖ N(0, 1)) in bits.
        let prior = 0.5 * (level * power - level - (1.0 - level).ln()) / std::f64::consts::LN_2;
        let [learned, fixed_small, fixed_large] = sums.map(|sum| sum + prior);
        Ok(BitsPerDimension { learned, fixed_small, fixed_large, prior })
    }
}

/// The weight of each timestep in the sum: timestep 0 counts once, the others also represent the timesteps between them by
/// linear interpolation; the last one represents all beyond it.
fn weights(timesteps: &[usize], total: usize) -> Result<Vec<f64>, ConfigError> {
    let increase = timesteps.windows(2).all(|pair| pair[0] < pair[1]);
    if timesteps.first() != Some(&0) || !increase || timesteps.last().is_some_and(|last| *last >= total) {
        let expected = format!("must increase strictly from 0 to below {total}");
        return Err(ConfigError::new("timesteps", format!("{timesteps:?}"), expected));
    }
    let mut weights = vec![0.0; timesteps.len()];
    weights[0] = 1.0;
    for t in 1..total {
        let after = timesteps.partition_point(|known| *known < t);
        match timesteps.get(after) {
            // Timestep 0 is of another kind, so nothing is interpolated from it.
            Some(known) if *known == t || after == 1 => weights[after] += 1.0,
            Some(known) => {
                let share = (t - timesteps[after - 1]) as f64 / (known - timesteps[after - 1]) as f64;
                weights[after] += share;
                weights[after - 1] += 1.0 - share;
            }
            None if timesteps.len() > 1 => weights[timesteps.len() - 1] += 1.0,
            None => return Err(ConfigError::new("timesteps", "[0]", "needs one above 0 too")),
        }
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use dalle2_core::TokenMask;
    use dalle2_core::diffusion::SeededNoise;

    use super::*;
    use crate::DecoderConfig;

    #[test]
    fn a_fresh_network_has_the_bound_of_its_variances() {
        let device = Device::flex();
        let mut config = DecoderConfig::tiny(4, 6);
        config.image_size = 8;
        config.unet.channels = vec![16, 16];
        config.unet.n_groups = 8;
        config.unet.head_dim = 16;
        config.unet.context_dim = Some(16);
        // A fresh network predicts v = 0 and the middle of the learned range.
        let decoder = UnclipDecoder::new(config.clone(), config.init(&device)).unwrap();
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
        let timesteps: Vec<usize> = (0..32).map(|i| i * i).collect();
        let bits = run(&timesteps).unwrap();
        assert!(bits.prior > 0.0 && bits.prior < 1e-3, "{bits:?}");
        // Wrong predictions are punished by small variances most, and by the middle of the range in between.
        assert!(bits.fixed_large < bits.learned && bits.learned < bits.fixed_small, "{bits:?}");
        assert!(run(&[0, 1000]).is_err() && run(&[]).is_err() && run(&[0]).is_err() && run(&[3, 5]).is_err());
    }

    #[test]
    fn every_term_is_counted_once() {
        assert_eq!(weights(&[0, 1, 2, 3], 4).unwrap(), [1.0; 4]);
        // Timesteps 1 and 2 take the value of 2, 3 lies half way, 5 and 6 take the value of 4.
        assert_eq!(weights(&[0, 2, 4], 7).unwrap(), [1.0, 2.5, 3.5]);
        let weights = weights(&[0, 1, 5, 30, 400, 998], 1000).unwrap();
        assert!((weights.iter().sum::<f64>() - 1000.0).abs() < 1e-9);
    }
}
