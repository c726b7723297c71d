//! Inpainting: agreement of the fill with the caption, and preservation of the known pixels.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use dalle2::base::diffusion::Resampling;
use dalle2::base::image::{LabelledImage, Mask, RgbImage};
use serde::Serialize;

use super::renderings::Renderings;
use crate::args::JsonArgs;
use crate::edit::common::{EditArgs, show_mask, some_names};
use crate::progress::Items;

/// Maximum number of images on the sheet per mask.
const SHOWN: usize = 4;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of images, spread over the emoji of the training set
    #[arg(long, value_name = "N", default_value_t = 24, alias = "num")]
    num_images: usize,
    /// Resampling rounds of the decoder
    #[arg(long, value_name = "N", default_value_t = Resampling::default().rounds)]
    rounds: usize,
    #[command(flatten)]
    json: JsonArgs,
    /// PNG file of some of the images
    #[arg(long, value_name = "FILE", default_value = "out/inpainting_probe.png", alias = "sheet")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

/// The region that is generated anew.
#[derive(Debug, Clone, Copy)]
enum Region {
    Right,
    Centre,
    Border,
}

impl Region {
    const ALL: [Self; 3] = [Self::Right, Self::Centre, Self::Border];

    fn name(self) -> &'static str {
        match self {
            Self::Right => "right half",
            Self::Centre => "inner quarter",
            Self::Border => "all but the inner quarter",
        }
    }

    fn mask(self, size: usize) -> Mask {
        let size = size as u32;
        let inner = move |at: u32| (size / 4..size - size / 4).contains(&at);
        match self {
            Self::Right => Mask::edit_where(size, size, |x, _| x >= size / 2),
            Self::Centre => Mask::edit_where(size, size, |x, y| inner(x) && inner(y)),
            Self::Border => Mask::keep_where(size, size, |x, y| inner(x) && inner(y)),
        }
    }
}

/// The source of the caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caption {
    Own,
    Other,
}

/// Results for one mask and one kind of caption, as shares of the fills.
#[derive(Debug, Serialize)]
struct Row {
    mask: &'static str,
    caption: &'static str,
    fills: usize,
    /// Top-1: the nearest rendering inside the mask is the one named by the caption.
    nearest: f64,
    /// Top-10 of the same.
    ten_nearest: f64,
    /// The nearest rendering is the original image.
    nearest_is_original: f64,
    /// Top-1 and top-10 of a random guess.
    chance: [f64; 2],
    /// Changed pixels outside the mask, and their total.
    known_changed: [usize; 2],
}

impl Row {
    fn new(region: Region, caption: Caption, fills: usize) -> Self {
        let caption = match caption {
            Caption::Own => "the image's own",
            Caption::Other => "another image's",
        };
        let mask = region.name();
        Self {
            mask,
            caption,
            fills,
            nearest: 0.0,
            ten_nearest: 0.0,
            nearest_is_original: 0.0,
            chance: [0.0; 2],
            known_changed: [0; 2],
        }
    }

    /// Counts a fill for this caption and the name of the original.
    fn count(
        &mut self,
        renderings: &Renderings,
        (fill, original): (&RgbImage, &RgbImage),
        mask: &Mask,
        (caption, name): (&str, &str),
    ) -> Result<()> {
        let share = 1.0 / self.fills as f64;
        let rank = renderings.rank(fill, mask, caption)?;
        let of = |hit: bool| if hit { share } else { 0.0 };
        self.nearest += of(rank == 0);
        self.ten_nearest += of(rank < 10);
        self.nearest_is_original += of(renderings.rank(fill, mask, name)? == 0);
        let equal = renderings.equal_to(mask, caption)? as f64;
        for (chance, best) in self.chance.iter_mut().zip([1.0, 10.0]) {
            *chance += share * (equal + best - 1.0) / renderings.len() as f64;
        }
        for (x, y, pixel) in original.enumerate_pixels() {
            if !mask.edits(x, y) {
                self.known_changed[0] += usize::from(fill.get_pixel(x, y) != pixel);
                self.known_changed[1] += 1;
            }
        }
        Ok(())
    }
}

pub fn run(args: &Args) -> Result<()> {
    let names = some_names(args.num_images)?;
    ensure!(names.len() > 1, "--num-images {}: at least 2, to exchange the captions of images", args.num_images);
    let pipeline = args.edit.pipeline()?;
    let size = if args.edit.upsample { pipeline.image_size() } else { pipeline.decoder().image_size() };
    let renderings = Renderings::new(size)?;
    let resampling = Resampling { rounds: args.rounds, ..Default::default() };
    let progress = Items::new(2 * Region::ALL.len() * names.len(), "images");
    let (mut rows, mut sheet) = (Vec::new(), Vec::new());
    for region in Region::ALL {
        let mask = region.mask(size);
        let mut shown: Vec<Vec<LabelledImage>> = Vec::new();
        for caption in [Caption::Own, Caption::Other] {
            let mut row = Row::new(region, caption, names.len());
            for (i, name) in names.iter().enumerate() {
                let text = match caption {
                    Caption::Own => name,
                    Caption::Other => &names[(i + names.len() / 2) % names.len()],
                };
                let original = renderings.named(name)?;
                let request = args.edit.request_for(text, args.edit.fixed_seed());
                let inpaint = pipeline.inpaint(original, &mask).resampling(resampling);
                let fill = inpaint.request(request).run()?.images.remove(0);
                row.count(&renderings, (&fill, original), &mask, (text, name))?;
                if i * SHOWN / names.len() != (i + 1) * SHOWN / names.len() {
                    let labelled = LabelledImage::new(fill, format!("caption: {text}"));
                    match caption {
                        Caption::Own => shown.push(vec![
                            LabelledImage::new(original.clone(), name),
                            LabelledImage::new(show_mask(original, &mask), region.name()),
                            labelled,
                        ]),
                        Caption::Other => shown[i * SHOWN / names.len()].push(labelled),
                    }
                }
                progress.add(1);
            }
            rows.push(row);
        }
        sheet.extend(shown);
    }
    drop(progress);
    println!(
        "| mask | caption | fills | top-1 | top-10 | chance | nearest is the original | known pixels changed |\n|---|---|---|---|---|---|---|---|"
    );
    for row in &rows {
        let [top1, top10, original] =
            [row.nearest, row.ten_nearest, row.nearest_is_original].map(|share| 100.0 * share);
        let [chance, chance_ten] = row.chance.map(|share| 100.0 * share);
        let [changed, known] = row.known_changed;
        println!(
            "| {} | {} | {} | {top1:.0} % | {top10:.0} % | {chance:.1} %, {chance_ten:.1} % | {original:.0} % | {changed} of \
             {known} |",
            row.mask, row.caption, row.fills
        );
    }
    args.json.write(&rows)?;
    let wide: Vec<Vec<LabelledImage>> = sheet.chunks(2).map(|rows| rows.concat()).collect();
    args.edit.save_sheet(&wide, "inpainting", args.edit.fixed_seed(), &args.out)?;
    let changed: usize = rows.iter().map(|row| row.known_changed[0]).sum();
    ensure!(changed == 0, "{changed} known pixels were changed");
    Ok(())
}
