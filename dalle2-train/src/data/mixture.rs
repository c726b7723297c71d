//! Several data sets as one, each with its share of every batch.

use std::fmt;
use std::sync::Arc;

use super::order::{EPOCHS, Recent, random, shuffle};
use super::{CaptionedImage, CaptionedImages, Order, Problem};
use dalle2_core::{ConfigError, Error, Result};

/// Places over which the shares are exact.
const BLOCK: usize = 10_000;

/// An item of a [`Mixture`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MixtureItem {
    /// The number of the data set.
    pub set: usize,
    /// The item there.
    pub index: usize,
}

/// Data sets that are sampled by weight, as an endless sequence that depends on the seed alone.
///
/// Each block of 10,000 places holds every set's share, rounded, in random order. The items of a set come in its
/// [order](CaptionedImages::order), epoch after epoch, so a small set with a large weight repeats more often than a large
/// one. Every place is a function of the seed and its number, so there is no position to store.
pub struct Mixture {
    seed: u64,
    parts: Vec<Part>,
    /// For each place of a block, the set and how many places it had before in the block.
    blocks: Recent<u64, (u16, u16)>,
}

struct Part {
    set: Arc<dyn CaptionedImages>,
    order: Order,
    /// Places in a block.
    share: usize,
}

impl Mixture {
    /// Data sets and their weights, which need not sum up to 1.
    ///
    /// # Errors
    /// If there is no set, or a weight is not positive and finite, or below 1/10,000 of the sum.
    pub fn new(seed: u64, sets: Vec<(Arc<dyn CaptionedImages>, f64)>) -> Result<Self> {
        if sets.is_empty() || sets.len() > BLOCK {
            return Err(ConfigError::new("data", sets.len(), "1 to 10,000 data sets").into());
        }
        let weights: Vec<f64> = sets.iter().map(|(_, weight)| *weight).collect();
        let shares = shares(&weights)?;
        let mut parts = Vec::with_capacity(sets.len());
        for (number, ((set, _), share)) in sets.into_iter().zip(shares).enumerate() {
            let order = set.order(seed.wrapping_add(number as u64))?;
            parts.push(Part { set, order, share });
        }
        Ok(Self { seed, parts, blocks: Recent::new(EPOCHS) })
    }

    /// One data set.
    ///
    /// # Errors
    /// When its order cannot be made.
    pub fn of(seed: u64, set: Arc<dyn CaptionedImages>) -> Result<Self> {
        Self::new(seed, vec![(set, 1.0)])
    }

    /// The same data sets with the same shares, in the order of another seed.
    ///
    /// # Errors
    /// When an order cannot be made.
    pub fn with_seed(&self, seed: u64) -> Result<Self> {
        Self::new(seed, self.parts.iter().map(|part| (part.set.clone(), part.share as f64)).collect())
    }

    /// The seed of the sequence.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The data sets with their shares of the places, which sum up to 1.
    pub fn sets(&self) -> impl Iterator<Item = (&Arc<dyn CaptionedImages>, f64)> {
        self.parts.iter().map(|part| (&part.set, part.share as f64 / BLOCK as f64))
    }

