//! Draws a part of an image anew, or what lies around it.
//!
//! ```text
//! cargo run --release --example inpaint -- "emoji:koala" --caption "panda" --rect 0,64,128,64
//! cargo run --release --example inpaint -- photo.png --mask hole.png --upsample
//! cargo run --release --example inpaint -- "emoji:red apple" --outpaint 32 --upsample
//! ```

use std::path::PathBuf;
use std::str::FromStr;

use super::args as edit;
use anyhow::{Result, bail, ensure};
use clap::Parser;
use dalle2::base::diffusion::Resampling;
use dalle2::base::image::{LabelledImage, Mask, RgbImage, open};
use dalle2::{Borders, Canvas};

/// Draw a part of an image anew.
#[derive(Debug, Parser)]
#[command(group = clap::ArgGroup::new("hole").required(true).multiple(true))]
pub struct Cli {
    /// Image file, or emoji:NAME, which is rendered at 128 × 128 pixels
    image: String,
    /// Image of the same size: what is white or transparent is drawn anew, what is black is kept
    #[arg(long, value_name = "FILE", group = "hole")]
    mask: Option<PathBuf>,
    /// Draws a rectangle anew, in pixels; may be repeated
    #[arg(long, value_name = "X,Y,W,H", group = "hole", allow_hyphen_values = true)]
    rect: Vec<Numbers<4>>,
    /// Draws a disc anew: centre and radius in pixels; may be repeated
    #[arg(long, value_name = "X,Y,R", group = "hole", allow_hyphen_values = true)]
    circle: Vec<Numbers<3>>,
    /// Keeps what the other options mark, and draws the rest
    #[arg(long)]
    invert: bool,
    /// Draws this many pixels around the image
    #[arg(long, value_name = "PIXELS", group = "hole", conflicts_with_all = ["mask", "rect", "circle", "invert"])]
    outpaint: Option<u32>,
    /// Fills
    #[arg(long, value_name = "N", default_value_t = 4)]
    num: usize,
    /// How often the decoder goes through each stretch of its way, if it was not trained to inpaint
    #[arg(long, value_name = "N", default_value_t = Resampling::default().rounds)]
    rounds: usize,
    /// Steps of a stretch
    #[arg(long, value_name = "N", default_value_t = Resampling::default().jump)]
    jump: usize,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/inpaint.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: edit::EditArgs,
}

/// Numbers with commas between them.
#[derive(Debug, Clone, Copy)]
struct Numbers<const N: usize>([i64; N]);

impl<const N: usize> FromStr for Numbers<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<i64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        let numbers = numbers.map_err(|e| e.to_string())?;
        numbers.try_into().map(Self).map_err(|found: Vec<i64>| format!("{} numbers, expected {N}", found.len()))
    }
}

pub fn run(cli: &Cli) -> Result<()> {
    let image = edit::image(&cli.image)?;
    let resampling = Resampling { rounds: cli.rounds, jump: cli.jump };
    let request = cli.edit.request().num_images(cli.num);
    let (shown, mask) = match cli.outpaint {
        Some(pixels) => {
            let Canvas { image, mask } = Canvas::extended(&image, Borders::all(pixels))?;
            (image, mask)
        }
        None => (image.clone(), mask(cli, &image)?),
    };
    let pipeline = cli.edit.pipeline()?;
    let bar = edit::bar()?;
    let controls = edit::progress(&bar);
    let drawn = match cli.outpaint {
        Some(pixels) => {
            let outpaint = pipeline.outpaint(&image, Borders::all(pixels)).resampling(resampling);
            outpaint.request(request).controls(controls).run()?
        }
        None => {
            let inpaint = pipeline.inpaint(&image, &mask).resampling(resampling);
            inpaint.request(request).controls(controls).run()?
        }
    };
    bar.finish_and_clear();
    let caption = if cli.edit.caption.is_empty() { "no caption" } else { &cli.edit.caption };
    let mut row = vec![
        LabelledImage::new(image, &cli.image),
        LabelledImage::new(edit::with_hole(&shown, &mask), format!("{:.0} % to draw", 100.0 * mask.edited_share())),
    ];
    let label = |(image, seed)| LabelledImage::new(image, format!("{caption}, seed {seed}"));
    row.extend(drawn.images.into_iter().zip(drawn.seeds).map(label));
    cli.edit.save_sheet(&[row], &format!("{}, a part drawn anew: {caption}", cli.image), &cli.out)
}

