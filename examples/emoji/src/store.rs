//! The renderings of the catalogue at every size asked for.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use dalle2_core::{Error, Result};
use image::RgbImage;
use rayon::prelude::*;

use crate::render::{check_size, render_svg, sprite_bytes};
use crate::{Emoji, Scene, Sprite, cache, catalogue, composite};

/// Sizes up to this one are rendered at once for the whole catalogue and cached on disk: 64 px are 64 MB. Larger ones
/// (256 px would be 1 GB) are rendered on demand, about 2 ms each at 256 px.
const LARGEST_EAGER_SIZE: u32 = 128;

/// Bytes of cached renderings on demand; further ones are rendered each time.
const MEMORY: usize = 256 << 20;

/// The catalogue and its renderings. Share it between threads in an [`Arc`].
pub struct EmojiStore {
    catalogue: Vec<Emoji>,
    eager: BTreeMap<u32, Vec<u8>>,
    on_demand: RwLock<OnDemand>,
}

/// Renderings on demand, by item and size.
#[derive(Default)]
struct OnDemand {
    sprites: HashMap<(usize, u32), Arc<[u8]>>,
    bytes: usize,
}

impl EmojiStore {
    /// The whole catalogue at `sizes`, read from `directory` where an earlier run left it, else rendered and left there.
    ///
    /// A damaged or outdated cache file is reported (`tracing::warn`) and rebuilt; so is a directory that cannot be
    /// written, after which everything works from memory.
    ///
    /// # Errors
    /// When a size is not in `1..=4096`, or an SVG cannot be rendered.
    pub fn open(sizes: &[u32], directory: &Path) -> Result<Self> {
        Self::build(sizes, Some(directory))
    }

    /// As [`Self::open`] without files.
    ///
    /// # Errors
    /// When a size is not in `1..=4096`, or an SVG cannot be rendered.
    pub fn in_memory(sizes: &[u32]) -> Result<Self> {
        Self::build(sizes, None)
    }

    fn build(sizes: &[u32], directory: Option<&Path>) -> Result<Self> {
        let catalogue = catalogue();
        let mut eager = BTreeMap::new();
        for &size in sizes {
            check_size(size)?;
            if size <= LARGEST_EAGER_SIZE && !eager.contains_key(&size) {
                let pixels = match directory {
                    Some(directory) => cached(&catalogue, size, directory)?,
                    None => render_all(&catalogue, size)?,
                };
                eager.insert(size, pixels);
            }
        }
        Ok(Self { catalogue, eager, on_demand: RwLock::default() })
    }

    /// Every emoji; indices everywhere in this crate are positions in this list.
    pub fn catalogue(&self) -> &[Emoji] {
        &self.catalogue
    }

    /// The emoji at `index`.
    ///
    /// # Errors
    /// When `index` is past the end of the catalogue.
    pub fn emoji(&self, index: usize) -> Result<&Emoji> {
        let count = self.catalogue.len();
        self.catalogue.get(index).ok_or_else(|| Error::Input(format!("emoji {index} of a catalogue of {count}")))
    }

    /// Position of the emoji called `name`, exactly.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.catalogue.iter().position(|emoji| emoji.name == name)
    }

    /// Emoji `index` rendered at `size` pixels, with transparency, and handed to `with`.
    ///
    /// # Errors
    /// When `index` is past the end or `size` not in `1..=4096`.
    pub fn sprite<T>(&self, index: usize, size: u32, with: impl FnOnce(&Sprite) -> T) -> Result<T> {
        let emoji = self.emoji(index)?;
        if let Some(pixels) = self.eager.get(&size) {
            let bytes = sprite_bytes(size);
            return Ok(with(&Sprite::new(size, &pixels[index * bytes..][..bytes])));
        }
        let known = self.on_demand.read().unwrap_or_else(PoisonError::into_inner).sprites.get(&(index, size)).cloned();
        if let Some(rgba) = known {
            return Ok(with(&Sprite::new(size, rgba.as_ref())));
        }
        let sprite = render_svg(emoji.svg(), size)?;
        let mut on_demand = self.on_demand.write().unwrap_or_else(PoisonError::into_inner);
        if on_demand.bytes + sprite_bytes(size) <= MEMORY
            && on_demand.sprites.insert((index, size), sprite.rgba().into()).is_none()
        {
            on_demand.bytes += sprite_bytes(size);
        }
        drop(on_demand);
        Ok(with(&sprite))
    }

    /// Emoji `index` in `scene`, as an image of `size` pixels. The emoji is rendered at the very size it has in the
    /// scene, never resized.
    ///
    /// # Errors
    /// When `index` is past the end or `size` not in `1..=4096`.
    pub fn compose(&self, index: usize, size: u32, scene: &Scene) -> Result<RgbImage> {
        check_size(size)?;
        self.sprite(index, scene.sprite_size(size), |sprite| composite(sprite, size, scene.background, scene.position))
    }

    /// Emoji `index` filling a white image of `size` pixels.
    ///
    /// # Errors
    /// When `index` is past the end or `size` not in `1..=4096`.
    pub fn image(&self, index: usize, size: u32) -> Result<RgbImage> {
        self.compose(index, size, &Scene::PLAIN)
    }
}

