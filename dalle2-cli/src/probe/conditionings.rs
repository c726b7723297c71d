//! One decoder under three conditions: the caption alone, the text embedding in place of an image embedding, and the
//! image embedding of the prior (DALL·E 2, section 5.1).

use std::path::{Path, PathBuf};

use anyhow::Result;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::image::{LabelledImage, Mask, RgbImage, from_tensor};
use dalle2::base::{Captions, DiffusionOptions};
use dalle2::decoder::UnclipDecoder;
use dalle2::{Device, LoadOptions, Pipeline};
use serde::Serialize;

use super::labels::{embed, similarities};
use super::renderings::Renderings;
use crate::args::JsonArgs;
use crate::edit::common::{EditArgs, some_names};
use crate::progress::Items;

/// Maximum number of captions on the sheet.
const SHOWN: usize = 6;
/// Noise stream of the decoder in a pipeline, so that all three start from the same noise.
const DECODER_STREAM: u64 = 2;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of captions, spread over the emoji of the training set
    #[arg(long, value_name = "N", default_value_t = 48, alias = "num")]
    num_images: usize,
    #[command(flatten)]
    json: JsonArgs,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/conditionings.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

#[derive(Debug, Clone, Copy)]
enum Conditioning {
    Caption,
    TextEmbedding,
    Prior,
}

impl Conditioning {
    const ALL: [Self; 3] = [Self::Caption, Self::TextEmbedding, Self::Prior];

    fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption only",
            Self::TextEmbedding => "text embedding",
            Self::Prior => "prior",
        }
    }
}

/// Means over the captions.
#[derive(Debug, Serialize)]
struct Row {
    conditioning: &'static str,
    captions: usize,
    /// Cosine between images and their captions.
    similarity: f64,
    /// Top-1 and top-10 accuracy of the nearest rendering.
    nearest: [f64; 2],
}

pub fn run(args: &Args) -> Result<()> {
    let names = some_names(args.num_images)?;
    let pipeline = args.edit.pipeline()?;
    let decoder = load_decoder(&args.edit.model.model, pipeline.device())?;
    let size = pipeline.decoder().image_size();
    let renderings = Renderings::new(size)?;
    let everywhere = Mask::edit_where(size as u32, size as u32, |_, _| true);
    let progress = Items::new(names.len() * Conditioning::ALL.len(), "images");
    let mut rows: Vec<Row> = Vec::new();
    let mut columns = Vec::new();
    for conditioning in Conditioning::ALL {
        let mut images = Vec::with_capacity(names.len());
        for name in &names {
            images.push(generate(args, &pipeline, &decoder, (conditioning, name))?);
            progress.add(1);
        }
        let captions: Vec<&str> = names.iter().map(String::as_str).collect();
        let cosines = similarities(&pipeline, embed(&pipeline, &images, size)?, &captions)?;
        let similarity = cosines.iter().enumerate().map(|(i, row)| row[i]).sum::<f64>() / names.len() as f64;
        let ranks = images.iter().zip(&names).map(|(image, name)| renderings.rank(image, &everywhere, name));
        let ranks = ranks.collect::<Result<Vec<usize>>>()?;
        let share = |best: usize| ranks.iter().filter(|rank| **rank < best).count() as f64 / ranks.len() as f64;
        let nearest = [share(1), share(10)];
        rows.push(Row { conditioning: conditioning.name(), captions: names.len(), similarity, nearest });
        columns.push(images);
    }
    drop(progress);
    println!("| conditioning | CLIP similarity | top-1 | top-10 |\n|---|---|---|---|");
    for Row { conditioning, similarity, nearest, .. } in &rows {
        let [top1, top10] = nearest.map(|share| 100.0 * share);
        println!("| {conditioning} | {similarity:.3} | {top1:.0} % | {top10:.0} % |");
    }
    let [top1, top10] = [1.0, 10.0].map(|best| 100.0 * best / renderings.len() as f64);
    println!("| chance | | {top1:.1} % | {top10:.1} % |");
    args.json.write(&rows)?;
    let shown = names.len().min(SHOWN);
    let mut sheet = Vec::with_capacity(shown);
    for i in (0..shown).map(|i| i * names.len() / shown) {
        let mut line = vec![LabelledImage::new(renderings.named(&names[i])?.clone(), &names[i])];
        let cell = |(images, conditioning): (&Vec<RgbImage>, Conditioning)| {
            LabelledImage::new(images[i].clone(), conditioning.name())
        };
        line.extend(columns.iter().zip(Conditioning::ALL).map(cell));
        sheet.push(line);
    }
    let wide: Vec<Vec<LabelledImage>> = sheet.chunks(2).map(|rows| rows.concat()).collect();
    args.edit.save_sheet(&wide, "three conditionings of one decoder", args.edit.fixed_seed(), &args.out)
}

/// Loads the decoder by itself: a pipeline always conditions it on an embedding.
fn load_decoder(model: &Path, device: &Device) -> Result<UnclipDecoder> {
    Ok(if model.join("decoder_scheduler").is_dir() {
        UnclipDecoder::load_diffusers(model, &LoadOptions::new(device))?
    } else {
        UnclipDecoder::load(model.join("decoder"), device)?
    })
}

/// Generates an image under one condition.
fn generate(
    args: &Args,
    pipeline: &Pipeline,
    decoder: &UnclipDecoder,
    (conditioning, caption): (Conditioning, &str),
) -> Result<RgbImage> {
    let request = args.edit.request_for(caption, args.edit.fixed_seed()).max_upsamplers(0);
    let encode = |caption: &str| pipeline.text_encoder().encode(&[caption]);
    let request = match conditioning {
        Conditioning::Caption => {
            let options = DiffusionOptions {
                steps: Some(args.edit.steps()),
                guidance: args.edit.sampling.guidance,
                ..Default::default()
            };
            let mut noise = SeededNoise::new(&[args.edit.fixed_seed()], DECODER_STREAM);
            let (text, null) = (encode(caption)?, encode("")?);
            let mut proceed = |_: dalle2::base::StepEvent<'_>| Ok(());
            let images =
                decoder.sample_captions(Captions { text: &text, null: &null }, &options, &mut noise, &mut proceed)?;
            return Ok(from_tensor(images)?.remove(0));
        }
        Conditioning::TextEmbedding => request.embeddings(encode(caption)?.pooled),
        Conditioning::Prior => request,
    };
    Ok(pipeline.generate(request)?.images.remove(0))
}
