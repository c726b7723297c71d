//! Figures for embeddings and images.
//!
//! All of them check their input and return plain numbers or small tensors; none needs a network.

mod distribution;
mod embeddings;
mod estimate;
mod pixels;
mod prior;
mod ssim;

pub use distribution::{diversity, frechet_distance};
pub use embeddings::{clip_score, cosine_similarity, retrieval_at_k, similarity_matrix};
pub use estimate::Estimate;
pub use pixels::{mse, pairwise_mse, psnr};
pub use prior::{EmbeddingMetrics, embedding_mse, recall_at_k};
pub use ssim::ssim;
