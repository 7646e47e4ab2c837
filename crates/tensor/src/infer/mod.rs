//! The operations of decoding: no tape, f32, many sequences of a few new tokens each. What a token gives does not
//! depend, to the bit, on the other tokens or on the number of threads.

use crate::cpu::rows_mut;
use crate::{Cpu, Heads};
use strata_kernels::attention_step::attention_step;
use strata_kernels::cache::NewPositions;
pub use strata_kernels::cache::{CacheFormat, KeyValueCache};
use strata_kernels::element::add_assign;
pub use strata_kernels::math::{WEIGHTS, first_largest, log_sum_exp, softmax_weights};
use strata_kernels::{grid, norm, swiglu as kernel};

mod product;

pub use product::{PackedWeight, WeightFormat, pack, pack_with, project, project_then, row_blocks};
pub use strata_kernels::rotary::rotate_rows;

/// New tokens of a sequence that are one piece of shared work.
const TOKEN_BLOCK: usize = 64;

/// `y = weight · x / sqrt(mean(x²) + epsilon)` for every row of `weight.len()` elements.
pub fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let width = weight.len();
    let ranges = cpu.ranges_for(x.len(), x.len() / width, 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(y, width, &ranges)).collect();
    cpu.for_each(items, |(rows, y)| {
        let x = &x[rows.start * width..rows.end * width];
        norm::rms_norm_forward(cpu.isa(), x, weight, epsilon, y, &mut vec![0.0; rows.len()]);
    });
}

/// `x += delta` for rows of `width` elements.
pub fn add(cpu: &Cpu, x: &mut [f32], delta: &[f32], width: usize) {
    let ranges = cpu.ranges_for(x.len(), x.len() / width, 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(x, width, &ranges)).collect();
    cpu.for_each(items, |(rows, x)| {
        add_assign(cpu.isa(), &delta[rows.start * width..rows.end * width], x);
    });
}

/// `y = silu(gate) · up` for rows of `width` gates, then `width` ups.
pub fn swiglu(cpu: &Cpu, gate_up: &[f32], width: usize, y: &mut [f32]) {
    // An exponential and a division take the time of some ten multiply-adds.
    let ranges = cpu.ranges_for(10 * y.len(), y.len() / width, 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(y, width, &ranges)).collect();
    cpu.for_each(items, |(rows, y)| {
        kernel::swiglu_forward(cpu.isa(), &gate_up[rows.start * 2 * width..rows.end * 2 * width], width, y);
    });
}

/// A sequence with new tokens.
#[derive(Debug)]
pub struct Attending<'a> {
    /// How many are new.
    pub new: usize,
    /// Of how many of them, the last ones, results are wanted.
    pub wanted: usize,
    /// The keys and values of those before, then of all.
    pub cache: &'a mut KeyValueCache,
}

/// Adds the keys and values of new tokens to those of their sequences, and attends to them. `qkv` holds a row as [`Heads`]
/// describes it per new token, sequence after sequence, queries and keys turned to their positions; `output` gets the results
/// that are wanted (tokens x `heads · dimension`).
///
/// # Panics
/// Where the shapes do not fit together.
pub fn attention(cpu: &Cpu, heads: Heads, qkv: &[f32], sequences: Vec<Attending<'_>>, output: &mut [f32]) {
    let (mut new, mut wanted) = (0, 0);
    for sequence in &sequences {
        let Attending { new: own, wanted: results, .. } = *sequence;
        assert!(results <= own, "attention: {results} results of {own} new tokens");
        (new, wanted) = (new + own, wanted + results);
    }
    assert!(
        qkv.len() == new * heads.row() && output.len() == wanted * heads.query_row(),
        "attention: {} elements of {new} tokens, {} for {wanted}, {heads:?}",
        qkv.len(),
        output.len()
    );
    // Rounding a key or value takes the time of some four multiply-adds.
    let operations = |Attending { new, wanted, cache }: &Attending<'_>| {
        2 * wanted * (cache.len() + new) * heads.query_row() + 4 * new * heads.row()
    };
    if cpu.worth_sharing(sequences.iter().map(operations).sum()) {
        return shared_attention(cpu, heads, qkv, sequences, output);
    }
    let (mut rest, mut output) = (qkv, output);
    for Attending { new, wanted, cache } in sequences {
        let (own, others) = rest.split_at(new * heads.row());
        // What was just written is still near when it is read.
        cache.extend(own).for_each(NewPositions::write);
        let (results, others_results) = output.split_at_mut(wanted * heads.query_row());
        (rest, output) = (others, others_results);
        let queries = &own[(new - wanted) * heads.row()..];
        let mut results = grid::BlockMut::new(results, heads.query_row());
        attention_step(cache, 0..heads.key_value_heads, queries, cache.len() - wanted, &mut results);
    }
}

