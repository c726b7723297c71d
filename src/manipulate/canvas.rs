//! An image on a larger canvas.

use dalle2_core::image::{Mask, RgbImage};
use dalle2_core::{Error, Result};

use crate::plan::check_image;

/// Longest side of a canvas, in pixels.
const MAX_SIDE: u32 = 16_384;

/// Pixels that are added around an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Borders {
    /// To the left.
    pub left: u32,
    /// Above.
    pub top: u32,
    /// To the right.
    pub right: u32,
    /// Below.
    pub bottom: u32,
}

impl Borders {
    /// As many on every side.
    pub fn all(pixels: u32) -> Self {
        Self { left: pixels, top: pixels, right: pixels, bottom: pixels }
    }

    /// The fewest that make an image of this size square, with the image in the middle.
    pub fn to_square(width: u32, height: u32) -> Self {
        let side = width.max(height);
        let (across, down) = (side - width, side - height);
        Self { left: across / 2, right: across - across / 2, top: down / 2, bottom: down - down / 2 }
    }
}

/// An image on a larger canvas, whose empty part is edited: outpainting as a case of inpainting.
///
/// ```
/// use dalle2::{Borders, Canvas, RgbImage};
///
/// let canvas = Canvas::extended(&RgbImage::new(64, 64), Borders::all(32))?;
/// assert_eq!(canvas.image.dimensions(), (128, 128));
/// assert!(canvas.mask.edits(0, 0) && !canvas.mask.edits(64, 64));
/// # Ok::<(), dalle2::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    /// The image in its place. Around it, the pixels of its edge are repeated.
    pub image: RgbImage,
    /// Edits what the image does not cover.
    pub mask: Mask,
}

impl Canvas {
    /// The image with borders around it.
    ///
    /// # Errors
    /// When the image is empty or the canvas has more than 16,384 pixels a side.
    pub fn extended(image: &RgbImage, borders: Borders) -> Result<Self> {
        let sum = |values: [u32; 3]| values.into_iter().try_fold(0, u32::checked_add).unwrap_or(u32::MAX);
        let width = sum([borders.left, image.width(), borders.right]);
        let height = sum([borders.top, image.height(), borders.bottom]);
        Self::placed(image, [width, height], [borders.left, borders.top])
    }

    /// The image on a canvas of `[width, height]` pixels, its top left corner at `[x, y]`.
    ///
    /// # Errors
    /// When the image is empty or does not lie on the canvas whole, or the canvas has more than 16,384 pixels a side.
    pub fn placed(image: &RgbImage, [width, height]: [u32; 2], [x, y]: [u32; 2]) -> Result<Self> {
        check_image(image)?;
        let (w, h) = image.dimensions();
        if width.max(height) > MAX_SIDE {
            let message = format!("a canvas of {width}×{height} pixels: it may have {MAX_SIDE} a side");
            return Err(Error::Input(message));
        }
        let (Some(free_x), Some(free_y)) = (width.checked_sub(w), height.checked_sub(h)) else {
            return Err(Error::Input(format!("an image of {w}×{h} pixels does not fit a canvas of {width}×{height}")));
        };
        if x > free_x || y > free_y {
            return Err(Error::Input(format!(
                "an image of {w}×{h} pixels at ({x}, {y}) does not lie on a canvas of {width}×{height} whole: its corner \
                 may lie at ({free_x}, {free_y}) at most"
            )));
        }
        let canvas = RgbImage::from_fn(width, height, |i, j| {
            *image.get_pixel(i.saturating_sub(x).min(w - 1), j.saturating_sub(y).min(h - 1))
        });
        let covered = |at: u32, from: u32, side: u32| (from..from + side).contains(&at);
        let mask = Mask::keep_where(width, height, |i, j| covered(i, x, w) && covered(j, y, h));
        Ok(Self { image: canvas, mask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> RgbImage {
        RgbImage::from_fn(2, 3, |x, y| ::image::Rgb([x as u8, y as u8, 9]))
    }

    #[test]
    fn the_image_lies_in_its_place_and_its_edge_goes_on_around_it() {
        let canvas = Canvas::extended(&image(), Borders { left: 2, top: 1, right: 1, bottom: 1 }).unwrap();
        assert_eq!(canvas.image.dimensions(), (5, 5));
        assert_eq!(canvas.mask.size(), [5, 5]);
        for (x, y, pixel) in canvas.image.enumerate_pixels() {
            let inside = (2..4).contains(&x) && (1..4).contains(&y);
            assert_eq!(canvas.mask.edits(x, y), !inside, "({x}, {y})");
            let nearest = image().get_pixel(x.clamp(2, 3) - 2, y.clamp(1, 3) - 1).0;
            assert_eq!(pixel.0, nearest, "({x}, {y})");
        }
        let alone = Canvas::extended(&image(), Borders::default()).unwrap();
        assert_eq!((alone.image, alone.mask.edited_share()), (image(), 0.0));
    }

    #[test]
    fn borders_make_any_image_square() {
        for (w, h) in [(2, 3), (7, 2), (4, 4), (1, 1)] {
            let borders = Borders::to_square(w, h);
            let canvas = Canvas::extended(&RgbImage::new(w, h), borders).unwrap();
            assert_eq!(canvas.image.dimensions(), (w.max(h), w.max(h)));
            assert!(borders.left.abs_diff(borders.right) <= 1 && borders.top.abs_diff(borders.bottom) <= 1);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let message = |size, at| Canvas::placed(&image(), size, at).unwrap_err().to_string();
        assert!(message([1, 9], [0, 0]).contains("1×9"));
        assert!(message([4, 4], [3, 0]).contains("(2, 1)"));
        assert!(message([20_000, 4], [0, 0]).contains("16384"));
        assert!(Canvas::placed(&RgbImage::new(0, 2), [4, 4], [0, 0]).unwrap_err().to_string().contains("0×2"));
        assert!(Canvas::extended(&image(), Borders::all(u32::MAX)).is_err());
    }
}
