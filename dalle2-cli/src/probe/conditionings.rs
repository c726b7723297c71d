//! One decoder under three conditions: the caption alone, the text embedding in place of the image's, and the prior's image
//! embedding (DALL·E 2, section 5.1).

use std::path::{Path, PathBuf};

use anyhow::Result;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::image::{LabelledImage, Mask, RgbImage, from_tensor};
use dalle2::base::store::write_json;
use dalle2::base::{Captions, DiffusionOptions};
use dalle2::decoder::UnclipDecoder;
use dalle2::{Device, LoadOptions, Pipeline};
use indicatif::ProgressBar;
use serde::Serialize;

use super::labels::{embed, similarities};
use super::renderings::Renderings;
use crate::edit::args::{EditArgs, some_names};

/// Captions on the sheet, at most.
const SHOWN: usize = 6;
/// Stream of an image's seed that a pipeline's decoder draws from, so that all three start from the same noise.
const DECODER_STREAM: u64 = 2;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Captions, spread over the emoji of the training set
    #[arg(long, value_name = "N", default_value_t = 48)]
    num: usize,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    /// Cosine of the picture with its caption.
    similarity: f64,
    /// The nearest rendering is the caption's, and one of the ten nearest.
    nearest: [f64; 2],
}

pub fn run(args: &Args) -> Result<()> {
    let names = some_names(args.num)?;
    let pipeline = args.edit.pipeline()?;
    let decoder = load_decoder(&args.edit.model, pipeline.device())?;
    let size = pipeline.decoder().image_size();
    let renderings = Renderings::new(size)?;
    let everywhere = Mask::edit_where(size as u32, size as u32, |_, _| true);
    let bar = ProgressBar::new((names.len() * Conditioning::ALL.len()) as u64);
    let mut rows: Vec<Row> = Vec::new();
    let mut columns = Vec::new();
    for conditioning in Conditioning::ALL {
        let mut images = Vec::with_capacity(names.len());
        for name in &names {
            images.push(draw(args, &pipeline, &decoder, (conditioning, name))?);
            bar.inc(1);
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
    bar.finish_and_clear();
    println!(
        "| conditioning | CLIP similarity | nearest rendering is right | one of the ten nearest |\n|---|---|---|---|"
    );
    for Row { conditioning, similarity, nearest, .. } in &rows {
        let [one, ten] = nearest.map(|share| 100.0 * share);
        println!("| {conditioning} | {similarity:.3} | {one:.0} % | {ten:.0} % |");
    }
    let [one, ten] = [1.0, 10.0].map(|best| 100.0 * best / renderings.len() as f64);
    println!("| chance | | {one:.1} % | {ten:.1} % |");
    if let Some(json) = &args.json {
        write_json(json, &rows)?;
        println!("{}", json.display());
    }
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
    args.edit.save_sheet(&wide, "three conditionings of one decoder", &args.out)
}

/// The decoder by itself: a pipeline always gives it an embedding.
fn load_decoder(model: &Path, device: &Device) -> Result<UnclipDecoder> {
    Ok(match model.join("decoder_scheduler").is_dir() {
        true => UnclipDecoder::load_diffusers(model, &LoadOptions::new(device))?,
        false => UnclipDecoder::load(model.join("decoder"), device)?,
    })
}

/// The decoder's picture.
fn draw(
    args: &Args,
    pipeline: &Pipeline,
    decoder: &UnclipDecoder,
    (conditioning, caption): (Conditioning, &str),
) -> Result<RgbImage> {
    let request = args.edit.request_for(caption).max_upsamplers(0);
    let encode = |caption: &str| pipeline.text_encoder().encode(&[caption]);
    let request = match conditioning {
        Conditioning::Caption => {
            let options =
                DiffusionOptions { steps: Some(args.edit.steps), guidance: args.edit.guidance, ..Default::default() };
            let mut noise = SeededNoise::new(&[args.edit.seed], DECODER_STREAM);
            let (text, null) = (encode(caption)?, encode("")?);
            let captions = Captions { text: &text, null: &null };
            let mut go_on = |_: dalle2::base::StepEvent<'_>| Ok(());
            let drawn = decoder.sample_captions(captions, &options, &mut noise, &mut go_on)?;
            return Ok(from_tensor(drawn)?.remove(0));
        }
        Conditioning::TextEmbedding => request.embeddings(encode(caption)?.pooled),
        Conditioning::Prior => request,
    };
    Ok(pipeline.generate(request)?.images.remove(0))
}
