//! Labels of contact sheets in a bitmap font.

use ::image::RgbImage;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width};

const FONT: (FontWeight, RasterHeight) = (FontWeight::Regular, RasterHeight::Size16);
pub(super) const CHAR_WIDTH: u32 = get_raster_width(FONT.0, FONT.1) as u32;
pub(super) const LINE_HEIGHT: u32 = RasterHeight::Size16.val() as u32;
/// Maximum number of lines of a label; longer ones end in an ellipsis.
const MAX_LINES: usize = 3;

/// Breaks a label into lines that fit the cell: at spaces, and inside words that alone are too long.
pub(super) fn wrap(label: &str, cell: u32) -> Vec<String> {
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
            let start: String = last.chars().take(limit.saturating_sub(3)).collect();
            *last = start + &"..."[..limit.min(3)];
        }
    }
    lines
}

/// Writes a line of text at a position.
pub(super) fn write(sheet: &mut RgbImage, text: &str, at: [u32; 2]) {
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
}
