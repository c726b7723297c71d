//! Captioned images as Burn data sets, and the order in which training goes through them.
//!
//! | type | reads |
//! |---|---|
//! | [`ImageFiles`] | a folder of images with a text file beside each; an index in JSON lines, CSV or Parquet |
//! | [`ShardDataset`] | webdataset's tar files, plain or compressed |
//! | [`Mixture`] | several of these, by weight; [`DataSpec`] is their form on a command line |
//! | [`EmbeddingSet`] | what a frozen CLIP says of a data set, so that priors train without it |
//!
//! Items that cannot be used are reported, counted and passed over, never fatal: [`CaptionedImages::problems`] lists
//! them. [`Order`] and [`Mixture`] say which items belong to a training step, as pure functions of the seed and the
//! step, so that a resumed run sees what an uninterrupted one would have seen.

mod decoders;
mod embeddings;
mod files;
mod folder;
mod index;
mod items;
mod mixture;
mod order;
mod shards;
mod spec;

pub use decoders::Decoders;
pub use embeddings::{EmbeddedPairs, EmbeddingInfo, EmbeddingSet, EmbeddingWriter};
pub use files::ImageFiles;
pub use index::Columns;
pub use items::{CaptionedImage, CaptionedImages, Problem};
pub use mixture::{Mixture, MixtureItem};
pub use order::{Order, epoch_order};
pub use shards::{CaptionField, ShardDataset, ShardOptions, expand_shards};
pub use spec::DataSpec;
