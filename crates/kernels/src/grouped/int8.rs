//! int8, four to a word. Sums within a group are exact integers.
//!
//! Weights are stored with 128 added, as the unsigned operand of the instructions wants it; 128 times the sum of a group's
//! inputs is subtracted where its sum begins.

use super::loops::family;
use super::{Family, GROUP, Operands, Product, groups};
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::math::array;
use crate::{BlockMut, Isa};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

/// Words of a group.
const GROUP_STEPS: usize = GROUP / 4;
/// The largest magnitude of a rounded value.
const LARGEST: f32 = 127.0;

/// Elements of a word.
pub(crate) const ELEMENTS: usize = 4;

/// The scale of values of which the largest magnitude is given, and its inverse. It is not a number where that is none or infinite, so that it
/// shows in every result.
#[inline(always)]
pub(crate) fn scale(largest: f32) -> (f32, f32) {
    let scale = if largest < f32::INFINITY { largest / LARGEST } else { f32::NAN };
    // The inverse of a subnormal number may be infinite; what is that small counts as zero.
    (scale, if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 })
}

/// 1.5·2²³: a small number added to it is rounded to an integer, ties to even, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Rounds a group to bytes, four in a word. Returns its scale and the sum of the bytes.
#[inline(always)]
fn round(values: &[f32; GROUP], words: &mut [u32; GROUP_STEPS]) -> (f32, i32) {
    // Without their signs, numbers are ordered as the integers of their bits, and what is none is above them.
    let largest = f32::from_bits(values.iter().fold(0, |largest, value| largest.max(value.abs().to_bits())));
    let (scale, inverse) = scale(largest);
    let (mut bytes, mut total) = ([0; GROUP], 0i32);
    for (byte, value) in bytes.iter_mut().zip(values) {
        let rounded = (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
        total = total.wrapping_add(rounded as i32);
        *byte = rounded as u8;
    }
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    (scale, total)
}

/// As [`round`], for a group of which values may be missing, as at the end of a row: they are zero.
#[inline(always)]
fn round_part(values: &[f32], words: &mut [u32]) -> (f32, i32) {
    let (mut filled, mut rounded) = ([0.0; GROUP], [0; GROUP_STEPS]);
    filled[..values.len()].copy_from_slice(values);
    let result = round(&filled, &mut rounded);
    words.copy_from_slice(&rounded[..words.len()]);
    result
}

per_isa! {
    /// Rounds rows of inputs.
    pub(crate) fn prepare(inputs: usize, x: &[f32], words: &mut [u32]) {
        let (steps, groups) = (inputs.div_ceil(4), groups(inputs));
        for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(steps + 2 * groups)) {
            let (bytes, ends) = words.split_at_mut(steps);
            let (whole, rest) = row.as_chunks::<GROUP>();
            let (first, last) = bytes.split_at_mut(whole.len() * GROUP_STEPS);
            let (ends, _) = ends.as_chunks_mut::<2>();
            let end = |(scale, total): (f32, i32)| [scale.to_bits(), total.wrapping_mul(-128) as u32];
            for ((group, words), to) in whole.iter().zip(first.as_chunks_mut().0).zip(&mut *ends) {
                *to = end(round(group, words));
            }
            if !rest.is_empty() {
                ends[whole.len()] = end(round_part(rest, last));
            }
        }
    }
}

per_isa! {
    /// Packs up to `columns` rows of a weight into a panel: per group its scales, then its words. Missing rows have the
    /// scale zero.
    pub(crate) fn fill(rows: &[f32], inputs: usize, columns: usize, panel: &mut [u32]) {
        if rows.len() < columns * inputs {
            panel.fill(0);
        }
        for (column, row) in rows.chunks_exact(inputs).enumerate() {
            for (group, to) in row.chunks(GROUP).zip(panel.chunks_mut((GROUP_STEPS + 1) * columns)) {
                let mut words = [0; GROUP_STEPS];
                let (scale, _) = round_part(group, &mut words);
                let mut to = to.chunks_exact_mut(columns);
                if let Some(scales) = to.next() {
                    scales[column] = scale.to_bits();
                }
                for (word, to) in words[..group.len().div_ceil(4)].iter().zip(to) {
                    // 128 is added to every byte.
                    to[column] = word ^ 0x8080_8080;
                }
            }
        }
    }
}

/// Reads a column of a panel.
pub(crate) fn read(panel: &[u32], columns: usize, column: usize, row: &mut [f32]) {
    for (group, words) in row.chunks_mut(GROUP).zip(panel.chunks((GROUP_STEPS + 1) * columns)) {
        let scale = f32::from_bits(words[column]);
        for (four, words) in group.chunks_mut(4).zip(words.chunks_exact(columns).skip(1)) {
            for (to, byte) in four.iter_mut().zip(words[column].to_le_bytes()) {
                *to = scale * (i32::from(byte) - 128) as f32;
            }
        }
    }
}

