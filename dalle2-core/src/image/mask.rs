//! The edited pixels of an image, with the polarity in the names.

use ::image::{GrayImage, RgbaImage};
use burn::prelude::*;

use crate::{Error, Result};

/// Brightness from which a pixel of a grey mask counts as white.
const WHITE: u8 = 128;

/// The edited pixels of an image; all others are kept.
///
/// Programs disagree on whether white means "edit" or "keep", and a mask of the wrong polarity fails silently. Therefore
/// the names of constructors and accessors contain the polarity.
///
/// ```
/// use dalle2_core::image::Mask;
///
/// let hole = Mask::edit_where(4, 4, |x, y| x >= 2 && y >= 2);
/// assert_eq!(hole, Mask::keep_where(4, 4, |x, y| x < 2 || y < 2));
/// assert!(hole.edits(3, 3) && !hole.edits(0, 3));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    /// Row-major, true where the image is edited.
    edit: Vec<bool>,
}

impl Mask {
    /// White is edited, black is kept.
    pub fn edit(white: &GrayImage) -> Self {
        Self::edit_where(white.width(), white.height(), |x, y| white.get_pixel(x, y).0[0] >= WHITE)
    }

    /// White is kept, black is edited.
    pub fn keep(white: &GrayImage) -> Self {
        Self::edit(white).inverted()
    }

    /// Pixels that are less than half opaque are edited.
    pub fn edit_transparent(image: &RgbaImage) -> Self {
        Self::edit_where(image.width(), image.height(), |x, y| image.get_pixel(x, y).0[3] < WHITE)
    }

    /// The pixels (x, y) for which the function is true are edited.
    pub fn edit_where(width: u32, height: u32, edit: impl Fn(u32, u32) -> bool) -> Self {
        let edit = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| edit(x, y)).collect();
        Self { width, height, edit }
    }

    /// Edits a rectangle with the corner `[x, y]` and the size `[width, height]` of an image of `size`.
    pub fn edit_rect(size: [u32; 2], [left, top]: [u32; 2], [width, height]: [u32; 2]) -> Self {
        let within = |at: u32, from: u32, length: u32| at.checked_sub(from).is_some_and(|offset| offset < length);
        Self::edit_where(size[0], size[1], |x, y| within(x, left, width) && within(y, top, height))
    }

    /// The pixels (x, y) for which the function is true are kept.
    pub fn keep_where(width: u32, height: u32, keep: impl Fn(u32, u32) -> bool) -> Self {
        Self::edit_where(width, height, |x, y| !keep(x, y))
    }

    /// Swaps edited and kept pixels.
    pub fn inverted(mut self) -> Self {
        self.edit.iter_mut().for_each(|edit| *edit = !*edit);
        self
    }

    /// `[width, height]` in pixels.
    pub fn size(&self) -> [u32; 2] {
        [self.width, self.height]
    }

    /// Whether pixel (x, y) is edited.
    ///
    /// # Panics
    /// When the pixel lies outside the mask.
    pub fn edits(&self, x: u32, y: u32) -> bool {
        assert!(x < self.width && y < self.height, "({x}, {y}) lies outside a {} × {} mask", self.width, self.height);
        self.edit[y as usize * self.width as usize + x as usize]
    }

    /// Share of the pixels that are edited, from 0 to 1; 0 for an empty mask.
    pub fn edited_share(&self) -> f64 {
        let edited = self.edit.iter().filter(|edit| **edit).count();
        edited as f64 / self.edit.len().max(1) as f64
    }

    /// The mask at another size. A pixel is edited if any pixel that it covers was.
    ///
    /// # Errors
    /// [`Error::Input`] if a side of this mask or of the result is empty.
    pub fn resized(&self, [width, height]: [u32; 2]) -> Result<Self> {
        if width == 0 || height == 0 || self.edit.is_empty() {
            return Err(Error::Input(format!(
                "a {} × {} mask cannot become {width} × {height}: sides must not be empty",
                self.width, self.height
            )));
        }
        let columns = covered(self.width, width);
        let rows = covered(self.height, height);
        Ok(Self::edit_where(width, height, |x, y| {
            let (columns, rows) = (columns(x), rows(y));
            rows.into_iter().any(|y| self.edit[y * self.width as usize..][columns.clone()].contains(&true))
        }))
    }

    /// Checks that the mask has the size of an image.
    ///
    /// # Errors
    /// [`Error::MaskSize`].
    pub fn check_size(&self, size: [u32; 2]) -> Result<()> {
        if self.size() != size {
            return Err(Error::MaskSize { mask: self.size(), image: size });
        }
        Ok(())
    }

    /// 1 where the image is edited, 0 where it is kept.
    ///
    /// # Shapes
    /// `[1, 1, H, W]`
    pub fn edit_tensor(&self, device: &Device) -> Tensor<4> {
        let values: Vec<f32> = self.edit.iter().map(|edit| f32::from(u8::from(*edit))).collect();
        Tensor::from_data(TensorData::new(values, [1, 1, self.height as usize, self.width as usize]), device)
    }

    /// 1 where the image is kept, 0 where it is edited.
    ///
    /// # Shapes
    /// `[1, 1, H, W]`
    pub fn keep_tensor(&self, device: &Device) -> Tensor<4> {
        self.edit_tensor(device).neg() + 1.0
    }

    /// White where the image is edited, black where it is kept.
    pub fn to_image(&self) -> GrayImage {
        GrayImage::from_fn(self.width, self.height, |x, y| ::image::Luma([if self.edits(x, y) { 255 } else { 0 }]))
    }
}

