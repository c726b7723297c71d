//! Draws every emoji of a subset on one sheet: `cargo run -p dalle2-emoji --example sheet -- small sheet.png [held-out]`.

use std::error::Error;
use std::path::Path;

use dalle2_emoji::{EmojiStore, Split, Subset};
use image::{RgbImage, imageops};

const CELL: u32 = 64;
const COLUMNS: u32 = 24;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [subset, file, rest @ ..] = arguments.as_slice() else {
        return Err("usage: sheet tiny|small|full FILE [held-out]".into());
    };
    let split = if rest.is_empty() { Split::Seen } else { Split::HeldOut };
    let store = EmojiStore::open(&[CELL], Path::new("data/emoji"))?;
    let items = subset.parse::<Subset>()?.select(store.catalogue(), split)?;
    let rows = (items.len() as u32).div_ceil(COLUMNS);
    let mut sheet = RgbImage::from_pixel(COLUMNS * (CELL + 8), rows * (CELL + 8), image::Rgb([255; 3]));
    for (position, &item) in (0u32..).zip(&items) {
        let (x, y) = (position % COLUMNS * (CELL + 8) + 4, position / COLUMNS * (CELL + 8) + 4);
        imageops::replace(&mut sheet, &store.image(item, CELL)?, x.into(), y.into());
    }
    sheet.save(file)?;
    eprintln!("{} emoji in {file}", items.len());
    Ok(())
}