fn shared_attention(
    cpu: &Cpu,
    heads: Heads,
    qkv: &[f32],
    mut sequences: Vec<Attending<'_>>,
    output: &mut [f32],
) {
    let (mut rest, mut new_positions) = (qkv, Vec::new());
    for Attending { new, cache, .. } in &mut sequences {
        let (own, others) = rest.split_at(*new * heads.row());
        new_positions.extend(cache.extend(own));
        rest = others;
    }
    cpu.for_each_of(4 * qkv.len(), new_positions.into_iter(), NewPositions::write);

    struct Piece<'a> {
        cache: &'a KeyValueCache,
        qkv: &'a [f32],
        position: usize,
    }
    let (mut pieces, mut rows, mut start, mut end) = (Vec::new(), Vec::new(), 0, 0);
    for Attending { new, wanted, cache } in &sequences {
        start += new - wanted;
        for first in (0..*wanted).step_by(TOKEN_BLOCK) {
            let count = TOKEN_BLOCK.min(wanted - first);
            let qkv = &qkv[(start + first) * heads.row()..][..count * heads.row()];
            pieces.push(Piece { cache, qkv, position: cache.len() - wanted + first });
            rows.push(end + first..end + first + count);
        }
        (start, end) = (start + wanted, end + wanted);
    }
    let width = heads.group() * heads.dimension;
    let columns: Vec<_> = (0..heads.key_value_heads).map(|head| head * width..(head + 1) * width).collect();
    let blocks = grid::split(output, heads.query_row(), &rows, &columns);
    cpu.for_each(blocks.into_iter().enumerate().collect(), |(i, mut block)| {
        let (Piece { cache, qkv, position }, head) = (&pieces[i / columns.len()], i % columns.len());
        attention_step(cache, head..head + 1, qkv, *position, &mut block);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn what_is_wanted_of_several_sequences_has_the_same_bits_for_any_number_of_threads_and_of_results() {
        let isa = Isa::best();
        let value = |i: usize| (i * 7919 % 1009) as f32 / 500.0 - 1.0;
        for (heads, key_value_heads, dimension) in [(4, 2, 16), (6, 6, 32), (1, 1, 40)] {
            let heads = Heads { heads, key_value_heads, dimension };
            let (row, query_row) = (heads.row(), heads.query_row());
            let formats = [CacheFormat::F32, CacheFormat::Bf16, CacheFormat::Int8];
            for format in formats.into_iter().filter(|format| format.usable(isa)) {
                // Tokens before, new ones, and of how many results are wanted.
                let run = |threads: usize, sequences: &[(usize, usize, usize)]| {
                    let cpu = Cpu::new(isa, threads).unwrap();
                    let mut caches = Vec::new();
                    for &(before, ..) in sequences {
                        let mut cache = KeyValueCache::new(isa, heads, format);
                        let qkv: Vec<f32> = (0..before * row).map(value).collect();
                        cache.extend(&qkv).for_each(NewPositions::write);
                        caches.push(cache);
                    }
                    let count =
                        |of: fn(&(usize, usize, usize)) -> usize| sequences.iter().map(of).sum::<usize>();
                    let qkv: Vec<f32> = (0..count(|s| s.1) * row).map(|i| value(i + 3)).collect();
                    let mut output = vec![f32::NAN; count(|s| s.2) * query_row];
                    let attending = caches.iter_mut().zip(sequences);
                    let attending =
                        attending.map(|(cache, &(_, new, wanted))| Attending { new, wanted, cache });
                    attention(&cpu, heads, &qkv, attending.collect(), &mut output);
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    bits(&output)
                };
                let all = run(1, &[(5, 70, 70), (9, 1, 1), (0, 130, 130), (40, 3, 3)]);
                let some = [(5, 70, 1), (9, 1, 1), (0, 130, 90), (40, 3, 2)];
                let wanted: Vec<u32> = [69..71, 71 + 40..201, 202..204]
                    .into_iter()
                    .flat_map(|rows| &all[rows.start * query_row..rows.end * query_row])
                    .copied()
                    .collect();
                for threads in 1..=3 {
                    assert!(run(threads, &some) == wanted, "{heads:?}, {format:?}, {threads} threads");
                }
            }
        }
    }
}
