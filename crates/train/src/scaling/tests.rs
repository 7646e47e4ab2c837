//! The fit on points whose law is known.

use proptest::prelude::*;

use super::*;

/// Near what small models of text have.
const TRUE: Law = Law { e: 2.1, a: 60.0, b: 190.0, alpha: 0.31, beta: 0.37 };

/// A ladder of 15 runs as `strata scale` makes them, with errors of `noise` in the logarithm of the loss.
fn ladder(law: Law, noise: f64, seed: u64) -> Vec<Sample> {
    let mut random = SplitMix(seed);
    let mut samples = Vec::new();
    for size in 0..5 {
        for halving in 0..3 {
            let parameters = 2.5e5 * 1.6f64.powi(size);
            let tokens = 3e12 / 6.0 / parameters / 2f64.powi(halving);
            // A sum of twelve uniform numbers is near enough to normal.
            let uniform = || random.below(1 << 30) as f64 / (1u64 << 30) as f64;
            let normal = std::iter::repeat_with(uniform).take(12).sum::<f64>() - 6.0;
            let loss = law.loss(parameters, tokens) * (noise * normal).exp();
            samples.push(Sample { parameters, tokens, flops: 6.0 * parameters * tokens, loss });
        }
    }
    samples
}

/// Relative error of the prediction for a run of eight times the largest compute.
fn error_of_prediction(law: &Law) -> f64 {
    let (parameters, tokens) = (6e5, 8.0 * 3e12 / 6.0 / 6e5);
    law.loss(parameters, tokens) / TRUE.loss(parameters, tokens) - 1.0
}

#[test]
fn points_without_noise_give_the_law_back() {
    let law = fit(&ladder(TRUE, 0.0, 0)).unwrap();
    for (found, wanted, what) in [
        (law.e, TRUE.e, "E"),
        (law.alpha, TRUE.alpha, "alpha"),
        (law.beta, TRUE.beta, "beta"),
        (law.a.ln(), TRUE.a.ln(), "ln A"),
        (law.b.ln(), TRUE.b.ln(), "ln B"),
    ] {
        // The minimum is flat along E against the exponents: the objective's last digits are some 1e-4 of these.
        assert!((found / wanted - 1.0).abs() < 1e-2, "{what}: {found}, expected {wanted}");
    }
    assert!(error_of_prediction(&law).abs() < 1e-4, "{}", error_of_prediction(&law));
}

#[test]
fn noise_moves_the_prediction_no_further_than_itself() {
    for seed in 0..5 {
        let samples = ladder(TRUE, 3e-3, seed);
        let error = error_of_prediction(&fit(&samples).unwrap());
        // 0.3 % of noise on each of 15 points; an extrapolation by 8 may multiply it by a few.
        assert!(error.abs() < 0.02, "seed {seed}: {error}");
    }
}

#[test]
fn one_odd_run_does_not_move_the_law_much() {
    let mut samples = ladder(TRUE, 1e-4, 1);
    samples[7].loss *= 1.1;
    let error = error_of_prediction(&fit(&samples).unwrap());
    // A tenth on one of 15 points; least squares would move the prediction by about a hundredth.
    assert!(error.abs() < 2e-3, "{error}");
}

#[test]
fn intervals_hold_the_truth_and_are_the_same_every_time() {
    let samples = ladder(TRUE, 2e-3, 3);
    let laws = bootstrap(&samples, 60, 5).unwrap();
    assert_eq!(laws.len(), 60);
    assert_eq!(laws, bootstrap(&samples, 60, 5).unwrap());
    let (low, high) = interval(laws.iter().map(error_of_prediction));
    assert!(low < high && low > -0.05 && high < 0.05, "{low} to {high}");
    // The middle 90 % of resamples may miss the truth by chance, but not by more than their own width.
    assert!(low - (high - low) < 0.0 && high + (high - low) > 0.0, "{low} to {high}");
}

