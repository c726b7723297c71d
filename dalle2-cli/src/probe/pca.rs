//! Images decoded from the leading principal components of an embedding (DALL·E 2, section 4).

use std::path::PathBuf;

use anyhow::Result;
use dalle2::base::image::LabelledImage;
use dalle2::base::{Components, EmbeddingPca};
use dalle2::{Pipeline, StartNoise};

use super::labels::embed;
use super::renderings::Renderings;
use crate::edit::common::{EditArgs, image};
use crate::outcome::check_usage;
use crate::progress::Stages;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image files, or emoji:NAME
    #[arg(default_values = ["emoji:koala", "emoji:red apple", "emoji:blue heart", "emoji:fire engine"])]
    images: Vec<String>,
    /// Numbers of components
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32, 64, 128])]
    components: Vec<usize>,
    /// Components written by `--save`; computed from the training renderings of the bundled model if not given
    #[arg(long, value_name = "FILE")]
    pca: Option<PathBuf>,
    /// Writes the computed components
    #[arg(long, value_name = "FILE", conflicts_with = "pca")]
    save: Option<PathBuf>,
    /// Starts from each image's own noise instead of the seed's
    #[arg(long)]
    own_noise: bool,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/pca.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

pub fn run(args: &Args) -> Result<()> {
    check_usage!(!args.components.is_empty(), "--components: at least one number is needed");
    let pipeline = args.edit.pipeline()?;
    let pca = match &args.pca {
        Some(file) => EmbeddingPca::load(file)?,
        None => fit(&pipeline)?,
    };
    println!("| components | share of the variance |\n|---|---|");
    for &k in &args.components {
        println!("| {k} | {:.1} % |", 100.0 * pca.explained(k));
    }
    if let Some(file) = &args.save {
        pca.save(file)?;
        println!("{}", file.display());
    }
    let start = if args.own_noise { StartNoise::Inverted } else { StartNoise::Random };
    let seed = args.edit.fixed_seed();
    let stages = Stages::new();
    let mut rows = Vec::with_capacity(args.images.len());
    for spec in &args.images {
        let image = image(spec)?;
        let reconstructions = pipeline.pca_reconstructions(&image, &pca, &args.components).start_noise(start);
        let generation = reconstructions.request(args.edit.request(seed)).controls(stages.controls()).run()?;
        let mut row = vec![LabelledImage::new(image, spec)];
        let label = |(image, k): (_, &usize)| LabelledImage::new(image, format!("{k} of {}", pca.num_components()));
        row.extend(generation.images.into_iter().zip(&args.components).map(label));
        rows.push(row);
    }
    drop(stages);
    args.edit.save_sheet(&rows, "reconstructions from principal components", seed, &args.out)
}

/// Computes all principal components of the embeddings of the renderings.
fn fit(pipeline: &Pipeline) -> Result<EmbeddingPca> {
    let size = pipeline.decoder().image_size();
    let embeddings = embed(pipeline, Renderings::new(size)?.images(), size)?;
    let [n, d] = embeddings.dims();
    Ok(EmbeddingPca::fit(embeddings, Components::Fixed(n.min(d)))?)
}
