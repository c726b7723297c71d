//! The emoji data set that every example of `dalle2` shares.
//!
//! Twemoji has about 4,000 emoji as SVG, the `emojis` crate gives their English names, and `resvg` renders them at
//! any size, so the targets of every stage (64, 256, 1024 px) are true renderings and not resized ones.
//!
//! | item | description |
//! |---|---|
//! | [`catalogue`] | every emoji with a graphic, in a stable order, with its caption and its [`Split`] |
//! | [`Subset`] | which of them a training run uses: tiny, small (the bundled model) or all |
//! | [`EmojiStore`] | their renderings, in parallel, cached on disk |
//! | [`CaptionOptions`], [`Scene`] | wordings, backgrounds, positions and sizes: caption and image always agree |
//! | [`EmojiDataset`] | captioned images for training, a pure function of seed and step |
//! | [`NearestIndex`] | which rendering of the whole data set a generated image is closest to |
//!
//! The graphics are CC-BY 4.0, see `ATTRIBUTION.md` beside this crate.

mod cache;
mod caption;
mod catalogue;
mod dataset;
mod nearest;
mod people;
mod render;
mod scene;
mod store;
mod subset;
#[cfg(test)]
mod testing;
mod training;

pub use caption::{CaptionOptions, with_article};
pub use catalogue::{Emoji, Split, catalogue};
pub use dataset::{EmojiDataset, Sample};
pub use emojis::Group;
pub use nearest::{Match, NearestIndex, Ranking};
pub use people::{Gender, PeopleCell, TONES};
pub use render::{Sprite, render_svg};
pub use scene::{Background, Position, Scene, composite};
pub use store::EmojiStore;
pub use subset::Subset;
pub use training::{CACHE, EmojiData, open_training_data, pair_splits};
