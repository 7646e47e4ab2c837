//! The minimiser of the fit.
//!
//! Loss = E + A/N^α + B/D^β, fitted as in Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models",
//! appendix D.3): the Huber loss with δ = 10⁻³ between the logarithms of both sides, the left one as a log-sum-exp. Far
//! from the solution that is an absolute error, which one odd run does not move much. Instead of L-BFGS, each start is
//! improved by iteratively reweighted least squares with Levenberg and Marquardt's damping: five unknowns need no
//! approximation of their second derivatives.

use super::{Law, Sample};

/// Where the Huber loss turns from square to absolute, in nats of log loss.
const DELTA: f64 = 1e-3;
/// Bounds of the exponents. What was published for this form lies between 0.28 and 0.37 (Hoffmann et al. 2022; Besiroglu et al.
/// 2024, "Chinchilla Scaling: A replication attempt"). A few dozen short runs do not tell the exponents from E, and a fit that
/// is free to makes the law a constant or a cliff just beyond the runs it saw.
const EXPONENTS: (f64, f64) = (0.15, 0.6);
const STEPS: usize = 300;

/// e, a, b, α, β with E = exp(e), and a and b the logarithms of the two terms at the centre of the samples, where they
/// depend least on the exponents.
type Vector = [f64; 5];

/// Samples as the minimiser wants them: logarithms, from the centre.
pub(super) struct Problem {
    centre: (f64, f64),
    /// ln N and ln D from the centre, ln loss.
    rows: Vec<(f64, f64, f64)>,
}

impl Problem {
    pub fn new(samples: &[Sample]) -> Problem {
        let count = samples.len() as f64;
        let mean = |pick: fn(&Sample) -> f64| samples.iter().map(|s| pick(s).ln()).sum::<f64>() / count;
        let centre = (mean(|s| s.parameters), mean(|s| s.tokens));
        let row = |s: &Sample| (s.parameters.ln() - centre.0, s.tokens.ln() - centre.1, s.loss.ln());
        Problem { centre, rows: samples.iter().map(row).collect() }
    }

    /// The same with other samples of the same kind, by their places.
    pub fn resampled(&self, places: &[usize]) -> Problem {
        Problem { centre: self.centre, rows: places.iter().map(|place| self.rows[*place]).collect() }
    }

    /// The best law from a grid of starts.
    pub fn solve(&self) -> Law {
        let losses = self.rows.iter().map(|row| row.2.exp());
        let lowest = losses.clone().fold(f64::INFINITY, f64::min);
        let mean = losses.sum::<f64>() / self.rows.len() as f64;
        let mut starts = Vec::new();
        for floor in [0.3, 0.6, 0.85, 0.97] {
            let above = (mean - floor * lowest).max(1e-6);
            for share in [0.2, 0.5, 0.8] {
                for alpha in [0.2, 0.35, 0.5] {
                    for beta in [0.2, 0.35, 0.5] {
                        let (a, b) = ((share * above).ln(), ((1.0 - share) * above).ln());
                        starts.push([(floor * lowest).ln(), a, b, alpha, beta]);
                    }
                }
            }
        }
        self.law(self.best(starts))
    }

    /// The best law near another and from a few more starts: for the many fits of a bootstrap.
    pub fn solve_near(&self, law: &Law) -> Law {
        let a = law.a.ln() - law.alpha * self.centre.0;
        let b = law.b.ln() - law.beta * self.centre.1;
        let e = law.e.ln();
        let mut starts = vec![[e, a, b, law.alpha, law.beta]];
        for (alpha, beta) in [(0.2, 0.2), (0.2, 0.5), (0.5, 0.2), (0.5, 0.5)] {
            starts.push([e, a, b, alpha, beta]);
            starts.push([e - 0.3, a, b, alpha, beta]);
        }
        self.law(self.best(starts))
    }

    fn best(&self, starts: Vec<Vector>) -> Vector {
        let solved = starts.into_iter().map(|start| self.improve(start));
        let best = solved.min_by(|a, b| a.0.total_cmp(&b.0));
        // There is always a start.
        best.map_or([0.0; 5], |(_, vector)| vector)
    }

