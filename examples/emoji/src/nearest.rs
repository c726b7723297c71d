//! Which rendering of the data set an image is closest to: the yardstick of `evaluate`.

use std::collections::HashMap;

use dalle2_core::{Error, Result};
use image::RgbImage;
use rayon::prelude::*;

use crate::EmojiStore;

/// Images are compared at this side, in pixels.
const SIDE: u32 = 32;
const VALUES: usize = (SIDE * SIDE * 3) as usize;
/// Renderings are made at this side and averaged down.
const RENDERED: u32 = 64;

/// All renderings of a store at 32 × 32 px on white, ready for comparison.
///
/// Emoji with the very same pixels ("flag of Norway", "flag of Svalbard & Jan Mayen") are one group: finding either
/// counts as finding both.
pub struct NearestIndex {
    /// One thumbnail for each group, row by row.
    thumbnails: Vec<u8>,
    groups: Vec<Vec<usize>>,
    group_of: Vec<usize>,
}

/// One group of a ranking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    /// Position of the group in [`NearestIndex::groups`].
    pub group: usize,
    /// The group's first emoji.
    pub emoji_index: usize,
    /// Mean squared difference of the channels in [0, 1], at 32 × 32 px.
    pub distance: f64,
}

/// All groups of the data set, the nearest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking(Vec<Match>);

impl NearestIndex {
    /// Takes the renderings from `store`, quickest when it holds 64 px.
    ///
    /// # Errors
    /// When a rendering fails.
    pub fn new(store: &EmojiStore) -> Result<Self> {
        let images: Vec<RgbImage> =
            (0..store.catalogue().len()).into_par_iter().map(|i| store.image(i, RENDERED)).collect::<Result<_>>()?;
        let mut known: HashMap<&[u8], usize> = HashMap::new();
        let mut index = Self { thumbnails: Vec::new(), groups: Vec::new(), group_of: Vec::new() };
        for (item, image) in images.iter().enumerate() {
            let group = *known.entry(image.as_raw()).or_insert(index.groups.len());
            if group == index.groups.len() {
                index.groups.push(Vec::new());
                index.thumbnails.extend(thumbnail(image)?);
            }
            index.groups[group].push(item);
            index.group_of.push(group);
        }
        Ok(index)
    }

    /// Emoji that look exactly the same, by group.
    pub fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }

    /// The group of an emoji.
    ///
    /// # Panics
    /// When `emoji_index` is past the end of the catalogue.
    pub fn group_of(&self, emoji_index: usize) -> usize {
        self.group_of[emoji_index]
    }

    /// Ranks every group by its distance to `image`.
    ///
    /// # Errors
    /// When the image is not square with a side that is a multiple of 32.
    pub fn rank(&self, image: &RgbImage) -> Result<Ranking> {
        let query = thumbnail(image)?;
        let mut matches: Vec<Match> = self
            .thumbnails
            .chunks_exact(VALUES)
            .zip(&self.groups)
            .enumerate()
            .map(|(group, (other, items))| Match { group, emoji_index: items[0], distance: distance(&query, other) })
            .collect();
        matches.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        Ok(Ranking(matches))
    }

    /// [`Self::rank`] for many images in parallel.
    ///
    /// # Errors
    /// When an image is not square with a side that is a multiple of 32.
    pub fn rank_all(&self, images: &[RgbImage]) -> Result<Vec<Ranking>> {
        images.par_iter().map(|image| self.rank(image)).collect()
    }

    /// Pairs of `items` closer than `threshold`, each as (earlier, later, distance). A later item that is in a pair
    /// can be dropped from a list that should hold one of each kind.
    ///
    /// # Panics
    /// When an item is past the end of the catalogue.
    pub fn near_duplicates(&self, items: &[usize], threshold: f64) -> Vec<(usize, usize, f64)> {
        let of = |item: usize| &self.thumbnails[self.group_of[item] * VALUES..][..VALUES];
        let later = |position: usize| {
            let item = items[position];
            items[position + 1..].iter().map(move |&other| (item, other, distance(of(item), of(other))))
        };
        (0..items.len()).into_par_iter().flat_map_iter(later).filter(|(_, _, d)| *d < threshold).collect()
    }
}

impl Ranking {
    /// The nearest `k` groups.
    pub fn top(&self, k: usize) -> &[Match] {
        &self.0[..k.min(self.0.len())]
    }

    /// Number of groups nearer than the group of `emoji_index`: 0 if it is the nearest.
    ///
    /// # Panics
    /// When `emoji_index` is past the end of the catalogue.
    pub fn rank_of(&self, index: &NearestIndex, emoji_index: usize) -> usize {
        let group = index.group_of(emoji_index);
        self.0.iter().position(|found| found.group == group).unwrap_or(self.0.len())
    }
}