/// What the options mark.
fn mask(cli: &Cli, image: &RgbImage) -> Result<Mask> {
    let (w, h) = image.dimensions();
    let file = match &cli.mask {
        // Transparency lies on white when it is read, so both are edited.
        Some(file) => {
            let mask = Mask::edit(&image::imageops::grayscale(&open(file)?));
            mask.check_size([w, h])?;
            Some(mask)
        }
        None => None,
    };
    for Numbers([_, _, width, height]) in &cli.rect {
        ensure!(*width > 0 && *height > 0, "--rect of {width} by {height} pixels: both must be above 0");
    }
    for Numbers([_, _, radius]) in &cli.circle {
        ensure!((1..=i64::from(u16::MAX)).contains(radius), "--circle with radius {radius}: must be 1 to 65535");
    }
    let in_rect = |x: i64, y: i64| {
        cli.rect.iter().any(|Numbers([left, top, width, height])| {
            (*left..left.saturating_add(*width)).contains(&x) && (*top..top.saturating_add(*height)).contains(&y)
        })
    };
    let in_circle = |x: i64, y: i64| {
        let near = |a: i64, b: i64, radius: i64| (a.saturating_sub(b)).abs().min(radius + 1);
        cli.circle
            .iter()
            .any(|&Numbers([cx, cy, radius])| near(x, cx, radius).pow(2) + near(y, cy, radius).pow(2) <= radius.pow(2))
    };
    let mask = Mask::edit_where(w, h, |x, y| {
        let (left, top) = (i64::from(x), i64::from(y));
        file.as_ref().is_some_and(|mask| mask.edits(x, y)) || in_rect(left, top) || in_circle(left, top)
    });
    let mask = if cli.invert { mask.inverted() } else { mask };
    if mask.edited_share() == 0.0 {
        bail!("the options mark no pixel of the {w} x {h} image: there is nothing to draw");
    }
    Ok(mask)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn marked(options: &[&str]) -> Result<usize> {
        let arguments = ["inpaint", "picture.png"].iter().chain(options);
        let cli = Cli::try_parse_from(arguments)?;
        let mask = mask(&cli, &RgbImage::new(20, 10))?;
        Ok((mask.edited_share() * 200.0).round() as usize)
    }

    #[test]
    fn shapes_mark_what_lies_in_them() {
        assert_eq!(marked(&["--rect", "2,3,4,5"]).unwrap(), 20);
        assert_eq!(marked(&["--rect", "-2,-3,4,5"]).unwrap(), 4);
        assert_eq!(marked(&["--rect", "2,3,4,5", "--invert"]).unwrap(), 180);
        assert_eq!(marked(&["--rect", "0,0,2,2", "--rect", "1,1,2,2"]).unwrap(), 7);
        assert_eq!(marked(&["--circle", "5,5,1"]).unwrap(), 5);
        assert_eq!(marked(&["--circle", "5,5,1", "--rect", "10,0,1,1"]).unwrap(), 6);
    }

    #[test]
    fn a_mask_of_any_mode_marks_what_is_white_or_transparent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mask.png");
        let of_file = || marked(&["--mask", file.to_str().unwrap()]);
        image::GrayImage::from_fn(20, 10, |x, _| image::Luma([if x < 5 { 255 } else { 0 }])).save(&file).unwrap();
        assert_eq!(of_file().unwrap(), 50);
        let hole = |x: u32| image::Rgba([0, 0, 0, if x < 3 { 0 } else { 255 }]);
        image::RgbaImage::from_fn(20, 10, |x, _| hole(x)).save(&file).unwrap();
        assert_eq!(of_file().unwrap(), 30);
        image::GrayImage::new(10, 20).save(&file).unwrap();
        let error = of_file().unwrap_err().to_string();
        assert!(error.contains("10 × 20") && error.contains("20 × 10"), "{error}");
        std::fs::write(&file, "no image").unwrap();
        assert!(of_file().unwrap_err().to_string().contains("mask.png"));
    }

    #[test]
    fn options_that_mark_nothing_or_contradict_are_refused() {
        for options in [
            &["--rect", "30,0,4,4"][..],
            &["--rect", "0,0,0,4"],
            &["--rect", "0,0,4"],
            &["--circle", "5,5,0"],
            &["--circle", "5,5,x"],
            &["--outpaint", "4", "--rect", "0,0,1,1"],
            &[],
        ] {
            assert!(marked(options).is_err(), "{options:?}");
        }
        assert!(Cli::try_parse_from(["inpaint", "picture.png", "--outpaint", "4"]).is_ok());
    }
}
