//! Which items belong to a training step.

use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::ConfigError;

/// The items `0..len` in the order in which an epoch visits them: a uniformly random permutation (Fisher and Yates)
/// that depends on nothing but the arguments.
pub fn epoch_order(seed: u64, epoch: u64, len: usize) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        // Maps 64 random bits to 0..=i; written out, so that the order outlives changes in a library.
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// An endless sequence of items, epoch after epoch, each epoch in an order of its own.
///
/// Batches are cut from it without regard to epochs: all have full size, and every item comes once per epoch.
///
/// ```
/// # fn main() -> Result<(), dalle2_core::ConfigError> {
/// let order = dalle2_core::data::Order::new(7, 10)?;
/// let (first, second, third) = (order.batch(0, 4), order.batch(1, 4), order.batch(2, 4));
/// let mut epoch: Vec<usize> = first.into_iter().chain(second).chain(third).take(10).collect();
/// epoch.sort();
/// assert_eq!(epoch, (0..10).collect::<Vec<_>>());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Order {
    seed: u64,
    len: usize,
    /// The epoch that was asked for last: steps go forward, so it is nearly always the one needed.
    last: Mutex<Option<(u64, Arc<[usize]>)>>,
}

impl Order {
    /// The sequence over `len` items that `seed` gives.
    ///
    /// # Errors
    /// If there is no item.
    pub fn new(seed: u64, len: usize) -> Result<Self, ConfigError> {
        if len == 0 {
            return Err(ConfigError::new("len", len, "a data set of at least one item"));
        }
        Ok(Self { seed, len, last: Mutex::new(None) })
    }

    /// The item at a place of the endless sequence.
    pub fn item_at(&self, place: u64) -> usize {
        let len = self.len as u64;
        self.epoch(place / len)[(place % len) as usize]
    }

    /// The items of a training step.
    pub fn batch(&self, step: u64, batch_size: usize) -> Vec<usize> {
        let start = step * batch_size as u64;
        (start..start + batch_size as u64).map(|place| self.item_at(place)).collect()
    }

    fn epoch(&self, epoch: u64) -> Arc<[usize]> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((cached, order)) if *cached == epoch => order.clone(),
            _ => {
                let order: Arc<[usize]> = epoch_order(self.seed, epoch, self.len).into();
                *last = Some((epoch, order.clone()));
                order
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_a_permutation_of_its_own() {
        let order = epoch_order(1, 0, 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(order, epoch_order(1, 0, 1000));
        assert_ne!(order, epoch_order(1, 1, 1000));
        assert_ne!(order, epoch_order(2, 0, 1000));
        assert_eq!((epoch_order(0, 0, 0), epoch_order(0, 0, 1)), (vec![], vec![0]));
    }

    /// Every item is equally likely at every place: 3,000 epochs of 4 items, expectation 750, deviation 24.
    #[test]
    fn places_are_uniform() {
        let mut counts = [[0u32; 4]; 4];
        for epoch in 0..3000 {
            for (place, item) in epoch_order(5, epoch, 4).into_iter().enumerate() {
                counts[place][item] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|n| (630..870).contains(n)), "{counts:?}");
    }

    /// Runs of earlier versions resume with the items that they would have seen.
    #[test]
    fn the_order_never_changes() {
        assert_eq!(epoch_order(42, 3, 8), [1, 3, 5, 0, 7, 6, 4, 2]);
    }

    #[test]
    fn batches_depend_on_the_step_alone() {
        let order = Order::new(9, 5).unwrap();
        let forward: Vec<Vec<usize>> = (0..10).map(|step| order.batch(step, 3)).collect();
        let backward: Vec<Vec<usize>> = (0..10).rev().map(|step| order.batch(step, 3)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        let all: Vec<usize> = forward.concat();
        for epoch in all.chunks_exact(5) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, [0, 1, 2, 3, 4]);
        }
        // A batch larger than the data set goes through it more than once.
        assert_eq!(order.batch(0, 12), all[..12]);
        assert!(Order::new(9, 0).is_err());
    }
}
