//! The inner loops, one family per format and instruction set.

/// Defines the inner loops of one instruction set.
macro_rules! family {
    (
        $(#[$meta:meta])* $family:ident, $function:ident, usable $usable:expr, $(features $features:literal,)?
        $elements:literal elements a word,
        vectors of $lanes:literal: $zero:expr, $load:expr, $store:expr, $start:expr, $right:expr, $left:expr, $step:expr,
        $scaled:expr;
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
                const STEPS: usize = GROUP / $elements;
                let group = first / STEPS;
                let mut a = left.add(first);
                let mut ends = left.add(inputs.div_ceil($elements) + 2 * group);
                let mut b = right.add((first + group) * 2 * $lanes);
                let mut rest = steps;
                while rest > 0 {
                    let now = rest.min(STEPS);
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

pub(super) use family;
