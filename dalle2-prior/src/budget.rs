//! What training a prior costs, in numbers that both kinds share.

use serde::{Deserialize, Serialize};

use crate::{AutoregressivePriorConfig, DiffusionPriorConfig};

/// Forward and backward pass together, in forward passes: the backward pass computes two products for each of the
/// forward pass.
const PASSES: f64 = 3.0;

/// The cost of a training step for one pair, so that priors of different kinds can be given the same budget.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainingCost {
    /// Parameters of the network.
    pub parameters: usize,
    /// Tokens that the transformer reads for one pair.
    pub tokens: usize,
    /// Multiply-accumulates of forward and backward pass for one pair.
    pub macs: f64,
}

impl TrainingCost {
    /// Figures for a log after training on so many pairs.
    pub fn figures(&self, pairs: u64) -> Vec<(String, f64)> {
        vec![
            ("parameters".into(), self.parameters as f64),
            ("tokens".into(), pairs as f64 * self.tokens as f64),
            ("macs".into(), pairs as f64 * self.macs),
        ]
    }

    /// The number of steps of `batch_size` pairs that `macs` multiply-accumulates pay for, at least 1.
    pub fn steps_for(&self, macs: f64, batch_size: usize) -> u64 {
        ((macs / (self.macs * batch_size as f64)).round() as u64).max(1)
    }
}

impl DiffusionPriorConfig {
    /// What training costs; with self-conditioning, half of the steps have a second forward pass.
    pub fn training_cost(&self) -> TrainingCost {
        let passes = if self.self_conditioning { PASSES + 0.5 } else { PASSES };
        TrainingCost {
            parameters: self.num_params(),
            tokens: self.sequence_length(),
            macs: passes * self.num_macs() as f64,
        }
    }
}

impl AutoregressivePriorConfig {
    /// What training costs.
    pub fn training_cost(&self) -> TrainingCost {
        TrainingCost {
            parameters: self.num_params(),
            tokens: self.sequence_length(),
            macs: PASSES * self.num_macs() as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_sequence_gets_fewer_steps_for_the_same_products() {
        let diffusion = DiffusionPriorConfig::small(128, 128, 32).training_cost();
        let autoregressive = AutoregressivePriorConfig::small(128, 128, 32).training_cost();
        assert_eq!((diffusion.tokens, autoregressive.tokens), (36, 97));
        let macs = 1000.0 * 64.0 * diffusion.macs;
        assert_eq!(diffusion.steps_for(macs, 64), 1000);
        let steps = autoregressive.steps_for(macs, 64);
        assert!((300..400).contains(&steps), "{steps}");
        let spent = autoregressive.figures(steps * 64)[2].1;
        assert!((spent / macs - 1.0).abs() < 0.002);
        let own = DiffusionPriorConfig { self_conditioning: true, ..DiffusionPriorConfig::small(128, 128, 32) };
        assert!(own.training_cost().macs / diffusion.macs > 7.0 / 6.0);
    }
}
