//! Configuration of the U-Net.

use dalle2_core::ConfigError;
use serde::{Deserialize, Serialize};

/// How the timestep embedding enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeConditioning {
    /// Scale and shift of the second group norm (FiLM), as in ADM.
    Film,
    /// Added after the first convolution, as in DDPM.
    Additive,
}

/// Configuration of a [`UNet`](super::UNet).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetConfig {
    /// Channels of the input: 3 for an image, 6 with a low-resolution image beside it.
    pub in_channels: usize,
    /// Channels of the output: 3, or 6 when the variance is learned.
    pub out_channels: usize,
    /// Channels of each level, from the finest to the coarsest; the resolution halves between levels.
    pub channels: Vec<usize>,
    /// Which levels have attention, in the same order.
    pub attention: Vec<bool>,
    /// Residual blocks per level on the way down; there is one more per level on the way up.
    pub n_res_blocks: usize,
    /// Side of the pixel blocks that the stem turns into channels; 1 means no such stem.
    pub patch: usize,
    /// Channels per attention head.
    pub head_dim: usize,
    /// Groups of every group norm.
    pub n_groups: usize,
    /// Width of the context tokens that attention reads beside the pixels; `None` for none.
    pub context_dim: Option<usize>,
    /// Width of the timestep embedding after its two layers; `None` means 4 × the first level's channels.
    pub time_dim: Option<usize>,
    /// How the timestep enters.
    pub time_conditioning: TimeConditioning,
    /// Dropout probability inside residual blocks.
    pub dropout: f64,
}

impl UNetConfig {
    /// Width of the timestep embedding.
    pub fn time_dim(&self) -> usize {
        self.time_dim.unwrap_or(4 * self.channels[0])
    }

    /// Sides of an image must be divisible by this.
    pub fn stride(&self) -> usize {
        self.patch << (self.channels.len() - 1)
    }

    /// Checks that the network can be built.
    ///
    /// # Errors
    /// Names the first field that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("n_res_blocks", self.n_res_blocks),
            ("patch", self.patch),
            ("head_dim", self.head_dim),
            ("n_groups", self.n_groups),
            ("context_dim", self.context_dim.unwrap_or(1)),
            ("time_dim", self.time_dim.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(ConfigError::new(field, value, "must be at least 1"));
            }
        }
        let list = |values: &[usize]| format!("{values:?}");
        if self.channels.is_empty() || self.channels.len() > 10 {
            return Err(ConfigError::new("channels", list(&self.channels), "needs between 1 and 10 levels"));
        }
        if self.attention.len() != self.channels.len() {
            let expected = format!("needs one entry for each of the {} levels", self.channels.len());
            return Err(ConfigError::new("attention", format!("{:?}", self.attention), expected));
        }
        for (level, &channels) in self.channels.iter().enumerate() {
            if channels == 0 || channels % self.n_groups != 0 {
                let expected = format!("must be a positive multiple of n_groups = {}", self.n_groups);
                return Err(ConfigError::new(format!("channels[{level}]"), channels, expected));
            }
            if channels % 2 != 0 && level == 0 {
                return Err(ConfigError::new("channels[0]", channels, "must be even for the timestep embedding"));
            }
            if self.attention[level] && channels % self.head_dim != 0 {
                let expected = format!("must be a multiple of head_dim = {}", self.head_dim);
                return Err(ConfigError::new(format!("channels[{level}]"), channels, expected));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "must be at least 0 and below 1"));
        }
        Ok(())
    }
}
