//! Which items belong to a training step.

use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use dalle2_core::ConfigError;

/// Windows with a cached order: a batch may touch two, and several threads prepare neighbouring batches.
const WINDOWS: usize = 4;
/// Epochs with a cached order, and cached blocks of a mixture.
pub(super) const EPOCHS: usize = 2;

/// A cache of the last few values: steps advance, so the next value is nearly always among them.
#[derive(Debug)]
pub(super) struct Recent<K, T> {
    capacity: usize,
    entries: Mutex<Vec<Entry<K, T>>>,
}

type Entry<K, T> = (K, Arc<[T]>);

impl<K: PartialEq, T> Recent<K, T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: Mutex::default() }
    }

    pub(super) fn get(&self, key: K, make: impl FnOnce() -> Vec<T>) -> Arc<[T]> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, values)) = entries.iter().find(|(known, _)| *known == key) {
            return values.clone();
        }
        let values: Arc<[T]> = make().into();
        if entries.len() >= self.capacity {
            entries.remove(0);
        }
        entries.push((key, values.clone()));
        values
    }
}

/// Returns the items `0..len` in the order of an epoch: a uniformly random permutation (Fisher and Yates) that depends
/// on the arguments alone.
pub fn epoch_order(seed: u64, epoch: u64, len: usize) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..len).collect();
    shuffle(&mut order, &mut rng);
    order
}

/// Written out, so that the order outlives changes in a library.
pub(super) fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        // Maps 64 random bits to 0..=i.
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        items.swap(i, j as usize);
    }
}

/// Random numbers for one use of a seed: unrelated for different uses and numbers.
pub(super) fn random(seed: u64, usage: u64, numbers: [u64; 2]) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (part, value) in key.chunks_exact_mut(8).zip([seed, usage, numbers[0], numbers[1]]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// An endless sequence of items, epoch after epoch, each epoch in a different order.
///
/// Batches are cut from it without regard to epochs: all have full size, and every item comes once per epoch.
///
/// ```
/// # fn main() -> Result<(), dalle2_core::ConfigError> {
/// let order = dalle2_train::data::Order::new(7, 10)?;
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
    groups: Option<Groups>,
    /// Orders by epoch and window.
    recent: Recent<[u64; 2], usize>,
}

/// Neighbouring items that lie together on disk.
#[derive(Debug)]
struct Groups {
    sizes: Vec<usize>,
    starts: Vec<usize>,
    window: usize,
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
        Ok(Self { seed, len, groups: None, recent: Recent::new(EPOCHS) })
    }

    /// A sequence that reads items of one group one after the other: in every epoch the groups come in another order,
    /// and the items of `window` places are shuffled among these places. Groups are `sizes` items each, in the order of
    /// the items.
    ///
    /// This is what a shuffling buffer of `window` items does for shards, except that it is filled and emptied as a
    /// whole, which makes the sequence a function of the place: nothing has to be replayed to resume.
    ///
    /// # Errors
    /// If there is no item, or the window is empty.
    pub fn in_windows(seed: u64, sizes: Vec<usize>, window: usize) -> Result<Self, ConfigError> {
        if window == 0 {
            return Err(ConfigError::new("window", window, "must be at least 1"));
        }
        let mut starts = Vec::with_capacity(sizes.len());
        let mut len = 0;
        for size in &sizes {
            starts.push(len);
            len += size;
        }
        let groups = Some(Groups { sizes, starts, window });
        Ok(Self { groups, recent: Recent::new(WINDOWS), ..Self::new(seed, len)? })
    }

    /// The item at a place of the endless sequence.
    pub fn item_at(&self, place: u64) -> usize {
        let len = self.len as u64;
        let (epoch, place) = (place / len, place % len);
        let window = self.groups.as_ref().map_or(len, |groups| groups.window as u64);
        self.part(epoch, place / window)[(place % window) as usize]
    }

    /// The items of a training step.
    pub fn batch(&self, step: u64, batch_size: usize) -> Vec<usize> {
        let start = step * batch_size as u64;
        (start..start + batch_size as u64).map(|place| self.item_at(place)).collect()
    }

    /// The items of a window; without groups, the whole epoch is one.
    fn part(&self, epoch: u64, window: u64) -> Arc<[usize]> {
        self.recent.get([epoch, window], || match &self.groups {
            None => epoch_order(self.seed, epoch, self.len),
            Some(groups) => groups.window(self.seed, epoch, window),
        })
    }
}

impl Groups {
    fn window(&self, seed: u64, epoch: u64, window: u64) -> Vec<usize> {
        let from = window as usize * self.window;
        let to = from.saturating_add(self.window);
        let (mut items, mut at) = (Vec::new(), 0);
        for group in epoch_order(seed, epoch, self.sizes.len()) {
            let end = at + self.sizes[group];
            // The part of the group that lies in the window.
            let (first, last) = (from.clamp(at, end), to.clamp(at, end));
            items.extend(self.starts[group] + first - at..self.starts[group] + last - at);
            at = end;
            if at >= to {
                break;
            }
        }
        shuffle(&mut items, &mut random(seed, 0x7769_6e64_6f77, [epoch, window]));
        items
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
    #[test]
    fn windows_go_through_the_groups_one_after_the_other() {
        let sizes = vec![5, 0, 7, 4, 9];
        let order = Order::in_windows(3, sizes.clone(), 6).unwrap();
        let epochs: Vec<Vec<usize>> =
            (0..2).map(|e| (e * 25..e * 25 + 25).map(|p| order.item_at(p)).collect()).collect();
        let group = |item: usize| {
            sizes
                .iter()
                .scan(0, |end, size| {
                    *end += size;
                    Some(*end)
                })
                .position(|end| item < end)
        };
        for (number, epoch) in epochs.iter().enumerate() {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..25).collect::<Vec<_>>());
            // Read in order of their places before shuffling: each window holds a stretch of the groups' concatenation.
            let stream: Vec<usize> = epoch_order(3, number as u64, 5)
                .into_iter()
                .flat_map(|g| (0..25).filter(move |item| group(*item) == Some(g)))
                .collect();
            for (window, expected) in epoch.chunks(6).zip(stream.chunks(6)) {
                let sets = [window, expected].map(|items| items.iter().collect::<std::collections::BTreeSet<_>>());
                assert_eq!(sets[0], sets[1]);
                assert!(expected.len() < 3 || window != expected, "a window is shuffled");
            }
        }
        assert_ne!(epochs[0], epochs[1]);
        // A window as large as the set is a permutation of all; the place alone decides.
        let again = Order::in_windows(3, sizes.clone(), 6).unwrap();
        assert_eq!(again.item_at(33), epochs[1][8]);
        assert_ne!(Order::in_windows(4, sizes.clone(), 6).unwrap().batch(0, 25), epochs[0]);
        assert!(Order::in_windows(3, vec![0, 0], 6).is_err() && Order::in_windows(3, sizes, 0).is_err());
    }

    /// Runs of earlier versions resume with the items that they would have seen.
    #[test]
    fn windows_never_change() {
        assert_eq!(Order::in_windows(42, vec![3, 3, 3], 4).unwrap().batch(0, 9), [1, 3, 2, 0, 7, 4, 6, 5, 8]);
    }
}
