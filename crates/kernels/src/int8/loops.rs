//! Weights in int8, a scale for every 128 of a row, times inputs that are rounded to int8 in the same groups. Sums
//! within a group are exact integers; the groups' sums, scaled, are added in ascending order in f32.
//!
//! Weights are stored with 128 added, as the unsigned operand of the instructions wants it; 128 times the sum of a group's
//! inputs is subtracted where its sum begins.

use super::{Family, Operands};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::Level;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Inputs that share a scale.
const GROUP: usize = 128;
/// Words of a group.
pub(super) const GROUP_STEPS: usize = GROUP / 4;
/// The largest magnitude of a rounded value.
const LARGEST: f32 = 127.0;

/// Groups of a row.
pub(super) fn groups(inputs: usize) -> usize {
    inputs.div_ceil(GROUP)
}

/// Words of a row of inputs: its int8, then a scale and a start of the sum per group.
pub(crate) fn row_words(inputs: usize) -> usize {
    inputs.div_ceil(4) + 2 * groups(inputs)
}

/// The scale of a group. Not a number where one of its values is none, so that it shows in every result.
#[inline(always)]
fn scale_of(values: &[f32]) -> f32 {
    let mut largest = 0.0f32;
    let mut poison = 0.0f32;
    for value in values {
        largest = if value.abs() > largest { value.abs() } else { largest };
        poison += value * 0.0;
    }
    largest / LARGEST + poison
}

/// Four values as bytes of a word; `inverse` is that of the scale.
#[inline(always)]
fn word_of(values: &[f32], inverse: f32, offset: i32) -> (u32, i32) {
    let (mut word, mut sum) = (0, 0);
    for (i, value) in values.iter().enumerate() {
        let rounded = (value * inverse).round_ties_even() as i32;
        sum += rounded;
        word |= u32::from((rounded + offset) as u8) << (8 * i);
    }
    (word, sum)
}

#[inline(always)]
fn inverse_of(scale: f32) -> f32 {
    // The inverse of a subnormal number may be infinite; what is that small counts as zero.
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

per_isa! {
    /// Rounds rows of inputs.
    pub(crate) fn prepare(inputs: usize, x: &[f32], words: &mut [u32]) {
        let (steps, groups) = (inputs.div_ceil(4), groups(inputs));
        for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(steps + 2 * groups)) {
            let (bytes, ends) = words.split_at_mut(steps);
            for ((group, bytes), end) in
                row.chunks(GROUP).zip(bytes.chunks_mut(GROUP_STEPS)).zip(ends.as_chunks_mut::<2>().0)
            {
                let scale = scale_of(group);
                let inverse = inverse_of(scale);
                let mut total = 0;
                let (fours, rest) = group.as_chunks::<4>();
                for (word, four) in bytes.iter_mut().zip(fours) {
                    let (packed, sum) = word_of(four, inverse, 0);
                    *word = packed;
                    total += sum;
                }
                if let (false, Some(word)) = (rest.is_empty(), bytes.last_mut()) {
                    let (packed, sum) = word_of(rest, inverse, 0);
                    *word = packed;
                    total += sum;
                }
                *end = [scale.to_bits(), (-128 * total) as u32];
            }
        }
    }
}

per_isa! {
    /// Packs up to `columns` rows of a weight into a panel: per group its words, then its scales. Missing rows have the
    /// scale zero.
    pub(crate) fn fill(rows: &[f32], inputs: usize, columns: usize, panel: &mut [u32]) {
        if rows.len() < columns * inputs {
            panel.fill(0);
        }
        for (column, row) in rows.chunks_exact(inputs).enumerate() {
            for (group, words) in row.chunks(GROUP).zip(panel.chunks_mut((GROUP_STEPS + 1) * columns)) {
                let scale = scale_of(group);
                let inverse = inverse_of(scale);
                let mut words = words.chunks_exact_mut(columns);
                for (four, words) in group.chunks(4).zip(&mut words) {
                    words[column] = word_of(four, inverse, 128).0;
                }
                if let Some(scales) = words.next() {
                    scales[column] = scale.to_bits();
                }
            }
        }
    }
}

