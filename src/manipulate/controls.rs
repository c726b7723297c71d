//! What runs beside a manipulation.

use std::fmt;

use dalle2_core::Result;
use dalle2_core::diffusion::{NoiseSource, SeededNoise};

use crate::{Event, Stage};

/// Gives each stage the noise of a batch of images, which have these seeds.
type NoiseOf<'a> = dyn FnMut(Stage, &[u64]) -> Box<dyn NoiseSource> + 'a;

/// What a manipulation reports to, and where its noise comes from.
///
/// ```
///
/// use dalle2::Controls;
///
/// let controls = Controls::new().hook(|event| {
///     eprintln!("{}: {} of {}", event.stage, event.step, event.total);
///     Ok(())
/// });
/// ```
pub struct Controls<'a> {
    pub(super) hook: Box<dyn FnMut(Event<'_>) -> Result<()> + 'a>,
    pub(super) noise: Box<NoiseOf<'a>>,
}

impl fmt::Debug for Controls<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controls").finish_non_exhaustive()
    }
}

impl Default for Controls<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Controls<'a> {
    /// Reports to nobody; the noise comes from the request's seed.
    pub fn new() -> Self {
        Self {
            hook: Box::new(|_| Ok(())),
            noise: Box::new(|stage, seeds| Box::new(SeededNoise::new(seeds, stage.stream()))),
        }
    }

    /// Calls `hook` after every evaluation of a network; its error stops the manipulation and is
    /// returned, [`Error::Cancelled`](crate::Error::Cancelled) for one that is cancelled.
    pub fn hook(mut self, hook: impl FnMut(Event<'_>) -> Result<()> + 'a) -> Self {
        self.hook = Box::new(hook);
        self
    }

    /// Takes the noise from here: for each batch of images, each stage asks for its source.
    pub fn noise(mut self, noise: impl FnMut(Stage, &[u64]) -> Box<dyn NoiseSource> + 'a) -> Self {
        self.noise = Box::new(noise);
        self
    }
}
