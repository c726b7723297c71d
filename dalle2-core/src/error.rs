//! The error type. Every message names the file, the key or the value, and the valid ones.

use std::path::{Path, PathBuf};

pub use dalle2_kernels::ConfigError;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A tensor of a file whose shape differs from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// Name of the tensor in the file.
    pub name: String,
    /// Shape in the model.
    pub expected: Vec<usize>,
    /// Shape in the file.
    pub found: Vec<usize>,
}

/// An unusable tensor of a file: of another element type, with a value that is not finite, or unreadable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableTensor {
    /// Name of the tensor in the file.
    pub name: String,
    /// The fault and the valid form.
    pub message: String,
}

/// Errors of files, configurations, requests, checkpoints and data. [`Error::kind`] classifies them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid value of a configuration or a request.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A failed read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// An invalid JSON file.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// A damaged file, or one of another format.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The fault and the valid form.
        message: String,
    },
    /// A weights file whose tensors differ from the model's.
    #[error("{}", weights_message(path, [missing, unexpected], mismatched, unreadable))]
    Weights {
        /// The file.
        path: PathBuf,
        /// Tensors of the model that the file lacks.
        missing: Vec<String>,
        /// Tensors of the file that the model lacks.
        unexpected: Vec<String>,
        /// Tensors with different shapes.
        mismatched: Vec<ShapeMismatch>,
        /// Unusable tensors.
        unreadable: Vec<UnreadableTensor>,
    },
    /// An image that cannot be decoded or encoded.
    #[error("{}: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ::image::ImageError,
    },
    /// An image file of another format, or one that exceeds a limit.
    #[error("{}: {message}", path.display())]
    ImageFile {
        /// The file.
        path: PathBuf,
        /// The fault and the valid form.
        message: String,
    },
    /// Text that cannot be tokenized.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Incompatible parts, or an operation that the parts do not support.
    #[error("{0}")]
    Mismatch(String),
    /// Invalid input, such as NaN embeddings or a wrong tensor shape.
    #[error("{0}")]
    Input(String),
    /// A directory without a pipeline.
    #[error("{}: {}", path.display(), not_a_pipeline(*exists))]
    NotAPipeline {
        /// The directory.
        path: PathBuf,
        /// Whether the path exists.
        exists: bool,
    },
    /// A caption with more tokens than the text encoder reads.
    #[error("the caption {} has {tokens} tokens with start and end, the limit is {limit}: shorten it", head(caption))]
    CaptionTooLong {
        /// The caption.
        caption: String,
        /// Its number of tokens, start and end included.
        tokens: usize,
        /// The maximum number of tokens.
        limit: usize,
    },
    /// A mask whose size differs from the image's.
    #[error("the mask is {} × {}, the image {} × {}: their sizes must be equal", mask[0], mask[1], image[0], image[1])]
    MaskSize {
        /// `[width, height]` of the mask.
        mask: [u32; 2],
        /// `[width, height]` of the image.
        image: [u32; 2],
    },
    /// Cancelled by a hook.
    #[error("cancelled")]
    Cancelled,
    /// A model that cannot be fetched from the hub.
    #[error("{repo}: {message}")]
    Hub {
        /// `owner/name`.
        repo: String,
        /// The fault and the valid form.
        message: String,
    },
    /// A caption or an image refused by a filter, with its reason.
    #[error("refused: {0}")]
    Refused(String),
    /// A failed operation of the device.
    #[error("device: {0}")]
    Device(String),
    /// Training that cannot continue.
    #[error("training: {0}")]
    Training(String),
}

/// The class of an [`Error`], for a program that reports errors to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is invalid: an option, a caption, a mask or an input tensor.
    Request,
    /// An image file cannot be decoded, or exceeds a limit.
    Upload,
    /// The model is damaged, or its parts do not support the operation.
    Model,
    /// A file or a model does not exist.
    NotFound,
    /// A filter refused the caption or an image.
    Refused,
    /// A hook cancelled the operation.
    Cancelled,
    /// The device failed.
    Device,
    /// Anything else, such as a disk that is full.
    Other,
}

impl Error {
    /// Classifies the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_)
            | Self::Input(_)
            | Self::Tokenizer(_)
            | Self::CaptionTooLong { .. }
            | Self::MaskSize { .. } => ErrorKind::Request,
            Self::Image { .. } | Self::ImageFile { .. } => ErrorKind::Upload,
            Self::Json { .. } | Self::Format { .. } | Self::Weights { .. } | Self::Mismatch(_) => ErrorKind::Model,
            Self::NotAPipeline { .. } => ErrorKind::NotFound,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Refused(_) => ErrorKind::Refused,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Device(_) => ErrorKind::Device,
            Self::Io { .. } | Self::Hub { .. } | Self::Training(_) => ErrorKind::Other,
        }
    }

    /// An I/O error at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A JSON error in `path`.
    pub fn json(path: impl AsRef<Path>, source: serde_json::Error) -> Self {
        Self::Json { path: path.as_ref().to_path_buf(), source }
    }

    /// An image file that is refused.
    pub(crate) fn image_file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::ImageFile { path: path.as_ref().to_path_buf(), message: message.into() }
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

fn not_a_pipeline(exists: bool) -> &'static str {
    if exists { "is not a pipeline directory: it has no model_index.json" } else { "does not exist" }
}

/// The beginning of a caption, quoted.
fn head(caption: &str) -> String {
    match caption.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &caption[..end]),
        None => format!("{caption:?}"),
    }
}