    fn law(&self, [e, a, b, alpha, beta]: Vector) -> Law {
        Law {
            e: e.exp(),
            a: (a + alpha * self.centre.0).exp(),
            b: (b + beta * self.centre.1).exp(),
            alpha,
            beta,
        }
    }

    /// What is minimised.
    fn objective(&self, vector: &Vector) -> f64 {
        let huber = |residual: f64| match residual.abs() {
            size if size <= DELTA => 0.5 * size * size,
            size => DELTA * (size - 0.5 * DELTA),
        };
        self.rows.iter().map(|row| huber(residual(vector, row).0)).sum()
    }

    /// Descends from `start`; returns the objective and where it is.
    fn improve(&self, start: Vector) -> (f64, Vector) {
        let mut at = start;
        let mut value = self.objective(&at);
        let mut damping = 1e-3;
        let mut idle = 0;
        for _ in 0..STEPS {
            let mut matrix = [[0.0; 5]; 5];
            let mut gradient = [0.0; 5];
            for row in &self.rows {
                let (residual, slope) = residual(&at, row);
                let weight = (DELTA / residual.abs()).min(1.0);
                for i in 0..5 {
                    gradient[i] += weight * residual * slope[i];
                    for j in 0..5 {
                        matrix[i][j] += weight * slope[i] * slope[j];
                    }
                }
            }
            // An exponent that would leave its bounds stays there, and the others find their best without it.
            for i in 3..5 {
                let outwards = if gradient[i] > 0.0 { EXPONENTS.0 } else { EXPONENTS.1 };
                if at[i] == outwards {
                    gradient[i] = 0.0;
                    matrix[i] = [0.0; 5];
                    matrix.iter_mut().for_each(|row| row[i] = 0.0);
                    matrix[i][i] = 1.0;
                }
            }
            let largest = (0..5).map(|i| matrix[i][i]).fold(0.0, f64::max);
            for (i, row) in matrix.iter_mut().enumerate() {
                row[i] += damping * row[i] + 1e-12 * largest.max(1e-12);
            }
            let Some(step) = solve(matrix, gradient) else { break };
            let mut next: Vector = std::array::from_fn(|i| at[i] - step[i]);
            next.iter_mut().take(3).for_each(|value| *value = value.clamp(-30.0, 30.0));
            next.iter_mut().skip(3).for_each(|value| *value = value.clamp(EXPONENTS.0, EXPONENTS.1));
            let found = self.objective(&next);
            if found < value {
                idle = if value - found < 1e-9 * value { idle + 1 } else { 0 };
                (at, value) = (next, found);
                damping = (damping / 4.0).max(1e-12);
            } else {
                damping *= 5.0;
            }
            if idle > 5 || damping > 1e10 {
                break;
            }
        }
        (value, at)
    }
}

/// Log of the law less log of the loss, and its slope along each unknown.
fn residual([e, a, b, alpha, beta]: &Vector, (n, d, loss): &(f64, f64, f64)) -> (f64, Vector) {
    let terms = [*e, a - alpha * n, b - beta * d];
    let highest = terms.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let parts = terms.map(|term| (term - highest).exp());
    let sum: f64 = parts.iter().sum();
    let [of_e, of_a, of_b] = parts.map(|part| part / sum);
    (highest + sum.ln() - loss, [of_e, of_a, of_b, -of_a * n, -of_b * d])
}

/// Solves five linear equations by elimination with pivots; `None` when they have no one solution.
fn solve(mut matrix: [[f64; 5]; 5], mut right: Vector) -> Option<Vector> {
    for column in 0..5 {
        let pivot =
            (column..5).max_by(|a, b| matrix[*a][column].abs().total_cmp(&matrix[*b][column].abs()))?;
        let size = matrix[pivot][column].abs();
        if size.is_nan() || size <= 1e-300 {
            return None;
        }
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        let of_pivot = matrix[column];
        for row in column + 1..5 {
            let factor = matrix[row][column] / of_pivot[column];
            matrix[row].iter_mut().zip(of_pivot).for_each(|(value, pivot)| *value -= factor * pivot);
            right[row] -= factor * right[column];
        }
    }
    for row in (0..5).rev() {
        let known: f64 = (row + 1..5).map(|k| matrix[row][k] * right[k]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right.iter().all(|value| value.is_finite()).then_some(right)
}
