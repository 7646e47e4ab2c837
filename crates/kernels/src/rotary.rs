//! Rotary position embedding (Su et al., 2021) in the half-split layout of Hugging Face's Llama: dimension `i`
//! turns with dimension `i + D/2`.

/// Cosines and sines of every position: both of shape (positions, D/2).
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    half: usize,
}

impl RotaryTable {
    /// The table for positions `0..positions` of heads whose pair `i` turns by `frequencies[i]` radians per position.
    pub fn new(frequencies: &[f64], positions: usize) -> RotaryTable {
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        RotaryTable {
            cosines: angles().map(|a| a.cos() as f32).collect(),
            sines: angles().map(|a| a.sin() as f32).collect(),
            half: frequencies.len(),
        }
    }

    /// How many positions the table covers.
    pub fn positions(&self) -> usize {
        self.cosines.len().checked_div(self.half).unwrap_or(0)
    }

    /// Turns `head` (D elements) forward to its position, in place.
    #[inline(always)]
    pub fn rotate(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, 1.0);
    }

    /// Turns `head` back: the inverse and so also the gradient of [`RotaryTable::rotate`].
    #[inline(always)]
    pub fn rotate_back(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, -1.0);
    }

    #[inline(always)]
    fn turn(&self, head: &mut [f32], position: usize, direction: f32) {
        let cosines = &self.cosines[position * self.half..][..self.half];
        let sines = &self.sines[position * self.half..][..self.half];
        let (first, second) = head.split_at_mut(self.half);
        for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            let (x, y, s) = (*a, *b, s * direction);
            *a = x * c - y * s;
            *b = y * c + x * s;
        }
    }
}

per_isa! {
    /// Turns the first `heads` heads of rows of `width` elements forward, each row to its own position.
    pub fn rotate_rows(table: &RotaryTable, positions: &[usize], heads: usize, width: usize, rows: &mut [f32]) {
        let dimension = 2 * table.half;
        assert!(rows.len() == positions.len() * width && heads * dimension <= width, "rotary: shapes");
        for (row, &position) in rows.chunks_exact_mut(width).zip(positions) {
            for head in row[..heads * dimension].chunks_exact_mut(dimension) {
                table.rotate(head, position);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn rotation_is_undone_by_rotating_back_and_keeps_relative_angles() {
        let table = RotaryTable::new(&[1.0, 0.1], 8);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let (q, k) = ([0.3, -0.7, 1.1, 0.2], [0.9, 0.4, -0.5, 0.8]);
        let at = |v: [f32; 4], p| {
            let mut v = v;
            table.rotate(&mut v, p);
            v
        };
        // Rounding of a handful of f32 operations of magnitude one.
        assert!((dot(&at(q, 5), &at(k, 3)) - dot(&at(q, 7), &at(k, 5))).abs() <= 1e-6);
        let mut back = at(q, 6);
        table.rotate_back(&mut back, 6);
        assert!(back.iter().zip(q).all(|(a, b)| (a - b).abs() <= 1e-6));
        assert_eq!(table.positions(), 8);
    }

    #[test]
    fn rows_are_turned_head_by_head_to_their_own_positions_and_keep_what_lies_behind_their_heads() {
        for (half, heads, behind) in [(1, 1, 0), (3, 2, 5), (32, 3, 64), (33, 1, 1)] {
            let frequencies: Vec<f64> = (0..half).map(|i| 0.7 / (i + 1) as f64).collect();
            let table = RotaryTable::new(&frequencies, 9);
            let (width, positions) = (2 * half * heads + behind, [4, 0, 8]);
            let mut random = crate::reference::Random::new(width as u64);
            let before: Vec<f32> = random.elements(positions.len() * width);
            for isa in Isa::available_or_trapped() {
                let mut rows = before.clone();
                rotate_rows(isa, &table, &positions, heads, width, &mut rows);
                for ((row, before), position) in rows.chunks(width).zip(before.chunks(width)).zip(positions) {
                    for (i, (got, old)) in row.iter().zip(before).enumerate() {
                        let at = i % (2 * half);
                        let (angle, head) = (position as f64 * frequencies[at % half], i - at);
                        let pair = |k: usize| before[head + k] as f64;
                        let expected = match () {
                            () if i >= 2 * half * heads => *old as f64,
                            () if at < half => pair(at) * angle.cos() - pair(at + half) * angle.sin(),
                            () => pair(at) * angle.cos() + pair(at - half) * angle.sin(),
                        };
                        // Two products of magnitude one and their sum.
                        assert!((*got as f64 - expected).abs() <= 3e-7, "{isa:?} {half} {heads}: {i}");
                    }
                }
            }
        }
    }
}
