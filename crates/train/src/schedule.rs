//! The learning rate over a run: warm-up, then decay.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine: slow, fast, slow.
    Cosine,
    /// A straight line.
    Linear,
}

/// A learning-rate schedule over the fraction of the run that is done, whether the run is measured in steps
/// or in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Learning rate at the end of the warm-up.
    pub peak: f64,
    /// Fraction of the run during which the rate rises from 0 to `peak`.
    pub warmup: f64,
    /// Form of the fall.
    pub decay: Decay,
    /// Learning rate at the end, as a fraction of `peak`.
    pub floor: f64,
}

impl Schedule {
    /// Learning rate when `fraction` (0 to 1, clamped) of the run is done.
    pub fn learning_rate(&self, fraction: f64) -> f64 {
        let fraction = fraction.clamp(0.0, 1.0);
        if fraction < self.warmup {
            return self.peak * fraction / self.warmup;
        }
        let fallen = ((fraction - self.warmup) / (1.0 - self.warmup).max(f64::MIN_POSITIVE)).min(1.0);
        let height = match self.decay {
            Decay::Linear => 1.0 - fallen,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * fallen).cos()),
        };
        self.peak * (self.floor + (1.0 - self.floor) * height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 2e-3, warmup: 0.1, decay, floor: 0.05 }
    }

    #[test]
    fn the_corners_are_where_they_should_be() {
        for decay in [Decay::Cosine, Decay::Linear] {
            let schedule = schedule(decay);
            // One rounding of f64 is the only difference allowed.
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-15;
            assert!(close(schedule.learning_rate(0.0), 0.0));
            assert!(close(schedule.learning_rate(0.05), 1e-3));
            assert!(close(schedule.learning_rate(0.1), 2e-3));
            assert!(close(schedule.learning_rate(0.55), 2e-3 * 0.525));
            assert!(close(schedule.learning_rate(1.0), 1e-4));
            assert!(close(schedule.learning_rate(7.0), 1e-4));
        }
    }

    proptest! {
        #[test]
        fn it_rises_then_falls_and_stays_in_bounds(a in 0.0f64..1.0, b in 0.0f64..1.0, linear in any::<bool>()) {
            let schedule = schedule(if linear { Decay::Linear } else { Decay::Cosine });
            let (a, b) = (a.min(b), a.max(b));
            let (first, second) = (schedule.learning_rate(a), schedule.learning_rate(b));
            prop_assert!((0.0..=2e-3).contains(&first));
            if b <= 0.1 { prop_assert!(first <= second) }
            if a >= 0.1 { prop_assert!(first >= second) }
        }
    }
}
