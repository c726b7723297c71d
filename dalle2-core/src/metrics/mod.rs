//! Figures for embeddings and images.
//!
//! All of them check their input and return plain numbers or small tensors; none needs a network.

mod embeddings;
mod pixels;
mod ssim;

pub use embeddings::{clip_score, cosine_similarity, retrieval_at_k, similarity_matrix};
pub use pixels::{mse, pairwise_mse, psnr};
pub use ssim::ssim;
