//! Options of the commands that edit images, images by file or by emoji name, and contact sheets.

use std::path::Path;

#[cfg(feature = "emoji")]
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use dalle2::base::image::{LabelledImage, Mask, RgbImage, contact_sheet, open, save_png_with};
use dalle2::{GenerateRequest, Pipeline, Source};

use crate::args::{MetadataArgs, ModelArgs, SamplingArgs};

/// Side of an image on a sheet, in pixels.
pub const CELL: u32 = 128;
/// Decoder steps of an edit, both for the inversion and for the sampling.
const STEPS: usize = 50;
/// Colour of the masked region on a sheet.
const MASKED: image::Rgb<u8> = image::Rgb([255, 0, 255]);

/// Options of every edit.
#[derive(Debug, Clone, Args)]
pub struct EditArgs {
    /// Caption that the decoder reads beside the embedding
    #[arg(long, default_value = "", help_heading = "Sampling")]
    pub caption: String,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Runs the upsamplers too; without it images have the decoder's size
    #[arg(long, help_heading = "Sampling")]
    pub upsample: bool,
    #[command(flatten)]
    pub metadata: MetadataArgs,
    #[command(flatten)]
    pub model: ModelArgs,
}

impl EditArgs {
    /// Loads the pipeline.
    pub fn pipeline(&self) -> Result<Pipeline> {
        self.model.load()
    }

    /// Steps of the decoder.
    pub fn steps(&self) -> usize {
        self.sampling.decoder_steps.unwrap_or(STEPS)
    }

    /// The seed of measurements, which must be repeatable: 0 if not given.
    #[cfg(feature = "emoji")]
    pub fn fixed_seed(&self) -> u64 {
        self.sampling.seed.unwrap_or(0)
    }

    /// The request of these arguments.
    pub fn request(&self, seed: u64) -> GenerateRequest {
        self.request_for(&self.caption, seed)
    }

    /// The same with another caption.
    pub fn request_for(&self, caption: &str, seed: u64) -> GenerateRequest {
        let request = GenerateRequest::new(caption).seed(seed).decoder_steps(STEPS);
        let request = self.sampling.apply(request);
        if self.upsample { request } else { request.max_upsamplers(0) }
    }

    /// Writes a sheet of labelled images.
    pub fn save_sheet(&self, rows: &[Vec<LabelledImage>], description: &str, seed: u64, file: &Path) -> Result<()> {
        let sheet = contact_sheet(rows, CELL);
        save_png_with(&sheet, file, self.metadata.provenance(description, seed, self.model.name()).as_ref())?;
        println!("seed {seed}");
        println!("{} ({} x {})", file.display(), sheet.width(), sheet.height());
        Ok(())
    }
}

/// The image with the masked region in a colour that few images contain.
pub fn show_mask(image: &RgbImage, mask: &Mask) -> RgbImage {
    let mut image = image.clone();
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        if mask.edits(x, y) {
            *pixel = MASKED;
        }
    }
    image
}

/// Reads an image file, or renders `emoji:NAME` of the data set.
pub fn image(spec: &str) -> Result<RgbImage> {
    #[cfg(feature = "emoji")]
    if let Some(name) = spec.strip_prefix("emoji:") {
        return emoji(name, CELL);
    }
    Ok(open(spec)?)
}

/// An emoji of the data set by its name, on white.
#[cfg(feature = "emoji")]
pub fn emoji(name: &str, size: u32) -> Result<RgbImage> {
    use dalle2_emoji::{Background, Position, catalogue, composite, render_svg};

    let all = catalogue();
    let emoji = all.iter().find(|emoji| emoji.name == name).with_context(|| format!("no emoji is named {name:?}"))?;
    Ok(composite(&render_svg(emoji.svg(), size)?, size, Background::WHITE, Position::Center))
}

/// Names of at most `num` emoji of the bundled model's training set, spread evenly.
#[cfg(feature = "emoji")]
pub fn some_names(num: usize) -> Result<Vec<String>> {
    use dalle2_emoji::{Split, Subset, catalogue};

    crate::outcome::check_usage!(num > 0, "--num-images 0: at least 1");
    let all = catalogue();
    let items = Subset::Small.select(&all, Split::Seen)?;
    let num = num.min(items.len());
    Ok((0..num).map(|i| all[items[i * items.len() / num]].name.clone()).collect())
}

/// An image if `spec` is a file or `emoji:NAME`, else a caption.
pub fn source(spec: &str) -> Result<Source> {
    if spec.starts_with("emoji:") || Path::new(spec).is_file() {
        Ok(Source::Image(image(spec)?))
    } else {
        Ok(Source::Caption(spec.to_owned()))
    }
}
