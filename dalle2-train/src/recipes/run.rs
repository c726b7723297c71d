//! Running a task with boxed sources and hooks, so that the trainer is compiled once per task, in this library.

use std::time::Instant;

use dalle2_core::Result;

use super::args::{Outcome, RecipeArgs, TrainSummary};
use super::config::{ModelConfig, PartOptions, RunConfig};
use crate::{BatchSource, Hooks, TrainTask, Trainer};

/// The batches and the callbacks of a run.
pub(super) struct Inputs<'a, M: TrainTask> {
    pub(super) source: Box<dyn BatchSource<Batch = M::Batch> + 'a>,
    pub(super) hooks: Box<dyn Hooks<M> + 'a>,
}

/// Trains `task` in the folder `part` of the output directory.
pub(super) fn run<C, O, M>(
    args: &RecipeArgs,
    part: &str,
    config: &RunConfig<C, O>,
    task: M,
    inputs: Inputs<'_, M>,
) -> Result<Outcome>
where
    C: ModelConfig,
    O: PartOptions,
    M: TrainTask + 'static,
{
    let start = Instant::now();
    let run_dir = args.run_dir(part);
    let trainer = Trainer::new(config.train.clone(), &run_dir)
        .options(args.session_options()?)
        .describe("model", &config.model)?
        .describe("options", &config.options)?;
    let Inputs { source, mut hooks } = inputs;
    let trained = match args.several_devices()? {
        Some(devices) if !O::DIVIDES_BATCHES => trainer.run_on(&devices, task, &*source, &mut *hooks)?,
        _ => trainer.run(task, &*source, &mut *hooks)?,
    };
    Ok(Outcome::Trained(TrainSummary {
        part: part.to_owned(),
        report: trained.report,
        seconds: start.elapsed().as_secs_f64(),
        run_dir,
        pipeline: args.export_dir(),
    }))
}
