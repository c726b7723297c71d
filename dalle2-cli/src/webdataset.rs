//! A generated webdataset: coloured shapes with captions, some of them broken in the ways that are met in the wild.

use std::fs::File;
use std::io::{BufWriter, Cursor, Write};
use std::path::Path;

use anyhow::{Context, Result};
use dalle2::base::image::RgbImage;
use flate2::{Compression, write::GzEncoder};
use image::ImageFormat;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tar::{Builder, EntryType, Header};

/// Colours of shapes, which captions name.
const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 40, 40]),
    ("green", [40, 170, 60]),
    ("blue", [50, 80, 220]),
    ("yellow", [240, 210, 40]),
    ("purple", [150, 60, 190]),
    ("black", [20, 20, 20]),
];
const SHAPES: [&str; 4] = ["circle", "square", "triangle", "ring"];

/// Contents of the data set.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Samples, broken ones included.
    pub samples: usize,
    /// Samples in a shard.
    pub shard_size: usize,
    /// Side of the images in pixels.
    pub side: u32,
    /// One in N samples is broken; 0 for none.
    pub broken_every: usize,
    /// Whether shards are compressed.
    pub compressed: bool,
    /// Seed of images and captions.
    pub seed: u64,
}

/// How a sample is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The image ends too early.
    Truncated,
    /// The caption is in JSON that ends too early.
    BadJson,
    /// There is no caption.
    NoCaption,
    /// A file of a few kilobytes that decodes to 100 megapixels.
    Bomb,
    /// The names lead out of the archive.
    Escape,
    /// The image is a symbolic link to a file of the system.
    Link,
    /// The key repeats the previous one.
    Duplicate,
}

impl Damage {
    /// Every kind, in order.
    pub const ALL: [Self; 7] =
        [Self::Truncated, Self::BadJson, Self::NoCaption, Self::Bomb, Self::Escape, Self::Link, Self::Duplicate];
}

/// Words that captions are made of.
#[allow(dead_code, reason = "the tests of training use it")]
pub fn words() -> impl Iterator<Item = &'static str> {
    COLOURS.iter().map(|(name, _)| *name).chain(SHAPES).chain(["a", "small", "large"])
}

/// Writes the shards into `dir` and gives what is broken in them, under the names by which it must be reported:
/// `00001.tar:000123` or, where only decoding shows it, `00001.tar:000123.jpg`.
pub fn write_webdataset(dir: &Path, recipe: &Recipe) -> Result<Vec<(String, Damage)>> {
    std::fs::create_dir_all(dir)?;
    let bomb = bomb()?;
    let mut broken = Vec::new();
    for (number, first) in (0..recipe.samples).step_by(recipe.shard_size).enumerate() {
        let name = format!("{number:05}.tar{}", if recipe.compressed { ".gz" } else { "" });
        let file = BufWriter::new(File::create(dir.join(&name)).with_context(|| name.clone())?);
        let writer: Box<dyn Write> =
            if recipe.compressed { Box::new(GzEncoder::new(file, Compression::fast())) } else { Box::new(file) };
        let mut shard = Builder::new(writer);
        for i in first..(first + recipe.shard_size).min(recipe.samples) {
            let damage = (recipe.broken_every > 0 && i % recipe.broken_every == recipe.broken_every / 3)
                .then(|| Damage::ALL[i / recipe.broken_every % Damage::ALL.len()]);
            // The first sample of a shard has none before it in the shard.
            let damage = damage.filter(|damage| *damage != Damage::Duplicate || i > first);
            let at_fault = write_sample(&mut shard, i, damage, recipe, &bomb)?;
            broken.extend(damage.map(|damage| (format!("{name}:{at_fault}"), damage)));
        }
        shard.into_inner()?.flush()?;
    }
    Ok(broken)
}

