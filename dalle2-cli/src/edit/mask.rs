//! Masks from shapes and files on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use dalle2::base::image::{Mask, RgbImage, open};

use crate::outcome::check_usage;

/// The region that is generated anew.
#[derive(Debug, Clone, Args)]
pub struct MaskArgs {
    /// Image of the same size: white or transparent regions are generated anew, black ones stay
    #[arg(long, value_name = "FILE", group = "region")]
    pub mask: Option<PathBuf>,
    /// Generates a rectangle anew, in pixels; repeatable
    #[arg(long, value_name = "X,Y,W,H", group = "region", allow_hyphen_values = true)]
    pub rect: Vec<Numbers<4>>,
    /// Generates a disc anew: centre and radius in pixels; repeatable
    #[arg(long, value_name = "X,Y,R", group = "region", allow_hyphen_values = true)]
    pub circle: Vec<Numbers<3>>,
    /// Preserves the marked region and generates the rest
    #[arg(long)]
    pub invert: bool,
}

/// Numbers separated by commas.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<const N: usize>([i64; N]);

impl<const N: usize> FromStr for Numbers<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<i64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        let numbers = numbers.map_err(|e| e.to_string())?;
        numbers.try_into().map(Self).map_err(|numbers: Vec<i64>| format!("{} numbers, expected {N}", numbers.len()))
    }
}

impl MaskArgs {
    /// The mask of these arguments for an image.
    pub fn mask(&self, image: &RgbImage) -> Result<Mask> {
        let (w, h) = image.dimensions();
        let file = match &self.mask {
            // Transparent pixels are read as white, so both are edited.
            Some(file) => {
                let mask = Mask::edit(&image::imageops::grayscale(&open(file)?));
                mask.check_size([w, h])?;
                Some(mask)
            }
            None => None,
        };
        self.check()?;
        let mask = Mask::edit_where(w, h, |x, y| {
            let (left, top) = (i64::from(x), i64::from(y));
            file.as_ref().is_some_and(|mask| mask.edits(x, y)) || self.in_rect(left, top) || self.in_circle(left, top)
        });
        let mask = if self.invert { mask.inverted() } else { mask };
        check_usage!(mask.edited_share() > 0.0, "the options mark no pixel of the {w} x {h} image");
        Ok(mask)
    }

    fn check(&self) -> Result<()> {
        for Numbers([_, _, width, height]) in &self.rect {
            check_usage!(*width > 0 && *height > 0, "--rect of {width} by {height} pixels: both must be above 0");
        }
        for Numbers([_, _, radius]) in &self.circle {
            check_usage!((1..=i64::from(u16::MAX)).contains(radius), "--circle with radius {radius}: 1 to 65535");
        }
        Ok(())
    }

    fn in_rect(&self, x: i64, y: i64) -> bool {
        self.rect.iter().any(|Numbers([left, top, width, height])| {
            (*left..left.saturating_add(*width)).contains(&x) && (*top..top.saturating_add(*height)).contains(&y)
        })
    }

    fn in_circle(&self, x: i64, y: i64) -> bool {
        let offset = |a: i64, b: i64, radius: i64| (a.saturating_sub(b)).abs().min(radius + 1);
        self.circle.iter().any(|&Numbers([cx, cy, radius])| {
            offset(x, cx, radius).pow(2) + offset(y, cy, radius).pow(2) <= radius.pow(2)
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(group = clap::ArgGroup::new("region").multiple(true))]
    struct Program {
        #[command(flatten)]
        mask: MaskArgs,
    }

    fn marked(options: &[&str]) -> Result<usize> {
        let program = Program::try_parse_from(["inpaint"].iter().chain(options))?;
        let mask = program.mask.mask(&RgbImage::new(20, 10))?;
        Ok((mask.edited_share() * 200.0).round() as usize)
    }

    #[test]
    fn shapes_mark_the_pixels_inside() {
        assert_eq!(marked(&["--rect", "2,3,4,5"]).unwrap(), 20);
        assert_eq!(marked(&["--rect", "-2,-3,4,5"]).unwrap(), 4);
        assert_eq!(marked(&["--rect", "2,3,4,5", "--invert"]).unwrap(), 180);
        assert_eq!(marked(&["--rect", "0,0,2,2", "--rect", "1,1,2,2"]).unwrap(), 7);
        assert_eq!(marked(&["--circle", "5,5,1"]).unwrap(), 5);
        assert_eq!(marked(&["--circle", "5,5,1", "--rect", "10,0,1,1"]).unwrap(), 6);
    }

    #[test]
    fn a_mask_of_any_mode_marks_white_and_transparent_pixels() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mask.png");
        let of_file = || marked(&["--mask", file.to_str().unwrap()]);
        image::GrayImage::from_fn(20, 10, |x, _| image::Luma([if x < 5 { 255 } else { 0 }])).save(&file).unwrap();
        assert_eq!(of_file().unwrap(), 50);
        let transparent = |x: u32| image::Rgba([0, 0, 0, if x < 3 { 0 } else { 255 }]);
        image::RgbaImage::from_fn(20, 10, |x, _| transparent(x)).save(&file).unwrap();
        assert_eq!(of_file().unwrap(), 30);
        image::GrayImage::new(10, 20).save(&file).unwrap();
        let error = of_file().unwrap_err().to_string();
        assert!(error.contains("10 × 20") && error.contains("20 × 10"), "{error}");
        std::fs::write(&file, "no image").unwrap();
        assert!(of_file().unwrap_err().to_string().contains("mask.png"));
    }

    #[test]
    fn options_that_mark_nothing_are_refused() {
        for options in
            [&["--rect", "30,0,4,4"][..], &["--rect", "0,0,0,4"], &["--rect", "0,0,4"], &["--circle", "5,5,0"], &[]]
        {
            assert!(marked(options).is_err(), "{options:?}");
        }
        assert!(Program::try_parse_from(["inpaint", "--circle", "5,5,x"]).is_err());
    }
}
