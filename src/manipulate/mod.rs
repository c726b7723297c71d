//! What can be done with an image's two halves: its CLIP embedding z_i, and the noise x_T from which the decoder draws it
//! under that embedding (DALL·E 2, sections 3 and 4).

mod canvas;
mod controls;
mod inpaint;
mod interpolate;
mod inversion;
mod mix;
mod noise;
mod pca;
mod source;
mod text_diff;
mod variations;

pub use canvas::{Borders, Canvas};
pub use controls::Controls;
pub use inpaint::Inpaint;
pub(crate) use inpaint::Kept;
pub use interpolate::{Interpolate, NoisePath};
pub use inversion::{Inversion, InvertOptions};
pub use pca::PcaReconstructions;
pub use source::Source;
pub use text_diff::TextDiff;
pub use variations::{StartNoise, Variations};