#[test]
fn an_exponent_beyond_what_is_plausible_stays_at_the_bound_and_the_rest_fits_around_it() {
    for (alpha, beta, bound) in [(0.9, 0.35, 0.6), (0.35, 0.9, 0.6), (0.05, 0.35, 0.15)] {
        let law = Law { e: 2.0, a: 2.5e5f64.powf(alpha), b: 2e5f64.powf(beta), alpha, beta };
        let samples = ladder(law, 0.0, 0);
        let found = fit(&samples).unwrap();
        assert_eq!(if beta == 0.35 { found.alpha } else { found.beta }, bound, "{found:?}");
        // Nothing near it is better by the Huber loss of δ = 10⁻³, as far as within the bounds.
        let objective = |law: &Law| -> f64 {
            let errors = samples.iter().map(|s| (law.loss(s.parameters, s.tokens) / s.loss).ln().abs());
            errors.map(|e| if e < 1e-3 { 0.5 * e * e } else { 1e-3 * (e - 5e-4) }).sum()
        };
        let least = objective(&found);
        for factor in [0.999, 1.001] {
            let others = [
                Law { e: found.e * factor, ..found },
                Law { a: found.a * factor, ..found },
                Law { b: found.b * factor, ..found },
                Law { beta: (found.beta * factor).clamp(0.15, 0.6), ..found },
                Law { alpha: (found.alpha * factor).clamp(0.15, 0.6), ..found },
            ];
            for other in others {
                assert!(objective(&other) >= least - 1e-9, "{other:?} is better than {found:?}");
            }
        }
    }
}

#[test]
fn the_optimum_is_where_neither_a_larger_nor_a_smaller_model_is_better() {
    let (flops, rate) = (1e15, 6.3);
    let best = TRUE.optimum(flops, rate);
    assert!((best.parameters * best.tokens * rate / flops - 1.0).abs() < 1e-9);
    for factor in [0.9, 1.1] {
        let other = TRUE.loss(best.parameters * factor, best.tokens / factor);
        assert!(other > best.loss, "{factor}: {other} is not above {}", best.loss);
    }
}

#[test]
fn a_ladder_that_is_too_short_says_what_is_missing() {
    let samples = ladder(TRUE, 0.0, 0);
    let message = |samples: &[Sample]| fit(samples).unwrap_err().to_string();
    let short = message(&samples[..2]);
    assert!(short.contains("4 runs, 2 sizes, 1 budget of tokens missing"), "{short}");
    assert!(message(&samples[..5]).contains("1 run, 1 size missing"), "{}", message(&samples[..5]));
    assert!(message(&[]).contains("6 runs"));
    let one_size: Vec<Sample> = samples.iter().map(|sample| Sample { parameters: 1e6, ..*sample }).collect();
    assert!(message(&one_size).contains("2 sizes missing"));
}

#[test]
fn numbers_that_are_none_are_refused() {
    for value in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        let mut samples = ladder(TRUE, 0.0, 0);
        samples[3].loss = value;
        let message = fit(&samples).unwrap_err().to_string();
        assert!(message.contains("loss") && message.contains("leave that run out"), "{message}");
        let mut samples = ladder(TRUE, 0.0, 0);
        samples[3].tokens = value;
        assert!(fit(&samples).is_err() && bootstrap(&samples, 3, 0).is_err());
    }
}

#[test]
fn intervals_are_quantiles() {
    let (low, high) = interval((0..=100).map(f64::from));
    assert!((low - 5.0).abs() < 1e-9 && (high - 95.0).abs() < 1e-9);
    assert!(interval(std::iter::empty()).0.is_nan());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_sensible_law_is_found(
        e in 0.5f64..3.5, alpha in 0.2f64..0.6, beta in 0.2f64..0.6, of_a in 0.3f64..3.0, of_b in 0.3f64..3.0,
    ) {
        // Terms of `of_a` and `of_b` nats at the smallest run.
        let law = Law { e, a: of_a * 2.5e5f64.powf(alpha), b: of_b * 2e5f64.powf(beta), alpha, beta };
        let samples = ladder(law, 0.0, 0);
        let found = fit(&samples).unwrap();
        for sample in &samples {
            let loss = found.loss(sample.parameters, sample.tokens);
            // The Huber loss's own scale is 1e-3; a fit that is good has a tenth of it everywhere.
            prop_assert!((loss / sample.loss - 1.0).abs() < 1e-4, "{found:?} for {law:?}");
        }
        let (parameters, tokens) = (1e6, 4e6);
        let error = found.loss(parameters, tokens) / law.loss(parameters, tokens) - 1.0;
        prop_assert!(error.abs() < 5e-3, "{error}: {found:?} for {law:?}");
    }
}