/// Writes a sample and gives the name of what is wrong with it, if something is.
fn write_sample<W: Write>(
    shard: &mut Builder<W>,
    i: usize,
    damage: Option<Damage>,
    recipe: &Recipe,
    bomb: &[u8],
) -> Result<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed ^ (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (caption, image) = shape(&mut rng, recipe.side);
    let mut jpeg = Cursor::new(Vec::new());
    image.write_to(&mut jpeg, ImageFormat::Jpeg)?;
    let mut jpeg = jpeg.into_inner();
    let key = match damage {
        Some(Damage::Escape) => format!("../../escaped-{i:06}"),
        Some(Damage::Duplicate) => format!("{:06}", i - 1),
        _ => format!("{i:06}"),
    };
    let json = format!(r#"{{"caption": "{caption}", "width": {0}, "height": {0}}}"#, recipe.side);
    let file = EntryType::Regular;
    match damage {
        Some(Damage::Truncated) => jpeg.truncate(jpeg.len() * 2 / 3),
        // Another member keeps the two of this key apart, or they would be one sample.
        Some(Damage::Duplicate) => append(shard, &format!("{i:06}.note"), file, b"between")?,
        _ => {}
    }
    let mut put = |extension: &str, kind, bytes: &[u8]| append(shard, &format!("{key}.{extension}"), kind, bytes);
    match damage {
        Some(Damage::Bomb) => put("png", file, bomb)?,
        Some(Damage::Link) => put("jpg", EntryType::Symlink, b"/etc/passwd")?,
        _ => put("jpg", file, &jpeg)?,
    }
    match damage {
        Some(Damage::NoCaption) => {}
        Some(Damage::BadJson) => put("json", file, &json.as_bytes()[..json.len() / 2])?,
        // Both forms of captions occur.
        _ if i.is_multiple_of(3) => put("json", file, json.as_bytes())?,
        _ => put("txt", file, caption.as_bytes())?,
    }
    Ok(match damage {
        Some(Damage::Truncated) => format!("{key}.jpg"),
        Some(Damage::Bomb) => format!("{key}.png"),
        _ => key,
    })
}

/// Appends a member under a name that `tar` itself would refuse to write. Of a link, `bytes` is the target.
fn append<W: Write>(shard: &mut Builder<W>, name: &str, kind: EntryType, bytes: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_entry_type(kind);
    if kind == EntryType::Symlink {
        header.as_old_mut().linkname[..bytes.len()].copy_from_slice(bytes);
    }
    let content = if kind == EntryType::Symlink { &[][..] } else { bytes };
    header.set_size(content.len() as u64);
    header.set_cksum();
    Ok(shard.append(&header, content)?)
}

/// A shape on a light background with a little noise, and its caption.
fn shape(rng: &mut ChaCha8Rng, side: u32) -> (String, RgbImage) {
    let (colour, ink) = COLOURS[rng.random_range(0..COLOURS.len())];
    let shape = SHAPES[rng.random_range(0..SHAPES.len())];
    let large = rng.random_bool(0.5);
    let s = side as f32;
    let radius = if large { 0.4 } else { 0.22 } * s;
    let centre: [f32; 2] = [0, 1].map(|_| rng.random_range(radius..=s - radius));
    let inside = |x: f32, y: f32| match shape {
        "circle" => x.hypot(y) < radius,
        "square" => x.abs().max(y.abs()) < 0.85 * radius,
        "triangle" => y.abs() < 0.85 * radius && x.abs() < (y + 0.85 * radius) * 0.5,
        _ => (0.6 * radius..radius).contains(&x.hypot(y)),
    };
    let image = RgbImage::from_fn(side, side, |x, y| {
        let colour = if inside(x as f32 - centre[0], y as f32 - centre[1]) { ink } else { [235; 3] };
        colour.map(|c| c.saturating_add(rng.random_range(0..16))).into()
    });
    (format!("a {} {colour} {shape}", if large { "large" } else { "small" }), image)
}

/// A valid PNG of 10,000 × 10,000 black pixels, a bit each.
fn bomb() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 10_000, 10_000);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    encoder.write_header()?.write_image_data(&vec![0; 1250 * 10_000])?;
    Ok(bytes)
}
