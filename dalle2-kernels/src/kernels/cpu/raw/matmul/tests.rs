//! Products of small integers, which are exact in any order.

use super::super::super::panels::Matrix;
use super::{Bias, Output, add_products, block_size, multiply, product, products};

/// Small integers, whose products and sums are exact.
fn integers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
}

fn at(matrix: &Matrix<'_>, row: usize, column: usize) -> f32 {
    let (data, stride) = matrix.in_memory();
    data[if matrix.is_transposed() { column * stride + row } else { row * stride + column }]
}

fn expected(a: &Matrix<'_>, b: &Matrix<'_>, bias: Bias<'_>) -> Vec<f32> {
    let ([rows, depth], [_, columns]) = (a.size(), b.size());
    let value = |row, column| {
        let bias = match bias {
            Bias::None => 0.0,
            Bias::PerRow(bias) => bias[row],
            Bias::PerColumn(bias) => bias[column],
        };
        (0..depth).map(|k| at(a, row, k) * at(b, k, column)).sum::<f32>() + bias
    };
    (0..rows * columns).map(|i| value(i / columns, i % columns)).collect()
}

#[test]
fn products_of_integers_are_exact() {
    let sizes = [
        [1, 1, 1],
        [0, 3, 2],
        [3, 0, 2],
        [3, 2, 0],
        [5, 17, 33],
        [9, 16, 64],
        [131, 384, 47],
        [67, 700, 180],
        [700, 64, 190],
        [265, 773, 31],
        [3, 385, 1100],
    ];
    for [rows, depth, columns] in sizes {
        let (a, b) = (integers(rows * depth, 1), integers(depth * columns, 2));
        let (row_bias, column_bias) = (integers(rows, 3), integers(columns, 4));
        let left = [Matrix::new(&a, [rows, depth]), Matrix::new(&a, [depth, rows]).transposed()];
        let right = [Matrix::new(&b, [depth, columns]), Matrix::new(&b, [columns, depth]).transposed()];
        for a in left {
            for b in right {
                for bias in [Bias::None, Bias::PerRow(&row_bias), Bias::PerColumn(&column_bias)] {
                    let size = format!("{rows} x {depth} x {columns}");
                    let expected = expected(&a, &b, bias);
                    assert_eq!(product(a, b, bias), expected, "{size}, {a:.0?}, {b:.0?}");
                    let before = integers(rows * columns, 5);
                    let mut sum = before.clone();
                    add_products(1, |_| [a, b], bias, &mut sum);
                    let expected: Vec<f32> = expected.iter().zip(before).map(|(a, b)| a + b).collect();
                    assert_eq!(sum, expected, "added, {size}, {a:.0?}, {b:.0?}");
                }
            }
        }
    }
}

#[test]
fn blocks_are_balanced_and_nearly_square() {
    assert_eq!(block_size([1200, 384], 2), [600, 384]);
    assert_eq!(block_size([1232, 384], 2), [618, 384]);
    assert_eq!(block_size([384, 1536], 2), [384, 768]);
    assert_eq!(block_size([1200, 1280], 4), [600, 640]);
    assert_eq!(block_size([1, 1000], 7), [1, 160]);
    assert_eq!(block_size([5, 3], 1), [5, 3]);
    for size in [[1200, 384], [77, 4096], [128, 1024], [5000, 5000]] {
        for threads in [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 31, 32, 64] {
            let [down, across] = block_size(size, threads);
            assert!(size[0].div_ceil(down) * size[1].div_ceil(across) <= threads);
            let share = (size[0] * size[1]) as f64 / (down * across * threads) as f64;
            assert!(share > 0.6, "{size:?} in {down} x {across} by {threads}: {share}");
        }
    }
}

