//! Variations of an image (DALL·E 2, section 3.1).

use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, Result};

use super::Operation;
use super::inversion::{DEFAULT_EVALUATIONS, with_eta};
use crate::Generation;
use crate::request::Start;
use crate::run::Inputs;

/// The initial noise of a variation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartNoise {
    /// The noise of the image, from its inversion: layout and details stay as far as η allows.
    Inverted,
    /// The noise of the seed: only the content that CLIP sees stays.
    Random,
}

/// Variations of an image.
#[derive(Debug, Clone)]
pub struct Vary {
    image: RgbImage,
    eta: f64,
    start: StartNoise,
    evaluations: usize,
}

impl Vary {
    pub(super) fn new(image: RgbImage) -> Self {
        Self { image, eta: 1.0, start: StartNoise::Inverted, evaluations: DEFAULT_EVALUATIONS }
    }
}

impl Operation<'_, Vary> {
    /// Sets the noisiness η of DDIM, from 0 to 1; 0 reconstructs the image, 1, the default, varies it most.
    pub fn eta(mut self, eta: f64) -> Self {
        self.kind.eta = eta;
        self
    }

    /// Sets the initial noise, [`StartNoise::Inverted`] by default.
    pub fn start_noise(mut self, start: StartNoise) -> Self {
        self.kind.start = start;
        self
    }

    /// Sets the evaluations per step of the inversion, see [`Operation::<Invert>::evaluations`](Operation::evaluations).
    pub fn evaluations(mut self, n: usize) -> Self {
        self.kind.evaluations = n;
        self
    }

    /// Generates the variations.
    ///
    /// # Errors
    /// If the pipeline has no image encoder, the image is empty, an option is out of range, or the hook returns an error.
    pub fn run(self) -> Result<Generation> {
        let Self { pipeline, request, mut controls, kind } = self;
        let Vary { image, eta, start, evaluations } = kind;
        if !(0.0..=1.0).contains(&eta) {
            return Err(ConfigError::new("eta", eta, "must be between 0 and 1").into());
        }
        let request = request.without_start()?.with_seed();
        let mut varied = with_eta(request.clone(), eta);
        if start == StartNoise::Random {
            // Nothing is inverted, which guidance could make inexact.
            varied.decoder.guidance = request.decoder.guidance;
        }
        varied.start = Start::Computed;
        let checked = pipeline.check(varied, None)?;
        controls.reserve(checked.steps());
        if start == StartNoise::Inverted {
            pipeline.reserve_inversion(evaluations, &request, &mut controls)?;
        }
        let x_t = match start {
            StartNoise::Random => None,
            StartNoise::Inverted => Some(pipeline.find_noise(&image, evaluations, &request, &mut controls)?),
        };
        let checked = checked.with_embeddings(pipeline.embed_image(&image)?);
        pipeline.execute(&checked, Inputs { x_t: x_t.as_ref(), ..Default::default() }, &mut controls)
    }
}
