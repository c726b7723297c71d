//! Products of 16-bit numbers by the instructions that x86 processors have for them.
//!
//! Both kinds multiply pairs of bf16 exactly and add to f32. Denormal numbers count as zero.

use half::bf16;

pub use super::square::SQUARE;
#[cfg(target_arch = "x86_64")]
use super::square::in_registers;

/// Rows and columns of a block of the result.
pub const BLOCK: usize = 32;
/// The depth of a product is a multiple of this.
pub const DEPTH: usize = 32;

/// The numbers of two successive channels, the first in the lower half.
pub type Pair = u32;

/// What a processor offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// Tiles of 16 rows of 64 bytes (Intel Advanced Matrix Extensions).
    Amx,
    /// Vectors of 16 pairs (AVX-512 BF16).
    Avx512,
}

/// Where the factors of one term of a sum over taps begin.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Tap {
    /// Values from the start of a row of weights.
    pub weight: usize,
    /// Pairs from the start of a row of columns.
    pub column: usize,
}

/// The factors of `Σ over taps weight · columns`.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// [`BLOCK`] rows, `stride` values apart; each tap has `depth` values of a row, in runs of [`DEPTH`].
    pub weight: &'a [bf16],
    /// Values from a row of weights to the next.
    pub stride: usize,
    /// Values from a run of weights to the next.
    pub step: usize,
    /// `depth / 2` rows of pairs, `plane` apart; each tap has [`BLOCK`] of a row.
    pub columns: &'a [Pair],
    /// Pairs from a row of columns to the next.
    pub plane: usize,
    /// The terms.
    pub taps: &'a [Tap],
    /// Values of a term, a multiple of [`DEPTH`].
    pub depth: usize,
}

impl Operands<'_> {
    /// Whether every row of every tap lies inside the slices.
    fn fit(&self) -> bool {
        let Self { stride, step, plane, depth, .. } = *self;
        let last = |row: usize, rows: usize, length: usize| (rows - 1) * row + length;
        depth > 0
            && depth.is_multiple_of(DEPTH)
            && self.taps.iter().all(|tap| {
                tap.weight + last(stride, BLOCK, last(step, depth / DEPTH, DEPTH)) <= self.weight.len()
                    && tap.column + last(plane, depth / 2, BLOCK) <= self.columns.len()
            })
    }
}

/// What this processor and its operating system offer, best first.
pub fn instructions() -> &'static [Instructions] {
    #[cfg(target_arch = "x86_64")]
    return x86::instructions();
    #[cfg(not(target_arch = "x86_64"))]
    return &[];
}

/// Writes the product into `c`.
///
/// # Panics
/// If the operands are too short for their rows, the depth is no multiple of [`DEPTH`] or this processor lacks the
/// instructions.
pub fn product(with: Instructions, operands: &Operands<'_>, c: &mut [[f32; BLOCK]; BLOCK]) {
    assert!(operands.fit(), "product: an operand is too short, or the depth {} is wrong", operands.depth);
    assert!(instructions().contains(&with), "product: this processor has no {with:?}");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has the instructions, and the operands hold what they must, as was just asserted.
    unsafe {
        match with {
            Instructions::Amx => x86::amx(operands, c),
            Instructions::Avx512 => x86::avx512(operands, c),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = c;
}

/// Exchanges rows and columns.
///
/// # Panics
/// If this processor lacks the instructions.
pub fn transpose(with: Instructions, square: &mut [[u32; SQUARE]; SQUARE]) {
    assert!(instructions().contains(&with), "transpose: this processor has no {with:?}");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: either kind comes with AVX-512 F, and the processor has it, as was just asserted; the square holds all
    // rows of both.
    unsafe {
        let place = square.as_mut_ptr().cast();
        in_registers((place, SQUARE), (place, SQUARE));
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

    use super::{BLOCK, DEPTH, Instructions, Operands, Tap};

    pub fn instructions() -> &'static [Instructions] {
        static FOUND: OnceLock<Vec<Instructions>> = OnceLock::new();
        FOUND.get_or_init(|| {
            let mut found = Vec::new();
            if has_amx() {
                found.push(Instructions::Amx);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
                found.push(Instructions::Avx512);
            }
            found
        })
    }

    /// Whether the processor has AMX with bf16, and Linux lets this process use its registers.
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

    /// What `ldtilecfg` reads: all eight registers as 16 rows of 64 bytes.
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

    /// What the loop below reads from memory, because there are not enough registers.
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

    /// The product with four tiles of the result in registers: two of weights by two of columns.
    ///
    /// # Safety
    /// The processor must have AMX with permission to use it, and the operands fit.
    pub unsafe fn amx(operands: &Operands<'_>, c: &mut [[f32; BLOCK]; BLOCK]) {
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
        if operands.taps.is_empty() {
            c.as_flattened_mut().fill(0.0);
            return;
        }
        // SAFETY: a tap reads 16 rows of 64 bytes four times per step: of weights at the tap and 16 rows further, of
        // columns at the tap and 64 bytes further. Every step moves on by a step of weights and 16 rows of columns,
        // `depth / 32` times, which the operands hold. The stores fill `c`, whose rows have 128 bytes. No other
        // memory is written, the stack is not used, and the tile registers are free again at the end.
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
                steps = inout(reg) operands.depth / DEPTH => _,
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

    /// The product with eight rows of two vectors in registers.
    ///
    /// # Safety
    /// The processor must have the features, and the operands fit.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn avx512(operands: &Operands<'_>, c: &mut [[f32; BLOCK]; BLOCK]) {
        let Operands { stride, step, plane, depth, .. } = *operands;
        for (block, c) in c.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            for tap in operands.taps {
                for pair in 0..depth / 2 {
                    // SAFETY: a row of columns has two vectors from the tap on, and one of weights both values of the
                    // pair, which need not be aligned.
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
                    // SAFETY: the chunk has as many values as the vector.
                    unsafe { _mm512_storeu_ps(c.as_mut_ptr(), sum) };
                }
            }
        }
    }

    /// The same bits as pairs.
    fn bits(x: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes of which every pattern is a value.
        unsafe { transmute(x) }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::{BLOCK, Instructions, Operands, SQUARE, Tap, instructions, product, transpose};

    /// Small integers, whose products and sums are exact.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
    }

    #[test]
    fn products_of_integers_are_exact() {
        for (depth, taps) in [(32, 1), (64, 0), (96, 4)] {
            let (stride, plane) = (depth * taps.max(1) + 2, BLOCK + taps + 5);
            // Exactly as long as they must be: a read beyond would be out of bounds.
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
    fn rows_become_columns() {
        for with in instructions() {
            let mut square = std::array::from_fn(|i| std::array::from_fn(|j| (i * 100 + j) as u32));
            transpose(*with, &mut square);
            let expected: [[u32; SQUARE]; SQUARE] =
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
