//! What the examples that manipulate images share: their command line, images by file or by name, and sheets.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use dalle2::base::image::{LabelledImage, Mask, Provenance, RgbImage, contact_sheet, open, save_png_with};
use dalle2::{Controls, GenerateRequest, Pipeline, Source};
use dalle2_emoji::{Background, Position, Split, Subset, catalogue, composite, render_svg};
use indicatif::{ProgressBar, ProgressStyle};

/// Side of a picture on a sheet, in pixels.
pub const CELL: u32 = 128;
/// Colour of what is to be drawn, on a sheet.
const HOLE: image::Rgb<u8> = image::Rgb([255, 0, 255]);

/// Arguments that all of them take.
#[derive(Debug, Clone, Args)]
pub struct EditArgs {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    pub model: PathBuf,
    /// Steps of the decoder, on the way to the noise and back
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub steps: usize,
    /// Guidance scale of the decoder; images reconstruct best without, which is the default
    #[arg(long, value_name = "G")]
    pub guidance: Option<f64>,
    /// Caption that the decoder reads beside the embedding
    #[arg(long, default_value = "")]
    pub caption: String,
    /// Seed of all that is random
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Enlarges the images too; without it they are the decoder's
    #[arg(long)]
    pub upsample: bool,
    /// Writes no caption, seed, model and version into the PNG
    #[arg(long)]
    pub no_metadata: bool,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    pub device: String,
}

impl EditArgs {
    /// Loads the pipeline.
    pub fn pipeline(&self) -> Result<Pipeline> {
        Ok(Pipeline::from_pretrained(&self.model, &dalle2::device(&self.device)?)?)
    }

    /// The request that these arguments ask for.
    pub fn request(&self) -> GenerateRequest {
        self.request_for(&self.caption)
    }

    /// The same with another caption.
    pub fn request_for(&self, caption: &str) -> GenerateRequest {
        let mut request = GenerateRequest::new(caption).seed(self.seed).decoder_steps(self.steps);
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        if !self.upsample {
            request = request.max_upsamplers(0);
        }
        request
    }

    /// Writes a sheet of labelled images.
    pub fn save_sheet(&self, rows: &[Vec<LabelledImage>], description: &str, file: &Path) -> Result<()> {
        let sheet = contact_sheet(rows, CELL);
        let provenance = (!self.no_metadata).then(|| provenance(description, self.seed, &self.model));
        save_png_with(&sheet, file, provenance.as_ref())?;
        println!("{} ({} x {})", file.display(), sheet.width(), sheet.height());
        Ok(())
    }
}

/// The image with a colour that hardly occurs where the mask edits it.
pub fn with_hole(image: &RgbImage, mask: &Mask) -> RgbImage {
    let mut image = image.clone();
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        if mask.edits(x, y) {
            *pixel = HOLE;
        }
    }
    image
}

/// What the PNG says of how it was made.
pub fn provenance(caption: &str, seed: u64, model: &Path) -> Provenance {
    Provenance {
        caption: caption.to_owned(),
        seed: Some(seed),
        model: model.display().to_string(),
        software: concat!("dalle2 ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// Reads an image file, or renders `emoji:NAME` of the data set.
pub fn image(spec: &str) -> Result<RgbImage> {
    match spec.strip_prefix("emoji:") {
        Some(name) => emoji(name, CELL),
        None => Ok(open(spec)?),
    }
}

/// An emoji of the data set by its name, on white.
pub fn emoji(name: &str, size: u32) -> Result<RgbImage> {
    let all = catalogue();
    let emoji = all.iter().find(|emoji| emoji.name == name).with_context(|| format!("no emoji is named {name:?}"))?;
    Ok(composite(&render_svg(emoji.svg(), size)?, size, Background::WHITE, Position::Center))
}

/// Names of at most `num` emoji that the bundled model was trained on, spread evenly.
pub fn some_names(num: usize) -> Result<Vec<String>> {
    ensure!(num > 0, "--num 0: at least one emoji is needed");
    let all = catalogue();
    let items = Subset::Small.select(&all, Split::Seen)?;
    let num = num.min(items.len());
    Ok((0..num).map(|i| all[items[i * items.len() / num]].name.clone()).collect())
}

/// An image if `spec` is a file or `emoji:NAME`, else a caption.
pub fn source(spec: &str) -> Result<Source> {
    match spec.starts_with("emoji:") || Path::new(spec).is_file() {
        true => Ok(Source::Image(image(spec)?)),
        false => Ok(Source::Caption(spec.to_owned())),
    }
}

/// Controls that show what runs.
pub fn progress(bar: &ProgressBar) -> Controls<'_> {
    Controls::new().hook(|event| {
        bar.set_length(event.total as u64);
        bar.set_position(event.step as u64);
        bar.set_message(event.stage.to_string());
        Ok(())
    })
}

/// A bar for [`progress`].
pub fn bar() -> Result<ProgressBar> {
    Ok(ProgressBar::no_length().with_style(ProgressStyle::with_template("{msg:14} {bar:30} {pos}/{len}")?))
}
