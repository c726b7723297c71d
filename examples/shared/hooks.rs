//! What the hooks of the training examples share.

use std::path::Path;

use dalle2::base::StepEvent;
use dalle2::base::image::{LabelledImage, RgbImage, contact_sheet, save_png};

use super::data::Item;

/// Images of a sample grid.
pub const GRID: usize = 12;

/// A hook that lets sampling go on.
pub fn go_on(_: StepEvent<'_>) -> dalle2::Result<()> {
    Ok(())
}

/// Writes a grid: a row per item, a column per kind of image.
pub fn save_grid(path: &Path, items: &[Item], columns: &[(&str, Vec<RgbImage>)]) -> dalle2::Result<()> {
    let cell = columns.iter().flat_map(|(_, images)| images).map(RgbImage::width).max().unwrap_or(0).clamp(96, 256);
    let rows: Vec<Vec<LabelledImage>> = items
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let labelled = |(name, images): &(&str, Vec<RgbImage>)| {
                LabelledImage::new(images[i].clone(), format!("{name}: {}", item.caption))
            };
            columns.iter().map(labelled).collect()
        })
        .collect();
    save_png(&contact_sheet(&rows, cell), path)
}