fn cached(catalogue: &[Emoji], size: u32, directory: &Path) -> Result<Vec<u8>> {
    let path = cache::path(directory, size);
    let key = cache::Key::new(catalogue, size);
    match cache::read(&path, key) {
        Ok(Some(pixels)) => return Ok(pixels),
        Ok(None) => {}
        Err(e) => tracing::warn!("{e}; rendering it anew"),
    }
    let pixels = render_all(catalogue, size)?;
    if let Err(e) = cache::write(&path, key, &pixels) {
        tracing::warn!("the renderings are not cached: {e}");
    }
    Ok(pixels)
}

fn render_all(catalogue: &[Emoji], size: u32) -> Result<Vec<u8>> {
    let start = Instant::now();
    let mut pixels = vec![0; catalogue.len() * sprite_bytes(size)];
    pixels.par_chunks_exact_mut(sprite_bytes(size)).zip(catalogue).try_for_each(|(pixels, emoji)| -> Result<()> {
        let sprite = render_svg(emoji.svg(), size).map_err(|e| Error::Input(format!("`{}`: {e}", emoji.name)))?;
        pixels.copy_from_slice(sprite.rgba());
        Ok(())
    })?;
    tracing::info!("rendered {} emoji at {size} px in {:.1} s", catalogue.len(), start.elapsed().as_secs_f64());
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::store;

    #[test]
    fn the_red_apple_is_red_on_white() {
        let store = store();
        let apple = store.find("red apple").unwrap();
        for size in [32, 200] {
            let image = store.image(apple, size).unwrap();
            assert_eq!(image.dimensions(), (size, size));
            assert_eq!(image.get_pixel(0, 0).0, [255; 3]);
            let [r, g, b] = image.get_pixel(size / 2, size * 2 / 3).0;
            assert!(r > 180 && g < 80 && b < 90, "{r} {g} {b}");
        }
    }

    #[test]
    fn on_demand_and_eager_renderings_are_the_same() {
        let eager = store();
        let lazy = EmojiStore::in_memory(&[]).unwrap();
        for index in [0, 1000, 3943] {
            let expected = eager.image(index, 32).unwrap();
            assert_eq!(lazy.image(index, 32).unwrap(), expected);
            assert_eq!(lazy.image(index, 32).unwrap(), expected, "from memory");
        }
        assert_eq!(lazy.on_demand.read().unwrap().bytes, 3 * sprite_bytes(32));
    }

    #[test]
    fn bad_requests_are_refused() {
        assert!(store().image(3944, 32).unwrap_err().to_string().contains("emoji 3944 of a catalogue of 3944"));
        assert!(store().image(0, 0).is_err());
        assert!(EmojiStore::in_memory(&[0]).is_err());
    }

    #[test]
    fn the_cache_is_used_and_repaired() {
        let directory = tempfile::tempdir().unwrap();
        let path = cache::path(directory.path(), 4);
        let apple = |store: &EmojiStore| store.image(store.find("red apple").unwrap(), 4).unwrap();
        let rendered = EmojiStore::open(&[4], directory.path()).unwrap();
        let good = fs::read(&path).unwrap();

        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert_eq!(apple(&EmojiStore::open(&[4], directory.path()).unwrap()), apple(&rendered));
        assert_eq!(fs::read(&path).unwrap(), good, "the truncated file was replaced");

        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(apple(&EmojiStore::open(&[4], directory.path()).unwrap()), apple(&rendered));
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified, "a good file is left alone");
    }
}
