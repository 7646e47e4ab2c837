//! Attention within sight token by token: what decoding computes where there is a window, a penalty on distance (ALiBi) or
//! no positions.

use crate::Isa;
use crate::attention::{Heads, Sight, penalise};
use crate::math::{exp, max, sum_of, sum_of_pairs};
use crate::rotary::RotaryTable;

/// Keys and values of the last tokens of a sequence, that of token `t` in row `t` modulo the number of rows: a row holds all
/// keys, then all values.
#[derive(Debug)]
pub struct Slots<'a> {
    /// The rows.
    pub rows: &'a mut [f32],
    /// Tokens that came before.
    pub position: usize,
}

/// New tokens of one sequence, one after the other: their keys and values go into `slots`, which must have rows for all
/// that is in sight; `qkv` holds a row as [`Heads`] describes it per token. `frequencies` are radians per position of
/// each pair of a head, where positions are rotary.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn local_attention_steps(
    isa: Isa,
    heads: Heads,
    frequencies: Option<&[f64]>,
    sight: Sight,
    qkv: &[f32],
    slots: Slots<'_>,
    y: &mut [f32],
) {
    let (d, row, query_row) = (heads.dimension, heads.row(), heads.query_row());
    let width = row - query_row;
    let capacity = slots.rows.len() / width;
    let (mut turned, mut scores) = (vec![0.0; row], Vec::new());
    for (i, (qkv, y)) in qkv.chunks_exact(row).zip(y.chunks_exact_mut(query_row)).enumerate() {
        let position = slots.position + i;
        let first = sight.first(position);
        assert!(position - first < capacity, "attention: {capacity} rows for what token {position} sees");
        turned.copy_from_slice(qkv);
        if let Some(frequencies) = frequencies {
            // A table of this one position.
            let angles: Vec<f64> = frequencies.iter().map(|f| f * position as f64).collect();
            let table = RotaryTable::new(&angles, 2);
            for head in turned[..heads.value_start(0)].chunks_exact_mut(d) {
                table.rotate(head, 1);
            }
        }
        slots.rows[position % capacity * width..][..width].copy_from_slice(&turned[query_row..]);
        for head in 0..heads.heads {
            let shared = head / heads.group() * d;
            let (query, out) = (&turned[head * d..][..d], &mut y[head * d..][..d]);
            let factors = (heads.scale(), sight.slope(head, heads.heads));
            scores.resize(position + 1 - first, 0.0);
            attend(isa, query, slots.rows, (width, shared), (first, capacity), factors, &mut scores, out);
        }
    }
}

