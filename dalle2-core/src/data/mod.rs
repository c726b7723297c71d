//! Captioned images as Burn data sets, and the order in which training goes through them.
//!
//! [`FolderDataset`] reads a folder of images with a text file beside each; [`JsonLinesDataset`] reads an index with
//! one image and caption per line. Items that cannot be used are reported, counted and passed over, never fatal:
//! [`problems`](FolderDataset::problems) lists them. [`Order`] says which items belong to a training step, as a pure
//! function of the seed and the step, so that a resumed run sees what an uninterrupted one would have seen.
//! [`EmbeddingSet`] holds what a frozen CLIP says of a data set, so that priors train without it.

mod embeddings;
mod folder;
mod index;
mod items;
mod order;

pub use embeddings::{EmbeddedPairs, EmbeddingInfo, EmbeddingSet, EmbeddingWriter};
pub use folder::FolderDataset;
pub use index::JsonLinesDataset;
pub use items::{CaptionedImage, Problem};
pub use order::{Order, epoch_order};
