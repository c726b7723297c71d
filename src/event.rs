//! Progress of a generation.

use std::fmt;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, from_tensor};
use dalle2_core::{Result, StepEvent};
use serde::{Deserialize, Serialize};

/// A stage of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The text encoder; it reports no steps.
    TextEncoder,
    /// The image encoder, in place of the prior; it reports no steps.
    ImageEncoder,
    /// The prior.
    Prior,
    /// The decoder.
    Decoder,
    /// An upsampler, counted from 0.
    Upsampler(usize),
    /// The inversion of an image to its noise.
    Inversion,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextEncoder => f.pad("text encoder"),
            Self::ImageEncoder => f.pad("image encoder"),
            Self::Prior => f.pad("prior"),
            Self::Decoder => f.pad("decoder"),
            Self::Inversion => f.pad("inversion"),
            Self::Upsampler(index) => f.pad(&format!("upsampler {}", index + 1)),
        }
    }
}

impl Stage {
    /// The stream of an image's seed from which the stage takes its noise.
    pub(crate) fn stream(self) -> u64 {
        match self {
            Self::TextEncoder | Self::ImageEncoder | Self::Inversion => 0,
            Self::Prior => 1,
            Self::Decoder => 2,
            Self::Upsampler(index) => 3 + index as u64,
        }
    }
}

/// One finished step of a generation.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// The stage of the step.
    pub stage: Stage,
    /// Finished steps of the stage in this batch, from 1 to `total`.
    pub step: usize,
    /// Steps of the stage in this batch.
    pub total: usize,
    /// Index of the first image of the batch.
    pub first_image: usize,
    overall: [usize; 2],
    x_start: Option<&'a Tensor<4>>,
}

impl<'a> Event<'a> {
    pub(crate) fn new(stage: Stage, first_image: usize, step: StepEvent<'a>, overall: [usize; 2]) -> Self {
        Self { stage, step: step.step, total: step.total, first_image, overall, x_start: step.x_start }
    }

    /// Finished steps and their total, over all stages and batches.
    pub fn overall(&self) -> (usize, usize) {
        (self.overall[0], self.overall[1])
    }

    /// Converts the current estimate of the images of this batch; `None` in stages that work on embeddings. Events cost
    /// nothing until this is called.
    ///
    /// # Errors
    /// If the values cannot be read from the device.
    pub fn preview(&self) -> Result<Option<Vec<RgbImage>>> {
        self.x_start.map(|images| from_tensor(images.clone())).transpose()
    }
}
