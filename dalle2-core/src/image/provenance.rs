//! Where a picture came from, in the text chunks of its PNG file.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ::image::RgbImage;

use super::save_png;
use crate::{Error, Result, store};

const DESCRIPTION: &str = "Description";
const SOFTWARE: &str = "Software";
const SEED: &str = "Seed";
const MODEL: &str = "Model";

/// What a PNG file says of how its picture was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// What was asked for.
    pub caption: String,
    /// The seed, if it can be drawn again from one.
    pub seed: Option<u64>,
    /// The model that drew it.
    pub model: String,
    /// The program and its version.
    pub software: String,
}

impl Provenance {
    /// Reads what [`save_png_with`] wrote; `None` if the file says nothing of a caption, seed or model.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not a PNG.
    pub fn read(path: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let damaged = |e: png::DecodingError| Error::format(path, e.to_string());
        let mut reader = png::Decoder::new(BufReader::new(file)).read_info().map_err(damaged)?;
        reader.finish().map_err(damaged)?;
        let mut found = Self::default();
        for chunk in &reader.info().utf8_text {
            let text = chunk.get_text().map_err(damaged)?;
            match chunk.keyword.as_str() {
                DESCRIPTION => found.caption = text,
                SOFTWARE => found.software = text,
                MODEL => found.model = text,
                SEED => found.seed = text.parse().ok(),
                _ => {}
            }
        }
        Ok((found != Self::default()).then_some(found))
    }
}

/// Writes a PNG whole or not at all, with or without words on where it came from; missing directories are made.
///
/// # Errors
/// As [`save_png`], and [`Error::Format`] if the picture or the words cannot be encoded.
pub fn save_png_with(image: &RgbImage, path: impl AsRef<Path>, provenance: Option<&Provenance>) -> Result<()> {
    let path = path.as_ref();
    let Some(provenance) = provenance else { return save_png(image, path) };
    let mut bytes = Vec::new();
    encode(image, provenance, &mut bytes).map_err(|e| Error::format(path, e.to_string()))?;
    store::write_file(path, &bytes)
}

fn encode(image: &RgbImage, provenance: &Provenance, bytes: &mut Vec<u8>) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let seed = provenance.seed.map(|seed| seed.to_string()).unwrap_or_default();
    for (keyword, text) in [
        (DESCRIPTION, &provenance.caption),
        (SOFTWARE, &provenance.software),
        (MODEL, &provenance.model),
        (SEED, &seed),
    ] {
        if !text.is_empty() {
            encoder.add_itxt_chunk(keyword.to_owned(), text.clone())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_picture_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/picture.png");
        let image = RgbImage::from_fn(9, 5, |x, y| ::image::Rgb([x as u8 * 20, y as u8 * 40, 7]));
        let provenance = Provenance {
            caption: "ein Café, 日本 “quoted”".into(),
            seed: Some(u64::MAX),
            model: "models/emoji".into(),
            software: "dalle2 0.1.0".into(),
        };
        save_png_with(&image, &file, Some(&provenance)).unwrap();
        assert_eq!(Provenance::read(&file).unwrap(), Some(provenance));
        assert_eq!(open(&file).unwrap(), image);
        save_png_with(&image, &file, None).unwrap();
        assert_eq!(Provenance::read(&file).unwrap(), None);
        assert_eq!(open(&file).unwrap(), image);
    }

    #[test]
    fn what_is_no_png_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("picture.png");
        std::fs::write(&file, "GIF89a").unwrap();
        assert!(Provenance::read(&file).unwrap_err().to_string().contains("picture.png"));
        assert!(save_png_with(&RgbImage::new(0, 3), &file, Some(&Provenance::default())).is_err());
    }
}
