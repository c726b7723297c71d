//! Threads that decode and prepare the items of a batch.

use std::ops::Range;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{CaptionedImage, Mixture, MixtureItem};
use dalle2_core::{ConfigError, Error, Result};

/// Threads that read, decode and prepare images, several at once, beside those that compute.
///
/// They work on one batch at a time and wait when it is done. A trainer that asks for batches ahead of their use holds
/// them back by not asking: no more than the batches that it keeps are ever in memory.
#[derive(Debug)]
pub struct Decoders {
    pool: ThreadPool,
}

impl Decoders {
    /// So many threads.
    ///
    /// # Errors
    /// When there are none, or they cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(ConfigError::new("workers", 0, "must be at least 1").into());
        }
        let builder = ThreadPoolBuilder::new().num_threads(threads).thread_name(|number| format!("decode-{number}"));
        let pool = builder.build().map_err(|e| Error::Input(format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { pool })
    }

    /// The items of a training step, each read, decoded and handed to `prepare` with its place in the batch. The results
    /// are in the order of the batch, whichever thread was first.
    ///
    /// `prepare` is where images are cropped and varied; what is random in it must follow from the seed, the step and the
    /// place.
    ///
    /// # Errors
    /// When nothing of a data set can be read any more, or `prepare` fails.
    pub fn batch<T: Send>(
        &self,
        mixture: &Mixture,
        step: u64,
        batch_size: usize,
        prepare: impl Fn(usize, MixtureItem, CaptionedImage) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let items = mixture.batch(step, batch_size);
        let load = |place: usize| prepare(place, items[place], mixture.get(items[place])?);
        self.map(0..batch_size, load).into_iter().collect()
    }

    /// What `f` makes of every number, in order.
    pub fn map<T: Send>(&self, numbers: Range<usize>, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
        self.pool.install(|| numbers.into_par_iter().map(&f).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    use super::*;
    use crate::data::ImageFiles;
    use dalle2_core::image::{RgbImage, save_png};

    fn mixture(dir: &tempfile::TempDir) -> Mixture {
        for i in 0..12u8 {
            let path = dir.path().join(format!("{i:02}.png"));
            save_png(&RgbImage::from_pixel(3, 3, ::image::Rgb([i; 3])), &path).unwrap();
            std::fs::write(path.with_extension("txt"), format!("number {i}")).unwrap();
        }
        Mixture::of(3, Arc::new(ImageFiles::folder(dir.path()).unwrap())).unwrap()
    }

    #[test]
    fn batches_are_the_same_with_any_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let mixture = mixture(&dir);
        let batches = |threads: usize| {
            let decoders = Decoders::new(threads).unwrap();
            let prepare = |place, _, item: CaptionedImage| Ok((place, item.caption, item.image.into_raw()));
            (0..5).map(|step| decoders.batch(&mixture, step, 8, prepare).unwrap()).collect::<Vec<_>>()
        };
        let alone = batches(1);
        assert_eq!(batches(3), alone);
        assert!(alone.iter().flatten().map(|(place, ..)| *place).eq((0..8).cycle().take(40)));
        assert!(Decoders::new(0).is_err());
    }

    #[test]
    fn threads_work_at_the_same_time_and_errors_come_out() {
        let dir = tempfile::tempdir().unwrap();
        let mixture = mixture(&dir);
        let decoders = Decoders::new(4).unwrap();
        // Nobody passes before four are there.
        let barrier = Barrier::new(4);
        let calls = AtomicUsize::new(0);
        decoders
            .batch(&mixture, 0, 4, |_, _, _| {
                barrier.wait();
                calls.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
        assert_eq!(calls.into_inner(), 4);
        let error = decoders.batch(&mixture, 0, 4, |place, _, _| match place {
            2 => Err(Error::Input("place 2".into())),
            _ => Ok(()),
        });
        assert!(error.unwrap_err().to_string().contains("place 2"));
    }
}
