//! Products of bf16 by AMX and AVX-512 BF16 instructions.
//!
//! Both multiply pairs of bf16 exactly and accumulate in f32. Denormals count as zero.

use half::bf16;

pub(crate) use super::transpose::BLOCK_SIDE;
#[cfg(target_arch = "x86_64")]
use super::transpose::transpose_avx512;

/// Rows and columns of a block of the result.
pub(crate) const BLOCK: usize = 32;
/// The inner dimension of a product is a multiple of this.
pub(crate) const DEPTH_STEP: usize = 32;

/// The bf16 elements of two successive channels, the first in the lower half.
pub(crate) type Pair = u32;

/// The instruction sets for bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// Tiles of 16 rows of 64 bytes (Intel Advanced Matrix Extensions).
    Amx,
    /// Vectors of 16 pairs (AVX-512 BF16).
    Avx512,
}

/// Offsets of the factors of one tap.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Tap {
    /// Offset in a row of weights, in elements.
    pub weight: usize,
    /// Offset in a row of columns, in pairs.
    pub column: usize,
}

/// The factors of `Σ over taps weight · columns`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands<'a> {
    /// [`BLOCK`] rows, `stride` elements apart; each tap has `depth` elements of a row, in groups of [`DEPTH_STEP`].
    pub weight: &'a [bf16],
    /// Elements from a row of weights to the next.
    pub stride: usize,
    /// Elements from a group of weights to the next.
    pub step: usize,
    /// `depth / 2` rows of pairs, `plane` apart; each tap has [`BLOCK`] of a row.
    pub columns: &'a [Pair],
    /// Pairs from a row of columns to the next.
    pub plane: usize,
    /// The taps.
    pub taps: &'a [Tap],
    /// Inner dimension per tap, a multiple of [`DEPTH_STEP`].
    pub depth: usize,
}

impl Operands<'_> {
    /// Whether every row of every tap lies inside the slices.
    fn in_bounds(&self) -> bool {
        let Self { stride, step, plane, depth, .. } = *self;
        let extent = |stride: usize, rows: usize, width: usize| stride.checked_mul(rows - 1)?.checked_add(width);
        if depth == 0 || !depth.is_multiple_of(DEPTH_STEP) {
            return false;
        }
        let row = extent(step, depth / DEPTH_STEP, DEPTH_STEP);
        let weight = row.and_then(|row| extent(stride, BLOCK, row));
        let columns = extent(plane, depth / 2, BLOCK);
        let holds = |len: usize, first: usize, extent: Option<usize>| {
            extent.and_then(|extent| extent.checked_add(first)).is_some_and(|end| end <= len)
        };
        self.taps
            .iter()
            .all(|tap| holds(self.weight.len(), tap.weight, weight) && holds(self.columns.len(), tap.column, columns))
    }
}

/// The instruction sets that the processor and the operating system support, fastest first.
pub(crate) fn instructions() -> &'static [Instructions] {
    #[cfg(target_arch = "x86_64")]
    return x86::instructions();
    #[cfg(not(target_arch = "x86_64"))]
    return &[];
}

