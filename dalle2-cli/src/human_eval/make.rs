//! Writes the page of a study and its key.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use dalle2::RgbImage;
use dalle2::base::image::{fit_square, open};
use dalle2::base::store::{write_file, write_json};
use image::ImageFormat;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::folder::{find, read_captions};
use super::study::{Key, KeyQuestion, Kind, Model, Page, PageQuestion, Source};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images of the first model: image k of caption line i is IIII-K.png (both from 0), or .jpg or .webp
    #[arg(long, value_name = "DIR")]
    a: PathBuf,
    /// Images of the second model, under the same names
    #[arg(long, value_name = "DIR")]
    b: PathBuf,
    /// Text file with one caption per line
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// Folder for page.html, which raters get, and key.json, which they do not
    #[arg(long, value_name = "DIR", default_value = "out/human_eval")]
    out: PathBuf,
    /// Name of the first model in the results; the folder's if not given
    #[arg(long, value_name = "NAME")]
    a_name: Option<String>,
    /// Name of the second model in the results
    #[arg(long, value_name = "NAME")]
    b_name: Option<String>,
    /// Kinds of questions
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["photorealism", "caption", "diversity"])]
    kinds: Vec<Kind>,
    /// Questions per kind, about random captions; all captions if not given
    #[arg(long, value_name = "N")]
    num: Option<usize>,
    /// Makes all images squares of this side in pixels; needed when they differ in size
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(1..=2048))]
    size: Option<u32>,
    /// Heading of the page; must not give the models away
    #[arg(long, default_value = "Comparing images")]
    title: String,
    /// Seed of the sides, the order and the choice of captions
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let captions = read_captions(&args.captions)?;
    let (page, key) = study(args, &captions)?;
    let page_file = args.out.join("page.html");
    let key_file = args.out.join("key.json");
    if key_file.exists() {
        let old = Key::read(&key_file)?;
        ensure!(
            old.study == key.study,
            "{} is the key of another study ({}); without it that study's answers cannot be scored: \
             name another --out, or remove the file",
            key_file.display(),
            old.study
        );
    }
    let html = render(&page)?;
    write_file(&page_file, html.as_bytes())?;
    write_json(&key_file, &key)?;
    let megabytes = html.len() as f64 / 1e6;
    println!("{} ({} questions, {megabytes:.1} MB): for the raters", page_file.display(), page.questions.len());
    println!("{}: for `score` only, not for the raters", key_file.display());
    Ok(())
}

/// Creates the questions by kind, shuffled within each kind, with the models balanced between left and right.
fn study(args: &Args, captions: &[String]) -> Result<(Page, Key)> {
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut kinds = args.kinds.clone();
    kinds.sort_unstable();
    kinds.dedup();
    let num = args.num.unwrap_or(captions.len());
    ensure!((1..=captions.len()).contains(&num), "--num {num}: must be between 1 and {}, the captions", captions.len());
    let mut lines: Vec<usize> = (0..captions.len()).collect();
    lines.shuffle(&mut rng);
    lines.truncate(num);

    let mut images = Images { size: args.size, ..Images::default() };
    let mut key = Vec::new();
    let mut sides = Vec::new();
    for kind in kinds {
        lines.shuffle(&mut rng);
        for (&line, left) in lines.iter().zip(left_models(num, &mut rng)) {
            let [a, b] = [&args.a, &args.b].map(|dir| images.of_question(dir, kind, line));
            sides.push(if left == Model::A { [a?, b?] } else { [b?, a?] });
            let id = format!("q{}", key.len() + 1);
            key.push(KeyQuestion { id, kind, line, caption: captions[line].clone(), left });
        }
    }
    let (uris, place) = images.shuffled(&mut rng);
    let questions = key.iter().zip(sides).map(|(question, sides)| {
        let [left, right] = sides.map(|side| side.into_iter().map(|image| place[image]).collect());
        let caption = (question.kind == Kind::Caption).then(|| question.caption.clone());
        PageQuestion { id: question.id.clone(), kind: question.kind, caption, left, right }
    });
    let mut page =
        Page { study: String::new(), title: args.title.clone(), questions: questions.collect(), images: uris };
    page.study = format!("{:08x}", crc32fast::hash(&serde_json::to_vec(&page)?));

    let sources = [(&args.a, &args.a_name), (&args.b, &args.b_name)].map(|(dir, name)| {
        let folder = || dir.file_name().map_or_else(|| dir.display().to_string(), |name| name.to_string_lossy().into());
        Source { name: name.clone().unwrap_or_else(folder), dir: dir.clone() }
    });
    let key = Key::new(page.study.clone(), args.title.clone(), sources, args.seed, key);
    Ok((page, key))
}

