//! Random masks for the training of networks that inpaint: rectangles, strokes and borders.

use dalle2_core::image::Mask;
use rand::{Rng, RngExt};

/// What a random mask edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskShape {
    /// One rectangle of between an eighth and three quarters of each side.
    Rectangle,
    /// A few strokes of a round brush.
    Strokes,
    /// Everything beyond one or more of the four sides of a rectangle: outpainting.
    Border,
    /// Everything: the network goes on drawing without known pixels.
    All,
}

impl MaskShape {
    /// Draws a shape; three in ten masks edit everything.
    pub fn draw(rng: &mut impl Rng) -> Self {
        match rng.random_range(0..10) {
            0..3 => Self::Rectangle,
            3..5 => Self::Strokes,
            5..7 => Self::Border,
            _ => Self::All,
        }
    }

    /// A mask of this shape, of `size` pixels along each side.
    pub fn mask(self, size: usize, rng: &mut impl Rng) -> Mask {
        let side = size as u32;
        match self {
            Self::All => Mask::edit_where(side, side, |_, _| true),
            Self::Rectangle => {
                let mut span = || {
                    let length = ((size as f64 * rng.random_range(0.125..=0.75)) as usize).max(1);
                    let start = rng.random_range(0..=size - length);
                    start..start + length
                };
                let (columns, rows) = (span(), span());
                Mask::edit_where(side, side, |x, y| columns.contains(&(x as usize)) && rows.contains(&(y as usize)))
            }
            Self::Border => {
                // Each side may move in by up to half of the image; at least one does.
                let sure = rng.random_range(0..4);
                let mut inset = |side: usize| match side == sure || rng.random_bool(0.4) {
                    true => ((size as f64 * rng.random_range(0.125..=0.5)) as usize).max(1),
                    false => 0,
                };
                let [left, top, right, bottom] = [inset(0), inset(1), inset(2), inset(3)];
                Mask::keep_where(side, side, |x, y| {
                    let (x, y) = (x as usize, y as usize);
                    (left..size.saturating_sub(right)).contains(&x) && (top..size.saturating_sub(bottom)).contains(&y)
                })
            }
            Self::Strokes => strokes(size, rng),
        }
    }
}

/// Between one and four broken lines, each drawn with a brush of its own width.
fn strokes(size: usize, rng: &mut impl Rng) -> Mask {
    let side = size as f64;
    let mut segments = Vec::new();
    for _ in 0..rng.random_range(1..=4) {
        let radius = (side * rng.random_range(0.03..=0.12)).max(0.75);
        let mut at = [0; 2].map(|_: usize| rng.random_range(0.0..side));
        for _ in 0..rng.random_range(1..=4) {
            let angle: f64 = rng.random_range(0.0..std::f64::consts::TAU);
            let length = side * rng.random_range(0.1..=0.5);
            let to = [at[0] + length * angle.cos(), at[1] + length * angle.sin()].map(|v| v.clamp(0.0, side));
            segments.push((at, to, radius));
            at = to;
        }
    }
    Mask::edit_where(size as u32, size as u32, |x, y| {
        let point = [f64::from(x) + 0.5, f64::from(y) + 0.5];
        segments.iter().any(|(from, to, radius)| distance(point, *from, *to) <= *radius)
    })
}

/// From a point to a segment.
fn distance(point: [f64; 2], from: [f64; 2], to: [f64; 2]) -> f64 {
    let along = [to[0] - from[0], to[1] - from[1]];
    let squared = along[0] * along[0] + along[1] * along[1];
    let offset = [point[0] - from[0], point[1] - from[1]];
    let share = match squared > 0.0 {
        true => ((offset[0] * along[0] + offset[1] * along[1]) / squared).clamp(0.0, 1.0),
        false => 0.0,
    };
    (offset[0] - share * along[0]).hypot(offset[1] - share * along[1])
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn shapes_edit_what_they_say() {
        for seed in 0..60 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            assert_eq!(MaskShape::All.mask(16, &mut rng).edited_share(), 1.0);

            let rectangle = MaskShape::Rectangle.mask(16, &mut rng);
            let edited: Vec<(u32, u32)> =
                (0..256).map(|i| (i % 16, i / 16)).filter(|(x, y)| rectangle.edits(*x, *y)).collect();
            let bounds = |f: fn(&(u32, u32)) -> u32| {
                let values: Vec<u32> = edited.iter().map(f).collect();
                values.iter().max().unwrap() - values.iter().min().unwrap() + 1
            };
            let (w, h) = (bounds(|p| p.0), bounds(|p| p.1));
            assert_eq!((w * h) as usize, edited.len(), "a rectangle fills its bounds");
            assert!((2..=12).contains(&w) && (2..=12).contains(&h), "{w} × {h}");

            let border = MaskShape::Border.mask(16, &mut rng);
            let corner = |x, y| border.edits(x, y);
            let corners = [corner(0, 0), corner(15, 0), corner(0, 15), corner(15, 15)];
            assert!(corners.iter().filter(|edited| **edited).count() >= 2, "a side takes both of its corners");

            let strokes = MaskShape::Strokes.mask(32, &mut rng).edited_share();
            assert!((0.0..0.95).contains(&strokes), "{strokes}");
        }
    }

    #[test]
    fn all_shapes_occur_and_the_seed_decides() {
        let shapes: Vec<MaskShape> =
            (0..200).map(|seed| MaskShape::draw(&mut ChaCha8Rng::seed_from_u64(seed))).collect();
        for shape in [MaskShape::Rectangle, MaskShape::Strokes, MaskShape::Border, MaskShape::All] {
            assert!(shapes.iter().filter(|found| **found == shape).count() > 5, "{shape:?}");
        }
        let draw = || MaskShape::Strokes.mask(20, &mut ChaCha8Rng::seed_from_u64(9));
        assert_eq!(draw(), draw());
        assert!((0..20).all(|seed| MaskShape::Rectangle.mask(1, &mut ChaCha8Rng::seed_from_u64(seed)).edits(0, 0)));
    }

    #[test]
    fn distances_have_the_closed_form() {
        for (point, expected) in [([1.0, 2.0], 2.0), ([-3.0, 4.0], 5.0), ([5.0, 0.0], 1.0), ([2.0, 0.0], 0.0)] {
            assert!((distance(point, [0.0, 0.0], [4.0, 0.0]) - expected).abs() < 1e-12);
        }
        assert_eq!(distance([3.0, 4.0], [0.0, 0.0], [0.0, 0.0]), 5.0);
    }
}
