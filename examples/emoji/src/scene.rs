//! Position, scale and background of an emoji.

use image::RgbImage;

use crate::Sprite;

/// A background that captions can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Background {
    /// The word for it.
    pub name: &'static str,
    /// Red, green, blue.
    pub rgb: [u8; 3],
}

impl Background {
    /// The background of captions that name none.
    pub const WHITE: Self = Self { name: "white", rgb: [255, 255, 255] };

    /// The colours that captions name. None is a colour of Twemoji's own palette, so a red apple stays visible on red.
    pub const NAMED: [Self; 8] = [
        Self { name: "red", rgb: [240, 90, 90] },
        Self { name: "orange", rgb: [255, 150, 60] },
        Self { name: "yellow", rgb: [255, 235, 120] },
        Self { name: "green", rgb: [110, 205, 130] },
        Self { name: "blue", rgb: [90, 140, 240] },
        Self { name: "purple", rgb: [165, 105, 215] },
        Self { name: "gray", rgb: [150, 150, 150] },
        Self { name: "black", rgb: [0, 0, 0] },
    ];
}

/// Where in the image the emoji is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// In the middle.
    Center,
    /// In the top left corner.
    TopLeft,
    /// In the top right corner.
    TopRight,
    /// In the bottom left corner.
    BottomLeft,
    /// In the bottom right corner.
    BottomRight,
    /// In the middle of the upper edge.
    Top,
    /// In the middle of the lower edge.
    Bottom,
    /// In the middle of the left edge.
    Left,
    /// In the middle of the right edge.
    Right,
}

impl Position {
    /// The positions that captions name.
    pub const NAMED: [Self; 8] = [
        Self::TopLeft,
        Self::TopRight,
        Self::BottomLeft,
        Self::BottomRight,
        Self::Top,
        Self::Bottom,
        Self::Left,
        Self::Right,
    ];

    /// How a caption says it; the middle goes without saying.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Center => "",
            Self::TopLeft => "in the top left corner",
            Self::TopRight => "in the top right corner",
            Self::BottomLeft => "in the bottom left corner",
            Self::BottomRight => "in the bottom right corner",
            Self::Top => "at the top",
            Self::Bottom => "at the bottom",
            Self::Left => "on the left",
            Self::Right => "on the right",
        }
    }

    /// Left and top edge of a square of `inner` pixels in one of `outer` pixels.
    fn offset(self, inner: u32, outer: u32) -> (u32, u32) {
        let room = outer - inner;
        let x = match self {
            Self::TopLeft | Self::BottomLeft | Self::Left => 0,
            Self::Center | Self::Top | Self::Bottom => room / 2,
            Self::TopRight | Self::BottomRight | Self::Right => room,
        };
        let y = match self {
            Self::TopLeft | Self::TopRight | Self::Top => 0,
            Self::Center | Self::Left | Self::Right => room / 2,
            Self::BottomLeft | Self::BottomRight | Self::Bottom => room,
        };
        (x, y)
    }
}

/// Background, position and scale of an emoji. The same scene can be rendered at every size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scene {
    /// Colour behind the emoji.
    pub background: Background,
    /// Where the emoji is.
    pub position: Position,
    /// Side of the emoji as a part of the image's side, in (0, 1].
    pub scale: f64,
}

impl Scene {
    /// The emoji fills a white image.
    pub const PLAIN: Self = Self { background: Background::WHITE, position: Position::Center, scale: 1.0 };

    /// Side of the emoji in an image of `canvas` pixels.
    pub(crate) fn sprite_size(&self, canvas: u32) -> u32 {
        ((f64::from(canvas) * self.scale).round() as u32).clamp(1, canvas)
    }
}

/// Lays `sprite` over a `canvas × canvas` image of one colour.
///
/// # Panics
/// When the sprite is larger than the canvas.
pub fn composite(sprite: &Sprite, canvas: u32, background: Background, position: Position) -> RgbImage {
    assert!(sprite.size() <= canvas, "a sprite of {} px does not fit an image of {canvas} px", sprite.size());
    let mut image = RgbImage::from_pixel(canvas, canvas, image::Rgb(background.rgb));
    let (left, top) = position.offset(sprite.size(), canvas);
    let row_bytes = sprite.size() as usize * 4;
    for (y, row) in sprite.rgba().chunks_exact(row_bytes).enumerate() {
        for (x, source) in row.chunks_exact(4).enumerate() {
            let pixel = image.get_pixel_mut(left + x as u32, top + y as u32);
            for (channel, value) in pixel.0.iter_mut().zip(source) {
                *channel = over(*value, source[3], *channel);
            }
        }
    }
    image
}

/// Premultiplied `source` over opaque `below`: `source + below·(1 − alpha)`, rounded.
fn over(source: u8, alpha: u8, below: u8) -> u8 {
    let rest = u32::from(below) * (255 - u32::from(alpha));
    (u32::from(source) + (rest + 127) / 255).min(255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn premultiplied_colour_is_laid_over_the_background() {
        let half_red = Sprite::new(1, vec![128, 0, 0, 128]);
        let image = composite(&half_red, 1, Background::WHITE, Position::Center);
        assert_eq!(image.get_pixel(0, 0).0, [255, 127, 127]);
        let opaque = composite(&Sprite::new(1, vec![7, 8, 9, 255]), 1, Background::WHITE, Position::Center);
        assert_eq!(opaque.get_pixel(0, 0).0, [7, 8, 9]);
        let clear = composite(&Sprite::new(1, vec![0; 4]), 1, Background::NAMED[3], Position::Center);
        assert_eq!(clear.get_pixel(0, 0).0, Background::NAMED[3].rgb);
    }

    #[test]
    fn the_emoji_is_where_the_position_says() {
        let dot = Sprite::new(2, vec![255; 16]);
        let black = Background { name: "black", rgb: [0; 3] };
        let lit = |position| {
            let image = composite(&dot, 6, black, position);
            let lit: Vec<(u32, u32)> =
                image.enumerate_pixels().filter(|(_, _, p)| p.0 == [255; 3]).map(|(x, y, _)| (x, y)).collect();
            assert_eq!(lit.len(), 4, "{position:?}");
            lit[0]
        };
        assert_eq!(lit(Position::Center), (2, 2));
        assert_eq!(lit(Position::TopLeft), (0, 0));
        assert_eq!(lit(Position::TopRight), (4, 0));
        assert_eq!(lit(Position::BottomLeft), (0, 4));
        assert_eq!(lit(Position::BottomRight), (4, 4));
        assert_eq!(lit(Position::Top), (2, 0));
        assert_eq!(lit(Position::Bottom), (2, 4));
        assert_eq!(lit(Position::Left), (0, 2));
        assert_eq!(lit(Position::Right), (4, 2));
    }
}
