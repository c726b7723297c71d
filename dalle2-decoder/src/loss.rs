//! The training loss of decoder and upsamplers: mean squared error, and for a learned variance the hybrid loss
//! L_simple + λ L_vlb (Nichol & Dhariwal 2021, section 3.1).

use burn::prelude::*;
use dalle2_core::diffusion::{DiffusionConfig, NoiseSchedule, item_mse, learned_range_vlb};

/// A noised batch: what the network sees and what it should predict.
#[derive(Debug, Clone)]
pub struct Noised {
    /// Clean images `[B, 3, H, W]` in [−1, 1].
    pub x_start: Tensor<4>,
    /// Standard normal noise of the same shape.
    pub noise: Tensor<4>,
    /// Timestep of each image.
    pub t: Vec<usize>,
}

/// The loss and its parts, each `[1]`.
#[derive(Debug, Clone)]
pub struct DiffusionLoss {
    /// What is minimised.
    pub total: Tensor<1>,
    /// Mean squared error of the prediction, not weighted.
    pub mse: Tensor<1>,
    /// Variational bound at the drawn timesteps in bits per dimension; `None` for a fixed variance.
    pub vlb: Option<Tensor<1>>,
}

impl Noised {
    /// The noisy images.
    ///
    /// # Shapes
    /// `[B, 3, H, W]`
    pub fn x_t(&self, schedule: &NoiseSchedule) -> Tensor<4> {
        schedule.q_sample(self.x_start.clone(), &self.t, self.noise.clone())
    }

    /// The loss of the network's raw output for these images.
    ///
    /// The bound's gradient reaches the variance only: the prediction enters it detached.
    ///
    /// # Shapes
    /// `out: [B, 3 or 6, H, W]`
    pub fn loss(self, out: Tensor<4>, config: &DiffusionConfig, schedule: &NoiseSchedule) -> DiffusionLoss {
        let prediction = out.clone().slice_dim(1, 0..3);
        let target = config.prediction.target(schedule, self.x_start.clone(), self.noise.clone(), &self.t);
        let errors = item_mse(prediction.clone(), target);
        let mse = errors.clone().mean();
        let simple = config.weighted_mean(schedule, errors, &self.t);
        if out.dims()[1] == 3 {
            return DiffusionLoss { total: simple, mse, vlb: None };
        }
        let x_t = self.x_t(schedule);
        let x_start = config.prediction.x_start(schedule, prediction.detach(), x_t.clone(), &self.t);
        let x_start = x_start.clamp(-1.0, 1.0);
        let vlb = learned_range_vlb(schedule, self.x_start, x_t, &self.t, x_start, out.slice_dim(1, 3..6)).mean();
        let weight = config.vlb_weight * config.train_steps as f64;
        DiffusionLoss { total: simple + vlb.clone() * weight, mse, vlb: Some(vlb) }
    }
}