/// `y[r, n] = Σ_k x[r, k] · weight[n, k]` for the outputs n of a range of panels.
pub(crate) fn project(product: &Product<'_>, panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    match product.isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx if product.isa.has_avx512_vnni() => {
            super::project::<Vnni>(product, panels, y)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => super::project::<Avx512>(product, panels, y),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if product.isa.has_avx_vnni() => super::project::<AvxVnni>(product, panels, y),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::project::<Avx2>(product, panels, y),
        _ => super::project::<Portable>(product, panels, y),
    }
}

type Four = [f32; 4];

family! {
    Portable, portable, usable |_: Isa| true,
    4 elements a word,
    vectors of 4 in 4 words: [0.0f32; 4],
        |from: *const f32| from.cast::<Four>().read_unaligned(),
        |to: *mut f32, four: Four| to.cast::<Four>().write_unaligned(four),
        |from: *const u32| [from.read() as i32; 4],
        |from: *const u32| from.cast::<[[u8; 4]; 4]>().read_unaligned(),
        |from: *const u32| from.cast::<[i8; 4]>().read_unaligned(),
        |sum: [i32; 4], x: [i8; 4], right: [[u8; 4]; 4]| {
            array::<i32, 4>(|i| {
                (0..4).fold(sum[i], |sum, k| sum + i32::from(x[k]) * i32::from(right[i][k]))
            })
        },
        |sums| sums,
        |total: Four, sum: [i32; 4], x: f32, scales: Four| {
            array::<f32, 4>(|i| total[i] + sum[i] as f32 * (x * scales[i]))
        };
    4 rows, side by side (1 for _);
    1 x 1, 2 x 1, 3 x 1, 4 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    Avx2, avx2, usable |isa: Isa| isa.level() >= Level::Avx2, features "avx2,fma",
    4 elements a word,
    vectors of 8 in 8 words: _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
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
        |sums| sums,
        |total, sum, x: f32, scales| {
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(_mm256_set1_ps(x), scales), total)
        };
    4 rows, side by side (2 for 1, 1 for _);
    1 x 1, 1 x 2, 2 x 1, 3 x 1, 4 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    AvxVnni, avx_vnni, usable Isa::has_avx_vnni, features "avx2,fma,avxvnni",
    4 elements a word,
    vectors of 8 in 8 words: _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
        |from: *const u32| _mm256_set1_epi32(from.read() as i32),
        |from: *const u32| _mm256_loadu_si256(from.cast()),
        |from: *const u32| _mm256_set1_epi32(from.read() as i32),
        |sum, x, right| _mm256_dpbusd_avx_epi32(sum, right, x),
        |sums| sums,
        |total, sum, x: f32, scales| {
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(_mm256_set1_ps(x), scales), total)
        };
    6 rows, side by side (4 for 1, 2 for 2, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    Avx512, avx512, usable |isa: Isa| isa.level() >= Level::Avx512, features "avx512f,avx512bw",
    4 elements a word,
    vectors of 16 in 16 words: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
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
        |sums| sums,
        |total, sum, x: f32, scales| {
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(_mm512_set1_ps(x), scales), total)
        };
    8 rows, side by side (4 for 1, 2 for 2, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    Vnni, vnni, usable Isa::has_avx512_vnni, features "avx512f,avx512vnni",
    4 elements a word,
    vectors of 16 in 16 words: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| _mm512_set1_epi32(from.read() as i32),
        |from: *const u32| _mm512_loadu_si512(from.cast()),
        |from: *const u32| _mm512_set1_epi32(from.read() as i32),
        |sum, x, right| _mm512_dpbusd_epi32(sum, right, x),
        |sums| sums,
        |total, sum, x: f32, scales| {
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(_mm512_set1_ps(x), scales), total)
        };
    12 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Random;

    /// The bytes, scales and sums of a row, on every instruction set.
    fn prepared(row: &[f32]) -> Vec<(Vec<i8>, Vec<f32>, Vec<i32>)> {
        let of = |isa: Isa| {
            let mut words = vec![u32::MAX; super::super::row_words(row.len(), ELEMENTS)];
            prepare(isa, row.len(), row, &mut words);
            let (bytes, ends) = words.split_at(row.len().div_ceil(4));
            let bytes = bytes.iter().flat_map(|word| word.to_le_bytes()).map(|byte| byte as i8).collect();
            let ends = ends.as_chunks::<2>().0;
            let scales = ends.iter().map(|end| f32::from_bits(end[0])).collect();
            (bytes, scales, ends.iter().map(|end| end[1] as i32).collect())
        };
        Isa::available_or_trapped().into_iter().map(of).collect()
    }

    /// A product by one family, also where `project` would choose a better one.
    #[cfg(target_arch = "x86_64")]
    fn product<F: Family>(isa: Isa, rows: usize, inputs: usize, outputs: usize) -> Option<Vec<f32>> {
        if !F::usable(isa) || F::COLUMNS != crate::projection::columns(isa) {
            return None;
        }
        let mut random = Random::new((rows * inputs + outputs) as u64);
        let (x, weight) = (random.elements::<f32>(rows * inputs), random.elements::<f32>(outputs * inputs));
        let mut words = vec![0; rows * super::super::row_words(inputs, ELEMENTS)];
        prepare(isa, inputs, &x, &mut words);
        let panel_words = super::super::panel_words(inputs, ELEMENTS, F::COLUMNS);
        let mut panels = vec![0; outputs.div_ceil(F::COLUMNS) * panel_words];
        for (rows, panel) in weight.chunks(F::COLUMNS * inputs).zip(panels.chunks_exact_mut(panel_words)) {
            fill(isa, rows, inputs, F::COLUMNS, panel);
        }
        let whole = 0..outputs.div_ceil(F::COLUMNS);
        let mut y = vec![f32::NAN; rows * outputs];
        let product = Product { isa, inputs, x: &words, panels: &panels };
        super::super::project::<F>(&product, whole, &mut BlockMut::new(&mut y, outputs));
        Some(y)
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn families_that_a_better_one_replaces_give_the_same_bits() {
        for (rows, inputs, outputs) in [(1, 1, 1), (1, 128, 70), (2, 130, 33), (3, 300, 129), (13, 517, 65)] {
            let of = |isa| {
                [
                    product::<Avx2>(isa, rows, inputs, outputs),
                    product::<AvxVnni>(isa, rows, inputs, outputs),
                    product::<Avx512>(isa, rows, inputs, outputs),
                    product::<Vnni>(isa, rows, inputs, outputs),
                ]
            };
            let results: Vec<Vec<f32>> = Isa::available().into_iter().flat_map(of).flatten().collect();
            if results.is_empty() {
                return eprintln!("SKIPPED: this CPU has no family but the portable one");
            }
            let portable = product::<Portable>(Isa::PORTABLE, rows, inputs, outputs).unwrap();
            for result in &results {
                assert!(*result == results[0], "{rows} x {inputs} x {outputs}");
                for (a, b) in result.iter().zip(&portable) {
                    // Sums of a group are exact; a few groups are added up, here with roundings between.
                    assert!(
                        (a - b).abs() <= 1e-5 * inputs as f32,
                        "{rows} x {inputs} x {outputs}: {a} not {b}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_are_rounded_to_the_nearest_127th_of_their_groups_largest_ties_to_even() {
        let mut random = Random::new(3);
        for inputs in [1, 3, 31, 127, 128, 129, 300] {
            let mut row: Vec<f32> = random.elements(inputs);
            // 127 makes the scale one, so that halves are ties.
            (row[0], row[inputs / 2]) = (127.0, if inputs > 2 { 2.5 } else { -127.0 });
            for (bytes, scales, starts) in prepared(&row) {
                assert_eq!(bytes.len(), inputs.next_multiple_of(4));
                assert!(bytes[inputs..].iter().all(|byte| *byte == 0), "{inputs}: nothing behind the end");
                for (index, group) in row.chunks(GROUP).enumerate() {
                    let bytes = &bytes[index * GROUP..][..group.len()];
                    let largest = group.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    assert_eq!(scales[index], largest / 127.0, "{inputs}");
                    for (value, byte) in group.iter().zip(bytes) {
                        let expected = (value * (1.0 / scales[index])).round_ties_even();
                        assert_eq!(f32::from(*byte), expected, "{inputs}: {value}");
                    }
                    let sum: i32 = bytes.iter().map(|byte| i32::from(*byte)).sum();
                    assert_eq!(starts[index], -128 * sum, "{inputs}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_shows_in_the_scale_and_what_is_next_to_nothing_is_zero() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 5, 127, 128, 140] {
                let mut row = vec![0.5; 141];
                row[place] = odd;
                for (_, scales, _) in prepared(&row) {
                    let broken: Vec<bool> = scales.iter().map(|scale| scale.is_nan()).collect();
                    assert_eq!(broken, [place < GROUP, place >= GROUP], "{odd} at {place}");
                }
            }
        }
        for (bytes, scales, _) in prepared(&[1e-40; 8]) {
            assert!(bytes.iter().all(|byte| *byte == 0) && scales[0] >= 0.0, "{bytes:?} {scales:?}");
        }
    }
}
