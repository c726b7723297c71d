//! Typographic attacks: a written word on a picture, CLIP's opinion of it, and what the decoder draws from the same
//! embedding (DALL·E 2, section 4).

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dalle2::base::image::{LabelledImage, RgbImage};
use dalle2::base::store::write_json;
use dalle2::{Pipeline, StartNoise};
use image::Rgb;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use serde::Serialize;

use super::labels::{embed, probabilities};
use crate::edit::args::{EditArgs, emoji};

/// Side of the pictures that are written on.
const SIDE: u32 = 128;
const FONT: (FontWeight, RasterHeight) = (FontWeight::Regular, RasterHeight::Size16);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Emoji that are written on
    #[arg(long, value_delimiter = ',', default_value = "red apple,koala,pizza")]
    pictures: Vec<String>,
    /// Words that are written on each
    #[arg(long, value_delimiter = ',', default_value = "koala,pizza,rose")]
    words: Vec<String>,
    /// What CLIP chooses among, beside the pictures' names and the words
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "blue heart,fire engine,crown,soccer ball,mushroom,wrapped gift"
    )]
    labels: Vec<String>,
    /// Pictures that the decoder draws from each embedding
    #[arg(long, value_name = "N", default_value_t = 3)]
    num: usize,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/typographic.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

/// Probabilities that CLIP gives to the picture's name and to the word.
#[derive(Debug, Serialize)]
struct Row {
    picture: String,
    /// Empty when nothing is written.
    word: String,
    /// For the picture as it is shown to CLIP.
    seen: [f64; 2],
    /// For what the decoder draws from its embedding, on average.
    drawn: [f64; 2],
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(args.num > 0, "--num 0: at least one picture must be drawn");
    let pipeline = args.edit.pipeline()?;
    let mut labels: Vec<&str> = Vec::new();
    for label in args.pictures.iter().chain(&args.words).chain(&args.labels) {
        if !labels.contains(&label.as_str()) {
            labels.push(label);
        }
    }
    let (mut rows, mut sheet) = (Vec::new(), Vec::new());
    for picture in &args.pictures {
        let plain = emoji(picture, SIDE)?;
        let words = args.words.iter().filter(|word| *word != picture);
        let mut cells = Vec::new();
        for word in std::iter::once("").chain(words.map(String::as_str)) {
            let shown = if word.is_empty() { plain.clone() } else { written(&plain, word)? };
            let (row, images) = measure(args, &pipeline, &shown, (picture, word), &labels)?;
            cells.push(LabelledImage::new(shown, label(&row, row.seen)));
            cells.extend(images.into_iter().map(|image| LabelledImage::new(image, "drawn from it")));
            rows.push(row);
        }
        sheet.push(cells);
    }
    println!(
        "| picture | written on it | CLIP: the picture | CLIP: the word | drawn from it: the picture | the word \
         |\n|---|---|---|---|---|---|"
    );
    for Row { picture, word, seen, drawn } in &rows {
        let [a, b, c, d] = [seen[0], seen[1], drawn[0], drawn[1]].map(|share| format!("{:.1} %", 100.0 * share));
        match word.is_empty() {
            true => println!("| {picture} | – | {a} | – | {c} | – |"),
            false => println!("| {picture} | {word} | {a} | {b} | {c} | {d} |"),
        }
    }
    if let Some(json) = &args.json {
        write_json(json, &rows)?;
        println!("{}", json.display());
    }
    args.edit.save_sheet(&sheet, "a typographic attack", &args.out)
}

/// CLIP's opinion of a picture and of what is drawn from its embedding, and the latter.
fn measure(
    args: &Args,
    pipeline: &Pipeline,
    shown: &RgbImage,
    (picture, word): (&str, &str),
    labels: &[&str],
) -> Result<(Row, Vec<RgbImage>)> {
    let at = |name: &str| labels.iter().position(|label| *label == name);
    let places = [at(picture), at(word)];
    let opinion = |images: &[RgbImage]| -> Result<[f64; 2]> {
        let embeddings = embed(pipeline, images, pipeline.decoder().image_size())?;
        let rows = probabilities(pipeline, embeddings, labels)?;
        let mean = |place: usize| rows.iter().map(|row| row[place]).sum::<f64>() / rows.len() as f64;
        Ok(places.map(|place| place.map_or(0.0, mean)))
    };
    let vary = pipeline.vary(shown).start_noise(StartNoise::Random).eta(0.0);
    let drawn = vary.request(args.edit.request().num_images(args.num)).run()?.images;
    let row = Row {
        picture: picture.to_owned(),
        word: word.to_owned(),
        seen: opinion(std::slice::from_ref(shown))?,
        drawn: opinion(&drawn)?,
    };
    Ok((row, drawn))
}

fn label(row: &Row, [picture, word]: [f64; 2]) -> String {
    let picture = format!("{} {:.0} %", row.picture, 100.0 * picture);
    match row.word.is_empty() {
        true => picture,
        false => format!("{picture}, {} {:.0} %", row.word, 100.0 * word),
    }
}

/// The picture with a note across its middle, on which a word is written as large as it fits.
fn written(picture: &RgbImage, word: &str) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    let glyph_width = get_raster_width(FONT.0, FONT.1) as u32;
    let length = glyph_width * word.chars().count() as u32;
    ensure!(length > 0, "an empty word cannot be written");
    let scale = (width - 8) / length;
    ensure!(scale > 0, "{word:?} is too long to be written on {width} pixels");
    let line = FONT.1.val() as u32;
    let (left, top) = ((width - scale * length) / 2, (height - scale * line) / 2);
    let mut image = picture.clone();
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
