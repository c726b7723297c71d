//! Strict storage: safetensors for weights, JSON for configurations, both written atomically.
//!
//! Loading accepts exactly the tensors of the module: missing, unexpected and wrongly shaped ones are all listed in
//! one [`Error::Weights`](crate::Error::Weights). Reading and writing take the memory of one tensor beside the
//! module's. On disk the layout is PyTorch's: linear weights are `[out, in]`, and the parameters of norms are called
//! `weight` and `bias`.
//!
//! [`Weights`] is a checkpoint of another program: safetensors or, with the feature `pytorch`, a PyTorch state dict, in
//! one file or several.

mod fields;
mod find;
mod json;
mod load;
mod lock;
mod names;
mod pipeline_dir;
#[cfg(feature = "pytorch")]
mod pytorch;
mod safetensors_header;
mod source;
mod transpose;
mod write;

pub use fields::Fields;
pub use find::{find_weights, weights_names};
pub use json::{CONFIG_FILE, WEIGHTS_FILE, read_config, read_json, write_config, write_file, write_json};
pub(crate) use load::load_converted;
pub use load::{check_module_from, load_module, load_module_as, load_module_from};
pub use lock::DirLock;
pub use names::module_tensors;
pub use pipeline_dir::PipelineDir;
pub use safetensors::Dtype;
pub use source::Weights;
pub use write::{WeightsWriter, save_module, save_module_as};

#[cfg(test)]
mod tests;
