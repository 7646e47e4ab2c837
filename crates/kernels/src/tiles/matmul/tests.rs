//! One body of tests for every unit that this machine has; the emulated one is always among them.

use half::bf16;
use proptest::prelude::*;

use super::sealed::Sealed;
use super::*;
use crate::isa::Isa;
use crate::tiles::tile::EmulatedTiles;
use crate::tiles::vector::PortableVectors;

/// Where the elements of a matrix lie: row-major or transposed, with `gap` unused elements between
/// rows and `offset` before the first.
#[derive(Clone, Copy, Debug)]
struct Layout {
    transposed: bool,
    gap: usize,
    offset: usize,
}

const DENSE: Layout = Layout { transposed: false, gap: 0, offset: 0 };
const LAYOUTS: [Layout; 4] = [
    DENSE,
    Layout { transposed: true, ..DENSE },
    Layout { transposed: false, gap: 32, offset: 32 },
    Layout { transposed: true, gap: 5, offset: 3 },
];

/// What lies where no element does: read, it would spoil every sum; in C, it must still be there after.
const UNUSED: f32 = f32::NAN;

/// A matrix in aligned memory.
struct Stored {
    memory: Vec<Line>,
    layout: Layout,
    rows: usize,
    cols: usize,
}

#[derive(Clone)]
#[repr(C, align(64))]
struct Line([bf16; 32]);

impl Stored {
    fn new(rows: usize, cols: usize, layout: Layout, value: impl Fn(usize, usize) -> bf16) -> Self {
        let (outer, inner) = if layout.transposed { (cols, rows) } else { (rows, cols) };
        let len = layout.offset + outer * (inner + layout.gap) + 1;
        let mut stored =
            Stored { memory: vec![Line([bf16::from_f32(UNUSED); 32]); len.div_ceil(32)], layout, rows, cols };
        let flat: Vec<(usize, bf16)> = (0..rows)
            .flat_map(|row| (0..cols).map(move |col| (row, col)))
            .map(|(row, col)| {
                let (o, i) = if layout.transposed { (col, row) } else { (row, col) };
                (layout.offset + o * (inner + layout.gap) + i, value(row, col))
            })
            .collect();
        for (at, value) in flat {
            stored.memory[at / 32].0[at % 32] = value;
        }
        stored
    }

    fn view(&self) -> MatrixRef<'_, bf16> {
        // SAFETY: a line is 32 elements and nothing else.
        let elements = unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast::<bf16>(), 32 * self.memory.len())
        };
        let elements = &elements[self.layout.offset..];
        if self.layout.transposed {
            MatrixRef::with_stride(elements, self.cols, self.rows, self.rows + self.layout.gap).transposed()
        } else {
            MatrixRef::with_stride(elements, self.rows, self.cols, self.cols + self.layout.gap)
        }
    }
}

