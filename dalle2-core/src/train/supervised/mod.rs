//! Training under Burn's own loop, which has data-parallel training with NCCL (`ExecutionStrategy::ddp`).
//!
//! Burn's loop thinks in epochs: [`TrainConfig::checkpoint_every`](super::TrainConfig::checkpoint_every) steps are one, and
//! each ends with a checkpoint. Learning rate, decay groups, accumulation, clipping of the global norm and the handling of
//! steps that are not finite are those of the [`Trainer`](super::Trainer), and so is `metrics.jsonl`.

mod check;
mod quiet;
mod rate;
mod recorder;
mod run;
mod strategy;
mod task;

pub(super) use run::refuse_run;

pub use check::check_supervised;
pub use strategy::DeviceStrategy;
