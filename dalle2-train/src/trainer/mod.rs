//! The step-based trainer.
//!
//! A model is anything that implements [`TrainTask`]; its batches come from a [`BatchSource`]. Burn's own training loop
//! counts in epochs and has neither a moving average of the weights nor a position in the data, so [`Trainer`] is a loop
//! of this crate.
//!
//! A run is a function of its configuration: batch, dropout and learning rate of step N depend on the seed and N alone
//! ([`BatchSource`], [`step_rng`]). So a run that was killed and resumed gives the weights of one that was not, bit
//! for bit on a device that computes deterministically.
//!
//! ```
//! use burn::nn::{Linear, LinearConfig};
//! use burn::prelude::*;
//! use dalle2_core::Result;
//! use dalle2_train::{BatchSource, RunOptions, StepOutput, TrainConfig, TrainTask, Trainer, step_rng};
//! use rand::RngExt;
//!
//! /// Learns to double numbers.
//! #[derive(Module, Debug)]
//! struct Double {
//!     linear: Linear,
//! }
//!
//! impl TrainTask for Double {
//!     type Batch = Tensor<2>;
//!
//!     fn loss(&self, x: Tensor<2>) -> StepOutput {
//!         StepOutput::new((self.linear.forward(x.clone()) - x * 2.0).square().mean())
//!     }
//! }
//!
//! struct Numbers;
//!
//! impl BatchSource for Numbers {
//!     type Batch = Tensor<2>;
//!
//!     fn batch(&self, step: u64, device: &Device) -> Result<Tensor<2>> {
//!         let mut rng = step_rng(7, 0, step);
//!         let values: Vec<f32> = (0..8).map(|_| rng.random_range(-1.0..1.0)).collect();
//!         Ok(Tensor::from_data(TensorData::new(values, [8, 1]), device))
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! # let run = tempfile::tempdir().unwrap();
//! # let run = run.path();
//! let device = Device::flex().autodiff();
//! let config = TrainConfig { steps: 200, batch_size: 8, learning_rate: 0.05, ..Default::default() };
//! let model = Double { linear: LinearConfig::new(1, 1).init(&device) };
//! let trained = Trainer::new(config, run)
//!     .options(RunOptions { resume: true, ..Default::default() })
//!     .run(model, &Numbers, &mut ())?;
//! assert!(trained.report.loss.unwrap() < 1e-2);
//! # Ok(())
//! # }
//! ```

mod adamw;
mod checkpoint;
mod config;
mod display;
mod ema;
mod gather;
mod grads;
mod hooks;
mod host;
mod interrupt;
mod loss_scale;
mod memory;
mod precision;
mod prepare;
mod run;
mod run_dir;
mod session;
mod settings;
mod source;
mod state;
mod values;

pub use dalle2_core::train::{
    BatchSource, DeviceThreads, StepGradients, StepOutput, TrainTask, kept_by_transformer, materialize, mix_seed,
    step_rng,
};

pub use adamw::optimizer;
pub use checkpoint::read_checkpoint;
pub use config::{Goal, Schedule, TrainConfig, Watch};
pub use display::DisplayMode;
pub use ema::Ema;
pub use grads::{clip_global_norm, global_norm};
pub use hooks::Hooks;
pub use interrupt::Interrupter;
pub use loss_scale::LossScaling;
pub use memory::MemoryEstimate;
pub use run::{BestCheckpoint, RunOptions, Stop, TrainReport, Trained, Trainer};
pub use run_dir::{StepRecord, read_metrics};
pub use settings::resolve;
