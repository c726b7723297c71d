//! Contact sheets: rows of images with labels below.

use ::image::{Rgb, RgbImage, imageops};

use super::label::{CHAR_WIDTH, LINE_HEIGHT, wrap, write};

const GAP: u32 = 8;
const PAPER: Rgb<u8> = Rgb([255; 3]);
/// Behind an image, so that a white one still has edges.
const MOUNT: Rgb<u8> = Rgb([232; 3]);

/// One cell of a contact sheet.
#[derive(Debug, Clone)]
pub struct LabelledImage {
    /// The image, of any size.
    pub image: RgbImage,
    /// The text below it; may be empty.
    pub label: String,
}

impl LabelledImage {
    /// Creates a cell from an image and its label.
    pub fn new(image: RgbImage, label: impl Into<String>) -> Self {
        Self { image, label: label.into() }
    }
}

/// Arranges images in rows, each in a square of `cell` pixels with its label below.
///
/// Images keep their proportions; small ones are enlarged by an integer factor without smoothing, so pixels stay
/// visible. Labels need the feature `labels`, otherwise they are left out. They are wrapped to the cell and cut after
/// three lines; characters beyond Latin appear as `?`. Rows may differ in length.
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
        let label = if cfg!(feature = "labels") { 2 + LINE_HEIGHT } else { 0 };
        assert_eq!(sheet.dimensions(), (GAP + 2 * (64 + GAP), GAP + (64 + label + GAP) + (64 + GAP)));
        assert_eq!(sheet.get_pixel(GAP, GAP).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(GAP + 63, GAP + 63).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(2 * GAP + 64 + 32, GAP + 32).0, [0, 255, 0]);
        assert_eq!(sheet.get_pixel(GAP + 32, 2 * GAP + 64 + label + 32).0, [0, 0, 255]);
        assert_eq!(sheet.get_pixel(0, 0), &PAPER);
    }

    #[test]
    #[cfg(feature = "labels")]
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
    fn odd_sheets_do_not_panic() {
        assert_eq!(contact_sheet(&[], 64).dimensions(), (GAP, GAP));
        contact_sheet(&[vec![]], 64);
        contact_sheet(&[vec![LabelledImage::new(RgbImage::new(0, 0), "nothing")]], 0);
        contact_sheet(&[vec![LabelledImage::new(RgbImage::new(4000, 1), "a very long and thin picture")]], 3);
    }
}
