//! 3 × 3 convolution by Winograd's minimal filtering F(4 × 4, 3 × 3) and F(2 × 2, 3 × 3) (Lavin & Gray 2015, Fast
//! Algorithms for Convolutional Neural Networks, section 4): 4 and 2.25 times fewer multiplications than the direct sum.
//!
//! An output tile of 4 × 4 pixels depends on an input tile of 6 × 6. With the points 0, ±1, ±2 and ∞, the input transform
//! is `V = Bᵀ d B` and the filter transform `U = G g Gᵀ`, both 6 × 6; one matrix product for each of the 36 points sums
//! over channels, and the output transform `Aᵀ M A` gives the tile. F(2 × 2, 3 × 3) has output tiles of 2 × 2, input tiles
//! of 4 × 4 and the points 0, ±1 and ∞. The input gradient is a convolution with the mirrored weights; the weight gradient
//! uses the transposed transforms.

mod forward;
mod grad_weight;
mod method;
mod tiles;
mod transforms;

pub(crate) use grad_weight::grad_weight;
pub(crate) use method::{applies, applies_to_grad_weight, forward, grad_input};
