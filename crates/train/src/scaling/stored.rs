//! A law with what it was made of, as a file that the dial reads.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_model::Home;

use super::{LEVEL, Law, Optimum, Sample, bootstrap, fit, interval};
use crate::TrainError;
use crate::trials::{hexadecimal, read_whole, write_whole};

/// What the runs were trained on: losses per token are comparable only where all of it is the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Corpus {
    /// Its files as they were called.
    pub files: Vec<String>,
    /// Tokens of its training part.
    pub tokens: u64,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// SHA-256 of the tokenizer.
    pub tokenizer_sha256: String,
    /// Tokens per row.
    pub sequence: usize,
}

impl Corpus {
    /// In what a run differs so that its loss per token is another measure, in words; `None` where it does not.
    pub fn differs(&self, tokenizer_sha256: &[u8; 32], sequence: usize) -> Option<String> {
        if self.tokenizer_sha256 != hexadecimal(tokenizer_sha256) {
            return Some(format!(
                "another tokenizer ({} tokens, learnt from other text or cut to another number)",
                self.vocab_size
            ));
        }
        (self.sequence != sequence)
            .then(|| format!("rows of {} tokens, and this run has {sequence}", self.sequence))
    }
}

/// A prediction of the largest run by a law that saw only much smaller ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutTest {
    /// The law that was tested.
    pub law: Law,
    /// How many runs it saw.
    pub runs: usize,
    /// The most compute among them, in floating-point operations.
    pub most_flops: f64,
    /// The run that it did not see.
    pub run: Sample,
    /// The loss that it gives for it.
    pub predicted: f64,
    /// The interval of predictions.
    pub interval: (f64, f64),
    /// Predicted over actual loss, less one, in percent.
    pub error_percent: f64,
}

/// Intervals of the numbers of a law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of Law")]
pub struct Intervals {
    pub e: (f64, f64),
    pub a: (f64, f64),
    pub b: (f64, f64),
    pub alpha: (f64, f64),
    pub beta: (f64, f64),
}

/// The law of one mixer on one corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalingLaw {
    /// The mixer's name on the command line.
    pub mixer: String,
    /// The run of `strata scale` that made it.
    pub made_by: String,
    /// What it was made on.
    pub corpus: Corpus,
    /// Fitted to all runs, the largest too.
    pub law: Law,
    /// The middle share of resamples within the intervals.
    pub level: f64,
    /// Intervals of the law's numbers.
    pub intervals: Intervals,
    /// Floating-point operations per parameter and token, the geometric mean of the runs.
    pub flops_per_parameter_and_token: f64,
    /// The runs.
    pub runs: Vec<Sample>,
    /// The test on the largest run; none where too few runs are much smaller.
    pub test: Option<HeldOutTest>,
    /// Laws of the resamples.
    pub resamples: Vec<Law>,
    /// Program and version.
    pub software: String,
}

/// Resamples of the runs: enough for the ends of a 90 % interval.
const RESAMPLES: usize = 400;

impl ScalingLaw {
    /// Fits a law to `runs`, and tests one that is fitted to those of `seen` alone on the largest run.
    ///
    /// # Errors
    /// As [`fit`].
    pub fn of(
        mixer: &str,
        made_by: &str,
        corpus: Corpus,
        runs: &[Sample],
        seen: &[Sample],
    ) -> Result<ScalingLaw, TrainError> {
        let largest = runs.iter().max_by(|a, b| a.flops.total_cmp(&b.flops)).copied();
        let test = match largest {
            // All runs may still be enough where those that are small are not; the error is then of the fit to all.
            Some(run) if !seen.contains(&run) && fit(seen).is_ok() => Some(HeldOutTest::of(seen, run)?),
            _ => None,
        };
        let law = fit(runs)?;
        let resamples = bootstrap(runs, RESAMPLES, 0)?;
        let of = |pick: fn(&Law) -> f64| interval(resamples.iter().map(pick));
        let intervals = Intervals {
            e: of(|law| law.e),
            a: of(|law| law.a),
            b: of(|law| law.b),
            alpha: of(|law| law.alpha),
            beta: of(|law| law.beta),
        };
        let rates = runs.iter().map(|run| (run.flops / (run.parameters * run.tokens)).ln());
        Ok(ScalingLaw {
            mixer: mixer.to_string(),
            made_by: made_by.to_string(),
            corpus,
            law,
            level: LEVEL,
            intervals,
            flops_per_parameter_and_token: (rates.sum::<f64>() / runs.len() as f64).exp(),
            runs: runs.to_vec(),
            test,
            resamples,
            software: crate::run::SOFTWARE.to_string(),
        })
    }

    /// The loss of a run, and the interval of it.
    pub fn predict(&self, parameters: f64, tokens: f64) -> (f64, (f64, f64)) {
        let all = self.resamples.iter().map(|law| law.loss(parameters, tokens));
        (self.law.loss(parameters, tokens), interval(all))
    }

    /// Where `flops` operations are spent best, and the interval of the loss there.
    pub fn optimum(&self, flops: f64) -> (Optimum, (f64, f64)) {
        let rate = self.flops_per_parameter_and_token;
        let best = self.law.optimum(flops, rate);
        let all = self.resamples.iter().map(|law| law.loss(best.parameters, best.tokens));
        (best, interval(all))
    }

    /// The most compute of a run that the law is made of.
    pub fn most_flops(&self) -> f64 {
        self.runs.iter().map(|run| run.flops).fold(0.0, f64::max)
    }

    /// Writes the law to where the dial finds it, in place of an earlier one of this mixer.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, home: &Home) -> Result<PathBuf, TrainError> {
        let path = path(home, &self.mixer);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
        write_whole(&path, self)?;
        Ok(path)
    }

    /// The law of a mixer; `None` where there is none.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn load(home: &Home, mixer: &str) -> Result<Option<ScalingLaw>, TrainError> {
        read_whole(&path(home, mixer))
    }
}

impl HeldOutTest {
    fn of(seen: &[Sample], run: Sample) -> Result<HeldOutTest, TrainError> {
        let law = fit(seen)?;
        let predict = |law: &Law| law.loss(run.parameters, run.tokens);
        let predicted = predict(&law);
        Ok(HeldOutTest {
            runs: seen.len(),
            most_flops: seen.iter().map(|run| run.flops).fold(0.0, f64::max),
            run,
            predicted,
            interval: interval(bootstrap(seen, RESAMPLES, 0)?.iter().map(predict)),
            error_percent: 100.0 * (predicted / run.loss - 1.0),
            law,
        })
    }
}

fn path(home: &Home, mixer: &str) -> PathBuf {
    home.path().join("laws").join(format!("{}.json", mixer.replace(':', "-")))
}
