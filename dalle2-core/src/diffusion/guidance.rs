//! Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

use burn::prelude::*;

/// Moves the conditional output away from the unconditional one: uncond + scale · (cond − uncond).
///
/// Scale 1 gives the conditional output, 0 the unconditional one. Only the prediction is guided; the variance that a
/// network learned comes from the conditional half.
///
/// # Shapes
/// - uncond, cond and the output: `[B, …]`
pub fn guide<const D: usize>(uncond: Tensor<D>, cond: Tensor<D>, scale: f64) -> Tensor<D> {
    uncond.clone() + (cond - uncond) * scale
}

/// [`guide`] for a batch that holds both halves, unconditional first: one forward pass computes them together.
///
/// # Shapes
/// - halves: `[2 * B, …]`
/// - output: `[B, …]`
///
/// # Panics
/// When the batch is odd.
pub fn guide_halves<const D: usize>(halves: Tensor<D>, scale: f64) -> Tensor<D> {
    let rows = halves.dims()[0];
    assert!(rows.is_multiple_of(2), "a guidance batch has two halves of one size, found {rows} rows");
    guide(halves.clone().narrow(0, 0, rows / 2), halves.narrow(0, rows / 2, rows / 2), scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_moves_along_the_difference() {
        let device = Device::flex();
        let halves = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, -2.0]], &device);
        for (scale, expected) in [(0.0, [1.0, 2.0]), (1.0, [3.0, -2.0]), (2.5, [6.0, -8.0])] {
            assert_eq!(guide_halves(halves.clone(), scale).into_data().try_to_vec::<f32>().unwrap(), expected);
        }
    }

    #[test]
    #[should_panic(expected = "found 3 rows")]
    fn an_odd_batch_is_a_bug() {
        guide_halves(Tensor::<2>::zeros([3, 1], &Device::flex()), 1.0);
    }
}
