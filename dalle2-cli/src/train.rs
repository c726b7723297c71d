//! Training of the parts by the recipes of `dalle2_train`.

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};
use dalle2_train::cli::{ClipArgs, DecoderArgs, PriorArgs, TrainArgs, UpsamplerArgs};
use dalle2_train::data::EmbeddingSet;
use dalle2_train::recipes::prior::PriorData;
use dalle2_train::recipes::{Outcome, TrainData};

const EXAMPLES: &str = "Examples:
  dalle2 train clip --preset tiny
  dalle2 train prior --preset tiny --kind autoregressive
  dalle2 train decoder --preset tiny --inpaint
  dalle2 train upsampler --preset tiny
  dalle2 generate \"red apple\" --model runs/tiny/export

CLIP comes first: the other parts train with it. Ctrl-C stops with a checkpoint, from which --resume continues.";

/// Train CLIP, a prior, a decoder or an upsampler
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    Clip(Box<ClipArgs>),
    Prior(Box<PriorArgs>),
    Decoder(Box<DecoderArgs>),
    Upsampler(Box<UpsamplerArgs>),
}

pub fn run(cli: &Cli) -> Result<()> {
    let outcome = match &cli.part {
        Part::Clip(args) => args.recipe()?.run(open(&args.train)?)?,
        Part::Prior(args) => {
            let data = match &args.embeddings {
                Some(dir) => PriorData::Embedded(Arc::new(EmbeddingSet::open(dir)?)),
                None => PriorData::Images(open(&args.train)?),
            };
            args.recipe()?.run(&data)?
        }
        Part::Decoder(args) => args.recipe()?.run(open(&args.train)?)?,
        Part::Upsampler(args) => args.recipe()?.run(open(&args.train)?)?,
    };
    println!("{outcome}");
    match outcome {
        Outcome::Trained(summary) if summary.report.stop == dalle2_train::Stop::Interrupted => {
            Err(dalle2::Error::Cancelled.into())
        }
        _ => Ok(()),
    }
}

/// Opens the emoji, or the data set that the arguments name.
fn open(args: &TrainArgs) -> Result<Arc<dyn TrainData>> {
    #[cfg(feature = "emoji")]
    return Ok(dalle2_emoji::open_training_data(&args.data, args.subset.as_deref(), args.preset, args.workers)?);
    #[cfg(not(feature = "emoji"))]
    Ok(Arc::new(dalle2_train::recipes::ImageData::open(&args.data, args.workers)?))
}