#[test]
fn products_in_any_number_of_blocks_are_exact() {
    let sizes =
        [[40, 7, 130], [1, 30, 200], [200, 30, 1], [37, 1, 70], [13, 2, 33], [7, 0, 40], [70, 600, 65], [100, 33, 100]];
    for [rows, depth, columns] in sizes {
        let (a, b) = (integers(rows * depth, 1), integers(depth * columns, 2));
        let (row_bias, column_bias) = (integers(rows, 3), integers(columns, 4));
        let left = [Matrix::new(&a, [rows, depth]), Matrix::new(&a, [depth, rows]).transposed()];
        let right = [Matrix::new(&b, [depth, columns]), Matrix::new(&b, [columns, depth]).transposed()];
        for (a, b) in left.into_iter().flat_map(|a| right.map(|b| (a, b))) {
            for bias in [Bias::None, Bias::PerRow(&row_bias), Bias::PerColumn(&column_bias)] {
                let expected = expected(&a, &b, bias);
                for threads in [1, 2, 3, 4, 6, 7, 16, 64] {
                    let mut c = vec![f32::NAN; rows * columns];
                    let data = c.as_mut_ptr();
                    // SAFETY: `c` has `rows · columns` elements and is borrowed by this test only.
                    unsafe { multiply([&a, &b], [rows, columns], Output { data, written: false, bias }, threads) };
                    let what = format!("{rows} x {depth} x {columns}, {threads} threads, {a:.0?}, {b:.0?}");
                    assert_eq!(c, expected, "{what}");
                    // SAFETY: as above, and `c` is initialised.
                    unsafe { multiply([&a, &b], [rows, columns], Output { data, written: true, bias }, threads) };
                    assert!(c.iter().zip(&expected).all(|(c, expected)| *c == 2.0 * expected), "added, {what}");
                }
            }
        }
    }
}

#[test]
fn batched_products_equal_single_products() {
    let (rows, depth, columns, count) = (7, 20, 35, 5);
    let (a, b) = (integers(count * rows * depth, 1), integers(count * depth * columns, 2));
    let factors = |i: usize| {
        [
            Matrix::new(&a[i * rows * depth..][..rows * depth], [rows, depth]),
            Matrix::new(&b[i * depth * columns..][..depth * columns], [columns, depth]).transposed(),
        ]
    };
    let each = (0..count).flat_map(|i| {
        let [a, b] = factors(i);
        expected(&a, &b, Bias::None)
    });
    assert_eq!(products(count, factors, Bias::None), each.collect::<Vec<f32>>());
    assert!(products(0, factors, Bias::None).is_empty());
    // Large enough for all threads.
    let (a, b) = (integers(2 * 200 * 250, 3), integers(2 * 250 * 200, 4));
    let factors = |i: usize| {
        [Matrix::new(&a[i * 50_000..][..50_000], [200, 250]), Matrix::new(&b[i * 50_000..][..50_000], [250, 200])]
    };
    let bias = Bias::PerRow(&a[..200]);
    let each = (0..2).flat_map(|i| {
        let [a, b] = factors(i);
        expected(&a, &b, bias)
    });
    let each = each.collect::<Vec<f32>>();
    assert_eq!(products(2, factors, bias), each);
    let column_bias = integers(200, 5);
    for bias in [bias, Bias::PerColumn(&column_bias)] {
        let mut sum = integers(2 * 200 * 200, 6);
        let before = sum.clone();
        add_products(2, factors, bias, &mut sum);
        let actual: Vec<f32> = sum.iter().zip(before).map(|(sum, before)| sum - before).collect();
        assert_eq!(actual, products(2, factors, bias));
    }
}

#[test]
#[should_panic(expected = "columns of the left factor")]
fn incompatible_factors_are_refused() {
    product(Matrix::new(&[0.0; 6], [2, 3]), Matrix::new(&[0.0; 6], [2, 3]), Bias::None);
}

#[test]
#[should_panic(expected = "length of the bias")]
fn a_bias_of_the_wrong_length_is_refused() {
    product(Matrix::new(&[0.0; 6], [2, 3]), Matrix::new(&[0.0; 6], [3, 2]), Bias::PerColumn(&[0.0; 3]));
}
