//! The single operations. Results are clamped to [0, 1].

use std::io::Cursor;

use dalle2_core::{Error, Result};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageFormat, ImageReader, Rgb, Rgb32FImage};
use rand::Rng;
use rand_distr::{Distribution, Poisson, StandardNormal};

use super::Kernel;

/// How pixels are averaged when an image is resized; all widen when it shrinks, except the nearest pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// A triangle.
    Bilinear,
    /// Keys' cubic with a = −½.
    Bicubic,
    /// A windowed sinc of three lobes.
    Lanczos,
}

/// Whether noise differs between the colour channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoiseKind {
    /// Independent in each channel.
    Colour,
    /// The same in all channels of a pixel.
    Grey,
}

/// Convolves with a kernel; the image is mirrored at its edges (the edge pixel itself is not repeated).
pub fn blur(image: &Rgb32FImage, kernel: &Kernel) -> Rgb32FImage {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let (size, radius) = (kernel.size(), kernel.size() / 2);
    let row_values = 3 * w;
    // Rows widened by the mirrored columns, so that every tap is a shifted slice.
    let wide: Vec<f32> = (0..h)
        .flat_map(|y| (0..w + 2 * radius).map(move |x| (y, x)))
        .flat_map(|(y, x)| image.get_pixel(mirrored(x as isize - radius as isize, w) as u32, y as u32).0)
        .collect();
    let wide_values = 3 * (w + 2 * radius);
    let mut out = Rgb32FImage::new(image.width(), image.height());
    for (y, row) in out.chunks_exact_mut(row_values.max(1)).enumerate().take(h) {
        for (tap, weight) in kernel.weights().iter().enumerate() {
            let source = mirrored(y as isize + (tap / size) as isize - radius as isize, h);
            let shifted = &wide[source * wide_values + 3 * (tap % size)..][..row_values];
            for (out, value) in row.iter_mut().zip(shifted) {
                *out += weight * value;
            }
        }
    }
    clamped(out)
}

/// Resizes to `width` × `height` pixels.
///
/// # Errors
/// When a side of the image or of the result is empty.
pub fn resize(image: &Rgb32FImage, [width, height]: [u32; 2], filter: Filter) -> Result<Rgb32FImage> {
    if image.width() == 0 || image.height() == 0 || width == 0 || height == 0 {
        let (w, h) = image.dimensions();
        return Err(Error::Input(format!("a {w} × {h} image cannot become {width} × {height}")));
    }
    let filter = match filter {
        Filter::Nearest => FilterType::Nearest,
        Filter::Bilinear => FilterType::Triangle,
        Filter::Bicubic => FilterType::CatmullRom,
        Filter::Lanczos => FilterType::Lanczos3,
    };
    Ok(clamped(imageops::resize(image, width, height, filter)))
}

/// Adds normal noise of deviation `sigma` (as a share of the range, so 0.1 is 25 of 255).
pub fn gaussian_noise(mut image: Rgb32FImage, sigma: f64, kind: NoiseKind, rng: &mut impl Rng) -> Rgb32FImage {
    let mut normal = || -> f32 { StandardNormal.sample(rng) };
    for pixel in image.pixels_mut() {
        let noise = match kind {
            NoiseKind::Colour => [normal(), normal(), normal()],
            NoiseKind::Grey => [normal(); 3],
        };
        for (value, noise) in pixel.0.iter_mut().zip(noise) {
            *value += sigma as f32 * noise;
        }
    }
    clamped(image)
}

/// The noise of counting photons, `peak` of which make full brightness: a value x becomes Poisson(x·peak)/peak, of mean x
/// and variance x/peak. For [`NoiseKind::Grey`] one count is made for the pixel's mean and its error added to all channels.
///
/// # Errors
/// When `peak` is not positive, or beyond 1e9.
pub fn poisson_noise(mut image: Rgb32FImage, peak: f64, kind: NoiseKind, rng: &mut impl Rng) -> Result<Rgb32FImage> {
    if !(peak > 0.0 && peak <= 1e9) {
        return Err(Error::Input(format!("a Poisson peak of {peak}: must be above 0 and at most 1e9")));
    }
    let mut count = |value: f32| -> Result<f32> {
        let mean = f64::from(value) * peak;
        if mean <= 0.0 {
            return Ok(0.0);
        }
        let poisson = Poisson::new(mean).map_err(|e| Error::Input(format!("Poisson noise of mean {mean}: {e}")))?;
        Ok((poisson.sample(rng) / peak) as f32)
    };
    for pixel in image.pixels_mut() {
        match kind {
            NoiseKind::Colour => {
                for value in &mut pixel.0 {
                    *value = count(*value)?;
                }
            }
            NoiseKind::Grey => {
                let mean = pixel.0.iter().sum::<f32>() / 3.0;
                let noise = count(mean)? - mean;
                pixel.0.iter_mut().for_each(|value| *value += noise);
            }
        }
    }
    Ok(clamped(image))
}

