//! What a generation reports while it runs.

use std::fmt;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, from_tensor};
use dalle2_core::{Result, StepEvent};

/// A stage of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The caption is encoded.
    TextEncoder,
    /// An image is encoded, in place of the prior.
    ImageEncoder,
    /// An image embedding is drawn.
    Prior,
    /// An image is drawn.
    Decoder,
    /// The image is enlarged; the number counts the upsamplers from 0.
    Upsampler(usize),
    /// The noise of an image is sought.
    Inversion,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextEncoder => f.write_str("text encoder"),
            Self::ImageEncoder => f.write_str("image encoder"),
            Self::Prior => f.write_str("prior"),
            Self::Decoder => f.write_str("decoder"),
            Self::Inversion => f.write_str("inversion"),
            Self::Upsampler(index) => write!(f, "upsampler {}", index + 1),
        }
    }
}

/// One finished step of a generation.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// The stage that made the step.
    pub stage: Stage,
    /// Steps that the stage has done, from 1 to `total`.
    pub step: usize,
    /// Steps of the stage.
    pub total: usize,
    /// Index of the first image of the batch that is being drawn, of the images that were asked for.
    pub first_image: usize,
    x_start: Option<&'a Tensor<4>>,
}

impl<'a> Event<'a> {
    pub(crate) fn new(stage: Stage, first_image: usize, step: StepEvent<'a>) -> Self {
        Self { stage, step: step.step, total: step.total, first_image, x_start: step.x_start }
    }

    /// The current estimate of the images of this batch; `None` in stages that work on embeddings. Nothing is computed
    /// until this is called.
    ///
    /// # Errors
    /// When the device cannot give the values back.
    pub fn preview(&self) -> Result<Option<Vec<RgbImage>>> {
        self.x_start.map(|images| from_tensor(images.clone())).transpose()
    }
}
