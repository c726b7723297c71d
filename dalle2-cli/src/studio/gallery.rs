//! The images of a session: uploads and results, as PNG files in a temporary directory.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Mutex;

use ::image::ImageReader;
use anyhow::{Context, Result};
use dalle2::RgbImage;
use dalle2::base::image::{self, Provenance, fit_square, open, save_png_with};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::limits;
use super::queue::lock;

/// Stands for the name of a file where there is none.
const UPLOAD: &str = "upload";

/// Name of an image: `p12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageId(u64);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

impl From<ImageId> for String {
    fn from(id: ImageId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ImageId {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let number = name.strip_prefix('p').and_then(|number| number.parse().ok());
        number.map(Self).ok_or_else(|| format!("{name:?} is not an image name: expected one like \"p12\""))
    }
}

/// The origin of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// `upload`, or the name of the task.
    #[serde(rename = "origin")]
    pub by: &'static str,
    /// The job that made it.
    pub job: Option<u64>,
    /// Title of the job, or name of the upload.
    pub caption: String,
    /// Its place among the frames of its job.
    pub label: String,
    pub seed: Option<u64>,
}

/// An image with its origin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GalleryImage {
    pub id: ImageId,
    pub width: u32,
    pub height: u32,
    #[serde(flatten)]
    pub origin: Origin,
}

/// The newest images, up to a limit.
#[derive(Debug)]
pub struct Gallery {
    folder: TempDir,
    model: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    images: VecDeque<GalleryImage>,
}

impl Gallery {
    /// Creates an empty gallery.
    ///
    /// # Errors
    /// When no temporary directory can be created.
    pub fn new(model: String) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a directory for the images")?;
        Ok(Self { folder, model, state: Mutex::default() })
    }

    /// Stores an image; generated ones carry their provenance in the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, image: &RgbImage, origin: Origin) -> Result<GalleryImage> {
        let mut state = lock(&self.state);
        state.last += 1;
        let id = ImageId(state.last);
        let provenance = origin.job.is_some().then(|| Provenance {
            caption: origin.caption.clone(),
            seed: origin.seed,
            model: self.model.clone(),
            software: concat!("dalle2 ", env!("CARGO_PKG_VERSION")).to_owned(),
        });
        save_png_with(image, self.file(id), provenance.as_ref())?;
        let entry = GalleryImage { id, width: image.width(), height: image.height(), origin };
        state.images.push_back(entry.clone());
        while state.images.len() > limits::GALLERY {
            if let Some(oldest) = state.images.pop_front() {
                // A file that cannot be deleted goes with the directory.
                let _ = fs::remove_file(self.file(oldest.id));
            }
        }
        Ok(entry)
    }

    fn file(&self, id: ImageId) -> PathBuf {
        self.folder.path().join(format!("{id}.png"))
    }

    /// The image of this name with its origin.
    pub fn get(&self, id: ImageId) -> Option<GalleryImage> {
        lock(&self.state).images.iter().find(|entry| entry.id == id).cloned()
    }

    /// All images, the newest first.
    pub fn list(&self) -> Vec<GalleryImage> {
        lock(&self.state).images.iter().rev().cloned().collect()
    }

    /// The PNG file of an image.
    pub fn png(&self, id: ImageId) -> Option<Vec<u8>> {
        self.get(id)?;
        fs::read(self.file(id)).ok()
    }

    /// The pixels of an image.
    ///
    /// # Errors
    /// When it is no longer stored.
    pub fn image(&self, id: ImageId) -> Result<RgbImage> {
        self.get(id).with_context(|| format!("image {id} is no longer stored"))?;
        Ok(open(self.file(id))?)
    }

    /// Stores an upload, cropped to the largest square in the middle, which the pipeline reads.
    ///
    /// # Errors
    /// When it is not an image, damaged or too large.
    pub fn upload(&self, bytes: &[u8], name: &str) -> Result<GalleryImage> {
        let image = decode(bytes).map_err(anyhow::Error::msg)?;
        let side = image.width().min(image.height()).min(limits::STORED_SIDE);
        let caption = name.chars().filter(|c| !c.is_control()).take(limits::CAPTION).collect();
        let origin = Origin { by: "upload", job: None, caption, label: String::new(), seed: None };
        self.add(&fit_square(&image, side), origin)
    }
}

/// Decodes an image from the network.
///
/// # Errors
/// When it is not a PNG, JPEG or WebP file, damaged, empty or too large.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let size = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?.into_dimensions();
    if let Ok((width, height)) = size {
        if width == 0 || height == 0 {
            return Err(format!("the image has {width}×{height} pixels: at least one is needed"));
        }
        if width.max(height) > limits::SIDE || u64::from(width) * u64::from(height) > limits::PIXELS {
            let limit = format!("{} pixels a side and {} in all", limits::SIDE, limits::PIXELS);
            return Err(format!("the image has {width}×{height} pixels; at most {limit} are read"));
        }
    }
    image::decode(bytes, UPLOAD).map_err(|e| without_name(&e.to_string()))
}

/// Removes the file name that the library puts into errors.
fn without_name(message: &str) -> String {
    message.strip_prefix(&format!("{UPLOAD}: ")).unwrap_or(message).to_owned()
}
