//! The training renderings of the bundled model, as a reference for parts of images.

use anyhow::{Context, Result};
use dalle2::base::image::{Mask, RgbImage};
use dalle2_emoji::{EmojiStore, Split, Subset};

/// The renderings at one size.
pub struct Renderings {
    names: Vec<String>,
    images: Vec<RgbImage>,
}

impl Renderings {
    /// Renders all of them with sides of `size` pixels.
    pub fn new(size: usize) -> Result<Self> {
        let store = EmojiStore::in_memory(&[])?;
        let items = Subset::Small.select(store.catalogue(), Split::Seen)?;
        let names = items.iter().map(|&item| Ok(store.emoji(item)?.name.clone())).collect::<Result<_>>()?;
        let images = items.iter().map(|&item| Ok(store.image(item, size as u32)?)).collect::<Result<_>>()?;
        Ok(Self { names, images })
    }

    /// The number of renderings.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// The images.
    pub fn images(&self) -> &[RgbImage] {
        &self.images
    }

    /// The rendering of this name.
    pub fn named(&self, name: &str) -> Result<&RgbImage> {
        let position = self.names.iter().position(|other| other == name);
        Ok(&self.images[position.with_context(|| format!("no training emoji is named {name:?}"))?])
    }

    /// The rank of the rendering of `name` among all, by squared distance to `image` inside the mask; 0 is the nearest.
    pub fn rank(&self, image: &RgbImage, mask: &Mask, name: &str) -> Result<usize> {
        let own = distance(image, self.named(name)?, mask);
        Ok(self.images.iter().filter(|other| distance(image, other, mask) < own).count())
    }

    /// The number of renderings equal to the one of `name` inside the mask, itself included.
    pub fn equal_to(&self, mask: &Mask, name: &str) -> Result<usize> {
        let own = self.named(name)?;
        Ok(self.images.iter().filter(|other| distance(own, other, mask) == 0).count())
    }
}

/// Sum of squared differences inside the mask.
fn distance(a: &RgbImage, b: &RgbImage, mask: &Mask) -> u64 {
    let squared =
        |a: &[u8; 3], b: &[u8; 3]| a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum::<u64>();
    a.enumerate_pixels()
        .filter(|(x, y, _)| mask.edits(*x, *y))
        .map(|(x, y, pixel)| squared(&pixel.0, &b.get_pixel(x, y).0))
        .sum()
}
