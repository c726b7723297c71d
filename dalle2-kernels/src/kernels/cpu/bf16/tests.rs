//! Products of small integers, which are exact.

use half::bf16;

use super::super::conv::ConvShape;
use super::super::raw;
use super::{convolution, linear};
use crate::Resample;

/// Small integers, whose products and sums are exact.
fn integers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
}

fn to_bf16(data: &[f32]) -> Vec<bf16> {
    data.iter().map(|value| bf16::from_f32(*value)).collect()
}

/// Covers every supported instruction set, also those that `instructions` would not choose.
#[test]
fn products_of_integers_are_exact_with_all_instructions() {
    for with in raw::bf16::instructions() {
        let (rows, from, to) = (37, 64, 57);
        let [x, weight, bias] = [(rows * from, 1), (to * from, 2), (to, 3)].map(|(n, seed)| integers(n, seed));
        let actual = linear(*with, [from, to], &x, &to_bf16(&weight), &bias);
        for (i, actual) in actual.iter().enumerate() {
            let (x, weight) = (&x[i / to * from..][..from], &weight[i % to * from..][..from]);
            let product: f32 = x.iter().zip(weight).map(|(x, w)| x * w).sum();
            assert_eq!(*actual, product + bias[i % to], "{with:?}, linear, {i}");
        }
        // Two images of 5 × 7 pixels with a border.
        let [batch, height, width] = [2, 5, 7];
        let image = [height, width];
        let shape = ConvShape {
            batch,
            channels: [from, to],
            image,
            grid: image,
            kernel: [3, 3],
            stride: [1, 1],
            padding: [1, 1],
            resample: Resample::Keep,
            residual: Resample::Keep,
        };
        let x = integers(batch * from * height * width, 4);
        let weight = integers(to * 9 * from, 5);
        let actual = convolution(*with, &shape, &x, &to_bf16(&weight), &bias);
        for (i, actual) in actual.iter().enumerate() {
            let (column, row) = (i % width, i / width % height);
            let (output, item) = (i / width / height % to, i / width / height / to);
            let mut expected = bias[output];
            for tap in 0..9 {
                let (y, x_at) = ((row + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
                if y < height && x_at < width {
                    let pixel = |input: usize| x[((item * from + input) * height + y) * width + x_at];
                    let weight = &weight[(output * 9 + tap) * from..][..from];
                    expected += weight.iter().enumerate().map(|(input, w)| w * pixel(input)).sum::<f32>();
                }
            }
            assert_eq!(*actual, expected, "{with:?}, convolution, {i}");
        }
    }
}
