//! Blur kernels.

/// A square blur kernel whose weights sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    size: usize,
    weights: Vec<f32>,
}

impl Kernel {
    /// A Gaussian of deviation `sigma` pixels in every direction.
    ///
    /// # Panics
    /// When `size` is even, or `sigma` is not positive and finite.
    pub fn isotropic(size: usize, sigma: f64) -> Self {
        Self::anisotropic(size, [sigma, sigma], 0.0)
    }

    /// A Gaussian of deviation `sigmas[0]` pixels along the direction `angle` (radians from the x axis towards the y
    /// axis, which points down) and `sigmas[1]` across it (BSRGAN, arXiv 2103.14006, section 3.1).
    ///
    /// # Panics
    /// When `size` is even, or a deviation is not positive and finite.
    pub fn anisotropic(size: usize, sigmas: [f64; 2], angle: f64) -> Self {
        assert!(size % 2 == 1, "a kernel of {size} × {size} taps has no middle: the side must be odd");
        assert!(sigmas.iter().all(|s| s.is_finite() && *s > 0.0), "sigmas = {sigmas:?}: must be finite and above 0");
        let radius = (size / 2) as f64;
        let (sin, cos) = angle.sin_cos();
        let weight = |i: usize| {
            let (x, y) = ((i % size) as f64 - radius, (i / size) as f64 - radius);
            let (along, across) = ((x * cos + y * sin) / sigmas[0], (y * cos - x * sin) / sigmas[1]);
            (-0.5 * (along * along + across * across)).exp()
        };
        let values: Vec<f64> = (0..size * size).map(weight).collect();
        let sum: f64 = values.iter().sum();
        Self { size, weights: values.into_iter().map(|v| (v / sum) as f32).collect() }
    }

    /// Taps along each side, odd.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The weights, row by row.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Σ w·(x·cos + y·sin)², the variance along a direction.
    fn variance_along(kernel: &Kernel, angle: f64) -> f64 {
        let radius = (kernel.size() / 2) as f64;
        let at = |i: usize| ((i % kernel.size()) as f64 - radius, (i / kernel.size()) as f64 - radius);
        let term = |(i, w): (usize, &f32)| {
            let (x, y) = at(i);
            f64::from(*w) * (x * angle.cos() + y * angle.sin()).powi(2)
        };
        kernel.weights().iter().enumerate().map(term).sum()
    }

    #[test]
    fn weights_sum_to_one_and_have_the_variances_asked_for() {
        let kernel = Kernel::anisotropic(31, [3.0, 1.2], 0.7);
        assert!((kernel.weights().iter().map(|w| f64::from(*w)).sum::<f64>() - 1.0).abs() < 1e-6);
        // Wide enough that almost nothing is cut off and the sum stands for the integral.
        assert!((variance_along(&kernel, 0.7) - 9.0).abs() < 0.01);
        assert!((variance_along(&kernel, 0.7 + std::f64::consts::FRAC_PI_2) - 1.44).abs() < 0.01);
    }

    #[test]
    fn equal_deviations_make_the_angle_irrelevant() {
        let (a, b) = (Kernel::isotropic(9, 1.5), Kernel::anisotropic(9, [1.5, 1.5], 1.1));
        assert!(a.weights().iter().zip(b.weights()).all(|(a, b)| (a - b).abs() < 1e-7));
        // Separable: the corner is the product of two edges over the middle.
        let w = |x: usize, y: usize| a.weights()[y * 9 + x];
        assert!((w(0, 0) - w(0, 4) * w(4, 0) / w(4, 4)).abs() < 1e-9);
    }

    #[test]
    #[should_panic(expected = "must be odd")]
    fn an_even_kernel_is_a_bug() {
        Kernel::isotropic(4, 1.0);
    }
}
