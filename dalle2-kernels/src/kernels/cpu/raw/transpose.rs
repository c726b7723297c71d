//! Transposes of 16 × 16 blocks.

use std::mem::MaybeUninit;

/// Rows and columns of a block.
pub(crate) const BLOCK_SIDE: usize = 16;

/// Transposes a block of `from`, whose rows are `from_stride` elements apart, into `to`, whose rows are `to_stride` apart.
///
/// # Panics
/// If a slice is too short for a block.
pub(crate) fn transpose(from: (&[f32], usize), (to, to_stride): (&mut [f32], usize)) {
    check(from, to.len(), to_stride);
    // SAFETY: both slices hold a block with its stride, as just checked.
    unsafe { transpose_block((from.0.as_ptr(), from.1), (to.as_mut_ptr(), to_stride)) };
}

/// [`transpose`] into uninitialised memory: writes every element of the block.
///
/// # Panics
/// As [`transpose`].
pub(crate) fn transpose_uninit(from: (&[f32], usize), (to, to_stride): (&mut [MaybeUninit<f32>], usize)) {
    check(from, to.len(), to_stride);
    // SAFETY: both slices hold a block with its stride, as just checked; `to` is only written.
    unsafe { transpose_block((from.0.as_ptr(), from.1), (to.as_mut_ptr().cast(), to_stride)) };
}

fn check((from, from_stride): (&[f32], usize), to: usize, to_stride: usize) {
    let holds = |length: usize, stride: usize| {
        stride
            .checked_mul(BLOCK_SIDE - 1)
            .and_then(|last| last.checked_add(BLOCK_SIDE))
            .is_some_and(|least| length >= least)
    };
    assert!(holds(from.len(), from_stride), "transpose: `from` is too short");
    assert!(holds(to, to_stride), "transpose: `to` is too short");
}

/// Transposes the block at `from` into `to`.
///
/// # Safety
/// `from` must be valid for reading [`BLOCK_SIDE`] rows of [`BLOCK_SIDE`] elements, `from_stride` apart, and `to` for
/// writing them, `to_stride` apart.
unsafe fn transpose_block((from, from_stride): (*const f32, usize), (to, to_stride): (*mut f32, usize)) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512 F was detected; the caller guarantees the rest.
        unsafe { transpose_avx512((from.cast(), from_stride), (to.cast(), to_stride)) };
        return;
    }
    for row in 0..BLOCK_SIDE {
        for column in 0..BLOCK_SIDE {
            // SAFETY: both are elements of the blocks.
            unsafe { to.add(column * to_stride + row).write(from.add(row * from_stride + column).read()) };
        }
    }
}

/// Transposes a block in registers: unpacks of 32 and 64 bits, then two shuffles of 128-bit lanes.
///
/// # Safety
/// As for `transpose_block`. `from` and `to` may be equal if the strides are equal.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose_avx512((from, from_stride): (*const u32, usize), (to, to_stride): (*mut u32, usize)) {
    use std::arch::x86_64::*;

    let mut rows = [_mm512_setzero_si512(); BLOCK_SIDE];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: a row has the length of the vector.
        *row = unsafe { _mm512_loadu_si512(from.add(i * from_stride).cast()) };
    }
    let mut twos = rows;
    for i in (0..BLOCK_SIDE).step_by(2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Lane l of vector 4 i + j: column 4 l + j of rows 4 i to 4 i + 3.
    let mut fours = twos;
    for i in (0..BLOCK_SIDE).step_by(4) {
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
        // SAFETY: a row has the length of the vector.
        unsafe { _mm512_storeu_si512(to.add(i * to_stride).cast(), column) };
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_SIDE, transpose};

    #[test]
    fn blocks_are_transposed_with_any_stride() {
        for (from_stride, to_stride) in [(BLOCK_SIDE, BLOCK_SIDE), (BLOCK_SIDE + 3, BLOCK_SIDE + 1), (40, 32)] {
            // The minimum lengths: any access beyond a row would be out of bounds.
            let from: Vec<f32> = (0..(BLOCK_SIDE - 1) * from_stride + BLOCK_SIDE).map(|i| i as f32).collect();
            let mut to = vec![-1.0; (BLOCK_SIDE - 1) * to_stride + BLOCK_SIDE];
            transpose((&from, from_stride), (&mut to, to_stride));
            for (at, to) in to.iter().enumerate() {
                let (column, row) = (at / to_stride, at % to_stride);
                assert_eq!(*to, if row < BLOCK_SIDE { from[row * from_stride + column] } else { -1.0 });
            }
        }
    }

    #[test]
    #[should_panic(expected = "`from` is too short")]
    fn a_short_source_is_refused() {
        transpose((&[0.0; BLOCK_SIDE * BLOCK_SIDE - 1], BLOCK_SIDE), (&mut [0.0; BLOCK_SIDE * BLOCK_SIDE], BLOCK_SIDE));
    }

    #[test]
    #[should_panic(expected = "`to` is too short")]
    fn a_short_target_is_refused() {
        transpose((&[0.0; BLOCK_SIDE * BLOCK_SIDE], BLOCK_SIDE), (&mut [0.0; BLOCK_SIDE * BLOCK_SIDE], BLOCK_SIDE + 1));
    }
}
