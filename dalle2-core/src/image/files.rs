//! Reading image files of unknown origin, and writing PNG.

use std::{fs, io::Cursor, path::Path};

use ::image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage,
    error::{DecodingError, ImageFormatHint},
};

use crate::{Error, Result, store};

/// Longest side of an image that is read, in pixels.
const MAX_SIDE: u32 = 16_384;
/// Most pixels of an image that is read.
const MAX_PIXELS: u64 = 64 << 20;
/// Largest image file that is read, in bytes.
pub const MAX_FILE: u64 = 256 << 20;

/// Reads a PNG, JPEG or WebP file as [`decode`] does.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; otherwise as [`decode`]. Each names the file.
pub fn open(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let size = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    check_size(size, path)?;
    decode(&fs::read(path).map_err(|e| Error::io(path, e))?, path)
}

/// Decodes a PNG, JPEG or WebP file that is in memory, recognised by its content: transparency lies on white, grey,
/// palette, CMYK and 16-bit images become 8-bit RGB, and the orientation that a camera noted is applied. `name` is for
/// messages only.
///
/// # Errors
/// [`Error::ImageFile`] if it is none of the three formats, or larger than 256 MiB, 16,384 pixels a side or 64 Mi pixels,
/// which is found out before anything is decoded; [`Error::Image`] if it is damaged or cut off. Each has the name.
pub fn decode(bytes: &[u8], name: impl AsRef<Path>) -> Result<RgbImage> {
    let name = name.as_ref();
    check_size(bytes.len() as u64, name)?;
    let damaged = |source| Error::Image { path: name.to_path_buf(), source };
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| Error::io(name, e))?;
    let Some(format) = reader.format().filter(ImageFormat::reading_enabled) else {
        return Err(Error::image_file(name, "not an image of a known format: expected PNG, JPEG or WebP"));
    };
    if format == ImageFormat::Jpeg && is_cut_off_jpeg(bytes) {
        let message = "the file ends before the image does";
        return Err(damaged(ImageError::Decoding(DecodingError::new(ImageFormatHint::Exact(format), message))));
    }
    reader.limits(Limits::default());
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        let limit = format!("{MAX_SIDE} pixels a side and {MAX_PIXELS} in all");
        return Err(Error::image_file(
            name,
            format!("the image has {width}×{height} pixels; at most {limit} are read"),
        ));
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { over_white(&image) } else { image.into_rgb8() })
}

fn check_size(bytes: u64, name: &Path) -> Result<()> {
    if bytes > MAX_FILE {
        return Err(Error::image_file(name, format!("has {bytes} bytes; an image file may have {MAX_FILE}")));
    }
    Ok(())
}

/// Writes a PNG whole or not at all; missing directories are made.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Image`] if the image is empty. Each names the file.
pub fn save_png(image: &RgbImage, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let named = |error| match error {
        Error::Image { source, .. } => Error::Image { path: path.to_path_buf(), source },
        other => other,
    };
    store::write_file(path, &encode_png(image).map_err(named)?)
}

/// Encodes a PNG in memory.
///
/// # Errors
/// [`Error::Image`] if the image is empty.
pub fn encode_png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let encoded = image.write_to(&mut bytes, ImageFormat::Png);
    encoded.map_err(|source| Error::Image { path: "image.png".into(), source })?;
    Ok(bytes.into_inner())
}

/// The decoder fills what is missing from a JPEG with grey and says nothing: an end marker must follow the last scan.
/// Inside a scan the two bytes of a marker cannot occur.
fn is_cut_off_jpeg(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    match (last(0xd9), last(0xda)) {
        (Some(end), Some(scan)) => end < scan,
        (end, _) => end.is_none(),
    }
}

fn over_white(image: &DynamicImage) -> RgbImage {
    let rgba = image.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        let blend = |c: u8| ((u32::from(c) * u32::from(a) + 255 * u32::from(255 - a) + 127) / 255) as u8;
        ::image::Rgb([r, g, b].map(blend))
    })
}
