//! BSR degradation: the operations in a random order with random strengths (Zhang et al. 2021, BSRGAN, arXiv 2103.14006,
//! section 3).
//!
//! Of the paper's operations the camera's sensor noise is left out. The ranges are options; their defaults are milder
//! than the paper's, which aims at photographs from the wild, where a cascade mends the output of its own decoder.

use dalle2_core::{ConfigError, Result};
use image::Rgb32FImage;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::Kernel;
use super::ops::{Filter, NoiseKind, blur, gaussian_noise, jpeg, poisson_noise, resize};

/// Filters that a resizing is drawn from.
const FILTERS: [Filter; 3] = [Filter::Bilinear, Filter::Bicubic, Filter::Nearest];

/// Strengths and probabilities of [`bsr`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BsrOptions {
    /// Least and largest deviation of the blurs, in pixels of the small image.
    pub blur_sigma: [f64; 2],
    /// Least and largest factor of the resizing in between.
    pub scale: [f64; 2],
    /// Least and largest deviation of the Gaussian noise, as a share of the range.
    pub gaussian: [f64; 2],
    /// Least and largest number of photons of full brightness, drawn evenly in the logarithm.
    pub poisson_peak: [f64; 2],
    /// Least and largest JPEG quality, 1 to 100.
    pub jpeg_quality: [u8; 2],
    /// Probability of each of the operations.
    pub probability: f64,
}

impl Default for BsrOptions {
    fn default() -> Self {
        Self {
            blur_sigma: [0.1, 0.9],
            scale: [0.5, 1.5],
            gaussian: [0.004, 0.04],
            poisson_peak: [300.0, 10_000.0],
            jpeg_quality: [50, 95],
            probability: 0.5,
        }
    }
}

impl BsrOptions {
    /// Checks the numbers.
    ///
    /// # Errors
    /// When a range is empty, a strength is not positive and finite, or the probability leaves 0 to 1.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, [low, high]) in [
            ("bsr.blur_sigma", self.blur_sigma),
            ("bsr.scale", self.scale),
            ("bsr.gaussian", self.gaussian),
            ("bsr.poisson_peak", self.poisson_peak),
            ("bsr.jpeg_quality", self.jpeg_quality.map(f64::from)),
        ] {
            if !(low > 0.0 && low <= high && high <= 1e9) {
                return Err(ConfigError::new(field, format!("{low} to {high}"), "needs 0 < least ≤ largest ≤ 1e9"));
            }
        }
        match (0.0..=1.0).contains(&self.probability) {
            true => Ok(()),
            false => Err(ConfigError::new("bsr.probability", self.probability, "must be between 0 and 1")),
        }
    }
}

/// One operation with its strength.
#[derive(Debug, Clone, PartialEq)]
pub enum Degradation {
    /// [`blur`] with a Gaussian of these deviations in pixels, the first along the angle.
    Blur([f64; 2], f64),
    /// [`resize`] by a factor.
    Resize(f64, Filter),
    /// [`gaussian_noise`]
    Gaussian(f64, NoiseKind),
    /// [`poisson_noise`]
    Poisson(f64, NoiseKind),
    /// [`jpeg`]
    Jpeg(u8),
}

/// Draws operations and their order. `factor` is how many times smaller the result will be: blurs are that much wider on
/// the large image.
pub fn draw(options: &BsrOptions, factor: usize, rng: &mut impl Rng) -> Vec<Degradation> {
    let between = |rng: &mut _, [low, high]: [f64; 2]| RngExt::random_range(rng, low..=high);
    let factor = factor as f64;
    let mut operations = Vec::new();
    for shape in 0..6 {
        if !rng.random_bool(options.probability) {
            continue;
        }
        let kind = if rng.random_bool(0.5) { NoiseKind::Colour } else { NoiseKind::Grey };
        operations.push(match shape {
            0 => {
                let sigma = between(rng, options.blur_sigma) * factor;
                Degradation::Blur([sigma, sigma], 0.0)
            }
            1 => {
                let sigmas = [0; 2].map(|_: usize| between(rng, options.blur_sigma) * factor);
                Degradation::Blur(sigmas, rng.random_range(0.0..std::f64::consts::PI))
            }
            2 => Degradation::Resize(between(rng, options.scale), filter(rng)),
            3 => Degradation::Gaussian(between(rng, options.gaussian), kind),
            4 => Degradation::Poisson(between(rng, options.poisson_peak.map(f64::ln)).exp(), kind),
            _ => Degradation::Jpeg(rng.random_range(options.jpeg_quality[0]..=options.jpeg_quality[1])),
        });
    }
    operations.shuffle(rng);
    operations
}

/// Applies operations one after the other; the size changes with [`Degradation::Resize`].
///
/// # Errors
/// When an operation refuses the image.
pub fn apply(operations: &[Degradation], image: Rgb32FImage, rng: &mut impl Rng) -> Result<Rgb32FImage> {
    operations.iter().try_fold(image, |image, operation| match operation {
        Degradation::Blur(sigmas, angle) => {
            Ok(blur(&image, &Kernel::anisotropic(taps(sigmas[0].max(sigmas[1])), *sigmas, *angle)))
        }
        Degradation::Resize(factor, filter) => {
            let side = |side: u32| ((f64::from(side) * factor).round() as u32).max(1);
            resize(&image, [side(image.width()), side(image.height())], *filter)
        }
        Degradation::Gaussian(sigma, kind) => Ok(gaussian_noise(image, *sigma, *kind, rng)),
        Degradation::Poisson(peak, kind) => poisson_noise(image, *peak, *kind, rng),
        Degradation::Jpeg(quality) => jpeg(&image, *quality),
    })
}

