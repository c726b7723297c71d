//! A study: its questions, the data of its page, and the private key.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The subject of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The more realistic image; the caption is hidden.
    Photorealism,
    /// The image that fits the caption better.
    Caption,
    /// The more varied of two grids of 4 × 4 images of one caption.
    Diversity,
}

impl Kind {
    /// Images on each side.
    pub fn images(self) -> usize {
        match self {
            Self::Photorealism | Self::Caption => 1,
            Self::Diversity => 16,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Photorealism => "photorealism",
            Self::Caption => "caption",
            Self::Diversity => "diversity",
        })
    }
}

/// One of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// The one of `--a`.
    A,
    /// The one of `--b`.
    B,
}

/// Data for the script of the page. It hides the models: all images have the same encoding and a shuffled order.
#[derive(Debug, Serialize)]
pub struct Page {
    /// Names the study in the answers.
    pub study: String,
    /// The heading.
    pub title: String,
    /// In presentation order.
    pub questions: Vec<PageQuestion>,
    /// Data URIs.
    pub images: Vec<String>,
}

/// A question as the page shows it.
#[derive(Debug, Serialize)]
pub struct PageQuestion {
    pub id: String,
    pub kind: Kind,
    /// The caption, if the question is about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
    /// Indices into [`Page::images`].
    pub left: Vec<usize>,
    pub right: Vec<usize>,
}

const KEY_FORMAT: &str = "dalle2-human-eval-key";

/// Which side was which.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub format: String,
    pub version: u32,
    pub study: String,
    pub title: String,
    pub a: Source,
    pub b: Source,
    pub seed: u64,
    pub questions: Vec<KeyQuestion>,
}

/// Origin of a model's images.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: String,
    pub dir: PathBuf,
}

/// A question with the answer's meaning.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyQuestion {
    pub id: String,
    pub kind: Kind,
    /// Line of the caption, from 0.
    pub line: usize,
    pub caption: String,
    /// The model on the left.
    pub left: Model,
}

impl Key {
    /// A key of this version.
    pub fn new(study: String, title: String, [a, b]: [Source; 2], seed: u64, questions: Vec<KeyQuestion>) -> Self {
        Self { format: KEY_FORMAT.into(), version: 1, study, title, a, b, seed, questions }
    }

    /// The questions by their names.
    pub fn by_id(&self) -> HashMap<&str, &KeyQuestion> {
        self.questions.iter().map(|question| (question.id.as_str(), question)).collect()
    }

    /// Reads a key.
    ///
    /// # Errors
    /// When the file is missing, damaged, or of another kind or version.
    pub fn read(file: &Path) -> Result<Self> {
        let key: Self = dalle2::base::store::read_json(file)?;
        ensure!(
            key.format == KEY_FORMAT && key.version == 1,
            "{}: is {:?} version {}; expected {KEY_FORMAT:?} version 1, which `make` writes",
            file.display(),
            key.format,
            key.version
        );
        Ok(key)
    }
}