/// Writes the product into `c`.
///
/// # Panics
/// If the operands are too short for their rows, the depth is no multiple of [`DEPTH_STEP`] or this processor lacks the
/// instructions.
pub(crate) fn product(with: Instructions, operands: &Operands<'_>, c: &mut [[f32; BLOCK]; BLOCK]) {
    assert!(operands.in_bounds(), "product: an operand is too short, or the depth {} is wrong", operands.depth);
    assert!(instructions().contains(&with), "product: this processor does not support {with:?}");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has the instructions and the operands are in bounds, as just asserted.
    unsafe {
        match with {
            Instructions::Amx => x86::amx(operands, c),
            Instructions::Avx512 => x86::avx512(operands, c),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = c;
}

/// Transposes a block in place.
///
/// # Panics
/// If this processor lacks the instructions.
pub(crate) fn transpose(with: Instructions, square: &mut [[u32; BLOCK_SIDE]; BLOCK_SIDE]) {
    assert!(instructions().contains(&with), "transpose: this processor does not support {with:?}");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: both instruction sets include AVX-512 F, as just asserted; the block holds all rows.
    unsafe {
        let place = square.as_mut_ptr().cast();
        transpose_avx512((place, BLOCK_SIDE), (place, BLOCK_SIDE));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = square;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::arch::{asm, is_x86_feature_detected};
    use std::mem::{offset_of, transmute};
    use std::sync::OnceLock;

    use super::{BLOCK, DEPTH_STEP, Instructions, Operands, Tap};

    pub(crate) fn instructions() -> &'static [Instructions] {
        static DETECTED: OnceLock<Vec<Instructions>> = OnceLock::new();
        DETECTED.get_or_init(|| {
            let mut detected = Vec::new();
            if has_amx() {
                detected.push(Instructions::Amx);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
                detected.push(Instructions::Avx512);
            }
            detected
        })
    }

    /// Whether the processor has AMX with bf16 and Linux grants this process its registers.
    #[cfg(target_os = "linux")]
    fn has_amx() -> bool {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        const REQUEST_PERMISSION: i32 = 0x1023;
        const TILE_DATA: i32 = 18;
        let features = __cpuid_count(7, 0).edx;
        // SAFETY: the call only grants this process the use of a register state, or fails.
        is_x86_feature_detected!("avx512f")
            && features & BF16 != 0
            && features & TILE != 0
            && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn has_amx() -> bool {
        false
    }

    /// The operand of `ldtilecfg`: all eight registers as 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Tiles {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const TILES: Tiles = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            (row_bytes[tile], rows[tile]) = (64, 16);
            tile += 1;
        }
        Tiles { palette: 1, start: 0, reserved: [0; 14], row_bytes, rows }
    };

    /// Loop constants in memory, for lack of registers.
    #[repr(C, align(64))]
    struct Arguments {
        tiles: Tiles,
        taps: *const Tap,
        count: usize,
        /// Bytes of 16 rows of weights.
        lower: usize,
        /// Bytes of 16 rows of columns.
        deeper: usize,
        /// Bytes of a step of weights.
        step: usize,
        c: *mut f32,
    }

    /// Computes the product with four result tiles in registers, two of weights by two of columns.
    ///
    /// # Safety
    /// The processor must support AMX with permission to use it, and the operands must be in bounds.
    pub(crate) unsafe fn amx(operands: &Operands<'_>, c: &mut [[f32; BLOCK]; BLOCK]) {
        if operands.taps.is_empty() {
            c.as_flattened_mut().fill(0.0);
            return;
        }
        let (stride, plane) = (operands.stride * 2, operands.plane * 4);
        let arguments = Arguments {
            tiles: TILES,
            taps: operands.taps.as_ptr(),
            count: operands.taps.len(),
            lower: 16 * stride,
            deeper: 16 * plane,
            step: operands.step * 2,
            c: c.as_mut_ptr().cast(),
        };
        // SAFETY: a tap reads 16 rows of 64 bytes four times per step: weights at the tap and 16 rows below, columns at
        // the tap and 64 bytes to the right. Every step advances by a step of weights and 16 rows of columns,
        // `depth / 32` times, all in bounds. The stores fill `c`, whose rows have 128 bytes. No other memory is written,
        // the stack is not used, and the tile registers are released at the end.
        unsafe {
            asm!(
                "ldtilecfg [{arguments}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {tap}, [{arguments} + {taps}]",
                "mov {left}, [{arguments} + {count}]",
                "3:",
                "mov {w}, [{tap} + {tap_weight}]",
                "mov {x}, [{tap} + {tap_column}]",
                "lea {w}, [{weight} + 2*{w}]",
                "lea {x}, [{columns} + 4*{x}]",
                "tileloadd tmm4, [{x} + {plane}*1]",
                "tileloadd tmm6, [{w} + {stride}*1]",
                "tileloadd tmm5, [{x} + {plane}*1 + 64]",
                "tdpbf16ps tmm0, tmm6, tmm4",
                "add {w}, [{arguments} + {lower}]",
                "tileloadd tmm7, [{w} + {stride}*1]",
                "tdpbf16ps tmm1, tmm6, tmm5",
                "tdpbf16ps tmm2, tmm7, tmm4",
                "tdpbf16ps tmm3, tmm7, tmm5",
                "add {tap}, {tap_size}",
                "dec {left}",
                "jnz 3b",
                "add {weight}, [{arguments} + {step}]",
                "add {columns}, [{arguments} + {deeper}]",
                "dec {steps}",
                "jnz 2b",
                "mov {left}, 128",
                "mov {tap}, [{arguments} + {c}]",
                "tilestored [{tap} + {left}*1], tmm0",
                "tilestored [{tap} + {left}*1 + 64], tmm1",
                "tilestored [{tap} + {left}*1 + 2048], tmm2",
                "tilestored [{tap} + {left}*1 + 2112], tmm3",
                "tilerelease",
                arguments = in(reg) &raw const arguments,
                weight = inout(reg) operands.weight.as_ptr() => _,
                columns = inout(reg) operands.columns.as_ptr() => _,
                steps = inout(reg) operands.depth / DEPTH_STEP => _,
                stride = in(reg) stride,
                plane = in(reg) plane,
                tap = out(reg) _,
                left = out(reg) _,
                w = out(reg) _,
                x = out(reg) _,
                taps = const offset_of!(Arguments, taps),
                count = const offset_of!(Arguments, count),
                lower = const offset_of!(Arguments, lower),
                deeper = const offset_of!(Arguments, deeper),
                step = const offset_of!(Arguments, step),
                c = const offset_of!(Arguments, c),
                tap_weight = const offset_of!(Tap, weight),
                tap_column = const offset_of!(Tap, column),
                tap_size = const size_of::<Tap>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Rows of the result in registers.
    const ROWS: usize = 8;
    /// Pairs of a vector.
    const LANES: usize = 16;

    /// Computes the product with eight rows of two vectors in registers.
    ///
    /// # Safety
    /// The processor must have the features, and the operands must be in bounds.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) unsafe fn avx512(operands: &Operands<'_>, c: &mut [[f32; BLOCK]; BLOCK]) {
        let Operands { stride, step, plane, depth, .. } = *operands;
        for (block, c) in c.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for tap in operands.taps {
                for pair in 0..depth / 2 {
                    // SAFETY: a row of columns has two vectors from the tap on, and a row of weights both elements of
                    // the pair, which is read unaligned.
                    unsafe {
                        let row = operands.columns.as_ptr().add(tap.column + pair * plane);
                        let columns: [__m512bh; 2] =
                            [0, LANES].map(|first| bits(_mm512_loadu_si512(row.add(first).cast())));
                        let weight = operands
                            .weight
                            .as_ptr()
                            .add(tap.weight + block * ROWS * stride + pair / 16 * step + 2 * (pair % 16));
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let weight = weight.add(row * stride).cast::<i32>().read_unaligned();
                            let weight = bits(_mm512_set1_epi32(weight));
                            for (sum, columns) in sums.iter_mut().zip(columns) {
                                *sum = _mm512_dpbf16_ps(*sum, weight, columns);
                            }
                        }
                    }
                }
            }
            for (c, sums) in c.iter_mut().zip(sums) {
                for (c, sum) in c.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                    // SAFETY: the chunk has the length of the vector.
                    unsafe { _mm512_storeu_ps(c.as_mut_ptr(), sum) };
                }
            }
        }
    }

    /// Reinterprets a vector as pairs of bf16.
    fn bits(x: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes, and every bit pattern is valid.
        unsafe { transmute(x) }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::{BLOCK, BLOCK_SIDE, Instructions, Operands, Tap, instructions, product, transpose};

    /// Small integers, whose products and sums are exact.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
    }

    #[test]
    fn products_of_integers_are_exact() {
        for (depth, taps) in [(32, 1), (64, 0), (96, 4)] {
            let (stride, plane) = (depth * taps.max(1) + 2, BLOCK + taps + 5);
            // The minimum lengths: any read beyond would be out of bounds.
            let weight = integers((BLOCK - 1) * stride + depth * taps.max(1), 1);
            let columns = integers(2 * ((depth / 2 - 1) * plane + BLOCK + taps), 2);
            let taps: Vec<Tap> = (0..taps).map(|tap| Tap { weight: tap * depth, column: tap + 1 }).collect();
            let halves: Vec<bf16> = weight.iter().map(|value| bf16::from_f32(*value)).collect();
            let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
            let pairs: Vec<u32> = columns.as_chunks().0.iter().map(|[a, b]| bits(*a) | bits(*b) << 16).collect();
            let step = 32;
            let operands = Operands { weight: &halves, stride, step, columns: &pairs, plane, taps: &taps, depth };
            for with in instructions() {
                let mut c = [[f32::NAN; BLOCK]; BLOCK];
                product(*with, &operands, &mut c);
                for (row, c) in c.iter().enumerate() {
                    for (column, c) in c.iter().enumerate() {
                        let term = |tap: &Tap, k: usize| {
                            let pair = 2 * (k / 2 * plane + tap.column + column);
                            weight[row * stride + tap.weight + k] * columns[pair + k % 2]
                        };
                        let expected: f32 = taps.iter().flat_map(|tap| (0..depth).map(move |k| term(tap, k))).sum();
                        assert_eq!(*c, expected, "{with:?}, {} taps, depth {depth}: {row}, {column}", taps.len());
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_are_transposed() {
        for with in instructions() {
            let mut square = std::array::from_fn(|i| std::array::from_fn(|j| (i * 100 + j) as u32));
            transpose(*with, &mut square);
            let expected: [[u32; BLOCK_SIDE]; BLOCK_SIDE] =
                std::array::from_fn(|i| std::array::from_fn(|j| (j * 100 + i) as u32));
            assert_eq!(square, expected);
        }
    }

    #[test]
    #[should_panic(expected = "an operand is too short")]
    fn a_short_operand_is_refused() {
        let taps = [Tap { weight: 0, column: 1 }];
        let (weight, columns) = (vec![bf16::ZERO; BLOCK * 32], vec![0; 16 * BLOCK]);
        let operands =
            Operands { weight: &weight, stride: 32, step: 32, columns: &columns, plane: BLOCK, taps: &taps, depth: 32 };
        product(Instructions::Avx512, &operands, &mut [[0.0; BLOCK]; BLOCK]);
    }
}
