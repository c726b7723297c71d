//! Sample grids.

use std::path::Path;

use dalle2_core::image::{LabelledImage, RgbImage, contact_sheet, save_png};
use dalle2_core::{Result, StepEvent};

use super::data::TrainItem;

/// Images in a sample grid.
pub const GRID_SIZE: usize = 12;

/// A step hook that continues sampling.
///
/// # Errors
/// Never.
pub fn continue_sampling(_: StepEvent<'_>) -> Result<()> {
    Ok(())
}

/// Writes a grid with a row per item and a column per kind of image.
///
/// # Errors
/// If the file cannot be written.
pub fn save_grid(path: &Path, items: &[TrainItem], columns: &[(&str, Vec<RgbImage>)]) -> Result<()> {
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