    /// Number of items of all sets.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.set.len()).sum()
    }

    /// Never: a set without items is not opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The item with this number among all items, set after set.
    ///
    /// # Panics
    /// When `number` is not below [`Self::len`].
    pub fn nth(&self, number: usize) -> MixtureItem {
        let mut index = number;
        for (set, part) in self.parts.iter().enumerate() {
            match index.checked_sub(part.set.len()) {
                None => return MixtureItem { set, index },
                Some(rest) => index = rest,
            }
        }
        panic!("item {number} is out of range: the data sets have {} items", self.len());
    }

    /// The number of an item among all items, set after set: the inverse of [`Self::nth`].
    pub fn number(&self, item: MixtureItem) -> usize {
        self.parts[..item.set].iter().map(|part| part.set.len()).sum::<usize>() + item.index
    }

    /// The item at a place of the sequence.
    pub fn item_at(&self, place: u64) -> MixtureItem {
        let (block, at) = (place / BLOCK as u64, (place % BLOCK as u64) as usize);
        let (set, before) = if self.parts.len() == 1 { (0, at) } else { self.place(block, at) };
        let part = &self.parts[set];
        MixtureItem { set, index: part.order.item_at(block * part.share as u64 + before as u64) }
    }

    /// The items of a training step.
    pub fn batch(&self, step: u64, batch_size: usize) -> Vec<MixtureItem> {
        let start = step * batch_size as u64;
        (start..start + batch_size as u64).map(|place| self.item_at(place)).collect()
    }

    /// An item, or what stands in for it in its set.
    ///
    /// # Errors
    /// When nothing of the set can be read any more.
    pub fn get(&self, item: MixtureItem) -> Result<CaptionedImage> {
        let got = self.parts[item.set].set.get(item.index);
        got.map_err(|e| Error::Input(format!("item {} of data set {}: {e}", item.index, item.set + 1)))
    }

    /// Returns the name of an item, unique among all sets.
    pub fn key(&self, item: MixtureItem) -> String {
        format!("{}:{}", item.set, self.parts[item.set].set.key(item.index))
    }

    /// Returns the item after `item` in its data set, and the first one after the last.
    pub(super) fn next_in_set(&self, item: MixtureItem) -> MixtureItem {
        MixtureItem { index: (item.index + 1) % self.parts[item.set].set.len(), ..item }
    }

    /// Decodes an item; no other one replaces it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn exact(&self, item: MixtureItem) -> Result<CaptionedImage> {
        self.parts[item.set].set.exact(item.index)
    }

    /// Returns the caption of an item.
    ///
    /// # Errors
    /// If it can no longer be read.
    pub fn caption(&self, item: MixtureItem) -> Result<String> {
        self.parts[item.set].set.caption(item.index)
    }

    /// The items that were passed over so far, of all sets.
    pub fn problems(&self) -> Vec<Problem> {
        self.parts.iter().flat_map(|part| part.set.problems()).collect()
    }

    fn place(&self, block: u64, at: usize) -> (usize, usize) {
        let (set, before) = self.blocks.get(block, || self.block(block))[at];
        (set.into(), before.into())
    }

    fn block(&self, block: u64) -> Vec<(u16, u16)> {
        let mut sets: Vec<u16> =
            (0u16..).zip(&self.parts).flat_map(|(set, part)| std::iter::repeat_n(set, part.share)).collect();
        shuffle(&mut sets, &mut random(self.seed, 0x006d_6978, [block, 0]));
        let mut before = vec![0u16; self.parts.len()];
        let count = |set: u16| {
            let place = (set, before[usize::from(set)]);
            before[usize::from(set)] += 1;
            place
        };
        sets.into_iter().map(count).collect()
    }
}

impl fmt::Debug for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets: Vec<(usize, f64)> = self.sets().map(|(set, share)| (set.len(), share)).collect();
        f.debug_struct("Mixture").field("seed", &self.seed).field("sets", &sets).finish_non_exhaustive()
    }
}

