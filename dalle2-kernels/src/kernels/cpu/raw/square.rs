//! Squares of numbers whose rows become columns.

use std::mem::MaybeUninit;

/// Rows and columns of a square.
pub const SQUARE: usize = 16;

/// Writes the rows of `from`, `from_stride` values apart, as columns of `to`, whose rows are `to_stride` apart.
///
/// # Panics
/// If a slice is too short for [`SQUARE`] rows of as many values.
pub fn transpose(from: (&[f32], usize), (to, to_stride): (&mut [f32], usize)) {
    check(from, to.len(), to_stride);
    // SAFETY: the slices hold all rows, as was just checked.
    unsafe { rows_to_columns((from.0.as_ptr(), from.1), (to.as_mut_ptr(), to_stride)) };
}

/// [`transpose`] to new memory: every value of the square is written.
///
/// # Panics
/// As [`transpose`].
pub fn transpose_new(from: (&[f32], usize), (to, to_stride): (&mut [MaybeUninit<f32>], usize)) {
    check(from, to.len(), to_stride);
    // SAFETY: the slices hold all rows, as was just checked; `to` is only written.
    unsafe { rows_to_columns((from.0.as_ptr(), from.1), (to.as_mut_ptr().cast(), to_stride)) };
}

fn check((from, from_stride): (&[f32], usize), to: usize, to_stride: usize) {
    let holds = |length: usize, stride: usize| {
        stride.checked_mul(SQUARE - 1).and_then(|last| last.checked_add(SQUARE)).is_some_and(|least| length >= least)
    };
    assert!(holds(from.len(), from_stride), "transpose: `from` is too short");
    assert!(holds(to, to_stride), "transpose: `to` is too short");
}

/// Writes every value of the square at `to`.
///
/// # Safety
/// From both places on [`SQUARE`] rows of as many values must be readable or writable, so many values apart as is said.
unsafe fn rows_to_columns((from, from_stride): (*const f32, usize), (to, to_stride): (*mut f32, usize)) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions; the rest is what the caller guarantees.
        unsafe { in_registers((from.cast(), from_stride), (to.cast(), to_stride)) };
        return;
    }
    for row in 0..SQUARE {
        for column in 0..SQUARE {
            // SAFETY: both are values of the squares.
            unsafe { to.add(column * to_stride + row).write(from.add(row * from_stride + column).read()) };
        }
    }
}

/// Rows become columns in four steps: pairs of values, pairs of these, and two of lanes of four.
///
/// # Safety
/// From both places on [`SQUARE`] rows of as many values must be readable or writable, so many values apart as is said.
/// They may be the same place if the strides are equal.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub unsafe fn in_registers((from, from_stride): (*const u32, usize), (to, to_stride): (*mut u32, usize)) {
    use std::arch::x86_64::*;

    let mut rows = [_mm512_setzero_si512(); SQUARE];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: a row has as many values as the vector.
        *row = unsafe { _mm512_loadu_si512(from.add(i * from_stride).cast()) };
    }
    let mut twos = rows;
    for i in (0..SQUARE).step_by(2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Lane l of vector 4 i + j: column 4 l + j of rows 4 i to 4 i + 3.
    let mut fours = twos;
    for i in (0..SQUARE).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
    }
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    let mut columns = fours;
    for j in 0..4 {
        let upper = [fours[j], fours[4 + j]];
        let lower = [fours[8 + j], fours[12 + j]];
        let even = [upper, lower].map(|[a, b]| _mm512_shuffle_i32x4::<EVEN>(a, b));
        let odd = [upper, lower].map(|[a, b]| _mm512_shuffle_i32x4::<ODD>(a, b));
        columns[j] = _mm512_shuffle_i32x4::<EVEN>(even[0], even[1]);
        columns[4 + j] = _mm512_shuffle_i32x4::<EVEN>(odd[0], odd[1]);
        columns[8 + j] = _mm512_shuffle_i32x4::<ODD>(even[0], even[1]);
        columns[12 + j] = _mm512_shuffle_i32x4::<ODD>(odd[0], odd[1]);
    }
    for (i, column) in columns.into_iter().enumerate() {
        // SAFETY: a row has as many values as the vector.
        unsafe { _mm512_storeu_si512(to.add(i * to_stride).cast(), column) };
    }
}

#[cfg(test)]
mod tests {
    use super::{SQUARE, transpose};

    #[test]
    fn rows_become_columns() {
        for (from_stride, to_stride) in [(SQUARE, SQUARE), (SQUARE + 3, SQUARE + 1), (40, 32)] {
            // Exactly as long as they must be: a read or write beyond would be out of bounds.
            let from: Vec<f32> = (0..(SQUARE - 1) * from_stride + SQUARE).map(|i| i as f32).collect();
            let mut to = vec![-1.0; (SQUARE - 1) * to_stride + SQUARE];
            transpose((&from, from_stride), (&mut to, to_stride));
            for (at, to) in to.iter().enumerate() {
                let (column, row) = (at / to_stride, at % to_stride);
                assert_eq!(*to, if row < SQUARE { from[row * from_stride + column] } else { -1.0 });
            }
        }
    }

    #[test]
    #[should_panic(expected = "`from` is too short")]
    fn a_short_source_is_refused() {
        transpose((&[0.0; SQUARE * SQUARE - 1], SQUARE), (&mut [0.0; SQUARE * SQUARE], SQUARE));
    }

    #[test]
    #[should_panic(expected = "`to` is too short")]
    fn a_short_target_is_refused() {
        transpose((&[0.0; SQUARE * SQUARE], SQUARE), (&mut [0.0; SQUARE * SQUARE], SQUARE + 1));
    }
}
