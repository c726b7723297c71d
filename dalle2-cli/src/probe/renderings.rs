//! The renderings that the bundled model learned from, as a yardstick for a part of an image.

use anyhow::{Context, Result};
use dalle2::base::image::{Mask, RgbImage};
use dalle2_emoji::{EmojiStore, Split, Subset};

/// All of them at one size.
pub struct Renderings {
    names: Vec<String>,
    images: Vec<RgbImage>,
}

impl Renderings {
    /// Renders them at `size` pixels a side.
    pub fn new(size: usize) -> Result<Self> {
        let store = EmojiStore::in_memory(&[])?;
        let items = Subset::Small.select(store.catalogue(), Split::Seen)?;
        let names = items.iter().map(|&item| Ok(store.emoji(item)?.name.clone())).collect::<Result<_>>()?;
        let images = items.iter().map(|&item| Ok(store.image(item, size as u32)?)).collect::<Result<_>>()?;
        Ok(Self { names, images })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// All of them.
    pub fn images(&self) -> &[RgbImage] {
        &self.images
    }

    /// The rendering of this name.
    pub fn named(&self, name: &str) -> Result<&RgbImage> {
        let found = self.names.iter().position(|other| other == name);
        Ok(&self.images[found.with_context(|| format!("the model learned no emoji named {name:?}"))?])
    }

    /// How many renderings are nearer to `image` than that of `name` in what the mask edits, by squared differences: 0 when
    /// it is the nearest.
    pub fn rank(&self, image: &RgbImage, mask: &Mask, name: &str) -> Result<usize> {
        let own = distance(image, self.named(name)?, mask);
        Ok(self.images.iter().filter(|other| distance(image, other, mask) < own).count())
    }

    /// How many renderings look like that of `name` in what the mask edits, itself included.
    pub fn alike(&self, mask: &Mask, name: &str) -> Result<usize> {
        let own = self.named(name)?;
        Ok(self.images.iter().filter(|other| distance(own, other, mask) == 0).count())
    }
}

/// Sum of squared differences over what the mask edits.
fn distance(a: &RgbImage, b: &RgbImage, mask: &Mask) -> u64 {
    let squared =
        |a: &[u8; 3], b: &[u8; 3]| a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum::<u64>();
    a.enumerate_pixels()
        .filter(|(x, y, _)| mask.edits(*x, *y))
        .map(|(x, y, pixel)| squared(&pixel.0, &b.get_pixel(x, y).0))
        .sum()
}
