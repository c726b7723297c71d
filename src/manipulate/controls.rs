//! What runs beside a manipulation.

use std::fmt;
use std::ops::ControlFlow;

use dalle2_core::diffusion::{NoiseSource, SeededNoise};

use crate::{Event, Stage};

/// Gives each stage the noise of a batch of images, which have these seeds.
type NoiseOf<'a> = dyn FnMut(Stage, &[u64]) -> Box<dyn NoiseSource> + 'a;

/// What a manipulation reports to, and where its noise comes from.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use dalle2::Controls;
///
/// let controls = Controls::new().hook(|event| {
///     eprintln!("{}: {} of {}", event.stage, event.step, event.total);
///     ControlFlow::Continue(())
/// });
/// ```
pub struct Controls<'a> {
    pub(super) hook: Box<dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a>,
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
            hook: Box::new(|_| ControlFlow::Continue(())),
            noise: Box::new(|stage, seeds| Box::new(SeededNoise::new(seeds, stage.stream()))),
        }
    }

    /// Calls `hook` after every evaluation of a network; [`ControlFlow::Break`] stops the manipulation with
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn hook(mut self, hook: impl FnMut(Event<'_>) -> ControlFlow<()> + 'a) -> Self {
        self.hook = Box::new(hook);
        self
    }

    /// Takes the noise from here: for each batch of images, each stage asks for its source.
    pub fn noise(mut self, noise: impl FnMut(Stage, &[u64]) -> Box<dyn NoiseSource> + 'a) -> Self {
        self.noise = Box::new(noise);
        self
    }
}