per_isa! {
    fn attend(
        query: &[f32],
        slots: &[f32],
        place: (usize, usize),
        from: (usize, usize),
        factors: (f32, f32),
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let ((width, start), (first, capacity), (scale, slope)) = (place, from, factors);
        let d = query.len();
        let row = |j: usize| &slots[(first + j) % capacity * width + start..];
        for (j, score) in scores.iter_mut().enumerate() {
            let key = &row(j)[..d];
            *score = sum_of_pairs(query, key, |q, k| q * k) * scale;
        }
        penalise(scores, slope);
        let largest = max(scores);
        for score in scores.iter_mut() {
            *score = exp(*score - largest);
        }
        let sum = sum_of(scores, |s| s);
        out.fill(0.0);
        for (j, score) in scores.iter().enumerate() {
            // The values follow all the keys.
            let value = &row(j)[width / 2..][..d];
            for (out, value) in out.iter_mut().zip(value) {
                *out += score / sum * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Attention, AttentionSaved, QUERY_BLOCK, attention_backward, attention_forward};
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};
    use crate::{Element, bf16};

    const HEADS: Heads = Heads { heads: 4, key_value_heads: 2, dimension: 4 };
    const FREQUENCIES: [f64; 2] = [1.0, 0.3];

    fn turn(head: &[f64], position: usize) -> Vec<f64> {
        let pair = |i: usize| {
            let (sin, cos) = (position as f64 * FREQUENCIES[i]).sin_cos();
            (head[i] * cos - head[i + 2] * sin, head[i + 2] * cos + head[i] * sin)
        };
        let (a, b) = (pair(0), pair(1));
        vec![a.0, b.0, a.1, b.1]
    }

    fn reference(qkv: &[f64], sight: Sight, rotary: bool) -> Vec<f64> {
        let row = HEADS.row();
        let at = |t: usize, start: usize, turned: bool| {
            let head = &qkv[t * row + start..][..4];
            if turned && rotary { turn(head, t) } else { head.to_vec() }
        };
        let mut y = Vec::new();
        for t in 0..qkv.len() / row {
            for head in 0..4 {
                let query = at(t, head * 4, true);
                let slope = if sight.alibi { 2f64.powf(-8.0 * (head + 1) as f64 / 4.0) } else { 0.0 };
                let seen = (t + 1).saturating_sub(sight.window)..t + 1;
                let weights: Vec<f64> = seen
                    .clone()
                    .map(|j| {
                        let key = at(j, HEADS.key_start(head / 2), true);
                        let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                        (dot / 2.0 - slope * (t - j) as f64).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for k in 0..4 {
                    let values = seen.clone().map(|j| at(j, HEADS.value_start(head / 2), false)[k]);
                    y.push(values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum);
                }
            }
        }
        y
    }

    const SIGHTS: [(Sight, bool); 5] = [
        (Sight { window: usize::MAX, alibi: true }, false),
        (Sight { window: usize::MAX, alibi: false }, false),
        (Sight { window: 5, alibi: false }, true),
        (Sight { window: 5, alibi: true }, false),
        (Sight { window: 70, alibi: true }, false),
    ];

    fn widened<E: Element>(values: &[E]) -> Vec<f32> {
        values.iter().map(|v| v.to_f32()).collect()
    }

    fn forward<E: Element>(isa: Isa, qkv: &[E], sight: Sight, rotary: bool) -> (Vec<E>, Vec<f32>) {
        let length = qkv.len() / HEADS.row();
        let table = RotaryTable::new(&FREQUENCIES, length);
        let (mut y, mut sums) = (vec![E::from_f32(f32::NAN); length * 16], vec![f32::NAN; length * 4]);
        let columns = [0..8, 8..16];
        let blocks = crate::grid::split(&mut y, 16, std::slice::from_ref(&(0..length)), &columns);
        let halves = [0..2, 2..4];
        let sum_blocks = crate::grid::split(&mut sums, 4, std::slice::from_ref(&(0..length)), &halves);
        for (group, (mut y, mut sums)) in blocks.into_iter().zip(sum_blocks).enumerate() {
            let attention = Attention { heads: HEADS, table: rotary.then_some(&table), sight };
            attention_forward(isa, attention, group, qkv, &mut y, &mut sums);
        }
        (y, sums)
    }

    #[test]
    fn attention_within_sight_equals_the_float64_reference_whole_and_in_steps() {
        let mut random = Random::new(61);
        for isa in Isa::available_or_trapped() {
            for (sight, rotary) in SIGHTS {
                for length in [1, 7, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 9] {
                    let qkv: Vec<f32> = random.elements(length * HEADS.row());
                    let expected = reference(&to_f64(&qkv), sight, rotary);
                    let (y, _) = forward(isa, &qkv, sight, rotary);
                    assert_all_close(&y, &expected, 2e-6, 1e-5, "y");

                    let run = |cut: usize| {
                        let mut rows = vec![0.0; 16 * sight.window.min(length)];
                        let mut y = vec![f32::NAN; length * 16];
                        for (start, end) in [(0, cut), (cut, length)] {
                            let slots = Slots { rows: &mut rows, position: start };
                            let own = &qkv[start * HEADS.row()..end * HEADS.row()];
                            let to = &mut y[start * 16..end * 16];
                            let frequencies = rotary.then_some(&FREQUENCIES[..]);
                            local_attention_steps(isa, HEADS, frequencies, sight, own, slots, to);
                        }
                        y
                    };
                    let stepped = run(0);
                    assert_all_close(&stepped, &expected, 2e-6, 1e-5, "stepped y");
                    assert_eq!(stepped, run(length / 2), "pieces give the same bits");
                }
            }
        }
    }

    #[test]
    fn attention_within_sight_in_bf16_differs_by_the_rounding_of_its_operands() {
        let mut random = Random::new(63);
        for isa in Isa::available_or_trapped() {
            for (sight, rotary) in SIGHTS {
                for length in [1, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 9] {
                    let qkv: Vec<bf16> = random.elements(length * HEADS.row());
                    let expected = reference(&to_f64(&widened(&qkv)), sight, rotary);
                    let (y, _) = forward(isa, &qkv, sight, rotary);
                    // As attention without a window: 2^-9 for each of queries, keys, probabilities and outputs.
                    assert_all_close(&widened(&y), &expected, 2e-2, 2e-2, "y");
                }
            }
        }
    }

    #[test]
    fn the_gradients_within_sight_equal_the_float64_differences() {
        // Sums over some tens of keys in f32.
        check_gradients::<f32>(&SIGHTS, 2e-5, 1e-4);
    }

    #[test]
    fn the_gradients_within_sight_in_bf16_differ_by_the_rounding_of_their_operands() {
        // As those of attention without a window.
        check_gradients::<bf16>(&SIGHTS[2..4], 6e-2, 0.24);
    }

    fn check_gradients<E: Element>(sights: &[(Sight, bool)], absolute: f64, relative: f64) {
        let mut random = Random::new(62);
        let length = QUERY_BLOCK + 6;
        let row = HEADS.row();
        for &(sight, rotary) in sights {
            let qkv: Vec<E> = random.elements(length * row);
            let d_y: Vec<E> = random.elements(length * 16);
            let wide = to_f64(&widened(&qkv));
            let expected = numeric_gradient(&wide, &widened(&d_y), |qkv| reference(qkv, sight, rotary));
            for isa in Isa::available_or_trapped() {
                let (output, log_sums) = forward(isa, &qkv, sight, rotary);
                let table = RotaryTable::new(&FREQUENCIES, length);
                let mut d = vec![E::from_f32(f32::NAN); qkv.len()];
                let columns = [0..8, 8..16, 16..20, 20..24, 24..28, 28..32];
                let whole = 0..length;
                let blocks = crate::grid::split(&mut d, row, std::slice::from_ref(&whole), &columns);
                let Ok([mut q0, mut q1, mut k0, mut k1, mut v0, mut v1]) = <[_; 6]>::try_from(blocks) else {
                    unreachable!("six columns")
                };
                let saved =
                    AttentionSaved { qkv: &qkv, output: &output, d_output: &d_y, log_sums: &log_sums };
                let attention = Attention { heads: HEADS, table: rotary.then_some(&table), sight };
                attention_backward(isa, attention, 0, saved, &mut q0, &mut k0, &mut v0);
                attention_backward(isa, attention, 1, saved, &mut q1, &mut k1, &mut v1);
                assert_all_close(&widened(&d), &expected, absolute, relative, "d_qkv");
            }
        }
    }
}
