//! Contact sheets: images in rows with their captions below, for a person to look at.

use ::image::{Rgb, RgbImage, imageops};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width};

const FONT: (FontWeight, RasterHeight) = (FontWeight::Regular, RasterHeight::Size16);
const CHAR_WIDTH: u32 = get_raster_width(FONT.0, FONT.1) as u32;
const LINE_HEIGHT: u32 = RasterHeight::Size16.val() as u32;
/// Lines of a label that are shown; what is longer ends in an ellipsis.
const MAX_LINES: usize = 3;
const GAP: u32 = 8;
const PAPER: Rgb<u8> = Rgb([255; 3]);
/// Behind an image, so that a white one still has edges.
const MOUNT: Rgb<u8> = Rgb([232; 3]);

/// One cell of a contact sheet.
#[derive(Debug, Clone)]
pub struct LabelledImage {
    /// The picture, of any size.
    pub image: RgbImage,
    /// What is written below it; may be empty.
    pub label: String,
}

impl LabelledImage {
    /// A picture with the words that belong below it.
    pub fn new(image: RgbImage, label: impl Into<String>) -> Self {
        Self { image, label: label.into() }
    }
}

/// Lays images out in rows, each in a square of `cell` pixels with its label below.
///
/// Images keep their proportions; small ones are enlarged by a whole factor without smoothing, so pixels stay visible.
/// Labels are wrapped to the cell and cut after three lines; characters beyond Latin are written as `?`. Rows may
/// differ in length.
pub fn contact_sheet(rows: &[Vec<LabelledImage>], cell: u32) -> RgbImage {
    let cell = cell.max(CHAR_WIDTH);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let rows: Vec<Vec<(&RgbImage, Vec<String>)>> =
        rows.iter().map(|row| row.iter().map(|item| (&item.image, wrap(&item.label, cell))).collect()).collect();
    let heights: Vec<u32> = rows.iter().map(|row| cell + label_height(row)).collect();
    let width = GAP + columns * (cell + GAP);
    let height = GAP + heights.iter().map(|h| h + GAP).sum::<u32>();

    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    let mut y = GAP;
    for (row, row_height) in rows.iter().zip(heights) {
        let mut x = GAP;
        for (image, lines) in row {
            place(&mut sheet, image, [x, y], cell);
            for (line, text) in (0u32..).zip(lines) {
                write(&mut sheet, text, [x, y + cell + 2 + line * LINE_HEIGHT]);
            }
            x += cell + GAP;
        }
        y += row_height + GAP;
    }
    sheet
}

fn label_height(row: &[(&RgbImage, Vec<String>)]) -> u32 {
    match row.iter().map(|(_, lines)| lines.len()).max().unwrap_or(0) {
        0 => 0,
        lines => 2 + lines as u32 * LINE_HEIGHT,
    }
}

/// Draws `image` into the middle of the square at `at`.
fn place(sheet: &mut RgbImage, image: &RgbImage, at: [u32; 2], cell: u32) {
    imageops::replace(sheet, &RgbImage::from_pixel(cell, cell, MOUNT), at[0].into(), at[1].into());
    let (w, h) = image.dimensions();
    if w == 0 || h == 0 {
        return;
    }
    let longest = w.max(h);
    let fitted = if longest <= cell {
        let factor = cell / longest;
        imageops::resize(image, w * factor, h * factor, imageops::FilterType::Nearest)
    } else {
        let shrink = |side: u32| (u64::from(side) * u64::from(cell) / u64::from(longest)).max(1) as u32;
        imageops::resize(image, shrink(w), shrink(h), imageops::FilterType::CatmullRom)
    };
    let (w, h) = fitted.dimensions();
    imageops::replace(sheet, &fitted, (at[0] + (cell - w) / 2).into(), (at[1] + (cell - h) / 2).into());
}