/// A small image with the faults of a random degradation: operations in random order, and the shrinking by `factor`
/// somewhere among them, so that noise and artefacts arise at both sizes.
///
/// # Errors
/// When the options are out of range, or `factor` does not divide the sides.
pub fn bsr(image: Rgb32FImage, factor: usize, options: &BsrOptions, rng: &mut impl Rng) -> Result<Rgb32FImage> {
    options.validate()?;
    let (w, h) = (image.width(), image.height());
    let small = |side: u32| side as usize / factor.max(1);
    let fits = |side: u32| side > 0 && (side as usize).is_multiple_of(factor);
    if factor == 0 || !fits(w) || !fits(h) {
        let expected = format!("must divide the sides of a {w} × {h} image");
        return Err(ConfigError::new("factor", factor, expected).into());
    }
    let size = [small(w) as u32, small(h) as u32];
    let operations = draw(options, factor, rng);
    // What comes after the shrinking works on the small image, where a blur as wide as on the large one would be too much.
    let split = rng.random_range(0..=operations.len());
    let (before, after) = operations.split_at(split);
    let image = apply(before, image, rng)?;
    let image = resize(&image, size, filter(rng))?;
    let after: Vec<Degradation> = after.iter().map(|operation| shrunk(operation, factor)).collect();
    let image = apply(&after, image, rng)?;
    resize(&image, size, Filter::Bicubic)
}

/// The operation on an image `factor` times smaller.
fn shrunk(operation: &Degradation, factor: usize) -> Degradation {
    match operation {
        Degradation::Blur(sigmas, angle) => Degradation::Blur(sigmas.map(|sigma| sigma / factor as f64), *angle),
        other => other.clone(),
    }
}

fn filter(rng: &mut impl Rng) -> Filter {
    FILTERS.choose(rng).copied().unwrap_or(Filter::Bicubic)
}

/// Taps that hold three deviations on each side, at most 21 as in the paper.
fn taps(sigma: f64) -> usize {
    2 * ((3.0 * sigma).ceil() as usize).clamp(1, 10) + 1
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn image() -> Rgb32FImage {
        Rgb32FImage::from_fn(32, 48, |x, y| Rgb([x as f32 / 31.0, y as f32 / 47.0, 0.4]))
    }

    fn run(seed: u64, options: &BsrOptions) -> Rgb32FImage {
        bsr(image(), 4, options, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap()
    }

    #[test]
    fn the_seed_decides() {
        let options = BsrOptions::default();
        assert_eq!(run(5, &options), run(5, &options));
        assert_ne!(run(5, &options), run(6, &options));
        for seed in 0..40 {
            let out = run(seed, &options);
            assert_eq!(out.dimensions(), (8, 12));
            assert!(out.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }

    #[test]
    fn without_operations_it_is_a_resizing() {
        let out = run(1, &BsrOptions { probability: 0.0, ..Default::default() });
        let exact = resize(&image(), [8, 12], Filter::Bilinear).unwrap();
        // Whatever filter was drawn, a ramp shrinks to a ramp up to a source pixel or two.
        assert!(out.iter().zip(exact.iter()).all(|(a, b)| (a - b).abs() < 2.0 / 31.0));
    }

    #[test]
    fn every_operation_and_many_orders_occur() {
        let options = BsrOptions { probability: 1.0, ..Default::default() };
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let operations = draw(&options, 4, &mut ChaCha8Rng::seed_from_u64(seed));
            let name = |operation: &Degradation| match operation {
                Degradation::Blur(..) => 'b',
                Degradation::Resize(..) => 'r',
                Degradation::Gaussian(..) => 'g',
                Degradation::Poisson(..) => 'p',
                Degradation::Jpeg(_) => 'j',
            };
            let order: String = operations.iter().map(name).collect();
            let mut sorted: Vec<char> = order.chars().collect();
            sorted.sort_unstable();
            assert_eq!(sorted, ['b', 'b', 'g', 'j', 'p', 'r']);
            orders.insert(order);
        }
        // Of 6!/2! = 360 orders 200 draws should see about 153; 120 leaves room.
        assert!(orders.len() > 120, "{} orders", orders.len());
    }

    #[test]
    fn options_out_of_range_are_named() {
        let field = |change: fn(&mut BsrOptions)| {
            let mut options = BsrOptions::default();
            change(&mut options);
            options.validate().unwrap_err().field
        };
        assert_eq!(field(|o| o.blur_sigma = [1.0, 0.5]), "bsr.blur_sigma");
        assert_eq!(field(|o| o.jpeg_quality = [0, 50]), "bsr.jpeg_quality");
        assert_eq!(field(|o| o.probability = f64::NAN), "bsr.probability");
        let error = bsr(image(), 5, &BsrOptions::default(), &mut ChaCha8Rng::seed_from_u64(0)).unwrap_err();
        assert!(error.to_string().contains("32 × 48"), "{error}");
    }
}
