//! Permutations of axes, and concatenation.

use burn::prelude::*;

use super::kernels;

/// Splits tokens into heads: `[B, S, D]` -> `[B, heads, S, D / heads]`. The result is contiguous where the CPU kernels
/// apply, and a view elsewhere.
///
/// # Panics
/// If D is not a multiple of `heads`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [b, s, d] = x.dims();
    swap_middle(x.reshape([b, s, heads, d / heads]))
}

/// The inverse of [`split_heads`]: `[B, heads, S, Dh]` -> `[B, S, heads · Dh]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [b, heads, s, width] = x.dims();
    swap_middle(x).reshape([b, s, heads * width])
}

/// Transposes matrices: `[B, R, C]` -> `[B, C, R]`.
pub fn transpose(x: Tensor<3>) -> Tensor<3> {
    let [b, rows, columns] = x.dims();
    swap_middle(x.reshape([b, rows, columns, 1])).reshape([b, columns, rows])
}

/// Concatenates `a` and `b` along an axis.
///
/// # Panics
/// If they differ along another axis.
pub fn concat(a: Tensor<4>, b: Tensor<4>, axis: usize) -> Tensor<4> {
    kernels::concat(a, b, axis).unwrap_or_else(|parts| Tensor::cat(parts.to_vec(), axis))
}

/// Swaps the two middle axes: `[A, B, C, D]` -> `[A, C, B, D]`, contiguous or a view as for [`split_heads`].
pub fn swap_middle(x: Tensor<4>) -> Tensor<4> {
    kernels::swap_middle(x).unwrap_or_else(|x| x.swap_dims(1, 2))
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    /// Distinct integers, whose sums are exact.
    fn integers<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        let n = shape.iter().product::<usize>();
        Tensor::from_data(TensorData::new((0..n).map(|i| i as f32).collect(), shape), device)
    }

    fn assert_equal<const D: usize>(actual: Tensor<D>, expected: Tensor<D>) {
        actual.into_data().assert_eq(&expected.into_data(), true);
    }

    #[test]
    fn heads_and_transposes_equal_burns_operations() {
        let device = Device::flex();
        for [b, s, heads, width] in [[1, 1, 1, 1], [2, 5, 3, 4], [3, 17, 2, 64], [2, 300, 4, 32]] {
            let x = integers([b, s, heads * width], &device);
            let split = split_heads(x.clone(), heads);
            assert_equal(split.clone(), x.clone().reshape([b, s, heads, width]).swap_dims(1, 2));
            assert_equal(merge_heads(split), x.clone());
            assert_equal(transpose(x.clone()), x.clone().swap_dims(1, 2));
            assert_equal(transpose(x.clone().swap_dims(1, 2)), x);
        }
    }

    #[test]
    fn concat_equals_burns_operation_along_every_axis() {
        let device = Device::flex();
        for axis in 0..4 {
            let (mut left, mut right) = ([2, 3, 4, 5], [2, 3, 4, 5]);
            (left[axis], right[axis]) = (1, 6);
            let (a, b) = (integers(left, &device), integers(right, &device));
            assert_equal(concat(a.clone(), b.clone(), axis), Tensor::cat(vec![a, b], axis));
        }
        // A strided view and a broadcast view.
        let a = integers([2, 5, 3, 4], &device).narrow(1, 1, 3).swap_dims(1, 2);
        let b = integers([1, 3, 1, 4], &device).expand([2, 3, 2, 4]);
        assert_equal(concat(a.clone(), b.clone(), 2), Tensor::cat(vec![a, b], 2));
    }

    #[test]
    fn gradients_are_the_inverse_permutation() {
        let device = Device::flex().autodiff();
        let x = integers([2, 5, 6], &device).require_grad();
        let weight = integers([2, 3, 5, 2], &device);
        let grads = (split_heads(x.clone(), 3) * weight.clone()).sum().backward();
        assert_equal(x.grad(&grads).unwrap(), merge_heads(weight.clone().inner()));
        let y = integers([2, 3, 5, 2], &device).require_grad();
        let grads = (concat(y.clone(), weight, 1) * integers([2, 6, 5, 2], &device)).sum().backward();
        assert_equal(y.grad(&grads).unwrap(), integers([2, 6, 5, 2], &Device::flex()).narrow(1, 0, 3));
        // A tensor on both sides receives the sum of both gradients.
        let grads = (concat(y.clone(), y.clone(), 1) * integers([2, 6, 5, 2], &device)).sum().backward();
        let parts = integers([2, 6, 5, 2], &Device::flex());
        assert_equal(y.grad(&grads).unwrap(), parts.clone().narrow(1, 0, 3) + parts.narrow(1, 3, 3));
    }
}
