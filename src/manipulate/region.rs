//! The square of a photo that an inpainting reads, and pasting its result back.

use std::collections::VecDeque;

use dalle2_core::image::{Mask, RgbImage, fit_square};

/// A square of a photo, which may extend beyond its borders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    /// The top left corner in the photo.
    left: i64,
    top: i64,
    side: u32,
}

impl Region {
    /// The central square.
    pub(super) fn center(width: u32, height: u32) -> Self {
        let side = width.min(height);
        Self { left: i64::from((width - side) / 2), top: i64::from((height - side) / 2), side }
    }

    /// The largest square within the photo that contains all edited pixels, near their centre; if there is none, the
    /// smallest square that contains the photo.
    pub(super) fn around(mask: &Mask) -> Self {
        let [width, height] = mask.size();
        let side = width.min(height);
        let (mut low, mut high) = ([width, height], [0, 0]);
        for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).filter(|&(x, y)| mask.edits(x, y)) {
            low = [low[0].min(x), low[1].min(y)];
            high = [high[0].max(x + 1), high[1].max(y + 1)];
        }
        if high[0].saturating_sub(low[0]) > side || high[1].saturating_sub(low[1]) > side {
            let side = width.max(height);
            let offset = |length: u32| -i64::from((side - length) / 2);
            return Self { left: offset(width), top: offset(height), side };
        }
        let start = |low: u32, high: u32, length: u32| {
            let center = u32::midpoint(low, high.max(low));
            i64::from(center.saturating_sub(side / 2).min(length - side))
        };
        Self { left: start(low[0], high[0], width), top: start(low[1], high[1], height), side }
    }

    /// The photo's coordinates of a pixel, clamped to the photo.
    fn source(self, [x, y]: [u32; 2], [width, height]: [u32; 2]) -> [u32; 2] {
        let clamp = |at: u32, from: i64, length: u32| (i64::from(at) + from).clamp(0, i64::from(length) - 1) as u32;
        [clamp(x, self.left, width), clamp(y, self.top, height)]
    }

    /// Whether a pixel lies within the photo.
    fn covers(self, [x, y]: [u32; 2], [width, height]: [u32; 2]) -> bool {
        let within = |at: u32, from: i64, length: u32| (0..i64::from(length)).contains(&(i64::from(at) + from));
        within(x, self.left, width) && within(y, self.top, height)
    }

    /// The region of a photo; beyond its borders the pixels of its edge are repeated.
    pub(super) fn crop(self, photo: &RgbImage) -> RgbImage {
        let size = [photo.width(), photo.height()];
        RgbImage::from_fn(self.side, self.side, |x, y| {
            let [x, y] = self.source([x, y], size);
            *photo.get_pixel(x, y)
        })
    }

    /// The region of a mask; beyond its borders the edge is repeated.
    pub(super) fn crop_mask(self, mask: &Mask) -> Mask {
        let size = mask.size();
        Mask::edit_where(self.side, self.side, |x, y| {
            let [x, y] = self.source([x, y], size);
            mask.edits(x, y)
        })
    }

    /// Pastes a filled region into the photo: unedited pixels do not change, and the fill blends over one pixel of the model
    /// from the colour of the nearest unedited pixel.
    pub(super) fn paste(self, photo: &RgbImage, mask: &Mask, filled: &RgbImage) -> RgbImage {
        let edited = self.crop_mask(mask);
        let scale = f64::from(self.side) / f64::from(filled.width());
        let filled = fit_square(filled, self.side);
        let (surroundings, distances) = spread(&self.crop(photo), &edited);
        let mut result = photo.clone();
        for (x, y, pixel) in filled.enumerate_pixels() {
            if !edited.edits(x, y) || !self.covers([x, y], [photo.width(), photo.height()]) {
                continue;
            }
            let weight = (f64::from(distances[(y * self.side + x) as usize]) / (scale + 1.0)).min(1.0);
            let near = surroundings.get_pixel(x, y);
            let blend = |i: usize| weight * f64::from(pixel.0[i]) + (1.0 - weight) * f64::from(near.0[i]);
            let [source_x, source_y] = self.source([x, y], [photo.width(), photo.height()]);
            result.put_pixel(source_x, source_y, ::image::Rgb([0, 1, 2].map(|i| blend(i).round() as u8)));
        }
        result
    }
}