/// The source positions that overlap position i of `n_out` spread over `n_in`.
fn covered(n_in: u32, n_out: u32) -> impl Fn(u32) -> std::ops::Range<usize> {
    let (n_in, n_out) = (n_in as usize, n_out as usize);
    move |i| i as usize * n_in / n_out..((i as usize + 1) * n_in).div_ceil(n_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(values: [u8; 6]) -> GrayImage {
        GrayImage::from_raw(3, 2, values.to_vec()).unwrap()
    }

    fn edited(mask: &Mask) -> Vec<bool> {
        let [w, h] = mask.size();
        (0..w * h).map(|i| mask.edits(i % w, i / w)).collect()
    }

    #[test]
    fn every_constructor_says_what_it_marks() {
        let white = grey([0, 127, 128, 255, 0, 0]);
        let marked = [false, false, true, true, false, false];
        assert_eq!(edited(&Mask::edit(&white)), marked);
        assert_eq!(edited(&Mask::keep(&white)), marked.map(|edit| !edit));
        let rgba = RgbaImage::from_fn(3, 2, |x, y| {
            let alpha = if marked[(y * 3 + x) as usize] { 100 } else { 255 };
            ::image::Rgba([9, 9, 9, alpha])
        });
        assert_eq!(Mask::edit_transparent(&rgba), Mask::edit(&white));
        assert_eq!(Mask::edit(&Mask::edit(&white).to_image()), Mask::edit(&white));
        assert!((Mask::edit(&white).edited_share() - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn tensors_have_the_polarity_of_their_name() {
        let device = Device::flex();
        let mask = Mask::edit(&grey([255, 0, 0, 0, 0, 255]));
        assert_eq!(mask.edit_tensor(&device).dims(), [1, 1, 2, 3]);
        let values = |tensor: Tensor<4>| tensor.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(values(mask.edit_tensor(&device)), [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(values(mask.keep_tensor(&device)), [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn a_smaller_mask_edits_all_that_was_touched_and_a_larger_one_repeats() {
        let mask = Mask::edit_where(8, 8, |x, y| (x, y) == (5, 2));
        let small = mask.resized([4, 2]).unwrap();
        assert_eq!(edited(&small), [false, false, true, false, false, false, false, false]);
        let odd = mask.resized([3, 3]).unwrap();
        // Column 5 and row 2 are cut by the borders between thirds, at 5.33 and 2.67, so both sides are edited.
        assert_eq!(edited(&odd), [false, true, true, false, true, true, false, false, false]);
        let large = mask.resized([16, 16]).unwrap();
        assert_eq!(large, Mask::edit_where(16, 16, |x, y| (x / 2, y / 2) == (5, 2)));
        assert_eq!(mask.resized([8, 8]).unwrap(), mask);
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let mask = Mask::keep_where(4, 3, |_, _| true);
        assert_eq!(mask.edited_share(), 0.0);
        assert!(mask.check_size([4, 3]).is_ok());
        let message = mask.check_size([3, 4]).unwrap_err().to_string();
        assert!(message.contains("4 × 3") && message.contains("3 × 4"), "{message}");
        assert!(mask.resized([0, 3]).is_err());
        assert!(Mask::edit_where(0, 0, |_, _| true).resized([2, 2]).is_err());
    }
}
