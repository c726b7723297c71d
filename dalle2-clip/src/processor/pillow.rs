//! Pillow's resampling of 8-bit images, rounding included: the pixels that the public CLIP weights were evaluated on.
//!
//! Two passes, rows first, each rounding to 8 bits; the weights of a pass are fixed-point numbers with 22 fractional bits.
//! Downsampling scales the filter's support by the ratio of the sizes ("antialiased" in other libraries).

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Fractional bits of a weight.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A resampling filter, stored as its number in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Resampling {
    /// The nearest pixel.
    Nearest,
    /// Windowed sinc of width 3.
    Lanczos,
    /// A triangle.
    Bilinear,
    /// Keys' cubic with a = −½, CLIP's filter.
    #[default]
    Bicubic,
    /// The mean of the covered pixels.
    Box,
    /// A cosine window on a sinc of width 1.
    Hamming,
}

impl TryFrom<u8> for Resampling {
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

impl From<Resampling> for u8 {
    fn from(filter: Resampling) -> Self {
        match filter {
            Resampling::Nearest => 0,
            Resampling::Lanczos => 1,
            Resampling::Bilinear => 2,
            Resampling::Bicubic => 3,
            Resampling::Box => 4,
            Resampling::Hamming => 5,
        }
    }
}

impl Resampling {
    /// Returns half the width of the filter, in pixels of the larger image.
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

/// The input pixels of one output pixel, and their weights.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// One axis of a resize followed by a crop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    /// Size after the resize.
    pub(super) resized: usize,
    /// First pixel of the crop; negative if the crop is larger than the resized image.
    pub(super) offset: i64,
    /// Size of the crop.
    pub(super) output: usize,
}

impl Axis {
    /// Range of the resized pixels that the crop contains.
    fn inside(&self) -> Range<usize> {
        let end = (self.offset + self.output as i64).clamp(0, self.resized as i64) as usize;
        (self.offset.clamp(0, end as i64) as usize)..end
    }

    /// Index in the crop of its first resized pixel.
    fn margin(&self) -> usize {
        usize::try_from(-self.offset).unwrap_or(0).min(self.output)
    }
}

/// Rows of interleaved 8-bit channels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pixels {
    pub(super) height: usize,
    pub(super) width: usize,
    /// `[height, width, 3]`
    pub(super) data: Vec<u8>,
}

impl Pixels {
    /// Resizes and crops the image; pixels of the crop outside the resized image are black. An axis without a change of
    /// size is not filtered.
    pub(super) fn resize(self, rows: &Axis, columns: &Axis, filter: Resampling) -> Self {
        let resized = self.resize_rows(columns, filter).transposed();
        resized.resize_rows(rows, filter).transposed()
    }

    fn resize_rows(&self, axis: &Axis, filter: Resampling) -> Self {
        let inside = axis.inside();
        let windows = windows(self.width, axis.resized, inside.clone(), filter);
        let mut data = vec![0; self.height * axis.output * 3];
        for (row, output) in self.data.chunks_exact(self.width * 3).zip(data.chunks_exact_mut(axis.output * 3)) {
            let output = &mut output[axis.margin() * 3..];
            if axis.resized == self.width {
                let copied = &row[inside.start * 3..inside.end * 3];
                output[..copied.len()].copy_from_slice(copied);
                continue;
            }
            for (Window { start, weights }, pixel) in windows.iter().zip(output.chunks_exact_mut(3)) {
                for (channel, byte) in pixel.iter_mut().enumerate() {
                    let pixels = row[start * 3 + channel..].iter().step_by(3);
                    let sum = pixels.zip(weights).fold(1 << (PRECISION_BITS - 1), |sum: i32, (pixel, weight)| {
                        sum.wrapping_add(i32::from(*pixel).wrapping_mul(*weight))
                    });
                    *byte = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
                }
            }
        }
        Self { height: self.height, width: axis.output, data }
    }

    fn transposed(&self) -> Self {
        let mut data = Vec::with_capacity(self.data.len());
        for x in 0..self.width {
            for y in 0..self.height {
                let at = (y * self.width + x) * 3;
                data.extend_from_slice(&self.data[at..at + 3]);
            }
        }
        Self { height: self.width, width: self.height, data }
    }
}

/// The windows of the output pixels `range` when `n_in` pixels become `n_out`.
fn windows(n_in: usize, n_out: usize, range: Range<usize>, filter: Resampling) -> Vec<Window> {
    let scale = n_in as f64 / n_out as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let window = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        if filter == Resampling::Nearest {
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
    range.map(window).collect()
}
