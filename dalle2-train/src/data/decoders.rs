//! Threads that decode and prepare the items of a batch.

use std::collections::BTreeSet;
use std::ops::Range;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{CaptionedImage, Mixture, MixtureItem};
use dalle2_core::{ConfigError, Error, Result};

/// Threads that read, decode and prepare images, in parallel with the computation.
///
/// They work on one batch at a time and then wait, so memory holds no more batches than the trainer prefetches.
#[derive(Debug)]
pub struct Decoders {
    pool: ThreadPool,
}

impl Decoders {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// If `threads` is 0, or a thread cannot be started.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(ConfigError::new("workers", 0, "must be at least 1").into());
        }
        let builder = ThreadPoolBuilder::new().num_threads(threads).thread_name(|number| format!("decode-{number}"));
        let pool = builder.build().map_err(|e| Error::Input(format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { pool })
    }

    /// Reads and decodes the items of a training step, and passes each to `prepare` with its place in the batch. The
    /// results are in the order of the batch, for any number of threads.
    ///
    /// An item that cannot be read is replaced by the next readable one of its data set that is not in the batch; without
    /// one, the batch is smaller. `prepare` receives the item that was read. Random values in it must follow from the seed,
    /// the step and the place.
    ///
    /// # Errors
    /// If no item can be read, or `prepare` fails.
    pub fn batch<T: Send>(
        &self,
        mixture: &Mixture,
        step: u64,
        batch_size: usize,
        prepare: impl Fn(usize, MixtureItem, CaptionedImage) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let items = mixture.batch(step, batch_size);
        let load = |place: usize| {
            let item = mixture.exact(items[place])?;
            Ok(prepare(place, items[place], item))
        };
        let loaded: Vec<Result<Result<T>>> = self.map(0..batch_size, load);
        let mut used: BTreeSet<MixtureItem> =
            items.iter().zip(&loaded).filter(|(_, loaded)| loaded.is_ok()).map(|(item, _)| *item).collect();
        let mut batch = Vec::with_capacity(batch_size);
        let mut first_error = None;
        for (place, loaded) in loaded.into_iter().enumerate() {
            match loaded {
                Ok(prepared) => batch.push(prepared?),
                Err(error) => {
                    first_error.get_or_insert(error);
                    if let Some((item, image)) = replacement(mixture, items[place], &mut used) {
                        batch.push(prepare(place, item, image)?);
                    }
                }
            }
        }
        match first_error {
            Some(error) if batch.is_empty() => Err(Error::Input(format!("no item of the batch can be read: {error}"))),
            _ => Ok(batch),
        }
    }

    /// Applies `f` to each number, and returns the results in order.
    pub fn map<T: Send>(&self, numbers: Range<usize>, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
        self.pool.install(|| numbers.into_par_iter().map(&f).collect())
    }
}

/// Finds the next readable item of the same data set that is not in use.
fn replacement(
    mixture: &Mixture,
    broken: MixtureItem,
    used: &mut BTreeSet<MixtureItem>,
) -> Option<(MixtureItem, CaptionedImage)> {
    let mut item = mixture.next_in_set(broken);
    while item != broken {
        if !used.contains(&item)
            && let Ok(image) = mixture.exact(item)
        {
            used.insert(item);
            return Some((item, image));
        }
        item = mixture.next_in_set(item);
    }
    None
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
        // All four threads must arrive before one passes.
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
    #[test]
    fn a_broken_item_is_replaced_by_one_that_is_not_in_the_batch() {
        let dir = tempfile::tempdir().unwrap();
        drop(mixture(&dir));
        for i in [3, 4] {
            std::fs::write(dir.path().join(format!("{i:02}.png")), b"broken").unwrap();
        }
        let mixture = Mixture::of(3, Arc::new(ImageFiles::folder(dir.path()).unwrap())).unwrap();
        let decoders = Decoders::new(2).unwrap();
        for step in 0..6 {
            let check = |_, item: MixtureItem, image: CaptionedImage| {
                assert_eq!(image.caption, mixture.caption(item).unwrap(), "the item is the one that was read");
                Ok(image.caption)
            };
            let captions = decoders.batch(&mixture, step, 6, check).unwrap();
            let distinct: BTreeSet<&String> = captions.iter().collect();
            assert_eq!((captions.len(), distinct.len()), (6, 6), "{captions:?}");
        }
        assert_eq!(mixture.problems().len(), 2);
        // Of twelve items, ten are left.
        let all = decoders.batch(&mixture, 0, 12, |_, _, image| Ok(image.caption)).unwrap();
        assert_eq!(all.len(), 10);
    }
}
