//! What is done to the small images that an upsampler learns from, so that it mends the faults of those it will be given
//! (DALL·E 2, section 2.1 and appendix C: a Gaussian blur for the first upsampler, BSR degradation for the second).
//!
//! Images are [`Rgb32FImage`](image::Rgb32FImage)s with values in [0, 1]; every operation is a function of its
//! parameters and a random number generator, and each is public so that pipelines of one's own can be put together.

mod bsr;
mod convert;
mod kernel;
mod ops;

pub use bsr::{BsrOptions, Degradation, apply, bsr, draw};
pub use convert::{image_to_planes, planes_to_image};
pub use kernel::Kernel;
pub use ops::{Filter, NoiseKind, blur, gaussian_noise, jpeg, poisson_noise, resize};
