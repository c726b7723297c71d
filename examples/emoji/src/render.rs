//! From SVG to pixels with premultiplied alpha.

use std::borrow::Cow;

use dalle2_core::{ConfigError, Error, Result};
use resvg::{tiny_skia, usvg};

/// The largest side that [`render_svg`] renders.
pub(crate) const MAX_SIZE: u32 = 4096;

/// A square image with transparency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sprite<'a> {
    size: u32,
    rgba: Cow<'a, [u8]>,
}

impl<'a> Sprite<'a> {
    /// Wraps `size × size` pixels of premultiplied RGBA, row by row.
    ///
    /// # Panics
    /// When `rgba` does not hold `size * size * 4` bytes.
    pub fn new(size: u32, rgba: impl Into<Cow<'a, [u8]>>) -> Self {
        let rgba = rgba.into();
        assert_eq!(rgba.len(), sprite_bytes(size), "a {size} px sprite has 4 bytes for each pixel");
        Self { size, rgba }
    }

    /// Side in pixels.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Premultiplied RGBA, row by row.
    pub fn rgba(&self) -> &[u8] {
        &self.rgba
    }
}

/// Bytes of one sprite.
pub(crate) fn sprite_bytes(size: u32) -> usize {
    size as usize * size as usize * 4
}

/// Refuses sizes that cannot be rendered.
pub(crate) fn check_size(size: u32) -> Result<()> {
    if (1..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    Err(ConfigError::new("size", size, format!("must be 1 to {MAX_SIZE} pixels")).into())
}

/// Renders `svg` centred in a square of `size` pixels, at its aspect ratio.
///
/// # Errors
/// When `size` is not in `1..=4096`, or `svg` is not an SVG.
pub fn render_svg(svg: &str, size: u32) -> Result<Sprite<'static>> {
    check_size(size)?;
    let tree = usvg::Tree::from_str(svg, &usvg::Options::default())
        .map_err(|e| Error::Input(format!("SVG `{}…`: {e}", svg.chars().take(40).collect::<String>())))?;
    let mut pixmap =
        tiny_skia::Pixmap::new(size, size).ok_or_else(|| Error::Input(format!("no pixmap of {size} px")))?;
    let (width, height) = (tree.size().width(), tree.size().height());
    let scale = size as f32 / width.max(height);
    let (left, top) = ((size as f32 - scale * width) / 2.0, (size as f32 - scale * height) / 2.0);
    let transform = tiny_skia::Transform::from_scale(scale, scale).post_translate(left, top);
    resvg::render(&tree, transform, &mut pixmap.as_mut());
    Ok(Sprite::new(size, pixmap.take()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36"><path fill="#ff0000" fill-opacity="0.5" d="M0 0h18v36H0z"/></svg>"##;

    #[test]
    fn alpha_is_premultiplied() {
        let sprite = render_svg(HALF, 4).unwrap();
        assert_eq!(&sprite.rgba()[..4], &[128, 0, 0, 128]);
        assert_eq!(&sprite.rgba()[8..12], &[0, 0, 0, 0]);
    }

    #[test]
    fn a_wide_picture_is_centred() {
        let wide = HALF.replace("0 0 36 36", "0 0 36 18").replace("h18v36H0", "h36v18H0");
        let sprite = render_svg(&wide, 4).unwrap();
        let alpha: Vec<u8> = sprite.rgba().chunks(16).map(|row| row[3]).collect();
        assert_eq!(alpha, [0, 128, 128, 0]);
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(render_svg(HALF, 0).unwrap_err().to_string().contains("1 to 4096"));
        assert!(render_svg(HALF, 5000).is_err());
        assert!(render_svg("no svg", 8).unwrap_err().to_string().contains("no svg"));
    }
}
