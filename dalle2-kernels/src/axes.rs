//! Axes in another order, and tensors side by side.

use burn::prelude::*;

use super::kernels;

/// Rows of tokens to heads: `[B, S, D]` -> `[B, heads, S, D / heads]`. The kernels put the values in order
/// in memory; elsewhere it is a view.
///
/// # Panics
/// When D is not a multiple of `heads`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [b, s, d] = x.dims();
    swap_middle(x.reshape([b, s, heads, d / heads]))
}

/// The inverse of [`split_heads`]: `[B, heads, S, Dh]` -> `[B, S, heads · Dh]`.
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [b, heads, s, width] = x.dims();
    swap_middle(x).reshape([b, s, heads * width])
}

/// Rows become columns: `[B, R, C]` -> `[B, C, R]`.
pub fn transpose(x: Tensor<3>) -> Tensor<3> {
    let [b, rows, columns] = x.dims();
    swap_middle(x.reshape([b, rows, columns, 1])).reshape([b, columns, rows])
}

/// `b` after `a` along an axis.
///
/// # Panics
/// When they differ along another axis.
pub fn concat(a: Tensor<4>, b: Tensor<4>, axis: usize) -> Tensor<4> {
    kernels::joined(a, b, axis).unwrap_or_else(|parts| Tensor::cat(parts.to_vec(), axis))
}

/// The two axes in the middle the other way around: `[A, B, C, D]` -> `[A, C, B, D]`. In memory as
/// [`split_heads`] says.
pub fn swap_middle(x: Tensor<4>) -> Tensor<4> {
    kernels::swapped(x).unwrap_or_else(|x| x.swap_dims(1, 2))
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    /// Different numbers, whose sums are exact.
    fn numbers<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        let n = shape.iter().product::<usize>();
        Tensor::from_data(TensorData::new((0..n).map(|i| i as f32).collect(), shape), device)
    }

    fn same<const D: usize>(found: Tensor<D>, expected: Tensor<D>) {
        found.into_data().assert_eq(&expected.into_data(), true);
    }

    #[test]
    fn heads_and_rows_are_those_of_burns_own_operations() {
        let device = Device::flex();
        for [b, s, heads, width] in [[1, 1, 1, 1], [2, 5, 3, 4], [3, 17, 2, 64], [2, 300, 4, 32]] {
            let x = numbers([b, s, heads * width], &device);
            let split = split_heads(x.clone(), heads);
            same(split.clone(), x.clone().reshape([b, s, heads, width]).swap_dims(1, 2));
            same(merge_heads(split), x.clone());
            same(transpose(x.clone()), x.clone().swap_dims(1, 2));
            same(transpose(x.clone().swap_dims(1, 2)), x);
        }
    }

    #[test]
    fn concat_is_burns_own_along_every_axis() {
        let device = Device::flex();
        for axis in 0..4 {
            let (mut left, mut right) = ([2, 3, 4, 5], [2, 3, 4, 5]);
            (left[axis], right[axis]) = (1, 6);
            let (a, b) = (numbers(left, &device), numbers(right, &device));
            same(concat(a.clone(), b.clone(), axis), Tensor::cat(vec![a, b], axis));
        }
        // A view of a larger tensor, and one that repeats its values.
        let a = numbers([2, 5, 3, 4], &device).narrow(1, 1, 3).swap_dims(1, 2);
        let b = numbers([1, 3, 1, 4], &device).expand([2, 3, 2, 4]);
        same(concat(a.clone(), b.clone(), 2), Tensor::cat(vec![a, b], 2));
    }

    #[test]
    fn gradients_take_the_way_back() {
        let device = Device::flex().autodiff();
        let x = numbers([2, 5, 6], &device).require_grad();
        let weight = numbers([2, 3, 5, 2], &device);
        let grads = (split_heads(x.clone(), 3) * weight.clone()).sum().backward();
        same(x.grad(&grads).unwrap(), merge_heads(weight.clone().inner()));
        let y = numbers([2, 3, 5, 2], &device).require_grad();
        let grads = (concat(y.clone(), weight, 1) * numbers([2, 6, 5, 2], &device)).sum().backward();
        same(y.grad(&grads).unwrap(), numbers([2, 6, 5, 2], &Device::flex()).narrow(1, 0, 3));
        // The same tensor on both sides gets both parts.
        let grads = (concat(y.clone(), y.clone(), 1) * numbers([2, 6, 5, 2], &device)).sum().backward();
        let parts = numbers([2, 6, 5, 2], &Device::flex());
        same(y.grad(&grads).unwrap(), parts.clone().narrow(1, 0, 3) + parts.narrow(1, 3, 3));
    }
}