/// Compresses as JPEG of `quality` 1 to 100 and decompresses.
///
/// # Errors
/// When the codec refuses the image: one that is empty or larger than 65,535 pixels a side.
pub fn jpeg(image: &Rgb32FImage, quality: u8) -> Result<Rgb32FImage> {
    let refused = |e| Error::Input(format!("JPEG of a {} × {} image: {e}", image.width(), image.height()));
    let bytes = DynamicImage::ImageRgb32F(image.clone()).into_rgb8();
    let mut file = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut file, quality.clamp(1, 100)).encode_image(&bytes).map_err(refused)?;
    file.set_position(0);
    Ok(ImageReader::with_format(file, ImageFormat::Jpeg).decode().map_err(refused)?.into_rgb32f())
}

fn clamped(mut image: Rgb32FImage) -> Rgb32FImage {
    image.pixels_mut().for_each(|Rgb(values)| values.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0)));
    image
}

/// Position that stands at `i` when `n` values are mirrored about the first and the last one again and again.
fn mirrored(i: isize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let period = 2 * (n as isize - 1);
    let i = i.rem_euclid(period);
    i.min(period - i) as usize
}

#[cfg(test)]
mod tests {
    use burn::prelude::*;
    use dalle2_core::image::gaussian_blur;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(3)
    }

    fn pattern(w: u32, h: u32) -> Rgb32FImage {
        Rgb32FImage::from_fn(w, h, |x, y| {
            Rgb([(x * 37 + y * 11) % 101, (x * 5 + y * 71) % 101, (x * y) % 101].map(|v| v as f32 / 100.0))
        })
    }

    fn channel(image: &Rgb32FImage, c: usize) -> Vec<f64> {
        image.pixels().map(|p| f64::from(p.0[c])).collect()
    }

    fn moments(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn an_isotropic_blur_equals_the_separable_one_of_core() {
        let image = pattern(9, 7);
        let found = blur(&image, &Kernel::isotropic(5, 1.1));
        for c in 0..3 {
            let values: Vec<f32> = channel(&image, c).into_iter().map(|v| v as f32).collect();
            let tensor = Tensor::<4>::from_data(TensorData::new(values, [1, 1, 7, 9]), &Device::flex());
            let expected = gaussian_blur(tensor, 5, 1.1).into_data().try_to_vec::<f32>().unwrap();
            for (a, b) in channel(&found, c).into_iter().zip(expected) {
                assert!((a - f64::from(b)).abs() < 1e-5, "{a} is not {b}");
            }
        }
    }

    #[test]
    fn a_point_becomes_the_kernel() {
        let mut image = Rgb32FImage::new(11, 11);
        image.put_pixel(5, 5, Rgb([1.0, 0.5, 0.0]));
        let kernel = Kernel::anisotropic(7, [2.0, 0.7], 0.4);
        let out = blur(&image, &kernel);
        for (tap, weight) in kernel.weights().iter().enumerate() {
            // The kernel is symmetric about its middle, so convolution and correlation agree.
            let found = out.get_pixel(2 + tap as u32 % 7, 2 + tap as u32 / 7).0;
            assert!((found[0] - weight).abs() < 1e-6 && (found[1] - weight / 2.0).abs() < 1e-6 && found[2] == 0.0);
        }
        let one = Rgb32FImage::from_pixel(1, 1, Rgb([0.3, 0.6, 0.9]));
        assert!(blur(&one, &kernel).get_pixel(0, 0).0.iter().zip([0.3, 0.6, 0.9]).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn resizing_keeps_constants_and_halving_by_bilinear_has_the_closed_form() {
        let flat = Rgb32FImage::from_pixel(8, 6, Rgb([0.25, 0.5, 0.75]));
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for size in [[4, 3], [5, 9], [16, 1]] {
                let out = resize(&flat, size, filter).unwrap();
                assert_eq!([out.width(), out.height()], size);
                assert!(out.pixels().all(|p| p.0.iter().zip([0.25, 0.5, 0.75]).all(|(a, b)| (a - b).abs() < 1e-5)));
            }
        }
        // A triangle of half-width 2 at the middle of two pixels: 1/8, 3/8, 3/8, 1/8.
        let row = Rgb32FImage::from_fn(8, 1, |x, _| Rgb([[0.1, 0.9, 0.4, 0.2, 0.6, 0.3, 0.8, 0.5][x as usize]; 3]));
        let out = resize(&row, [4, 1], Filter::Bilinear).unwrap();
        let expected = (0.9 + 0.6) / 8.0 + (0.4 + 0.2) * 3.0 / 8.0;
        assert!((out.get_pixel(1, 0).0[0] - expected).abs() < 1e-5, "{:?}", out.get_pixel(1, 0));
        assert!(resize(&row, [0, 4], Filter::Bilinear).is_err());
    }

    #[test]
    fn gaussian_noise_has_its_deviation_and_grey_noise_one_value() {
        let flat = Rgb32FImage::from_pixel(200, 200, Rgb([0.5; 3]));
        let colour = gaussian_noise(flat.clone(), 0.05, NoiseKind::Colour, &mut rng());
        for c in 0..3 {
            let (mean, variance) = moments(&channel(&colour, c));
            // Five standard errors of 40,000 values.
            assert!((mean - 0.5).abs() < 5.0 * 0.05 / 200.0 && (variance.sqrt() - 0.05).abs() < 5.0 * 0.05 / 282.0);
        }
        let (red, green) = (channel(&colour, 0), channel(&colour, 1));
        let covariance: f64 = red.iter().zip(&green).map(|(a, b)| (a - 0.5) * (b - 0.5)).sum::<f64>() / 40_000.0;
        assert!(covariance.abs() < 5.0 * 0.0025 / 200.0, "{covariance}");
        let grey = gaussian_noise(flat, 0.05, NoiseKind::Grey, &mut rng());
        assert!(grey.pixels().all(|p| p.0[0] == p.0[1] && p.0[1] == p.0[2]));
        assert!((moments(&channel(&grey, 0)).1.sqrt() - 0.05).abs() < 5.0 * 0.05 / 282.0);
    }

    #[test]
    fn poisson_noise_grows_with_brightness() {
        let image = Rgb32FImage::from_pixel(200, 200, Rgb([0.1, 0.4, 0.0]));
        let peak = 100.0;
        let out = poisson_noise(image.clone(), peak, NoiseKind::Colour, &mut rng()).unwrap();
        for (c, x) in [(0, 0.1), (1, 0.4)] {
            let (mean, variance) = moments(&channel(&out, c));
            let expected = x / peak;
            assert!((mean - x).abs() < 5.0 * (expected / 40_000.0f64).sqrt(), "{mean}");
            assert!((variance - expected).abs() < 0.1 * expected, "variance {variance}, expected {expected}");
        }
        assert!(channel(&out, 2).iter().all(|v| *v == 0.0), "black stays black");
        let grey = poisson_noise(image.clone(), peak, NoiseKind::Grey, &mut rng()).unwrap();
        let differences: Vec<f64> = grey.pixels().map(|p| f64::from(p.0[1] - p.0[0])).collect();
        assert!(
            differences.iter().filter(|d| (**d - 0.3).abs() < 1e-5).count() > 39_000,
            "hue stays but where it clips"
        );
        assert!(poisson_noise(image, 0.0, NoiseKind::Grey, &mut rng()).is_err());
    }

    #[test]
    fn jpeg_loses_more_at_lower_quality_and_keeps_flat_colours() {
        let image = pattern(32, 24);
        let error = |quality: u8| {
            let out = jpeg(&image, quality).unwrap();
            assert_eq!(out.dimensions(), (32, 24));
            out.iter().zip(image.iter()).map(|(a, b)| f64::from((a - b).powi(2))).sum::<f64>() / image.len() as f64
        };
        let errors = [20, 60, 95].map(error);
        assert!(errors[0] > errors[1] && errors[1] > errors[2] && errors[2] > 0.0, "{errors:?}");
        let flat = Rgb32FImage::from_pixel(16, 16, Rgb([0.5; 3]));
        let out = jpeg(&flat, 90).unwrap();
        assert!(out.iter().all(|v| (v - 0.5).abs() < 1.5 / 255.0));
        assert!(jpeg(&Rgb32FImage::new(0, 0), 90).is_err());
    }
}
