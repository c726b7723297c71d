//! The floating-point types in which weights are stored and networks compute.

use std::fmt;

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

/// A floating-point element type: of a weights file, of a network that samples, or of a training step.
///
/// ```
/// use dalle2_core::FloatType;
///
/// assert_eq!(FloatType::default(), FloatType::F32);
/// assert_eq!(FloatType::Bf16.to_string(), "bf16");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloatType {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit IEEE floats: 11 significant bits, values up to ±65504.
    F16,
    /// 16-bit floats with the range of 32-bit floats and 8 significant bits.
    Bf16,
}

impl FloatType {
    /// Returns Burn's name of the type.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
        }
    }

    /// Returns the size of one element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_and_messages_use_the_same_names() {
        for float_type in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let json = serde_json::to_string(&float_type).unwrap();
            assert_eq!(json, format!("\"{float_type}\""));
            assert_eq!(serde_json::from_str::<FloatType>(&json).unwrap(), float_type);
        }
    }
}
