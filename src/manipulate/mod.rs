//! Operations on images: variations, interpolation, text differences, mixing, inpainting, and reconstructions from
//! principal components (DALL·E 2, sections 3 and 4). Most of them work on the pair of an image's CLIP embedding z_i and
//! the noise x_T from which the decoder reproduces the image under that embedding.

mod canvas;
mod inpaint;
mod interpolate;
mod inversion;
mod mix;
mod noise;
mod operation;
mod pca;
mod region;
mod source;
mod text_diff;
mod variations;

pub use canvas::{Borders, Canvas};
pub(crate) use inpaint::KeepImage;
pub use inpaint::{Inpaint, Outpaint};
pub use interpolate::{Interpolate, NoisePath};
pub use inversion::{Inversion, Invert};
pub use mix::Mix;
pub(crate) use noise::StartFrom;
pub use operation::{Generate, Operation};
pub use pca::PcaReconstructions;
pub use source::Source;
pub use text_diff::TextDiff;
pub use variations::{StartNoise, Vary};
