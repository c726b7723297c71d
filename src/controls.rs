//! The hook and the noise source of an operation.

use std::fmt;

use dalle2_core::diffusion::{NoiseSource, SeededNoise};
use dalle2_core::{Result, StepEvent};

use crate::{Event, Stage};

/// Returns the noise source of a stage for a batch of images with these seeds.
type NoiseOf<'a> = dyn FnMut(Stage, &[u64]) -> Box<dyn NoiseSource> + 'a;

/// The hook and the noise source of an [`Operation`](crate::Operation).
///
/// ```
/// use dalle2::Controls;
///
/// let controls = Controls::new().hook(|event| {
///     eprintln!("{}: {} of {}", event.stage, event.step, event.total);
///     Ok(())
/// });
/// ```
pub struct Controls<'a> {
    hook: Box<dyn FnMut(Event<'_>) -> Result<()> + 'a>,
    noise: Box<NoiseOf<'a>>,
    progress: Progress,
}

/// Steps over all stages.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    done: usize,
    total: usize,
    /// The part of `total` that no phase has claimed yet.
    reserved: usize,
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
    /// Creates controls without a hook, with the noise of the request's seeds.
    pub fn new() -> Self {
        Self {
            hook: Box::new(|_| Ok(())),
            noise: Box::new(|stage, seeds| Box::new(SeededNoise::new(seeds, stage.stream()))),
            progress: Progress::default(),
        }
    }

    /// Calls `hook` after every evaluation of a network. Its error stops the operation and is returned from it; return
    /// [`Error::Cancelled`](crate::Error::Cancelled) to cancel.
    pub fn hook(mut self, hook: impl FnMut(Event<'_>) -> Result<()> + 'a) -> Self {
        self.hook = Box::new(hook);
        self
    }

    /// Replaces the noise of the seeds: for each batch of images, `noise` returns the source of each stage, from which the
    /// stage takes one array per use.
    pub fn noise(mut self, noise: impl FnMut(Stage, &[u64]) -> Box<dyn NoiseSource> + 'a) -> Self {
        self.noise = Box::new(noise);
        self
    }

    pub(crate) fn source(&mut self, stage: Stage, seeds: &[u64]) -> Box<dyn NoiseSource> {
        (self.noise)(stage, seeds)
    }

    /// Adds steps of a later phase to the total.
    pub(crate) fn reserve(&mut self, steps: usize) {
        self.progress.total += steps;
        self.progress.reserved += steps;
    }

    /// Starts a phase of this number of steps, from the reserve as far as it reaches.
    pub(crate) fn claim(&mut self, steps: usize) {
        let covered = steps.min(self.progress.reserved);
        self.progress.reserved -= covered;
        self.progress.total += steps - covered;
    }

    /// Reports a step.
    pub(crate) fn step(&mut self, stage: Stage, first_image: usize, step: StepEvent<'_>) -> Result<()> {
        let progress = &mut self.progress;
        progress.done += 1;
        progress.total = progress.total.max(progress.done);
        (self.hook)(Event::new(stage, first_image, step, [progress.done, progress.total]))
    }
}
