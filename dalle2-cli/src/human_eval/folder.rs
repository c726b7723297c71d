//! Files of images: image k of the caption on line i (both from 0) is `IIII-K.png`, for example
//! `0007-0.png`; JPEG and WebP files do as well.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Endings of the files that are looked for, in this order.
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// The captions of a file, one per line.
///
/// # Errors
/// When there is none, or a line is empty: the line numbers are in the names of the images.
pub fn read_captions(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read the captions {}", file.display()))?;
    let captions: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    ensure!(!captions.is_empty(), "{}: no caption; one per line is expected", file.display());
    if let Some(line) = captions.iter().position(String::is_empty) {
        bail!("{}: line {} is empty; the line numbers are in the names of the images", file.display(), line + 1);
    }
    Ok(captions)
}

/// The PNG of an image.
pub fn png(dir: &Path, caption: usize, image: usize) -> PathBuf {
    dir.join(format!("{caption:04}-{image}.png"))
}

/// The file of an image in any of the formats.
///
/// # Errors
/// When there is none, with the name that it should have.
pub fn find(dir: &Path, caption: usize, image: usize) -> Result<PathBuf> {
    let file = png(dir, caption, image);
    ENDINGS.iter().map(|ending| file.with_extension(ending)).find(|file| file.is_file()).with_context(|| {
        format!(
            "{} is missing (nor is there a .jpg or .webp): image {image} of the caption on line {}",
            file.display(),
            caption + 1
        )
    })
}
