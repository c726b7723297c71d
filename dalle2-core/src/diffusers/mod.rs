//! The layout of diffusers' unCLIP pipelines, version 0.36: the parts of reading and writing that all stages share. Each
//! stage documents its own folders.

mod scheduler;
mod weights;

pub use scheduler::UnclipScheduler;
pub use weights::{load_weights, save_weights};

/// Name of a diffusers model's weights file without its ending.
pub const WEIGHTS_STEM: &str = "diffusion_pytorch_model";
/// Name of a scheduler's configuration file.
pub const SCHEDULER_FILE: &str = "scheduler_config.json";
/// The version of diffusers in written files.
pub const VERSION: &str = "0.36.0";

/// A part's entry in `model_index.json`: its folder, the library and the class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The folder.
    pub folder: String,
    /// The Python library, such as `diffusers`.
    pub library: String,
    /// The class, such as `PriorTransformer`.
    pub class: String,
}

impl IndexEntry {
    /// The entry of a folder.
    pub fn new(folder: &str, library: &str, class: &str) -> Self {
        Self { folder: folder.to_owned(), library: library.to_owned(), class: class.to_owned() }
    }
}
