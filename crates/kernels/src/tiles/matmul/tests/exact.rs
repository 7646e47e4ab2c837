//! Products of small whole numbers, which every unit computes exactly, and what walks and packs.

use super::*;

const B_BYTES: usize = EmulatedTiles::B_BYTES;

/// Small whole numbers: all sums are exact in fp32, so results must be equal, and one element in the wrong
/// place shows.
fn a_value(row: usize, k: usize) -> f32 {
    ((row * 7 + k * 3 + row * k) % 101 % 13) as f32 - 6.0
}

fn b_value(k: usize, col: usize) -> f32 {
    ((k * 5 + col * 11 + k * col) % 103 % 11) as f32 - 5.0
}

fn c_value(row: usize, col: usize) -> f32 {
    ((row * 3 + col) % 7) as f32 - 3.0
}

/// The product of `a_value` and `b_value`, row by row.
fn reference(m: usize, k: usize, n: usize) -> Vec<f32> {
    let b: Vec<f32> = (0..k * n).map(|i| b_value(i / n, i % n)).collect();
    let mut sums = vec![0.0; m * n];
    for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
        for (k, b) in b.chunks_exact(n).enumerate() {
            let a = a_value(row, k);
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
    }
    sums
}

trait Element: MatmulOutput + Sealed + std::fmt::Debug {
    fn from_f32(value: f32) -> Self;
    fn bits(self) -> u32;
}

impl Element for f32 {
    fn from_f32(value: f32) -> f32 {
        value
    }
    fn bits(self) -> u32 {
        // -0 and 0 are the same result.
        (self + 0.0).to_bits()
    }
}

