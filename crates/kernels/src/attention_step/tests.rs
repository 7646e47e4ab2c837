//! Attention over a cache against float64, and what must not change it.

use super::*;
use crate::Isa;
use crate::bf16;
use crate::cache::{CacheFormat, NewPositions};
use crate::grid::split;
use crate::reference::{Random, assert_close};

/// Adds the tokens of `qkv` to the cache and attends to it.
fn attend(cache: &mut KeyValueCache, qkv: &[f32]) -> Vec<f32> {
    let heads = cache.heads();
    let first = cache.len();
    cache.extend(qkv).for_each(NewPositions::write);
    let tokens = qkv.len() / heads.row();
    let mut output = vec![f32::NAN; tokens * heads.query_row()];
    let width = heads.group() * heads.dimension;
    let columns: Vec<_> = (0..heads.key_value_heads).map(|g| g * width..(g + 1) * width).collect();
    let rows = 0..tokens;
    let blocks = split(&mut output, heads.query_row(), std::slice::from_ref(&rows), &columns);
    for (g, mut block) in blocks.into_iter().enumerate() {
        attention_step(cache, g..g + 1, qkv, first, &mut block);
    }
    let mut together = vec![f32::NAN; tokens * heads.query_row()];
    let mut block = BlockMut::new(&mut together, heads.query_row());
    attention_step(cache, 0..heads.key_value_heads, qkv, first, &mut block);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(bits(&together) == bits(&output), "heads alone and beside each other");
    output
}

fn combinations() -> impl Iterator<Item = (Isa, CacheFormat)> {
    let formats = [CacheFormat::F32, CacheFormat::Bf16, CacheFormat::Int8];
    let all =
        Isa::available_or_trapped().into_iter().flat_map(move |isa| formats.map(|format| (isa, format)));
    all.filter(|(isa, format)| format.usable(*isa))
}

/// Whether arithmetic is that of fp16.
fn in_fp16(isa: Isa, format: CacheFormat) -> bool {
    format != CacheFormat::F32 && isa.attends_in_fp16()
}

/// What is left of numbers that share a scale: bytes, their largest 127.
fn as_bytes(values: &[f64]) -> Vec<f64> {
    let of_group = |group: &[f64]| {
        let scale = group.iter().fold(0.0f64, |largest, value| largest.max(value.abs())) / 127.0;
        group.iter().map(|value| (value / scale).round_ties_even() * scale).collect::<Vec<_>>()
    };
    values.chunks(128).flat_map(of_group).collect()
}

/// What is left of numbers that share a power of two: bytes, the largest of which is 64 or more.
fn as_bytes_by_powers(values: &[f64]) -> Vec<f64> {
    let largest = values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let power = (largest.log2().floor() - 6.0).exp2();
    values.iter().map(|value| (value / power).round_ties_even().min(127.0) * power).collect()
}