/// The image with the colour of the nearest unedited pixel in every edited one.
pub(super) fn without_hole(image: &RgbImage, mask: &Mask) -> RgbImage {
    spread(image, mask).0
}

/// Spreads the unedited colours into the edited pixels, and measures the distance of each pixel to the nearest unedited one in
/// steps along the axes; `u32::MAX` if all are edited.
fn spread(image: &RgbImage, mask: &Mask) -> (RgbImage, Vec<u32>) {
    let (w, h) = image.dimensions();
    let at = |x: u32, y: u32| y as usize * w as usize + x as usize;
    let mut filled = image.clone();
    let mut distances: Vec<u32> =
        image.enumerate_pixels().map(|(x, y, _)| if mask.edits(x, y) { u32::MAX } else { 0 }).collect();
    let mut front: VecDeque<(u32, u32)> =
        image.enumerate_pixels().map(|(x, y, _)| (x, y)).filter(|&(x, y)| distances[at(x, y)] == 0).collect();
    while let Some((x, y)) = front.pop_front() {
        let (colour, next) = (*filled.get_pixel(x, y), distances[at(x, y)] + 1);
        for (x, y) in [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)] {
            if x < w && y < h && distances[at(x, y)] == u32::MAX {
                distances[at(x, y)] = next;
                filled.put_pixel(x, y, colour);
                front.push_back((x, y));
            }
        }
    }
    (filled, distances)
}

#[cfg(test)]
mod tests {
    use dalle2_core::image::center_crop;

    use super::*;

    #[test]
    fn a_hole_takes_the_colour_of_the_nearest_unedited_pixel() {
        let image = RgbImage::from_fn(5, 1, |x, _| ::image::Rgb([x as u8 * 10; 3]));
        let mask = Mask::edit_where(5, 1, |x, _| (1..4).contains(&x));
        let filled: Vec<u8> = without_hole(&image, &mask).pixels().map(|pixel| pixel.0[0]).collect();
        assert_eq!(filled[..2], [0, 0]);
        assert_eq!(filled[3..], [40, 40]);
        let everything = Mask::edit_where(5, 1, |_, _| true);
        assert_eq!(without_hole(&image, &everything), image);
    }

    #[test]
    fn the_central_region_of_a_mask_is_that_of_its_image() {
        for (w, h) in [(5, 8), (9, 4), (3, 3)] {
            let marks = |x: u32, y: u32| (x * 7 + y * 3) % 4 == 1;
            let image = RgbImage::from_fn(w, h, |x, y| ::image::Rgb([if marks(x, y) { 255 } else { 0 }; 3]));
            let region = Region::center(w, h);
            assert_eq!(region.crop(&image), center_crop(&image));
            let mask = region.crop_mask(&Mask::edit_where(w, h, marks));
            for (x, y, pixel) in center_crop(&image).enumerate_pixels() {
                assert_eq!(mask.edits(x, y), pixel.0[0] == 255, "{w}×{h} at ({x}, {y})");
            }
        }
    }

    #[test]
    fn a_pasted_fill_changes_edited_pixels_only() {
        let photo = RgbImage::from_fn(40, 24, |x, y| ::image::Rgb([x as u8 * 6, y as u8 * 10, 77]));
        let fill = RgbImage::from_pixel(8, 8, ::image::Rgb([255, 0, 0]));
        let small = Mask::edit_where(40, 24, |x, y| (30..38).contains(&x) && (4..20).contains(&y));
        let wide = Mask::edit_where(40, 24, |x, y| (2..38).contains(&x) && y > 10);
        for (mask, [inner_x, inner_y]) in [(small, [34, 12]), (wide, [20, 17])] {
            let region = Region::around(&mask);
            let pasted = region.paste(&photo, &mask, &fill);
            for (x, y, pixel) in pasted.enumerate_pixels() {
                if !mask.edits(x, y) {
                    assert_eq!(pixel, photo.get_pixel(x, y), "({x}, {y}) is unedited");
                }
            }
            assert_eq!(pasted.get_pixel(inner_x, inner_y).0, [255, 0, 0], "inside, the fill alone");
        }
    }
}
