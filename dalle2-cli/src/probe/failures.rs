//! Suites of captions with known failures of unCLIP (DALL·E 2, section 7).

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use dalle2::base::image::LabelledImage;

use crate::edit::common::EditArgs;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Two objects with attributes to bind
    Binding,
    /// Written words
    Spelling,
}

impl Suite {
    fn captions(self) -> &'static [&'static str] {
        match self {
            Self::Binding => &[
                "a red cube on top of a blue cube",
                "a blue cube on top of a red cube",
                "a green apple and a red heart",
                "a red apple and a green heart",
                "a small black cat beside a large white dog",
                "a small white dog beside a large black cat",
            ],
            Self::Spelling => &[
                "a sign that says deep learning",
                "the word OPEN in red letters",
                "a button with the letters SOS",
                "a poster that says hello world",
            ],
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Suite of captions
    #[arg(long, value_enum)]
    suite: Suite,
    /// Images per caption
    #[arg(long, value_name = "N", default_value_t = 4, alias = "num")]
    num_images: usize,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/failures.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let pipeline = args.edit.pipeline()?;
    let seed = args.edit.fixed_seed();
    let mut rows = Vec::new();
    for caption in args.suite.captions() {
        let generation = pipeline.generate(args.edit.request_for(caption, seed).num_images(args.num_images))?;
        rows.push(generation.images.into_iter().map(|image| LabelledImage::new(image, *caption)).collect());
    }
    args.edit.save_sheet(&rows, "captions of a failure suite", seed, &args.out)
}