/// Reads a column of a panel.
pub(crate) fn read(panel: &[u32], columns: usize, column: usize, row: &mut [f32]) {
    for (group, words) in row.chunks_mut(GROUP).zip(panel.chunks((GROUP_STEPS + 1) * columns)) {
        let scale = f32::from_bits(words[group.len().div_ceil(4) * columns + column]);
        for (k, to) in group.iter_mut().enumerate() {
            let byte = words[k / 4 * columns + column] >> (8 * (k % 4)) & 0xff;
            *to = scale * (byte as i32 - 128) as f32;
        }
    }
}

/// Defines the inner loops of one instruction set.
macro_rules! family {
    (
        $(#[$meta:meta])* $family:ident, $function:ident, usable $usable:expr, $(features $features:literal,)?
        vectors of $lanes:literal: $zero:expr, $load:expr, $store:expr, $start:expr, $right:expr, $left:expr, $step:expr,
        $scaled:expr;
        $rows:literal rows, side by side ($($most:literal for $few:pat),+);
        $($shape_rows:literal x $shape_panels:literal),+
    ) => {
        $(#[$meta])*
        pub(super) struct $family;

        $(#[$meta])*
        impl Family for $family {
            const ROWS: usize = $rows;
            const COLUMNS: usize = 2 * $lanes;

            fn usable(isa: Isa) -> bool {
                $usable(isa)
            }

            fn side_by_side(rows: usize) -> usize {
                match rows {
                    $($few => $most,)+
                }
            }

            #[inline(always)]
            unsafe fn run(rows: usize, panels: usize, operands: &Operands) {
                match (rows, panels) {
                    // SAFETY: the caller's contract is that of the family.
                    $(($shape_rows, $shape_panels) => unsafe { $function::<$shape_rows, $shape_panels>(operands) },)+
                    _ => unreachable!("no tile of {rows} rows and {panels} panels"),
                }
            }
        }

        /// # Safety
        /// That of [`Family::run`].
        $(#[$meta])*
        $(#[target_feature(enable = $features)])?
        unsafe fn $function<const ROWS: usize, const PANELS: usize>(operands: &Operands) {
            let &Operands { left, left_stride, first, steps, inputs, right, right_stride, c, c_stride } = operands;
            // SAFETY: see the caller's contract.
            unsafe {
                let at = |row: usize, panel: usize, half: usize| {
                    c.add(row * c_stride + panel * 2 * $lanes + half * $lanes)
                };
                let mut totals = [[[$zero; 2]; PANELS]; ROWS];
                if first > 0 {
                    for row in 0..ROWS {
                        for panel in 0..PANELS {
                            totals[row][panel] = [$load(at(row, panel, 0)), $load(at(row, panel, 1))];
                        }
                    }
                }
                let group = first / GROUP_STEPS;
                let mut a = left.add(first);
                let mut ends = left.add(inputs.div_ceil(4) + 2 * group);
                let mut b = right.add((first + group) * 2 * $lanes);
                let mut rest = steps;
                while rest > 0 {
                    let now = rest.min(GROUP_STEPS);
                    rest -= now;
                    let mut sums = [[[$start(ends.add(1)); 2]; PANELS]; ROWS];
                    for row in 0..ROWS {
                        sums[row] = [[$start(ends.add(row * left_stride + 1)); 2]; PANELS];
                    }
                    for _ in 0..now {
                        let mut vectors = [[$right(b); 2]; PANELS];
                        for panel in 0..PANELS {
                            let b = b.add(panel * right_stride);
                            vectors[panel] = [$right(b), $right(b.add($lanes))];
                        }
                        for row in 0..ROWS {
                            let x = $left(a.add(row * left_stride));
                            for panel in 0..PANELS {
                                for half in 0..2 {
                                    sums[row][panel][half] = $step(sums[row][panel][half], x, vectors[panel][half]);
                                }
                            }
                        }
                        a = a.wrapping_add(1);
                        b = b.wrapping_add(2 * $lanes);
                    }
                    for panel in 0..PANELS {
                        let b = b.add(panel * right_stride).cast::<f32>();
                        let scales = [$load(b), $load(b.add($lanes))];
                        for row in 0..ROWS {
                            let scale = *ends.add(row * left_stride).cast::<f32>();
                            for half in 0..2 {
                                totals[row][panel][half] =
                                    $scaled(totals[row][panel][half], sums[row][panel][half], scale, scales[half]);
                            }
                        }
                    }
                    ends = ends.wrapping_add(2);
                    b = b.wrapping_add(2 * $lanes);
                }
                for row in 0..ROWS {
                    for panel in 0..PANELS {
                        $store(at(row, panel, 0), totals[row][panel][0]);
                        $store(at(row, panel, 1), totals[row][panel][1]);
                    }
                }
            }
        }
    };
}

type Four = [f32; 4];

family! {
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Portable, portable, usable |_: Isa| true,
    vectors of 4: [0.0f32; 4],
        |from: *const f32| from.cast::<Four>().read_unaligned(),
        |to: *mut f32, four: Four| to.cast::<Four>().write_unaligned(four),
        |from: *const u32| [from.read() as i32; 4],
        |from: *const u32| from.cast::<[[u8; 4]; 4]>().read_unaligned(),
        |from: *const u32| from.cast::<[i8; 4]>().read_unaligned(),
        |sum: [i32; 4], x: [i8; 4], right: [[u8; 4]; 4]| {
            std::array::from_fn::<i32, 4, _>(|i| {
                (0..4).fold(sum[i], |sum, k| sum + i32::from(x[k]) * i32::from(right[i][k]))
            })
        },
        |total: Four, sum: [i32; 4], x: f32, scales: Four| {
            std::array::from_fn::<f32, 4, _>(|i| total[i] + sum[i] as f32 * (x * scales[i]))
        };
    4 rows, side by side (1 for _);
    1 x 1, 2 x 1, 3 x 1, 4 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Avx2, avx2, usable |isa: Isa| isa.level() >= Level::Avx2, features "avx2,fma",
    vectors of 8: _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
        |from: *const u32| _mm256_set1_epi32(from.read() as i32),
        |from: *const u32| {
            let words = _mm256_loadu_si256(from.cast());
            [_mm256_and_si256(words, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(words, 8)]
        },
        |from: *const u32| {
            let word = _mm256_set1_epi32(from.read() as i32);
            [_mm256_srai_epi16(_mm256_slli_epi16(word, 8), 8), _mm256_srai_epi16(word, 8)]
        },
        |sum, x: [__m256i; 2], right: [__m256i; 2]| {
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x[0], right[0]));
            _mm256_add_epi32(sum, _mm256_madd_epi16(x[1], right[1]))
        },
        |total, sum, x: f32, scales| {
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(_mm256_set1_ps(x), scales), total)
        };
    4 rows, side by side (2 for 1, 1 for _);
    1 x 1, 1 x 2, 2 x 1, 3 x 1, 4 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Avx512, avx512, usable |isa: Isa| isa.level() >= Level::Avx512, features "avx512f,avx512bw",
    vectors of 16: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| _mm512_set1_epi32(from.read() as i32),
        |from: *const u32| {
            let words = _mm512_loadu_si512(from.cast());
            [_mm512_and_si512(words, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(words, 8)]
        },
        |from: *const u32| {
            let word = _mm512_set1_epi32(from.read() as i32);
            [_mm512_srai_epi16(_mm512_slli_epi16(word, 8), 8), _mm512_srai_epi16(word, 8)]
        },
        |sum, x: [__m512i; 2], right: [__m512i; 2]| {
            let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(x[0], right[0]));
            _mm512_add_epi32(sum, _mm512_madd_epi16(x[1], right[1]))
        },
        |total, sum, x: f32, scales| {
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(_mm512_set1_ps(x), scales), total)
        };
    8 rows, side by side (4 for 1, 2 for 2, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Vnni, vnni, usable Isa::has_avx512_vnni, features "avx512f,avx512vnni",
    vectors of 16: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| _mm512_set1_epi32(from.read() as i32),
        |from: *const u32| _mm512_loadu_si512(from.cast()),
        |from: *const u32| _mm512_set1_epi32(from.read() as i32),
        |sum, x, right| _mm512_dpbusd_epi32(sum, right, x),
        |total, sum, x: f32, scales| {
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(_mm512_set1_ps(x), scales), total)
        };
    12 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}
