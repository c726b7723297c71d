//! The pictures of a session: uploads and results, as PNG files in a folder of their own.

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

/// Name of a picture: `p12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PictureId(u64);

impl fmt::Display for PictureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

impl From<PictureId> for String {
    fn from(id: PictureId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for PictureId {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let number = name.strip_prefix('p').and_then(|number| number.parse().ok());
        number.map(Self).ok_or_else(|| format!("{name:?} is no picture: expected a name like \"p12\""))
    }
}

/// Where a picture comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// What made it: `upload`, or the name of a task.
    #[serde(rename = "origin")]
    pub by: &'static str,
    /// The job that made it.
    pub job: Option<u64>,
    /// What it shows, in the words of who asked for it.
    pub caption: String,
    /// Its place among the frames of its job.
    pub label: String,
    pub seed: Option<u64>,
}

/// What is known of a picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Picture {
    pub id: PictureId,
    pub width: u32,
    pub height: u32,
    #[serde(flatten)]
    pub origin: Origin,
}

/// The newest pictures, as many as are kept.
#[derive(Debug)]
pub struct Pictures {
    folder: TempDir,
    model: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    kept: VecDeque<Picture>,
}

impl Pictures {
    /// None yet.
    ///
    /// # Errors
    /// When no temporary folder can be made.
    pub fn new(model: String) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder for the pictures")?;
        Ok(Self { folder, model, state: Mutex::default() })
    }

    /// Keeps a picture, with its provenance in the file unless it was uploaded.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, image: &RgbImage, origin: Origin) -> Result<Picture> {
        let mut state = lock(&self.state);
        state.last += 1;
        let id = PictureId(state.last);
        let provenance = origin.job.is_some().then(|| Provenance {
            caption: origin.caption.clone(),
            seed: origin.seed,
            model: self.model.clone(),
            software: concat!("dalle2 ", env!("CARGO_PKG_VERSION")).to_owned(),
        });
        save_png_with(image, self.file(id), provenance.as_ref())?;
        let picture = Picture { id, width: image.width(), height: image.height(), origin };
        state.kept.push_back(picture.clone());
        while state.kept.len() > limits::PICTURES {
            if let Some(oldest) = state.kept.pop_front() {
                // What cannot be deleted goes with the folder.
                let _ = fs::remove_file(self.file(oldest.id));
            }
        }
        Ok(picture)
    }

    fn file(&self, id: PictureId) -> PathBuf {
        self.folder.path().join(format!("{id}.png"))
    }

    /// What is known of a picture.
    pub fn get(&self, id: PictureId) -> Option<Picture> {
        lock(&self.state).kept.iter().find(|picture| picture.id == id).cloned()
    }

    /// All of them, the newest first.
    pub fn list(&self) -> Vec<Picture> {
        lock(&self.state).kept.iter().rev().cloned().collect()
    }

    /// The file of a picture.
    pub fn png(&self, id: PictureId) -> Option<Vec<u8>> {
        self.get(id)?;
        fs::read(self.file(id)).ok()
    }

    /// The pixels of a picture.
    ///
    /// # Errors
    /// When it is no longer kept.
    pub fn image(&self, id: PictureId) -> Result<RgbImage> {
        self.get(id).with_context(|| format!("picture {id} is no longer kept"))?;
        Ok(open(self.file(id))?)
    }

    /// Keeps what was uploaded: the largest square in the middle, which is what the pipeline reads.
    ///
    /// # Errors
    /// When it is no image, damaged or too large.
    pub fn upload(&self, bytes: &[u8], name: &str) -> Result<Picture> {
        let image = decode(bytes).map_err(anyhow::Error::msg)?;
        let side = image.width().min(image.height()).min(limits::KEPT_SIDE);
        let caption = name.chars().filter(|c| !c.is_control()).take(limits::CAPTION).collect();
        let origin = Origin { by: "upload", job: None, caption, label: String::new(), seed: None };
        self.add(&fit_square(&image, side), origin)
    }
}

/// Reads an image that came over the network.
///
/// # Errors
/// When it is no PNG, JPEG or WebP, damaged, without pixels or with too many.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    let size = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?.into_dimensions();
    if let Ok((width, height)) = size {
        if width == 0 || height == 0 {
            return Err(format!("the image has {width}×{height} pixels: there is nothing to see"));
        }
        if width.max(height) > limits::SIDE || u64::from(width) * u64::from(height) > limits::PIXELS {
            let limit = format!("{} pixels a side and {} in all", limits::SIDE, limits::PIXELS);
            return Err(format!("the image has {width}×{height} pixels; at most {limit} are read"));
        }
    }
    image::decode(bytes, UPLOAD).map_err(|e| without_name(&e.to_string()))
}

/// The library names files in its errors; one that came over the network has no name.
fn without_name(message: &str) -> String {
    message.strip_prefix(&format!("{UPLOAD}: ")).unwrap_or(message).to_owned()
}