/// The left models of `n` questions: balanced, with a random remainder.
fn left_models(n: usize, rng: &mut ChaCha8Rng) -> Vec<Model> {
    let pair = if rng.random() { [Model::A, Model::B] } else { [Model::B, Model::A] };
    let mut models: Vec<Model> = pair.into_iter().cycle().take(n).collect();
    models.shuffle(rng);
    models
}

/// The images of a page, each once, as data URIs of PNG files without metadata.
#[derive(Debug, Default)]
struct Images {
    /// Side to which all are resized.
    size: Option<u32>,
    /// File and dimensions of the first one, which the others must have.
    first: Option<(PathBuf, (u32, u32))>,
    known: HashMap<PathBuf, usize>,
    uris: Vec<String>,
}

impl Images {
    /// Indices of the images from `dir` in a question about caption `line`.
    fn of_question(&mut self, dir: &Path, kind: Kind, line: usize) -> Result<Vec<usize>> {
        let load = |image| {
            self.add(find(dir, line, image).with_context(|| match kind {
                Kind::Diversity => "a diversity question shows 16 images; --kinds photorealism,caption leaves it out",
                Kind::Photorealism | Kind::Caption => "both models need an image of every caption",
            })?)
        };
        (0..kind.images()).map(load).collect()
    }

    fn add(&mut self, file: PathBuf) -> Result<usize> {
        if let Some(&index) = self.known.get(&file) {
            return Ok(index);
        }
        let mut image = open(&file)?;
        if let Some(size) = self.size {
            image = fit_square(&image, size);
        }
        let size = image.dimensions();
        let (first, expected) = self.first.get_or_insert_with(|| (file.clone(), size));
        ensure!(
            size == *expected,
            "{} has {}×{} pixels, {} has {}×{}: raters could tell the models apart; --size N resizes all",
            file.display(),
            size.0,
            size.1,
            first.display(),
            expected.0,
            expected.1
        );
        self.uris.push(data_uri(&image)?);
        self.known.insert(file, self.uris.len() - 1);
        Ok(self.uris.len() - 1)
    }

    /// The images in random order, and the new position of each.
    fn shuffled(mut self, rng: &mut ChaCha8Rng) -> (Vec<String>, Vec<usize>) {
        let mut order: Vec<usize> = (0..self.uris.len()).collect();
        order.shuffle(rng);
        let mut place = vec![0; order.len()];
        let uris = order.iter().enumerate().map(|(new, &old)| {
            place[old] = new;
            std::mem::take(&mut self.uris[old])
        });
        (uris.collect(), place)
    }
}

fn data_uri(image: &RgbImage) -> Result<String> {
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png)?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner())))
}

/// One file with everything in it.
fn render(page: &Page) -> Result<String> {
    // In a script element only a "<" can be mistaken for markup.
    let study = serde_json::to_string(page)?.replace('<', "\\u003c");
    let mut html = TEMPLATE.to_owned();
    for (mark, text) in [("/*{{style}}*/", STYLE), ("/*{{script}}*/", SCRIPT), ("{{study}}", &study)] {
        let at = html.find(mark).with_context(|| format!("page.html lacks {mark}"))?;
        html.replace_range(at..at + mark.len(), text);
    }
    Ok(html)
}