/// Weights as whole shares of a block: rounded down, and what is missing goes to the largest remainders.
fn shares(weights: &[f64]) -> Result<Vec<usize>, ConfigError> {
    if let Some(wrong) = weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
        return Err(ConfigError::new("weight", wrong, "must be finite and above 0"));
    }
    let total: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / total * BLOCK as f64).collect();
    let mut shares: Vec<usize> = exact.iter().map(|share| *share as usize).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()));
    let missing = BLOCK.saturating_sub(shares.iter().sum());
    by_remainder.iter().cycle().take(missing).for_each(|set| shares[*set] += 1);
    match shares.iter().position(|share| *share == 0) {
        None => Ok(shares),
        Some(set) => {
            Err(ConfigError::new("weight", weights[set], "must be at least 1/10,000 of the sum of all weights"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::data::dataset::{Dataset, DatasetError};

    /// Numbered items with images of one pixel.
    struct Numbers(usize);

    impl Dataset<CaptionedImage> for Numbers {
        fn get(&self, index: usize) -> Result<CaptionedImage, DatasetError> {
            Ok(CaptionedImage { caption: index.to_string(), image: ::image::RgbImage::new(1, 1) })
        }

        fn len(&self) -> usize {
            self.0
        }
    }

    impl CaptionedImages for Numbers {
        fn caption(&self, index: usize) -> Result<String> {
            Ok(index.to_string())
        }

        fn problems(&self) -> Vec<Problem> {
            vec![]
        }

        fn exact(&self, index: usize) -> Result<CaptionedImage> {
            self.get(index).map_err(|e| Error::Input(e.to_string()))
        }
    }

    fn mixture(seed: u64, sets: &[(usize, f64)]) -> Result<Mixture> {
        let sets = sets.iter().map(|(len, weight)| (Arc::new(Numbers(*len)) as Arc<dyn CaptionedImages>, *weight));
        Mixture::new(seed, sets.collect())
    }

    #[test]
    fn shares_are_exact_in_every_block_and_close_in_every_stretch() {
        let mixture = mixture(5, &[(10, 7.0), (1000, 2.0), (3, 1.0)]).unwrap();
        assert_eq!(mixture.sets().map(|(_, share)| share).collect::<Vec<_>>(), [0.7, 0.2, 0.1]);
        for block in 0..2 {
            let mut counts = [0; 3];
            (0..10_000).for_each(|place| counts[mixture.item_at(block * 10_000 + place).set] += 1);
            assert_eq!(counts, [7000, 2000, 1000]);
        }
        // 1,000 places: the deviation of the binomial distribution is 14.5 for a share of 0.7.
        let stretch = (2300..3300).filter(|place| mixture.item_at(*place).set == 0).count();
        assert!((630..770).contains(&stretch), "{stretch}");
    }

    #[test]
    fn each_set_is_gone_through_in_epochs_of_its_own() {
        let mixture = mixture(5, &[(10, 0.3), (90, 0.7)]).unwrap();
        let items: Vec<MixtureItem> = (0..25_000).map(|place| mixture.item_at(place)).collect();
        for (set, len) in [(0, 10), (1, 90)] {
            let own: Vec<usize> = items.iter().filter(|item| item.set == set).map(|item| item.index).collect();
            for epoch in own.chunks_exact(len) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_place_alone_decides() {
        let sets = [(10, 0.3), (90, 0.7)];
        let walked = mixture(5, &sets).unwrap();
        let batches: Vec<_> = (0..3000).map(|step| walked.batch(step, 7)).collect();
        let jumped = mixture(5, &sets).unwrap();
        for step in [2999, 1428, 3] {
            assert_eq!(jumped.batch(step, 7), batches[step as usize]);
        }
        assert_ne!(mixture(6, &sets).unwrap().batch(0, 7), batches[0]);
        assert_eq!(mixture(6, &sets).unwrap().with_seed(5).unwrap().batch(1428, 7), batches[1428]);
        // One set alone has its own order.
        let alone = mixture(5, &[(10, 123.0)]).unwrap();
        let order = Order::new(5, 10).unwrap();
        assert!((0..30_000).all(|place| alone.item_at(place).index == order.item_at(place)));
    }

    #[test]
    fn numbers_and_items_are_one_to_one() {
        let mixture = mixture(0, &[(3, 1.0), (4, 1.0)]).unwrap();
        assert_eq!(mixture.nth(3), MixtureItem { set: 1, index: 0 });
        assert!((0..7).all(|number| mixture.number(mixture.nth(number)) == number));
        assert_eq!(mixture.caption(mixture.nth(6)).unwrap(), "3");
        assert_eq!(mixture.get(mixture.nth(6)).unwrap().caption, "3");
    }

    #[test]
    fn weights_that_cannot_work_are_named() {
        let message = |sets: &[(usize, f64)]| mixture(0, sets).unwrap_err().to_string();
        assert!(message(&[(1, 0.0)]).contains("above 0") && message(&[(1, f64::NAN)]).contains("above 0"));
        assert!(message(&[(1, 1.0), (1, 1e-9)]).contains("1/10,000"));
        assert!(message(&[]).contains("data sets"));
        assert_eq!(shares(&[1.0, 1.0, 1.0]).unwrap().iter().sum::<usize>(), BLOCK);
    }
}
