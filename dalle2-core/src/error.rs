//! The error type of the shared crate. Every message names what is at fault and what would be right.

use std::path::{Path, PathBuf};

pub use dalle2_kernels::ConfigError;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A tensor whose shape in a file is not the one the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// Name of the tensor in the file.
    pub name: String,
    /// Shape that the model needs.
    pub expected: Vec<usize>,
    /// Shape that the file has.
    pub found: Vec<usize>,
}

/// A tensor whose values cannot be used: another element type, a value that is not finite, a failed read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableTensor {
    /// Name of the tensor in the file.
    pub name: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Everything that can go wrong at a border: files, configuration, requests, checkpoints, data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration or request value is out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A JSON file is not what it should be.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// A file is damaged or not of the expected format.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A weights file does not hold exactly the tensors of the model.
    #[error("{}", weights_message(path, [missing, unexpected], mismatched, unreadable))]
    Weights {
        /// The file.
        path: PathBuf,
        /// Tensors the model needs and the file lacks.
        missing: Vec<String>,
        /// Tensors the file has and the model does not know.
        unexpected: Vec<String>,
        /// Tensors of another shape.
        mismatched: Vec<ShapeMismatch>,
        /// Tensors whose values cannot be used.
        unreadable: Vec<UnreadableTensor>,
    },
    /// An image could not be decoded or encoded.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ::image::ImageError,
    },
    /// Text could not be tokenized.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Two parts that were put together do not fit.
    #[error("{0}")]
    Mismatch(String),
    /// Input values that cannot be processed, such as NaN embeddings or a wrong tensor shape.
    #[error("{0}")]
    Input(String),
    /// The caller's hook asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A model could not be fetched from the hub.
    #[error("{repo}: {message}")]
    Hub {
        /// `owner/name`.
        repo: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A filter that was installed refused a caption or an image, and says why.
    #[error("refused: {0}")]
    Refused(String),
    /// The device refused an operation.
    #[error("device: {0}")]
    Device(String),
    /// Training cannot go on.
    #[error("training: {0}")]
    Training(String),
}

impl Error {
    /// An I/O error at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A JSON error in `path`.
    pub fn json(path: impl AsRef<Path>, source: serde_json::Error) -> Self {
        Self::Json { path: path.as_ref().to_path_buf(), source }
    }

    /// A format error in `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), message: message.into() }
    }
}

fn weights_message(
    path: &Path,
    [missing, unexpected]: [&[String]; 2],
    mismatched: &[ShapeMismatch],
    unreadable: &[UnreadableTensor],
) -> String {
    let mut message = format!("{}: the tensors do not match the configuration", path.display());
    if !missing.is_empty() {
        message.push_str(&format!("\n  missing ({}): {}", missing.len(), missing.join(", ")));
    }
    if !unexpected.is_empty() {
        message.push_str(&format!("\n  unexpected ({}): {}", unexpected.len(), unexpected.join(", ")));
    }
    for ShapeMismatch { name, expected, found } in mismatched {
        message.push_str(&format!("\n  {name}: the model needs shape {expected:?}, the file has {found:?}"));
    }
    for UnreadableTensor { name, message: fault } in unreadable {
        message.push_str(&format!("\n  {name}: {fault}"));
    }
    message
}
