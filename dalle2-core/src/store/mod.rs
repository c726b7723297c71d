//! Strict storage: safetensors for weights, JSON for configurations, both written atomically.
//!
//! Loading accepts exactly the tensors of the module: missing, unexpected and wrongly shaped ones are all listed in
//! one [`Error::Weights`](crate::Error::Weights), and nothing is applied. On disk the layout is PyTorch's: linear
//! weights are `[out, in]`, and the parameters of norms are called `weight` and `bias`.

mod json;
mod weights;

pub use json::{CONFIG_FILE, WEIGHTS_FILE, read_config, read_json, write_config, write_file, write_json};
pub use weights::{Precision, load_module, load_module_as, save_module, save_module_as};
