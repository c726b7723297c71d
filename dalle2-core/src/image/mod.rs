//! Pixels at the border and inside.
//!
//! At the border an image is an [`RgbImage`]; inside it is a row of a `Tensor<4>` `[B, 3, H, W]` with values in [−1,
//! 1]. Resizing and blurring are products with one small matrix per axis, so they run on every backend and under
//! autodiff.

mod axis;
mod convert;
mod files;
#[cfg(feature = "labels")]
mod label;
#[cfg(not(feature = "labels"))]
#[path = "no_label.rs"]
mod label;
mod mask;
mod provenance;
mod sheet;

pub use ::image::{GrayImage, RgbImage, RgbaImage};
pub use axis::{gaussian_blur, resize_area, resize_bicubic};
pub use convert::{center_crop, fit_square, from_tensor, to_tensor};
pub use files::MAX_FILE;
pub use files::{decode, encode_png, open, save_png};
pub use mask::Mask;
pub use provenance::{Provenance, save_png_with};
pub use sheet::{LabelledImage, contact_sheet};
