//! Configuration of the U-Net.

use dalle2_core::ConfigError;
use serde::{Deserialize, Serialize};

/// Most residual blocks of a level, and the largest width of anything: a damaged configuration must not fill the memory.
const MAX_BLOCKS: usize = 64;
const MAX_WIDTH: usize = 1 << 16;
/// ε of the norms if none is given.
const DEFAULT_NORM_EPS: f64 = 1e-5;

/// How the timestep embedding enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeConditioning {
    /// Scale and shift of the second group norm (FiLM), as in ADM.
    Film,
    /// Added after the first convolution, as in DDPM.
    Additive,
}

/// Departures from the regular layout that published checkpoints have; the default is none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNetVariations {
    /// Residual blocks of each level in place of [`UNetConfig::n_res_blocks`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub res_blocks: Option<Vec<usize>>,
    /// Channels per attention head of each level in place of [`UNetConfig::head_dim`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dims: Option<Vec<usize>>,
    /// The same on the way up, from the finest to the coarsest level, where it is not as on the way down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_head_dims: Option<Vec<usize>>,
    /// Which levels have attention on the way up, from the finest to the coarsest, where it is not as on the way down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_attention: Option<Vec<bool>>,
    /// Whether there is attention in the middle, where it is not as on the coarsest level on the way down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mid_attention: Option<bool>,
    /// ε of the norms in residual blocks and before the output, 1e-5 if not set; attention's norms have 1e-5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
}

impl UNetVariations {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
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
    /// Departures from the regular layout.
    #[serde(default, skip_serializing_if = "UNetVariations::is_none")]
    pub variations: UNetVariations,
}

impl UNetConfig {
    /// Width of the timestep embedding.
    pub fn time_dim(&self) -> usize {
        self.time_dim.unwrap_or(4 * self.channels[0])
    }

    /// Residual blocks of a level on the way down.
    pub fn res_blocks(&self, level: usize) -> usize {
        self.variations.res_blocks.as_ref().map_or(self.n_res_blocks, |blocks| blocks[level])
    }

    /// Channels per attention head of a level on the way down, and of the middle for the coarsest.
    pub fn head_dim(&self, level: usize) -> usize {
        self.variations.head_dims.as_ref().map_or(self.head_dim, |dims| dims[level])
    }

    /// Channels per attention head of a level on the way up.
    pub fn up_head_dim(&self, level: usize) -> usize {
        self.variations.up_head_dims.as_ref().map_or_else(|| self.head_dim(level), |dims| dims[level])
    }

    /// Whether a level has attention on the way up.
    pub fn up_attention(&self, level: usize) -> bool {
        self.variations.up_attention.as_ref().unwrap_or(&self.attention)[level]
    }

    /// Whether there is attention in the middle.
    pub fn mid_attention(&self) -> bool {
        self.variations.mid_attention.unwrap_or(self.attention.last() == Some(&true))
    }

    /// Whether there is any attention.
    pub fn has_attention(&self) -> bool {
        self.mid_attention() || (0..self.channels.len()).any(|level| self.attention[level] || self.up_attention(level))
    }

    /// ε of the norms outside of attention.
    pub fn norm_eps(&self) -> f64 {
        self.variations.norm_eps.unwrap_or(DEFAULT_NORM_EPS)
    }

    /// Sides of an image must be divisible by this.
    pub fn stride(&self) -> usize {
        self.patch << self.channels.len().saturating_sub(1)
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
        let (n, channels) = (self.n_res_blocks, self.channels.iter().copied().max().unwrap_or_default());
        for (field, value, most) in [
            ("n_res_blocks", n, MAX_BLOCKS),
            ("channels", channels, MAX_WIDTH),
            ("in_channels", self.in_channels, MAX_WIDTH),
            ("out_channels", self.out_channels, MAX_WIDTH),
            ("context_dim", self.context_dim.unwrap_or(1), MAX_WIDTH),
            ("time_dim", self.time_dim.unwrap_or(1), MAX_WIDTH),
        ] {
            if value > most {
                return Err(ConfigError::new(field, value, format!("must be at most {most}")));
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
        self.validate_variations()?;
        for (level, &channels) in self.channels.iter().enumerate() {
            if channels == 0 || channels % self.n_groups != 0 {
                let expected = format!("must be a positive multiple of n_groups = {}", self.n_groups);
                return Err(ConfigError::new(format!("channels[{level}]"), channels, expected));
            }
            if channels % 2 != 0 && level == 0 {
                return Err(ConfigError::new("channels[0]", channels, "must be even for the timestep embedding"));
            }
            let middle = level + 1 == self.channels.len() && self.mid_attention();
            for (attends, head_dim) in [
                (self.attention[level] || middle, self.head_dim(level)),
                (self.up_attention(level), self.up_head_dim(level)),
            ] {
                if attends && channels % head_dim != 0 {
                    let expected = format!("must be a multiple of head_dim = {head_dim}");
                    return Err(ConfigError::new(format!("channels[{level}]"), channels, expected));
                }
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "must be at least 0 and below 1"));
        }
        Ok(())
    }

    fn validate_variations(&self) -> Result<(), ConfigError> {
        let UNetVariations { res_blocks, head_dims, up_head_dims, up_attention, mid_attention: _, norm_eps } =
            &self.variations;
        let levels = self.channels.len();
        for (field, list) in [
            ("variations.res_blocks", res_blocks),
            ("variations.head_dims", head_dims),
            ("variations.up_head_dims", up_head_dims),
        ] {
            if let Some(list) = list
                && (list.len() != levels || list.iter().any(|n| !(1..=MAX_WIDTH).contains(n)))
            {
                let expected = format!("needs a number from 1 to {MAX_WIDTH} for each of the {levels} levels");
                return Err(ConfigError::new(field, format!("{list:?}"), expected));
            }
        }
        if let Some(blocks) = res_blocks.as_ref().and_then(|blocks| blocks.iter().max())
            && *blocks > MAX_BLOCKS
        {
            let expected = format!("must be at most {MAX_BLOCKS}");
            return Err(ConfigError::new("variations.res_blocks", blocks, expected));
        }
        if let Some(list) = up_attention
            && list.len() != levels
        {
            let expected = format!("needs one entry for each of the {levels} levels");
            return Err(ConfigError::new("variations.up_attention", format!("{list:?}"), expected));
        }
        match norm_eps {
            Some(eps) if !(eps.is_finite() && *eps > 0.0) => {
                Err(ConfigError::new("variations.norm_eps", eps, "must be finite and above 0"))
            }
            _ => Ok(()),
        }
    }
}
