//! Typographic attacks: CLIP label probabilities of images with a written word, and images generated from the same
//! embedding (DALL·E 2, section 4).

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dalle2::base::image::{LabelledImage, RgbImage};
use dalle2::{Pipeline, StartNoise};
use image::Rgb;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use serde::Serialize;

use super::labels::{embed, probabilities};
use crate::args::JsonArgs;
use crate::edit::common::{EditArgs, emoji};
use crate::outcome::check_usage;

/// Side of the images in pixels.
const SIDE: u32 = 128;
const FONT: (FontWeight, RasterHeight) = (FontWeight::Regular, RasterHeight::Size16);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Emoji to write on
    #[arg(long, value_delimiter = ',', default_value = "red apple,koala,pizza")]
    images: Vec<String>,
    /// Words to write on each image
    #[arg(long, value_delimiter = ',', default_value = "koala,pizza,rose")]
    words: Vec<String>,
    /// Further labels beside the names and the words
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "blue heart,fire engine,crown,soccer ball,mushroom,wrapped gift"
    )]
    labels: Vec<String>,
    /// Images generated from each embedding
    #[arg(long, value_name = "N", default_value_t = 3, alias = "num")]
    num_images: usize,
    #[command(flatten)]
    json: JsonArgs,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/typographic.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

/// CLIP probabilities of the image's name and of the word.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Empty for the plain image.
    word: String,
    /// Of the image itself.
    input: [f64; 2],
    /// Of the images generated from its embedding, on average.
    generated: [f64; 2],
}

pub fn run(args: &Args) -> Result<()> {
    check_usage!(args.num_images > 0, "--num-images 0: at least 1");
    let pipeline = args.edit.pipeline()?;
    let mut labels: Vec<&str> = Vec::new();
    for label in args.images.iter().chain(&args.words).chain(&args.labels) {
        if !labels.contains(&label.as_str()) {
            labels.push(label);
        }
    }
    let (mut rows, mut sheet) = (Vec::new(), Vec::new());
    for name in &args.images {
        let plain = emoji(name, SIDE)?;
        let words = args.words.iter().filter(|word| *word != name);
        let mut cells = Vec::new();
        for word in std::iter::once("").chain(words.map(String::as_str)) {
            let shown = if word.is_empty() { plain.clone() } else { written(&plain, word)? };
            let (row, images) = measure(args, &pipeline, &shown, (name, word), &labels)?;
            cells.push(LabelledImage::new(shown, label(&row, row.input)));
            cells.extend(images.into_iter().map(|image| LabelledImage::new(image, "generated from it")));
            rows.push(row);
        }
        sheet.push(cells);
    }
    println!(
        "| image | written word | CLIP: image | CLIP: word | generated: image | generated: word \
         |\n|---|---|---|---|---|---|"
    );
    for Row { name, word, input, generated } in &rows {
        let [a, b, c, d] =
            [input[0], input[1], generated[0], generated[1]].map(|share| format!("{:.1} %", 100.0 * share));
        if word.is_empty() {
            println!("| {name} | – | {a} | – | {c} | – |");
        } else {
            println!("| {name} | {word} | {a} | {b} | {c} | {d} |");
        }
    }
    args.json.write(&rows)?;
    args.edit.save_sheet(&sheet, "a typographic attack", args.edit.fixed_seed(), &args.out)
}

/// Measures an image and the images generated from its embedding, and returns the latter.
fn measure(
    args: &Args,
    pipeline: &Pipeline,
    shown: &RgbImage,
    (name, word): (&str, &str),
    labels: &[&str],
) -> Result<(Row, Vec<RgbImage>)> {
    let position = |name: &str| labels.iter().position(|label| *label == name);
    let places = [position(name), position(word)];
    let probabilities_of = |images: &[RgbImage]| -> Result<[f64; 2]> {
        let embeddings = embed(pipeline, images, pipeline.decoder().image_size())?;
        let rows = probabilities(pipeline, embeddings, labels)?;
        let mean = |place: usize| rows.iter().map(|row| row[place]).sum::<f64>() / rows.len() as f64;
        Ok(places.map(|place| place.map_or(0.0, mean)))
    };
    let vary = pipeline.vary(shown).start_noise(StartNoise::Random).eta(0.0);
    let request = args.edit.request(args.edit.fixed_seed()).num_images(args.num_images);
    let generated = vary.request(request).run()?.images;
    let row = Row {
        name: name.to_owned(),
        word: word.to_owned(),
        input: probabilities_of(std::slice::from_ref(shown))?,
        generated: probabilities_of(&generated)?,
    };
    Ok((row, generated))
}

fn label(row: &Row, [name, word]: [f64; 2]) -> String {
    let name = format!("{} {:.0} %", row.name, 100.0 * name);
    if row.word.is_empty() { name } else { format!("{name}, {} {:.0} %", row.word, 100.0 * word) }
}

/// Writes a word across the middle of an image, in the largest size that fits.
fn written(image: &RgbImage, word: &str) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let glyph_width = get_raster_width(FONT.0, FONT.1) as u32;
    let length = glyph_width * word.chars().count() as u32;
    ensure!(length > 0, "an empty word cannot be written");
    let scale = (width - 8) / length;
    ensure!(scale > 0, "{word:?} is too long to be written on {width} pixels");
    let line = FONT.1.val() as u32;
    let (left, top) = ((width - scale * length) / 2, (height - scale * line) / 2);
    let mut image = image.clone();
    let (note, edge) = (Rgb([255; 3]), Rgb([0; 3]));
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let inside = |grow: u32| {
            (left.saturating_sub(grow)..left + scale * length + grow).contains(&x)
                && (top.saturating_sub(grow)..top + scale * line + grow).contains(&y)
        };
        match (inside(1), inside(3)) {
            (true, _) => *pixel = note,
            (false, true) => *pixel = edge,
            _ => {}
        }
    }
    for (i, c) in (0u32..).zip(word.chars()) {
        let glyph = get_raster(c, FONT.0, FONT.1).with_context(|| format!("there is no glyph for {c:?}"))?;
        for (y, row) in (0u32..).zip(glyph.rows()) {
            for (x, ink) in (0u32..).zip(row) {
                for (dx, dy) in (0..scale).flat_map(|dx| (0..scale).map(move |dy| (dx, dy))) {
                    let pixel = image.get_pixel_mut(left + scale * (i * glyph_width + x) + dx, top + scale * y + dy);
                    pixel.0 = pixel.0.map(|paper| paper.min(255 - ink));
                }
            }
        }
    }
    Ok(image)
}