#[test]
fn new_tokens_attend_to_the_cache_as_the_float64_formula_says() {
    let mut random = Random::new(19);
    for (isa, format) in combinations() {
        // Products of pairs round both sides, otherwise only what is kept is rounded.
        let in_fp16 = in_fp16(isa, format);
        let narrow = format == CacheFormat::Bf16 && !in_fp16;
        let both = narrow && isa.prefers_bf16_dot();
        let exact = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        let as_bf16 = |values: &[f32]| -> Vec<f64> {
            values.iter().map(|value| f64::from(bf16::from_f32(*value).to_f32())).collect()
        };
        let int8 = format == CacheFormat::Int8;
        let query = |q: &[f32]| {
            if int8 {
                as_bytes(&exact(q))
            } else if both {
                as_bf16(q)
            } else {
                exact(q)
            }
        };
        let key = |k: &[f32]| {
            if int8 {
                as_bytes(&exact(k))
            } else if narrow {
                as_bf16(k)
            } else {
                exact(k)
            }
        };
        let value = |v: &[f32]| match int8 {
            true => as_bytes_by_powers(&exact(v)),
            false if narrow => as_bf16(v),
            false => exact(v),
        };
        // Averages of values of magnitude one. Weights have a few f32 roundings, or are rounded to 8 bits: each by up to
        // 1/512 of itself, and so their average. In fp16 all is rounded to 11 bits, and up to 64 sums of magnitude one are, each
        // by up to 1/4096: in any direction, so that eight times as much is a deviation.
        let tolerance = if both || in_fp16 { 1.0 / 256.0 } else { 2e-6 };
        for (dimension, key_value_heads) in [(6, 2), (7, 4), (40, 1), (32, 4), (128, 1), (160, 4), (300, 2)] {
            let heads = Heads { heads: 4, key_value_heads, dimension };
            for (tokens, first) in [(1, 0), (1, 9), (3, 4), (9, 0), (2, 63), (70, 5), (1, 260)] {
                let qkv: Vec<f32> = random.elements((first + tokens) * heads.row());
                let mut cache = KeyValueCache::new(isa, heads, format);
                attend(&mut cache, &qkv[..first * heads.row()]);
                let output = attend(&mut cache, &qkv[first * heads.row()..]);
                let row = |position: usize, start: usize| &qkv[position * heads.row() + start..][..dimension];
                for head in 0..4 {
                    let shared = head / heads.group();
                    let of_all = |of: &dyn Fn(&[f32]) -> Vec<f64>, start: usize| -> Vec<Vec<f64>> {
                        (0..first + tokens).map(|position| of(row(position, start))).collect()
                    };
                    let keys = of_all(&key, heads.key_start(shared));
                    let values = of_all(&value, heads.value_start(shared));
                    for t in 0..tokens {
                        let scaled: Vec<f32> =
                            row(first + t, head * dimension).iter().map(|q| q * heads.scale()).collect();
                        let query = query(&scaled);
                        let score = |key: &Vec<f64>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
                        let weights: Vec<f64> =
                            keys[..=first + t].iter().map(|key| score(key).exp()).collect();
                        let sum: f64 = weights.iter().sum();
                        for i in 0..dimension {
                            let expected = weights
                                .iter()
                                .zip(&values)
                                .map(|(weight, value)| weight / sum * value[i])
                                .sum();
                            let got = output[t * heads.query_row() + head * dimension + i];
                            let what = format!("{isa:?} {format:?} {heads:?} {tokens} after {first}");
                            assert_close(got as f64, expected, tolerance, 1e-5, &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn positions_of_any_magnitude_neither_overflow_nor_vanish() {
    let mut random = Random::new(23);
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: 40 };
    let tokens = 300;
    // Powers of two of the values: of all sizes, all tiny, and below what f32 holds without loss. A third of them are zeros.
    let powers = [-40..40, -45..-37, -140..-132].map(|range: Range<i32>| range.collect::<Vec<_>>());
    for ((isa, format), powers) in combinations().flat_map(|c| powers.iter().map(move |p| (c, p))) {
        let mut qkv: Vec<f32> = random.elements(tokens * heads.row());
        for (t, row) in qkv.chunks_exact_mut(heads.row()).enumerate() {
            let value = if t % 3 == 1 { 0.0 } else { 2f64.powi(powers[t * 7 % powers.len()]) as f32 };
            row[heads.value_start(0)..].iter_mut().for_each(|v| *v *= value);
            // Scores stay below a few hundredths, so that every value has its part in the average.
            let key = 2f32.powi((t * 11 % 50) as i32 - 25);
            row[heads.key_start(0)..heads.value_start(0)].iter_mut().for_each(|k| *k *= key);
            row[..heads.key_start(0)].iter_mut().for_each(|q| *q *= 2f32.powi(-32));
        }
        let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
        let values = |j: usize| &qkv[j * heads.row() + heads.value_start(0)..][..40];
        for (t, got) in output.chunks_exact(40).enumerate() {
            let average =
                |of: &dyn Fn(&[f32]) -> f64| (0..=t).map(|j| of(values(j))).sum::<f64>() / (t + 1) as f64;
            for (i, got) in got.iter().enumerate() {
                // Bytes are rounded to what the largest of their value allows.
                let size = average(&|value| match format {
                    CacheFormat::Int8 => value.iter().fold(0.0f32, |largest, v| v.abs().max(largest)) as f64,
                    _ => value[i].abs() as f64,
                });
                let expected = average(&|value| value[i] as f64);
                let what = format!("{isa:?} {format:?}, {t}");
                // f32 has no digits below, and what is rounded may vanish where f32 has no powers of two.
                let least = if format == CacheFormat::F32 { 2f64.powi(-148) } else { 2f64.powi(-126) };
                let allowed = size / 50.0 + least;
                assert!((*got as f64 - expected).abs() <= allowed, "{what}: {got} not {expected}");
            }
        }
    }
}

/// Every result is the average of the values that count, of those that a token sees (head, token, position), to what is allowed for an
/// element of a value.
fn assert_averages(
    heads: Heads,
    (qkv, output): (&[f32], &[f32]),
    counts: impl Fn(usize, usize, usize) -> bool,
    allowed: impl Fn(usize) -> f64,
    what: &str,
) {
    let d = heads.dimension;
    for (t, row) in output.chunks_exact(heads.query_row()).enumerate() {
        for (head, row) in row.chunks_exact(d).enumerate() {
            let seen: Vec<_> = (0..=t).filter(|j| counts(head, t, *j)).collect();
            for (i, got) in row.iter().enumerate() {
                let start = heads.value_start(head / heads.group()) + i;
                let sum: f64 = seen.iter().map(|j| qkv[j * heads.row() + start] as f64).sum();
                let (got, expected) = (*got as f64, sum / seen.len() as f64);
                assert!((got - expected).abs() < allowed(i), "{what}, {t}, {head}: {got} not {expected}");
            }
        }
    }
}

#[test]
fn scores_of_any_magnitude_are_ordered_as_far_as_they_can_be_told_apart() {
    let mut random = Random::new(41);
    let heads = Heads { heads: 2, key_value_heads: 1, dimension: 8 };
    for (isa, format) in combinations() {
        for size in [1e-3, 1e3, 1e6] {
            let mut qkv: Vec<f32> = random.elements(100 * heads.row());
            for (t, row) in qkv.chunks_exact_mut(heads.row()).enumerate() {
                row[..heads.dimension].fill(size);
                row[heads.dimension..heads.key_start(0)].fill(-size);
                // One key in five is the opposite of the others.
                row[heads.key_start(0)..heads.value_start(0)].fill(if t % 5 == 2 { -size } else { size });
            }
            let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
            let liked = |head, t, j| size < 1.0 || t < 2 || (j % 5 == 2) == (head == 1);
            assert_averages(heads, (&qkv, &output), liked, |_| 0.01, &format!("{isa:?} {format:?} {size}"));
        }
    }
}

#[test]
fn large_values_without_weight_take_nothing_from_the_others() {
    let mut random = Random::new(43);
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
    for (isa, format) in combinations() {
        for power in [4, 12, 20, 30, 60, 100] {
            let mut qkv: Vec<f32> = random.elements(150 * heads.row());
            for (t, row) in qkv.chunks_exact_mut(heads.row()).enumerate() {
                let (size, key) = if t % 50 == 7 { (2f32.powi(power), -100.0) } else { (1.0, 0.0) };
                row[..heads.dimension].fill(100.0);
                row[heads.key_start(0)..heads.value_start(0)].fill(key);
                row[heads.value_start(0)..].iter_mut().for_each(|value| *value *= size);
            }
            let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
            let what = format!("{isa:?} {format:?} 2^{power}");
            assert_averages(heads, (&qkv, &output), |_, _, j| j % 50 != 7, |_| 0.005, &what);
        }
    }
}

#[test]
fn small_elements_beside_large_ones_of_a_value_keep_their_digits() {
    let mut random = Random::new(47);
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
    for (isa, format) in combinations() {
        // Bytes have seven digits, and no more for what is small.
        let (sizes, allowed): (&[f32], _) = match format {
            CacheFormat::Int8 => (&[1.0], 0.01),
            _ => (&[1.0, 256.0, 4_096.0], 0.005),
        };
        for &large in sizes {
            let mut qkv: Vec<f32> = random.elements(100 * heads.row());
            for row in qkv.chunks_exact_mut(heads.row()) {
                row[..heads.dimension].fill(0.0);
                row[heads.value_start(0)] = large;
            }
            let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
            let allowed = |i| if i == 0 { allowed * f64::from(large) } else { allowed };
            let what = format!("{isa:?} {format:?} {large}");
            assert_averages(heads, (&qkv, &output), |_, _, _| true, allowed, &what);
        }
    }
}

#[test]
fn keys_that_a_query_has_nothing_in_common_with_score_zero_whatever_their_size() {
    let mut random = Random::new(59);
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
    for (isa, format) in combinations() {
        for size in [1e10, 1e23, 1e38] {
            let mut qkv: Vec<f32> = random.elements(40 * heads.row());
            for row in qkv.chunks_exact_mut(heads.row()) {
                row[..heads.value_start(0)].fill(0.0);
                (row[0], row[heads.key_start(0) + 1]) = (size, size);
            }
            let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
            let what = format!("{isa:?} {format:?} {size}");
            assert_averages(heads, (&qkv, &output), |_, _, _| true, |_| 0.01, &what);
        }
    }
}

#[test]
fn sums_of_the_largest_weights_and_values_do_not_overflow() {
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
    let (log2_of_first, value) = (1.49, 1.99);
    for (isa, format) in combinations() {
        let mut qkv = vec![0.0; 300 * heads.row()];
        for (t, row) in qkv.chunks_exact_mut(heads.row()).enumerate() {
            // The first position has the largest score and no value: all others have weights as large as they get.
            row[0] = 1.0;
            row[heads.key_start(0)] =
                if t == 0 { log2_of_first * std::f32::consts::LN_2 / heads.scale() } else { 0.0 };
            row[heads.value_start(0)..].fill(if t == 0 { 0.0 } else { value });
        }
        let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
        for (t, row) in output.chunks_exact(8).enumerate() {
            let expected = value * t as f32 / (t as f32 + log2_of_first.exp2());
            assert!(
                row.iter().all(|y| (y - expected).abs() < 0.02),
                "{isa:?} {format:?}: {t}, {row:?} not {expected}"
            );
        }
    }
}

#[test]
fn queries_and_keys_that_are_infinite_give_what_is_not_a_number() {
    let mut random = Random::new(53);
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
    let qkv: Vec<f32> = random.elements(140 * heads.row());
    for (isa, format) in combinations() {
        for (place, from_then_on) in [(0, false), (heads.key_start(0), true)] {
            for broken in [0, 63, 129] {
                let mut qkv = qkv.clone();
                qkv[broken * heads.row() + place + 3] = f32::INFINITY;
                qkv[broken * heads.row() + place + 4] = -f32::INFINITY;
                let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                for (t, row) in output.chunks_exact(8).enumerate() {
                    let spoilt = if from_then_on { t >= broken } else { t == broken };
                    let finite = row.iter().all(|y| y.is_finite());
                    // A score of minus infinity is as good as a position that is not seen, where scores tell it.
                    let told = from_then_on && !in_fp16(isa, format);
                    assert!(finite != spoilt || told && spoilt, "{isa:?} {format:?}: {t}, {broken}");
                }
            }
        }
    }
}

#[test]
fn a_token_sees_nothing_of_those_after_it_not_even_what_is_not_a_number() {
    let heads = Heads { heads: 2, key_value_heads: 1, dimension: 8 };
    for (isa, format) in combinations() {
        for broken in 1..6 {
            let mut qkv = vec![0.5; 6 * heads.row()];
            qkv[broken * heads.row()..][..heads.row()].fill(f32::NAN);
            let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
            for (token, row) in output.chunks_exact(heads.query_row()).enumerate() {
                let sees = token >= broken;
                assert!(row.iter().all(|y| y.is_nan() == sees), "{isa:?} {format:?}: {token}, {broken}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_changes_no_bit_of_those_before_it_around_the_border_of_a_group() {
    let mut random = Random::new(29);
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
    let qkv: Vec<f32> = random.elements(140 * heads.row());
    for (isa, format) in combinations() {
        let clean = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
        for (broken, bad) in [(63, f32::NAN), (127, f32::INFINITY), (128, f32::NAN), (129, -f32::INFINITY)] {
            for place in [heads.key_start(0), heads.value_start(0)] {
                let mut qkv = qkv.clone();
                qkv[broken * heads.row() + place + 3] = bad;
                let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                let before = ..broken * heads.query_row();
                let same = output[before].iter().zip(&clean[before]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{isa:?} {format:?}: {bad} at {broken}");
                let seen = &output[broken * heads.query_row()..];
                assert!(place == heads.key_start(0) || seen.chunks(8).all(|row| !row[3].is_finite()));
            }
        }
    }
}

#[test]
fn a_token_has_the_same_bits_alone_and_in_any_piece_of_a_prompt() {
    let mut random = Random::new(31);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (isa, format) in combinations() {
        for (heads, key_value_heads, dimension) in
            [(4, 4, 32), (6, 2, 10), (3, 1, 64), (1, 1, 160), (7, 7, 40)]
        {
            let heads = Heads { heads, key_value_heads, dimension };
            let tokens = 150;
            let qkv: Vec<f32> = random.elements(tokens * heads.row());
            let mut cache = KeyValueCache::new(isa, heads, format);
            let alone: Vec<f32> = qkv.chunks(heads.row()).flat_map(|row| attend(&mut cache, row)).collect();
            for longest in [2, 7, 33, 150] {
                let mut cache = KeyValueCache::new(isa, heads, format);
                let mut pieces = Vec::new();
                while cache.len() < tokens {
                    let start = cache.len();
                    let end = tokens.min(start + 1 + random.below(longest));
                    pieces.extend(attend(&mut cache, &qkv[start * heads.row()..end * heads.row()]));
                }
                assert!(
                    bits(&pieces) == bits(&alone),
                    "{isa:?} {format:?}, {heads:?}, pieces of up to {longest}"
                );
            }
        }
    }
}

#[test]
fn a_shortened_cache_goes_on_as_if_the_rest_had_never_been() {
    let mut random = Random::new(37);
    let heads = Heads { heads: 2, key_value_heads: 1, dimension: 8 };
    for (isa, format) in combinations() {
        let qkv: Vec<f32> = random.elements(80 * heads.row());
        let rows = |range: Range<usize>| &qkv[range.start * heads.row()..range.end * heads.row()];
        let mut straight = KeyValueCache::new(isa, heads, format);
        attend(&mut straight, rows(0..33));
        let mut shortened = KeyValueCache::new(isa, heads, format);
        attend(&mut shortened, rows(0..33));
        shortened.extend(&vec![f32::NAN; heads.row()]).for_each(NewPositions::write);
        attend(&mut shortened, rows(40..79));
        shortened.truncate(33);
        shortened.expect(100);
        assert_eq!(shortened.len(), straight.len());
        assert_eq!(
            attend(&mut shortened, rows(33..40)),
            attend(&mut straight, rows(33..40)),
            "{isa:?} {format:?}"
        );
    }
}
