//! Pillow's resampling of 8-bit images, rounding included: the pixels that the public CLIP weights were evaluated on.
//!
//! Two passes, rows first, each of which rounds to 8 bits; the weights of a pass are fixed-point numbers with 22 bits
//! behind the point. Going down, the filter widens with the scale (that is what "antialiased" means elsewhere).

use serde::{Deserialize, Serialize};

/// Bits behind the point of a weight.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A resampling filter, as its number in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// Windowed sinc of width 3.
    Lanczos,
    /// A triangle.
    Bilinear,
    /// Keys' cubic with a = −½: CLIP's.
    #[default]
    Bicubic,
    /// The mean.
    Box,
    /// A cosine window on a sinc of width 1.
    Hamming,
}

impl TryFrom<u8> for Filter {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            0 => Ok(Self::Nearest),
            1 => Ok(Self::Lanczos),
            2 => Ok(Self::Bilinear),
            3 => Ok(Self::Bicubic),
            4 => Ok(Self::Box),
            5 => Ok(Self::Hamming),
            _ => Err(format!(
                "resample = {number}: must be 0 (nearest), 1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (Hamming)"
            )),
        }
    }
}

impl From<Filter> for u8 {
    fn from(filter: Filter) -> Self {
        match filter {
            Filter::Nearest => 0,
            Filter::Lanczos => 1,
            Filter::Bilinear => 2,
            Filter::Bicubic => 3,
            Filter::Box => 4,
            Filter::Hamming => 5,
        }
    }
}

impl Filter {
    /// Half the width of the filter, in pixels of the larger image.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let a = -0.5;
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
        match self {
            Self::Nearest | Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming if x == 0.0 => 1.0,
            Self::Hamming if x.abs() >= 1.0 => 0.0,
            Self::Hamming => sinc(x) * (0.54 + 0.46 * (x.abs() * std::f64::consts::PI).cos()),
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
                _ => 0.0,
            },
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// The input pixels that one output pixel reads, and their weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// Rows of interleaved 8-bit channels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pixels {
    pub(super) height: usize,
    pub(super) width: usize,
    /// `[height, width, 3]`
    pub(super) values: Vec<u8>,
}

impl Pixels {
    /// The image at another size; the same size changes nothing.
    pub(super) fn resize(self, height: usize, width: usize, filter: Filter) -> Self {
        let resized = if width == self.width { self } else { self.resize_rows(width, filter) };
        if height == resized.height {
            return resized;
        }
        resized.transposed().resize_rows(height, filter).transposed()
    }

    fn resize_rows(&self, width: usize, filter: Filter) -> Self {
        let windows = windows(self.width, width, filter);
        let mut values = Vec::with_capacity(self.height * width * 3);
        for row in self.values.chunks_exact(self.width * 3) {
            for Window { start, weights } in &windows {
                for channel in 0..3 {
                    let pixels = row[start * 3 + channel..].iter().step_by(3);
                    let sum = pixels.zip(weights).fold(1 << (PRECISION_BITS - 1), |sum: i32, (pixel, weight)| {
                        sum.wrapping_add(i32::from(*pixel).wrapping_mul(*weight))
                    });
                    values.push((sum >> PRECISION_BITS).clamp(0, 255) as u8);
                }
            }
        }
        Self { height: self.height, width, values }
    }

    fn transposed(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for x in 0..self.width {
            for y in 0..self.height {
                let at = (y * self.width + x) * 3;
                values.extend_from_slice(&self.values[at..at + 3]);
            }
        }
        Self { height: self.width, width: self.height, values }
    }
}

fn windows(n_in: usize, n_out: usize, filter: Filter) -> Vec<Window> {
    let scale = n_in as f64 / n_out as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let window = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        if filter == Filter::Nearest {
            return Window { start: (center as usize).min(n_in - 1), weights: vec![1 << PRECISION_BITS] };
        }
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(n_in);
        let weights: Vec<f64> =
            (start..end).map(|j| filter.weight((j as f64 - center + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| {
            let weight = if sum == 0.0 { weight } else { weight / sum };
            let scaled = weight * f64::from(1u32 << PRECISION_BITS);
            (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Window { start, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..n_out).map(window).collect()
}
