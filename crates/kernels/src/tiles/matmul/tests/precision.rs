//! How exact products of real numbers are.

use super::*;
use proptest::prelude::*;

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