/// Says which unit comes next, for whoever reads a failure.
fn begin(unit: &'static str) -> &'static str {
    eprintln!("on {unit}:");
    unit
}

/// Runs `body` with every pair of units that this machine has.
macro_rules! on_every_unit {
    (|$tiles:ident, $vectors:ident| $body:block) => {{
        let mut ran = Vec::new();
        {
            let ($tiles, $vectors) = (EmulatedTiles, PortableVectors);
            ran.push(begin("emulated tiles"));
            $body
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = crate::tiles::fma::Avx2Fma::new(Isa::best()) {
            let ($tiles, $vectors) = (tiles, tiles.vectors());
            ran.push(begin("AVX2 multiply-adds"));
            $body
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = crate::tiles::vector_avx512::Avx512Vectors::new(Isa::best()) {
            {
                let ($tiles, $vectors) = (EmulatedTiles, vectors.without_bf16());
                ran.push(begin("emulated tiles with AVX-512"));
                $body
            }
            if Isa::best().has_avx512_bf16() {
                let ($tiles, $vectors) = (EmulatedTiles, vectors);
                ran.push(begin("emulated tiles with AVX-512 bf16"));
                $body
            }
            if let Some(tiles) = crate::tiles::dot::Avx512Dot::new(Isa::best()) {
                let ($tiles, $vectors) = (tiles, vectors);
                ran.push(begin("AVX-512 bf16 dot products"));
                $body
            }
            if let Some(tiles) = crate::tiles::fp16::Avx512Fp16::new(Isa::best()) {
                let ($tiles, $vectors) = (tiles, vectors);
                ran.push(begin("AVX-512 multiply-adds of fp16"));
                $body
            }
            if let Some(tiles) = crate::tiles::fma::Avx512Fma::new(Isa::best()) {
                let ($tiles, $vectors) = (tiles, vectors);
                ran.push(begin("AVX-512 multiply-adds"));
                $body
            }
            if let Some(amx) = Isa::best().amx() {
                let ($tiles, $vectors) = (NativeTiles::new(amx), vectors);
                ran.push(begin("AMX"));
                $body
            }
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if Isa::best().amx().is_none() {
            let ($tiles, $vectors) = (crate::tiles::trap::tiles(), PortableVectors);
            ran.push(begin("the instructions of AMX, trapped"));
            $body
        }
        eprintln!("ran on: {}; {}", ran.join(", "), Isa::amx_status());
    }};
}

const B_BYTES: usize = EmulatedTiles::B_BYTES;

/// How exact the sums of a unit are.
trait Precision: Copy {
    const IN_FP16: bool = false;

    /// Most that a sum of `k` products may err, whose magnitudes add up to `size`, those of the largest operands being
    /// `a` and `b`.
    fn bound(self, k: usize, size: f64, _a: f64, _b: f64) -> f64 {
        // Products of bf16 are exact in fp32; each of up to k additions in any order errs by at
        // most 2^-24 of a partial sum, which is at most `size` (Higham, "Accuracy and Stability
        // of Numerical Algorithms", section 4.2), and padding adds none. Twice that for the
        // second order terms. 1e-30: a subnormal that counts as zero.
        2.0 * k as f64 * 2f64.powi(-24) * size + 1e-30
    }
}

impl Precision for EmulatedTiles {}
#[cfg(target_arch = "x86_64")]
impl Precision for crate::tiles::fma::Avx2Fma {}
#[cfg(target_arch = "x86_64")]
impl Precision for crate::tiles::fma::Avx512Fma {}
#[cfg(target_arch = "x86_64")]
impl Precision for crate::tiles::dot::Avx512Dot {}
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Precision for NativeTiles {}
#[cfg(target_arch = "x86_64")]
impl Precision for crate::tiles::fp16::Avx512Fp16 {
    const IN_FP16: bool = true;

    fn bound(self, k: usize, size: f64, a: f64, b: f64) -> f64 {
        // At most 32 additions to a sum and one of two sums, each of 2^-11 of a partial sum, in groups whose sums err as
        // above. An operand less than 2^-18 of the largest loses bits: 2^-29 of the largest, of either.
        let additions = 1.05 * k.div_ceil(2).min(32) as f64 + 1.0;
        let scaled = k as f64 * 2.0 * 2f64.powi(-28) * a * b;
        additions * 2f64.powi(-11) * size + scaled + 2.0 * k as f64 * 2f64.powi(-24) * size + 1e-30
    }
}

/// Lets the compiler find what a unit is.
fn in_fp16<T: Precision>(_: T) -> bool {
    T::IN_FP16
}

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
fn bf16_results_are_rounded_to_nearest_even_and_keep_infinities_and_nan() {
    // 1 · x for x between two bf16: ties, just above and below, overflow, and special values, made of two
    // products, high part and low part.
    let high_low = [
        (1.0, 2f32.powi(-8)),                  // tie, to even: 1
        (1.0 + 2f32.powi(-7), 2f32.powi(-8)),  // tie, to even: 1 + 2^-6
        (1.0, 2f32.powi(-8) + 2f32.powi(-15)), // above a tie
        (1.0, 2f32.powi(-8) - 2f32.powi(-16)), // below a tie
        (-1.0, -(2f32.powi(-8))),              // tie, negative
        (3.38e38, 0.99e36),                    // rounds to infinity
        (f32::INFINITY, 1.0),
        (f32::NEG_INFINITY, 1.0),
        (f32::NAN, 1.0),
    ];
    let a = Stored::new(high_low.len(), 2, DENSE, |row, k| {
        bf16::from_f32(if k == 0 { high_low[row].0 } else { high_low[row].1 })
    });
    let b = vec![bf16::ONE; 2 * 40];
    on_every_unit!(|tiles, vectors| {
        let mut c = vec![bf16::ZERO; high_low.len() * 40];
        let product = Product { tiles, vectors, accumulate: false };
        product.run(a.view(), B::View(MatrixRef::new(&b, 2, 40)), &mut c, 40, &mut Scratch::new());
        for (row, c) in c.chunks_exact(40).enumerate() {
            let sum = a.view().at(row, 0).to_f32() + a.view().at(row, 1).to_f32();
            let special = !a.view().at(row, 0).is_finite();
            for &got in c.iter().filter(|_| special || !in_fp16(tiles)) {
                let same = got == bf16::from_f32(sum) || (got.is_nan() && sum.is_nan());
                assert!(same, "row {row}: {got} is not {sum} rounded");
            }
        }
    });
}

/// Random numbers of a normal distribution's shape, by adding up uniform ones.
fn bell(random: &mut crate::reference::Random) -> f32 {
    (0..6).map(|_| random.uniform()).sum::<f32>() / 2f32.sqrt()
}

#[test]
fn sums_err_by_less_than_the_rounding_of_their_operands_to_bf16() {
    let (m, k, n) = (64, 1024, 64);
    let mut random = crate::reference::Random::new(5);
    // Rows and columns of very different sizes, as gradients have.
    let a_exact: Vec<f32> =
        (0..m * k).map(|at| bell(&mut random) * 2f32.powi((at / k % 12) as i32 * 3 - 50)).collect();
    let b_exact: Vec<f32> =
        (0..k * n).map(|at| bell(&mut random) * 2f32.powi((at % n % 5) as i32 * 3)).collect();
    let a = Stored::new(m, k, DENSE, |row, k_at| bf16::from_f32(a_exact[row * k + k_at]));
    let b = Stored::new(k, n, DENSE, |k_at, col| bf16::from_f32(b_exact[k_at * n + col]));
    on_every_unit!(|tiles, vectors| {
        let mut c = vec![0.0f32; m * n];
        Product { tiles, vectors, accumulate: false }.run(
            a.view(),
            B::View(b.view()),
            &mut c,
            n,
            &mut Scratch::new(),
        );
        // Squares of errors in units of each sum's own deviation.
        let (mut by_sums, mut by_operands) = (0.0, 0.0);
        for (at, got) in c.iter().enumerate() {
            let (row, col) = (at / n, at % n);
            let [mut rounded, mut exact, mut size] = [0.0f64; 3];
            for k_at in 0..k {
                rounded += a.view().at(row, k_at).to_f64() * b.view().at(k_at, col).to_f64();
                let product = f64::from(a_exact[row * k + k_at]) * f64::from(b_exact[k_at * n + col]);
                exact += product;
                size += product * product;
            }
            by_sums += (f64::from(*got) - rounded).powi(2) / size;
            by_operands += (exact - rounded).powi(2) / size;
        }
        let [by_sums, by_operands] = [by_sums, by_operands].map(|squares| (squares / (m * n) as f64).sqrt());
        eprintln!("deviation by sums {by_sums:.2e}, by operands {by_operands:.2e}");
        assert!(by_sums < by_operands / if in_fp16(tiles) { 2.0 } else { 1000.0 });
    });
}

#[test]
fn what_is_far_below_the_largest_of_its_group_loses_no_more_than_a_billionth_of_it() {
    let depth = 40;
    let small = |k: usize| 2f32.powi(-(k as i32));
    // One large element; the second row and all others are smaller and smaller.
    let a = Stored::new(2, depth, DENSE, |row, k| {
        bf16::from_f32(if row == 0 && k == 0 { 3.0 } else { small(k) })
    });
    let b = Stored::new(depth, depth, DENSE, |k, col| bf16::from_f32(f32::from(u8::from(k == col))));
    on_every_unit!(|tiles, vectors| {
        let mut c = vec![0.0f32; 2 * depth];
        Product { tiles, vectors, accumulate: false }.run(
            a.view(),
            B::View(b.view()),
            &mut c,
            depth,
            &mut Scratch::new(),
        );
        for (k, got) in c[depth..].iter().enumerate() {
            let lost = if in_fp16(tiles) && k > 26 { 2f32.powi(-28) } else { 0.0 };
            assert!((got - small(k)).abs() <= lost, "2^-{k} became {got}");
        }
    });
}

#[test]
fn a_group_of_the_largest_values_does_not_overflow() {
    for value in [255.0 * 2f32.powi(-7), f32::MAX / 1e21, 1e-18, 0.0] {
        let a = Stored::new(33, 256, DENSE, |_, _| bf16::from_f32(value));
        on_every_unit!(|tiles, vectors| {
            let mut c = vec![0.0f32; 33 * 33];
            Product { tiles, vectors, accumulate: false }.run(
                a.view(),
                B::View(a.view().transposed()),
                &mut c,
                33,
                &mut Scratch::new(),
            );
            let held = a.view().at(0, 0).to_f64();
            let (expected, size) = (256.0 * held * held, 256.0 * held * held);
            for got in &c {
                assert!(
                    (f64::from(*got) - expected).abs() <= tiles.bound(256, size, held, held),
                    "{got} for {expected}"
                );
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn products_of_real_numbers_are_as_close_as_the_sums_of_the_unit_can_be(
        (m, k, n) in (1usize..70, 1usize..300, 1usize..70),
        a_layout in 0usize..4,
        b_layout in 0usize..4,
        seed in any::<u64>(),
    ) {
        let random = |salt: u64, row: usize, col: usize| {
            let mut x = seed ^ (salt << 60) ^ ((row as u64) << 32) ^ col as u64;
            // Steele, Lea and Flood's SplitMix64, to make numbers of indices.
            x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            bf16::from_f32(((x ^ (x >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        let a = Stored::new(m, k, LAYOUTS[a_layout], |row, k| random(1, row, k));
        let b = Stored::new(k, n, LAYOUTS[b_layout], |k, col| random(2, k, col));
        on_every_unit!(|tiles, vectors| {
            let product = Product { tiles, vectors, accumulate: false };
            let (mut wide, mut narrow) = (vec![0.0f32; m * n], vec![bf16::ZERO; m * n]);
            product.run(a.view(), B::View(b.view()), &mut wide, n, &mut Scratch::new());
            product.run(a.view(), B::View(b.view()), &mut narrow, n, &mut Scratch::new());
            for row in 0..m {
                for col in 0..n {
                    let products = (0..k).map(|k| a.view().at(row, k).to_f64() * b.view().at(k, col).to_f64());
                    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let bound = tiles.bound(k, size, 1.0, 1.0);
                    let got = f64::from(wide[row * n + col]);
                    prop_assert!((got - sum).abs() <= bound, "{got} is not {sum} within {bound}");
                    // bf16 has 8 significant bits: rounding errs by at most 2^-8 of the value.
                    let bound = bound + 2f64.powi(-8) * (sum.abs() + bound);
                    let got = narrow[row * n + col].to_f64();
                    prop_assert!((got - sum).abs() <= bound, "{got} is not {sum} within {bound}");
                }
            }
        });
    }
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
