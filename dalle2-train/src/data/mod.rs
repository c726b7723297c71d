//! Captioned images as Burn data sets, and the order in which training visits them.
//!
//! | type | reads |
//! |---|---|
//! | [`ImageFiles`] | a folder of images with a text file beside each; an index in JSON lines, CSV or Parquet |
//! | [`ShardDataset`] | webdataset's tar files, plain or compressed |
//! | [`Mixture`] | several of these, by weight; [`DataSpec`] is their form on a command line |
//! | [`EmbeddingSet`] | the CLIP embeddings of a data set, so that priors train without CLIP |
//!
//! Items that cannot be used are reported, counted and skipped, never fatal: [`CaptionedImages::problems`] lists
//! them. [`Order`] and [`Mixture`] select the items of a training step as pure functions of the seed and the step, so
//! a resumed run sees the batches of an uninterrupted one.

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
mod split;

pub use decoders::Decoders;
pub use embeddings::{EmbeddedPairs, EmbeddingInfo, EmbeddingSet, EmbeddingWriter};
pub use files::ImageFiles;
pub use index::Columns;
pub use items::{CaptionedImage, CaptionedImages, Groups, Problem};
pub use mixture::{Mixture, MixtureItem};
pub use order::{Order, epoch_order};
pub use shards::{CaptionField, ShardDataset, ShardOptions, expand_shards};
pub use spec::DataSpec;
pub(crate) use split::hash;
pub use split::{DataSplit, SplitKey, caption_class, held_out_keys};
