//! Changes and preservation by text diffs, over pairs of emoji that differ in one attribute.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use burn::prelude::Tensor;
use dalle2::base::image::{LabelledImage, RgbImage, fit_square, to_tensor};
use dalle2::base::metrics::{cosine_similarity, psnr};
use dalle2::{GenerateRequest, Pipeline};
use dalle2_emoji::{Split, Subset, catalogue};
use serde::Serialize;

use crate::args::JsonArgs;
use crate::edit::common::{EditArgs, emoji};
use crate::progress::Items;

/// Maximum number of pairs on the sheet.
const SHOWN: usize = 12;

/// Attributes with interchangeable values in names.
const ATTRIBUTES: [(&str, &[&str]); 3] = [
    (
        "skin tone",
        &["light skin tone", "medium-light skin tone", "medium skin tone", "medium-dark skin tone", "dark skin tone"],
    ),
    ("hair", &["red hair", "curly hair", "white hair", "bald", "blond hair"]),
    (
        "colour of hearts",
        &[
            "red heart",
            "orange heart",
            "yellow heart",
            "green heart",
            "blue heart",
            "purple heart",
            "brown heart",
            "black heart",
            "white heart",
            "pink heart",
            "light blue heart",
            "grey heart",
        ],
    ),
];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Maximum number of pairs per attribute
    #[arg(long, value_name = "N", default_value_t = 20, alias = "num")]
    num_images: usize,
    /// How far the embedding turns, from 0 to 1
    #[arg(long, default_value_t = 0.4)]
    strength: f64,
    #[command(flatten)]
    json: JsonArgs,
    /// PNG file of some of the pairs
    #[arg(long, value_name = "FILE", default_value = "out/text_diff_probe.png", alias = "sheet")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

/// Means over the pairs of an attribute.
#[derive(Debug, Default, Serialize)]
struct Row {
    attribute: String,
    pairs: usize,
    /// Cosine between the original image and the new caption.
    similarity_before: f64,
    /// Cosine between the changed image and the new caption.
    similarity_after: f64,
    /// PSNR of the changed image against the original, in decibel.
    psnr_changed: f64,
    /// PSNR of an image generated for the new caption, against the original.
    psnr_fresh: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let pipeline = args.edit.pipeline()?;
    let all = catalogue();
    let names: Vec<&str> =
        Subset::Small.select(&all, Split::Seen)?.into_iter().map(|item| all[item].name.as_str()).collect();
    let mut rows = Vec::new();
    let mut sheet = Vec::new();
    for (attribute, values) in ATTRIBUTES {
        let pairs = pairs(&names, values, args.num_images);
        ensure!(!pairs.is_empty(), "the data set lacks pairs that differ in {attribute}");
        let progress = Items::new(pairs.len(), "images");
        let mut row = Row { attribute: attribute.into(), pairs: pairs.len(), ..Default::default() };
        for (i, (from, to)) in pairs.iter().enumerate() {
            let measured = measure(args, &pipeline, from, to)?;
            let share = 1.0 / pairs.len() as f64;
            row.similarity_before += share * measured.similarity[0];
            row.similarity_after += share * measured.similarity[1];
            row.psnr_changed += share * measured.psnr[0];
            row.psnr_fresh += share * measured.psnr[1];
            if i * SHOWN / 3 / pairs.len() != (i + 1) * SHOWN / 3 / pairs.len() {
                let [before, changed, fresh] = measured.images;
                sheet.push(vec![
                    LabelledImage::new(before, *from),
                    LabelledImage::new(changed, format!("changed to {to}")),
                    LabelledImage::new(fresh, format!("fresh: {to}")),
                ]);
            }
            progress.add(1);
        }
        drop(progress);
        rows.push(row);
    }
    println!(
        "| attribute | pairs | similarity before | after | PSNR changed | PSNR fresh |\n|---|---|---|---|---|---|"
    );
    for row in &rows {
        println!(
            "| {} | {} | {:.3} | {:.3} | {:.1} dB | {:.1} dB |",
            row.attribute, row.pairs, row.similarity_before, row.similarity_after, row.psnr_changed, row.psnr_fresh
        );
    }
    args.json.write(&rows)?;
    let wide: Vec<Vec<LabelledImage>> = sheet.chunks(3).map(|rows| rows.concat()).collect();
    args.edit.save_sheet(&wide, "text diffs", args.edit.fixed_seed(), &args.out)
}

/// At most `num` pairs of names that differ only in the attribute, spread evenly.
fn pairs<'a>(names: &[&'a str], values: &[&str], num: usize) -> Vec<(&'a str, &'a str)> {
    let mut groups: HashMap<String, Vec<&str>> = HashMap::new();
    for name in names {
        // The longest value, since one can be a part of another.
        if let Some(value) = values.iter().filter(|value| has(name, value)).max_by_key(|value| value.len()) {
            groups.entry(name.replace(value, "*")).or_default().push(name);
        }
    }
    let mut keys: Vec<&String> = groups.keys().collect();
    keys.sort();
    let all: Vec<(&str, &str)> = keys
        .into_iter()
        .flat_map(|key| {
            let group = &groups[key];
            group.iter().flat_map(|&from| group.iter().filter(move |&&to| to != from).map(move |&to| (from, to)))
        })
        .collect();
    let n = all.len().min(num);
    (0..n).map(|i| all[i * all.len() / n]).collect()
}

/// Whether a name contains this value as whole words.
fn has(name: &str, value: &str) -> bool {
    name.match_indices(value).any(|(at, _)| {
        let before = name[..at].chars().next_back();
        let after = name[at + value.len()..].chars().next();
        [before, after].into_iter().flatten().all(|c| !c.is_alphanumeric() && c != '-')
    })
}

struct Measured {
    similarity: [f64; 2],
    psnr: [f64; 2],
    images: [RgbImage; 3],
}

fn measure(args: &Args, pipeline: &Pipeline, from: &str, to: &str) -> Result<Measured> {
    let size = pipeline.decoder().image_size() as u32;
    let before = emoji(from, size)?;
    let text_diff = pipeline.text_diff(&before, from, to).strength(args.strength);
    let changed = text_diff.request(args.edit.request(args.edit.fixed_seed())).run()?.images.remove(0);
    let fresh = GenerateRequest::new(to).seed(args.edit.fixed_seed()).max_upsamplers(0);
    let fresh = pipeline.generate(fresh)?.images.remove(0);
    let tensor = |image: &RgbImage| to_tensor(&[fit_square(image, size)], pipeline.device());
    let encoder = pipeline.image_encoder().context("the CLIP similarity needs a pipeline with an image encoder")?;
    let caption: Tensor<2> = pipeline.text_encoder().encode(&[to])?.pooled;
    let similarity = |image: &RgbImage| -> Result<f64> {
        let embedding = encoder.encode(tensor(image)?)?;
        Ok(f64::from(cosine_similarity(embedding, caption.clone())?.into_scalar::<f32>()))
    };
    let psnr = |image: &RgbImage| -> Result<f64> { Ok(psnr(tensor(image)?, tensor(&before)?)?[0]) };
    Ok(Measured {
        similarity: [similarity(&before)?, similarity(&changed)?],
        psnr: [psnr(&changed)?, psnr(&fresh)?],
        images: [before, changed, fresh],
    })
}