impl Element for bf16 {
    fn from_f32(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    fn bits(self) -> u32 {
        u32::from(bf16::from_f32(self.to_f32() + 0.0).to_bits())
    }
}

struct Case {
    m: usize,
    k: usize,
    n: usize,
    a: Layout,
    b: Layout,
    c_gap: usize,
    accumulate: bool,
    packed: bool,
}

fn check_exact<T: TileUnit, V: VectorUnit, C: Element>(
    tiles: T,
    vectors: V,
    case: &Case,
    scratch: &mut Scratch,
) {
    let &Case { m, k, n, accumulate, .. } = case;
    let a = Stored::new(m, k, case.a, |row, k| bf16::from_f32(a_value(row, k)));
    let b = Stored::new(k, n, case.b, |k, col| bf16::from_f32(b_value(k, col)));
    let stride = n + case.c_gap;
    let mut c: Vec<C> = (0..m * stride)
        .map(|i| C::from_f32(if i % stride < n { c_value(i / stride, i % stride) } else { UNUSED }))
        .collect();
    let sums = reference(m, k, n);
    let product = Product { tiles, vectors, accumulate };
    if case.packed {
        let mut packed = PackedB::default();
        packed.refresh_with(vectors, b.view());
        product.run(a.view(), B::Packed { b: &packed, first: (0, 0), k, n }, &mut c, stride, scratch);
    } else {
        product.run(a.view(), B::View(b.view()), &mut c, stride, scratch);
    }
    for (i, &got) in c.iter().enumerate() {
        let (row, col) = (i / stride, i % stride);
        let expected = if col < n {
            let sum = sums[row * n + col];
            C::from_f32(if accumulate { c_value(row, col) + sum } else { sum })
        } else {
            C::from_f32(UNUSED)
        };
        assert!(
            got.bits() == expected.bits(),
            "{m} x {k} x {n}, A {:?}, B {:?}, accumulate {accumulate}, packed {}: C[{row}, {col}] is {got:?}, not {expected:?}",
            case.a,
            case.b,
            case.packed
        );
    }
}

#[test]
fn products_of_whole_numbers_are_exact_at_every_size_around_tile_borders() {
    let sizes = [1, 2, 15, 16, 17, 31, 32, 33, 63, 65];
    on_every_unit!(|tiles, vectors| {
        let mut scratch = Scratch::new();
        let mut i = 0;
        for m in sizes {
            for k in sizes {
                for n in sizes {
                    // Every size meets every layout, though not in all combinations: those come next.
                    i += 1;
                    let case = Case {
                        m,
                        k,
                        n,
                        a: LAYOUTS[i % 4],
                        b: LAYOUTS[(i / 4) % 4],
                        c_gap: [0, 3][(i / 16) % 2],
                        accumulate: i % 3 == 0,
                        packed: i % 5 == 0,
                    };
                    if i % 2 == 0 {
                        check_exact::<_, _, f32>(tiles, vectors, &case, &mut scratch);
                    } else {
                        check_exact::<_, _, bf16>(tiles, vectors, &case, &mut scratch);
                    }
                }
            }
        }
    });
}

#[test]
fn products_of_whole_numbers_are_exact_in_every_combination_of_layouts() {
    on_every_unit!(|tiles, vectors| {
        let mut scratch = Scratch::new();
        for a in LAYOUTS {
            for b in LAYOUTS {
                for accumulate in [false, true] {
                    for packed in [false, true] {
                        for c_gap in [0, 7] {
                            for (m, k, n) in [(64, 96, 64), (48, 64, 96), (50, 70, 81)] {
                                let case = Case { m, k, n, a, b, c_gap, accumulate, packed };
                                check_exact::<_, _, f32>(tiles, vectors, &case, &mut scratch);
                                check_exact::<_, _, bf16>(tiles, vectors, &case, &mut scratch);
                            }
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn products_that_are_cut_into_pieces_are_exact() {
    let transposed = Layout { transposed: true, ..DENSE };
    // Cut in depth (transposed A), in width, and both; also a deep one with A as it is.
    let shapes = [(33, 1100, 1030, transposed), (32, 4100, 33, DENSE), (17, 600, 2000, DENSE)];
    for (_, k, n, a) in shapes {
        let plan = Plan::new::<EmulatedTiles>(k, n, a.transposed);
        assert!(plan.depth < k || plan.width < n, "{k} x {n} is not cut: {plan:?}");
    }
    on_every_unit!(|tiles, vectors| {
        let mut scratch = Scratch::new();
        for (m, k, n, a) in shapes {
            for packed in [false, true] {
                let case = Case { m, k, n, a, b: DENSE, c_gap: 0, accumulate: packed, packed };
                check_exact::<_, _, f32>(tiles, vectors, &case, &mut scratch);
                check_exact::<_, _, bf16>(tiles, vectors, &case, &mut scratch);
            }
        }
    });
}

#[test]
fn a_part_of_a_packed_b_gives_the_product_with_that_part_alone() {
    on_every_unit!(|tiles, vectors| {
        let (m, whole_k, whole_n) = (37, 130, 90);
        let b = Stored::new(whole_k, whole_n, DENSE, |k, col| bf16::from_f32(b_value(k, col)));
        let mut packed = PackedB::default();
        packed.refresh_with(vectors, b.view());
        let from_start = [(130, 90), (64, 90), (130, 32), (33, 50), (1, 1)].map(|part| ((0, 0), part));
        let from_within = [((32, 0), (98, 90)), ((0, 64), (130, 26)), ((96, 32), (33, 40))];
        for (first, (k, n)) in from_start.into_iter().chain(from_within) {
            let a = Stored::new(m, k, DENSE, |row, k| bf16::from_f32(a_value(row, k)));
            let mut c = vec![0.0f32; m * n];
            let part = B::Packed { b: &packed, first, k, n };
            Product { tiles, vectors, accumulate: false }.run(a.view(), part, &mut c, n, &mut Scratch::new());
            for (i, c) in c.iter().enumerate() {
                let (row, col) = (i / n, i % n);
                let expected: f32 =
                    (0..k).map(|k| a_value(row, k) * b_value(first.0 + k, first.1 + col)).sum();
                assert_eq!(*c, expected, "{k} x {n} from {first:?} on, at {row}, {col}");
            }
        }
    });
}

#[test]
fn an_empty_inner_dimension_gives_zeros_or_leaves_c() {
    let none: [bf16; 0] = [];
    let product = Product { tiles: EmulatedTiles, vectors: PortableVectors, accumulate: false };
    let (a, b) = (MatrixRef::new(&none, 2, 0), MatrixRef::new(&none, 0, 2));
    let mut c = [7.0f32; 5];
    product.run(a, B::View(b), &mut c, 3, &mut Scratch::new());
    assert_eq!(c, [0.0, 0.0, 7.0, 0.0, 0.0]);
    Product { accumulate: true, ..product }.run(a, B::View(b), &mut c, 3, &mut Scratch::new());
    assert_eq!(c, [0.0, 0.0, 7.0, 0.0, 0.0]);
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let values = [bf16::ONE; 16];
    let product = Product { tiles: EmulatedTiles, vectors: PortableVectors, accumulate: false };
    let run = |k: usize, c_len: usize, c_row_stride: usize| {
        std::panic::catch_unwind(|| {
            let a = MatrixRef::new(&values, 4, 4);
            let b = MatrixRef::new(&values, k, 4);
            product.run(a, B::View(b), &mut vec![0.0f32; c_len], c_row_stride, &mut Scratch::new());
        })
    };
    assert!(run(4, 16, 4).is_ok());
    assert!(run(3, 16, 4).is_err(), "inner sizes differ");
    assert!(run(4, 15, 4).is_err(), "C is too short");
    assert!(run(4, 16, 3).is_err(), "rows of C overlap");
}

#[test]
fn scratch_memory_does_not_grow_when_a_product_is_repeated() {
    let a = vec![bf16::ONE; 70 * 100];
    let product = Product { tiles: EmulatedTiles, vectors: PortableVectors, accumulate: false };
    let mut scratch = Scratch::new();
    let mut c = vec![bf16::ZERO; 70 * 70];
    let mut run = || {
        let view = MatrixRef::new(&a, 70, 100);
        product.run(view, B::View(view.transposed()), &mut c, 70, &mut scratch);
        (scratch.bytes(), scratch.b.as_ptr())
    };
    assert_eq!(run(), run());
}

#[test]
fn every_vector_unit_packs_the_same_bytes() {
    on_every_unit!(|_tiles, vectors| {
        for layout in LAYOUTS {
            for (k, n) in [(64, 64), (33, 47), (1, 100)] {
                let b = Stored::new(k, n, layout, |k, n| bf16::from_bits((k * 1000 + n) as u16));
                let (mut packed, mut expected) = (PackedB::default(), PackedB::default());
                packed.refresh_with(vectors, b.view());
                expected.refresh_with(PortableVectors, b.view());
                assert_eq!(packed.bytes(), expected.bytes());
                // SAFETY: both hold this many initialised bytes.
                let (packed, expected) = unsafe {
                    (
                        std::slice::from_raw_parts(packed.panel(0, 0), packed.bytes()),
                        std::slice::from_raw_parts(expected.panel(0, 0), expected.bytes()),
                    )
                };
                assert!(packed == expected, "{k} x {n}, {layout:?}");
            }
        }
    });
}

#[test]
fn plans_cut_evenly_in_multiples_of_32_and_keep_b_in_cache() {
    for k in [1, 31, 32, 384, 1024, 4096, 4097, 8192, 50_000] {
        for n in [1, 32, 384, 1024, 8192, 100_000] {
            for transposes_a in [false, true] {
                let plan = Plan::new::<EmulatedTiles>(k, n, transposes_a);
                assert!(plan.depth.is_multiple_of(32) && plan.width.is_multiple_of(32), "{plan:?}");
                assert!(plan.depth > 0 && plan.width > 0);
                assert!(
                    plan.depth <= EmulatedTiles::MAX_DEPTH && 2 * plan.depth * plan.width <= B_BYTES,
                    "{plan:?}"
                );
            }
        }
    }
}
