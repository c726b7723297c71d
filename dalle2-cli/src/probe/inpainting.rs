//! Whether what is drawn into a hole shows what the caption says, and whether the rest stays as it was.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use dalle2::base::diffusion::Resampling;
use dalle2::base::image::{LabelledImage, Mask, RgbImage};
use dalle2::base::store::write_json;
use indicatif::ProgressBar;
use serde::Serialize;

use super::renderings::Renderings;
use crate::edit::args::{EditArgs, some_names, with_hole};

/// Pictures on the sheet for each hole, at most.
const SHOWN: usize = 4;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pictures, spread over the emoji of the training set
    #[arg(long, value_name = "N", default_value_t = 24)]
    num: usize,
    /// How often the decoder goes through each stretch of its way
    #[arg(long, value_name = "N", default_value_t = Resampling::default().rounds)]
    rounds: usize,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes some of the pictures as PNG
    #[arg(long, value_name = "FILE", default_value = "out/inpainting_probe.png")]
    sheet: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

/// What is drawn anew.
#[derive(Debug, Clone, Copy)]
enum Hole {
    Right,
    Centre,
    Border,
}

impl Hole {
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

/// Whose name the caption is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caption {
    Own,
    Other,
}

/// Shares of the fills.
#[derive(Debug, Serialize)]
struct Row {
    hole: &'static str,
    caption: &'static str,
    fills: usize,
    /// The nearest rendering, in the hole, is that of the caption.
    nearest: f64,
    /// That of the caption is one of the ten nearest.
    ten_nearest: f64,
    /// The nearest rendering is that of the picture around the hole.
    nearest_is_picture: f64,
    /// What guessing at random reaches, for the nearest and for the ten nearest.
    chance: [f64; 2],
    /// Pixels outside the hole that are not as they were, of how many.
    known_changed: [usize; 2],
}

impl Row {
    fn new(hole: Hole, caption: Caption, fills: usize) -> Self {
        let caption = match caption {
            Caption::Own => "the picture's own",
            Caption::Other => "another picture's",
        };
        let hole = hole.name();
        Self {
            hole,
            caption,
            fills,
            nearest: 0.0,
            ten_nearest: 0.0,
            nearest_is_picture: 0.0,
            chance: [0.0; 2],
            known_changed: [0; 2],
        }
    }

    /// Counts a fill of a picture in, for this caption and the picture's name.
    fn count(
        &mut self,
        renderings: &Renderings,
        (fill, picture): (&RgbImage, &RgbImage),
        mask: &Mask,
        (said, name): (&str, &str),
    ) -> Result<()> {
        let share = 1.0 / self.fills as f64;
        let rank = renderings.rank(fill, mask, said)?;
        let of = |hit: bool| if hit { share } else { 0.0 };
        self.nearest += of(rank == 0);
        self.ten_nearest += of(rank < 10);
        self.nearest_is_picture += of(renderings.rank(fill, mask, name)? == 0);
        let alike = renderings.alike(mask, said)? as f64;
        for (chance, best) in self.chance.iter_mut().zip([1.0, 10.0]) {
            *chance += share * (alike + best - 1.0) / renderings.len() as f64;
        }
        for (x, y, pixel) in picture.enumerate_pixels() {
            if !mask.edits(x, y) {
                self.known_changed[0] += usize::from(fill.get_pixel(x, y) != pixel);
                self.known_changed[1] += 1;
            }
        }
        Ok(())
    }
}

pub fn run(args: &Args) -> Result<()> {
    let names = some_names(args.num)?;
    ensure!(names.len() > 1, "--num {}: at least 2, so that pictures can get each other's captions", args.num);
    let pipeline = args.edit.pipeline()?;
    let size = if args.edit.upsample { pipeline.image_size() } else { pipeline.decoder().image_size() };
    let renderings = Renderings::new(size)?;
    let resampling = Resampling { rounds: args.rounds, ..Default::default() };
    let bar = ProgressBar::new((2 * Hole::ALL.len() * names.len()) as u64);
    let (mut rows, mut sheet) = (Vec::new(), Vec::new());
    for hole in Hole::ALL {
        let mask = hole.mask(size);
        let mut shown: Vec<Vec<LabelledImage>> = Vec::new();
        for caption in [Caption::Own, Caption::Other] {
            let mut row = Row::new(hole, caption, names.len());
            for (i, name) in names.iter().enumerate() {
                let said = match caption {
                    Caption::Own => name,
                    Caption::Other => &names[(i + names.len() / 2) % names.len()],
                };
                let picture = renderings.named(name)?;
                let request = args.edit.request_for(said);
                let fill =
                    pipeline.inpaint(picture, &mask).resampling(resampling).request(request).run()?.images.remove(0);
                row.count(&renderings, (&fill, picture), &mask, (said, name))?;
                if i * SHOWN / names.len() != (i + 1) * SHOWN / names.len() {
                    let labelled = LabelledImage::new(fill, format!("caption: {said}"));
                    match caption {
                        Caption::Own => shown.push(vec![
                            LabelledImage::new(picture.clone(), name),
                            LabelledImage::new(with_hole(picture, &mask), hole.name()),
                            labelled,
                        ]),
                        Caption::Other => shown[i * SHOWN / names.len()].push(labelled),
                    }
                }
                bar.inc(1);
            }
            rows.push(row);
        }
        sheet.extend(shown);
    }
    bar.finish_and_clear();
    println!(
        "| hole | caption | fills | nearest is the caption's | one of ten | chance | nearest is the picture's | known \
         pixels changed |\n|---|---|---|---|---|---|---|---|"
    );
    for row in &rows {
        let [percent, ten, picture] = [row.nearest, row.ten_nearest, row.nearest_is_picture].map(|share| 100.0 * share);
        let [chance, chance_ten] = row.chance.map(|share| 100.0 * share);
        let [changed, known] = row.known_changed;
        println!(
            "| {} | {} | {} | {percent:.0} % | {ten:.0} % | {chance:.1} %, {chance_ten:.1} % | {picture:.0} % | {changed} of \
             {known} |",
            row.hole, row.caption, row.fills
        );
    }
    if let Some(json) = &args.json {
        write_json(json, &rows)?;
        println!("{}", json.display());
    }
    let wide: Vec<Vec<LabelledImage>> = sheet.chunks(2).map(|rows| rows.concat()).collect();
    args.edit.save_sheet(&wide, "inpainting", &args.sheet)?;
    let changed: usize = rows.iter().map(|row| row.known_changed[0]).sum();
    ensure!(changed == 0, "{changed} known pixels are not as they were");
    Ok(())
}