/// Breaks a label into lines that fit the cell: at spaces, and inside words that alone are too long.
fn wrap(label: &str, cell: u32) -> Vec<String> {
    let limit = (cell / CHAR_WIDTH) as usize;
    let mut lines: Vec<String> = Vec::new();
    for word in label.split_whitespace() {
        let word: Vec<char> = word.chars().collect();
        for piece in word.chunks(limit) {
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + piece.len() <= limit => {
                    line.push(' ');
                    line.extend(piece);
                }
                _ => lines.push(piece.iter().collect()),
            }
        }
    }
    if lines.len() > MAX_LINES {
        lines.truncate(MAX_LINES);
        if let Some(last) = lines.last_mut() {
            let kept: String = last.chars().take(limit.saturating_sub(3)).collect();
            *last = kept + &"..."[..limit.min(3)];
        }
    }
    lines
}

fn write(sheet: &mut RgbImage, text: &str, at: [u32; 2]) {
    for (i, c) in (0u32..).zip(text.chars()) {
        let Some(glyph) = raster(c) else { continue };
        for (dy, row) in (0u32..).zip(glyph.rows()) {
            for (dx, ink) in (0u32..).zip(row) {
                if let Some(pixel) = sheet.get_pixel_mut_checked(at[0] + i * CHAR_WIDTH + dx, at[1] + dy) {
                    pixel.0 = pixel.0.map(|paper| paper.min(255 - ink));
                }
            }
        }
    }
}

fn raster(c: char) -> Option<RasterizedChar> {
    get_raster(c, FONT.0, FONT.1).or_else(|| get_raster('?', FONT.0, FONT.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell_of(color: [u8; 3], side: u32, label: &str) -> LabelledImage {
        LabelledImage::new(RgbImage::from_pixel(side, side, Rgb(color)), label)
    }

    #[test]
    fn rows_may_differ_and_images_lie_where_expected() {
        let rows = vec![
            vec![cell_of([255, 0, 0], 16, "red"), cell_of([0, 255, 0], 100, "green")],
            vec![cell_of([0, 0, 255], 64, "")],
        ];
        let sheet = contact_sheet(&rows, 64);
        assert_eq!(sheet.dimensions(), (GAP + 2 * (64 + GAP), GAP + (64 + 2 + LINE_HEIGHT + GAP) + (64 + GAP)));
        assert_eq!(sheet.get_pixel(GAP, GAP).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(GAP + 63, GAP + 63).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(2 * GAP + 64 + 32, GAP + 32).0, [0, 255, 0]);
        assert_eq!(sheet.get_pixel(GAP + 32, 2 * GAP + 64 + 2 + LINE_HEIGHT + 32).0, [0, 0, 255]);
        assert_eq!(sheet.get_pixel(0, 0), &PAPER);
    }

    #[test]
    fn labels_are_drawn_in_their_own_cell() {
        let ink = |label: &str| {
            let sheet = contact_sheet(&[vec![cell_of([255; 3], 64, label), cell_of([255; 3], 64, "x")]], 64);
            let top = GAP + 64;
            let cell = imageops::crop_imm(&sheet, GAP, top, 64, sheet.height() - top).to_image();
            cell.pixels().filter(|p| p.0[0] < 128).count()
        };
        assert_eq!(ink(""), 0);
        assert!(ink("apple") > ink("a") && ink("a") > 5);
        assert_eq!(ink("\u{6f22}"), ink("?"));
        assert_ne!(ink("é"), ink("?"));
    }

    #[test]
    fn long_labels_are_wrapped_and_cut() {
        let limit = (96 / CHAR_WIDTH) as usize;
        let lines = wrap("a red apple on a green background in the top left corner of the picture", 96);
        assert_eq!(lines.len(), MAX_LINES);
        assert!(lines.iter().all(|line| line.chars().count() <= limit), "{lines:?}");
        assert!(lines[MAX_LINES - 1].ends_with("..."));
        assert_eq!(wrap("ab  cd\n", 96), ["ab cd"]);
        assert_eq!(wrap(&"x".repeat(limit + 1), 96), ["x".repeat(limit), "x".to_string()]);
        assert!(wrap(" ", 96).is_empty());
    }

    #[test]
    fn odd_sheets_do_not_panic() {
        assert_eq!(contact_sheet(&[], 64).dimensions(), (GAP, GAP));
        contact_sheet(&[vec![]], 64);
        contact_sheet(&[vec![LabelledImage::new(RgbImage::new(0, 0), "nothing")]], 0);
        contact_sheet(&[vec![LabelledImage::new(RgbImage::new(4000, 1), "a very long and thin picture")]], 3);
    }
}
