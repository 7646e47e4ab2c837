//! The inner loops, one family per format and instruction set.

/// Defines the inner loops of one instruction set.
macro_rules! family {
    (
        $(#[$meta:meta])* $family:ident, $function:ident, usable $usable:expr, $(features $features:literal,)?
        $elements:literal elements a word,
        vectors of $lanes:literal in $words:literal words: $zero:expr, $load:expr, $store:expr, $start:expr, $right:expr, $left:expr, $step:expr,
        $joined:expr, $scaled:expr;
        $rows:literal rows, side by side ($($most:literal for $few:pat),+);
        $($shape_rows:literal x $shape_panels:literal),+
    ) => {
        $(#[$meta])*
        pub(crate) struct $family;

        $(#[$meta])*
        impl Family for $family {
            const ROWS: usize = $rows;
            const COLUMNS: usize = 2 * $lanes;
            const ELEMENTS: usize = $elements;
            const STEP_WORDS: usize = 2 * $words;

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
                    $(($shape_rows, $shape_panels) => unsafe { $function::<$shape_rows, $shape_panels, false>(operands) },)+
                    _ => unreachable!("no tile of {rows} rows and {panels} panels"),
                }
            }

            #[inline(always)]
            unsafe fn run_singles(count: usize, operands: &Operands) {
                // SAFETY: as above.
                unsafe {
                    match count {
                        1 => $function::<1, 1, true>(operands),
                        2 => $function::<1, 2, true>(operands),
                        4 => $function::<1, 4, true>(operands),
                        _ => unreachable!("no {count} tiles of one row at one time"),
                    }
                }
            }
        }

        /// # Safety
        /// That of [`Family::run`].
        $(#[$meta])*
        #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
        $(#[target_feature(enable = $features)])?
        unsafe fn $function<const ROWS: usize, const PANELS: usize, const SINGLES: bool>(operands: &Operands) {
            let &Operands { left, left_stride, mut ends, right, right_stride, right_step, .. } = operands;
            let &Operands { mut scales, scales_stride, mut next, next_step, steps, c, c_stride, .. } = operands;
            // SAFETY: see the caller's contract.
            unsafe {
                // The row of a panel, which is its own where every panel has one, and the place of its sums.
                let row_of = |row: usize, panel: usize| if SINGLES { panel } else { row };
                let at = |row: usize, panel: usize, half: usize| {
                    let column = if SINGLES { 0 } else { panel * 2 * $lanes };
                    c.add(row_of(row, panel) * c_stride + column + half * $lanes)
                };
                let mut totals = [[[$zero; 2]; PANELS]; ROWS];
                if operands.accumulate {
                    for row in 0..ROWS {
                        for panel in 0..PANELS {
                            totals[row][panel] = [$load(at(row, panel, 0)), $load(at(row, panel, 1))];
                        }
                    }
                }
                let (mut a, mut b, mut rest) = (left, right, steps);
                while rest > 0 {
                    let now = rest.min(GROUP / $elements);
                    rest -= now;
                    let mut sums = [[[$start(ends.add(1)); 2]; PANELS]; ROWS];
                    for row in 0..ROWS {
                        for panel in 0..PANELS {
                            sums[row][panel] = [$start(ends.add(row_of(row, panel) * left_stride + 1)); 2];
                        }
                    }
                    for _ in 0..now {
                        if ROWS > 2 {
                            $crate::prefetch::read_soon(next);
                            next = next.wrapping_add(next_step);
                        }
                        let mut vectors = [[$right(b); 2]; PANELS];
                        for panel in 0..PANELS {
                            let b = b.add(panel * right_stride);
                            vectors[panel] = [$right(b), $right(b.add($words))];
                        }
                        for row in 0..ROWS {
                            let mut x = $left(a.add(row * left_stride));
                            for panel in 0..PANELS {
                                if SINGLES && panel > 0 {
                                    x = $left(a.add(panel * left_stride));
                                }
                                for half in 0..2 {
                                    sums[row][panel][half] = $step(sums[row][panel][half], x, vectors[panel][half]);
                                }
                            }
                        }
                        a = a.wrapping_add(1);
                        b = b.wrapping_add(right_step);
                    }
                    for panel in 0..PANELS {
                        let scales = scales.add(panel * scales_stride);
                        let scales = [$load(scales), $load(scales.add($lanes))];
                        for row in 0..ROWS {
                            let scale = *ends.add(row_of(row, panel) * left_stride).cast::<f32>();
                            let sums = $joined(sums[row][panel]);
                            for half in 0..2 {
                                totals[row][panel][half] =
                                    $scaled(totals[row][panel][half], sums[half], scale, scales[half]);
                            }
                        }
                    }
                    ends = ends.wrapping_add(2);
                    (scales, b) = (b.cast(), b.wrapping_add(2 * $lanes));
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

pub(super) use family;