/// Averages boxes of pixels down to 32 × 32.
fn thumbnail(image: &RgbImage) -> Result<Vec<u8>> {
    let (width, height) = image.dimensions();
    if width != height || width == 0 || !width.is_multiple_of(SIDE) {
        return Err(Error::Input(format!(
            "an image of {width} × {height} px cannot be compared: it has to be square, its side a multiple of {SIDE}"
        )));
    }
    let factor = width / SIDE;
    let mut sums = vec![0u32; VALUES];
    for (y, row) in image.as_raw().chunks_exact(width as usize * 3).enumerate() {
        let first = y / factor as usize * SIDE as usize;
        for (x, pixel) in row.chunks_exact(3).enumerate() {
            let cell = (first + x / factor as usize) * 3;
            sums[cell..cell + 3].iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(*value));
        }
    }
    let area = factor * factor;
    Ok(sums.into_iter().map(|sum| ((sum + area / 2) / area) as u8).collect())
}

/// Exact in integers (at most 3072·255² < 2³¹), in a form that compilers turn into vector instructions.
fn distance(a: &[u8], b: &[u8]) -> f64 {
    let square = |(a, b): (&u8, &u8)| {
        let difference = i32::from(a.abs_diff(*b));
        difference.wrapping_mul(difference)
    };
    let sum = a.iter().zip(b).map(square).fold(0, i32::wrapping_add);
    f64::from(sum) / (VALUES as f64 * 255.0 * 255.0)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use image::Rgb;

    use super::*;
    use crate::testing::store;

    static INDEX: LazyLock<NearestIndex> = LazyLock::new(|| NearestIndex::new(&store()).unwrap());

    #[test]
    fn an_emoji_is_nearest_to_itself_at_any_size() {
        let store = store();
        for name in ["red apple", "man firefighter: dark skin tone", "flag of Norway"] {
            let item = store.find(name).unwrap();
            for size in [64, 128] {
                let ranking = INDEX.rank(&store.image(item, size).unwrap()).unwrap();
                assert_eq!(ranking.rank_of(&INDEX, item), 0, "{name} at {size}");
                assert!(ranking.top(1)[0].distance < if size == 64 { 1e-12 } else { 1e-3 });
            }
        }
    }

    #[test]
    fn emoji_with_the_same_pixels_are_one_group() {
        let store = store();
        let [norway, svalbard, sweden] =
            ["flag of Norway", "flag of Svalbard & Jan Mayen", "flag of Sweden"].map(|name| store.find(name).unwrap());
        assert_eq!(INDEX.group_of(norway), INDEX.group_of(svalbard));
        assert_ne!(INDEX.group_of(norway), INDEX.group_of(sweden));
        let ranking = INDEX.rank(&store.image(svalbard, 64).unwrap()).unwrap();
        assert_eq!((ranking.rank_of(&INDEX, norway), ranking.rank_of(&INDEX, svalbard)), (0, 0));
        assert_eq!(INDEX.groups().iter().map(Vec::len).sum::<usize>(), store.catalogue().len());
    }

    #[test]
    fn distances_are_mean_squares() {
        let store = store();
        let apple = store.find("red apple").unwrap();
        let ranking = INDEX.rank(&RgbImage::from_pixel(32, 32, Rgb([255; 3]))).unwrap();
        let matched = ranking.0.iter().find(|candidate| candidate.emoji_index == apple).unwrap();
        let small: Vec<f64> =
            thumbnail(&store.image(apple, 64).unwrap()).unwrap().iter().map(|v| f64::from(*v) / 255.0).collect();
        let expected = small.iter().map(|v| (v - 1.0).powi(2)).sum::<f64>() / small.len() as f64;
        assert!((matched.distance - expected).abs() < 1e-9);
        assert!(ranking.0.is_sorted_by(|a, b| a.distance <= b.distance));
    }

    #[test]
    fn boxes_are_averaged() {
        let image =
            RgbImage::from_fn(64, 64, |x, y| Rgb([if (x + y) % 2 == 0 { 200 } else { 100 }, x as u8 / 2, y as u8 / 2]));
        let small = thumbnail(&image).unwrap();
        assert_eq!(&small[..3], &[150, 0, 0]);
        assert_eq!(&small[(5 * 32 + 7) * 3..][..3], &[150, 7, 5]);
    }

    #[test]
    fn other_shapes_are_refused() {
        for (width, height) in [(32, 64), (0, 0), (40, 40)] {
            let error = INDEX.rank(&RgbImage::new(width, height)).unwrap_err().to_string();
            assert!(error.contains("multiple of 32"), "{error}");
        }
    }

    #[test]
    fn near_duplicates_are_found_in_pairs() {
        let store = store();
        let items = ["full moon", "red apple", "twelve o'clock", "one o'clock"].map(|name| store.find(name).unwrap());
        let pairs = INDEX.near_duplicates(&items, 0.01);
        assert_eq!(pairs.len(), 1);
        assert_eq!((pairs[0].0, pairs[0].1), (items[2], items[3]));
    }
}
