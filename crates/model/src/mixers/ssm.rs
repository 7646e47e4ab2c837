//! The state-space mixer of Mamba-2 (Dao and Gu, 2024): a projection to gates, inputs and time steps, a short
//! convolution, a scan whose state has a fixed size, a gated norm, a projection back. On disk as `Mamba2Mixer` of
//! transformers.

use super::{CacheFormat, Carried, Kind, Mixer, Packed, Piece, Start, Step, Weight, Whole};
use crate::Config;
use serde::{Deserialize, Serialize};
use strata_tensor::ops::{ScanParameters, ScanShape};
use strata_tensor::recurrent::{self, Carrying, Decay, Filter};
use strata_tensor::{Activation, Cpu, Isa, Tape, Var, infer};

/// The shape of state-space mixers; the names of transformers in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SsmShape {
    /// Elements of all heads per element of the residual stream (`expand`).
    pub expand: usize,
    /// Elements of a head (`head_dim`).
    pub head_dim: usize,
    /// Numbers of state per element of a head (`state_size`).
    pub state: usize,
    /// Groups of heads with inputs and outputs of the state in common (`n_groups`).
    pub groups: usize,
    /// Tokens that the convolution reads (`conv_kernel`).
    pub kernel: usize,
    /// Shortest time step (`time_step_limit`).
    pub shortest: f64,
    /// Longest time step; `None` is no limit (`time_step_limit`).
    pub longest: Option<f64>,
}

impl Default for SsmShape {
    fn default() -> SsmShape {
        SsmShape { expand: 2, head_dim: 64, state: 64, groups: 1, kernel: 4, shortest: 0.0, longest: None }
    }
}

impl SsmShape {
    /// Elements of all heads.
    pub fn inner(&self, width: usize) -> usize {
        self.expand * width
    }

    /// The field that does not fit, what was expected, and what it is; `width` is the model's.
    pub(crate) fn problem(&self, width: usize) -> Option<(&'static str, String, String)> {
        let sizes = [
            ("expand", self.expand, 1 << 10),
            ("head_dim", self.head_dim, 1 << 14),
            ("state_size", self.state, 1 << 14),
            ("n_groups", self.groups, 1 << 14),
            ("conv_kernel", self.kernel, 1 << 10),
        ];
        for (field, value, largest) in sizes {
            if value == 0 || value > largest {
                return Some((field, format!("a number from 1 to {largest}"), value.to_string()));
            }
        }
        let inner = self.inner(width);
        if !inner.is_multiple_of(self.head_dim) {
            let expected = format!("a divisor of expand · hidden_size = {inner}");
            return Some(("head_dim", expected, self.head_dim.to_string()));
        }
        let heads = inner / self.head_dim;
        if !heads.is_multiple_of(self.groups) {
            let expected = format!("a divisor of the {heads} heads (expand · hidden_size / head_dim)");
            return Some(("n_groups", expected, self.groups.to_string()));
        }
        let longest = self.longest.unwrap_or(f64::INFINITY);
        if !(self.shortest >= 0.0 && longest > self.shortest) {
            let expected = "two numbers, 0 or more, the first below the second".to_string();
            return Some(("time_step_limit", expected, format!("[{}, {longest}]", self.shortest)));
        }
        None
    }
}

/// Places of the weights.
const IN: usize = 0;
const CONV: usize = 1;
const CONV_BIAS: usize = 2;
const STEP_BIAS: usize = 3;
const A_LOG: usize = 4;
const SKIP: usize = 5;
const NORM: usize = 6;
const OUT: usize = 7;

/// A Mamba-2 mixer of a configuration's shape.
#[derive(Debug)]
pub(crate) struct Ssm {
    width: usize,
    kernel: usize,
    epsilon: f32,
    scan: ScanShape,
}

impl Ssm {
    pub fn new(config: &Config) -> Ssm {
        let shape = config.mixing.ssm;
        let longest = shape.longest.map_or(f32::INFINITY, |longest| longest as f32);
        let scan = ScanShape {
            heads: shape.inner(config.width) / shape.head_dim,
            dimension: shape.head_dim,
            groups: shape.groups,
            state: shape.state,
            limits: (shape.shortest as f32, longest),
        };
        Ssm { width: config.width, kernel: shape.kernel, epsilon: config.norm_epsilon, scan }
    }

    /// Elements of the first projection: gates, what the convolution reads, raw time steps.
    fn row(&self) -> usize {
        self.scan.inner() + self.scan.row() + self.scan.heads
    }

    /// Numbers of the two parts of a state: the convolution's last inputs, and the scan's.
    fn state(&self) -> (usize, usize) {
        ((self.kernel - 1) * self.scan.row(), self.scan.inner() * self.scan.state)
    }
}

impl Mixer for Ssm {
    fn weights(&self) -> Vec<Weight> {
        let (heads, inner, channels) = (self.scan.heads, self.scan.inner(), self.scan.row());
        // Decays from 1 to 16 per unit of time, and time steps from 0.001 to 0.1, as in the reference; the latter in
        // another order, so that all combinations occur.
        let part = |i: usize| (i as f64 + 0.5) / heads as f64;
        let a_log = (0..heads).map(|i| (1.0 + 15.0 * part(i)).ln() as f32).collect();
        let bias = (0..heads).map(|i| {
            let step = 0.001 * 100f64.powf((i as f64 * 0.618_033_988_749_895).fract());
            // The inverse of softplus.
            (step + (-(-step).exp_m1()).ln()) as f32
        });
        vec![
            Weight::projection("mixer.in_proj.weight", self.row(), self.width, Start::Normal),
            Weight {
                shape: (channels, self.kernel),
                kind: Kind::Table,
                tensors: vec![("mixer.conv1d.weight", vec![channels, 1, self.kernel])],
                start: Start::Normal,
            },
            Weight::vector("mixer.conv1d.bias", channels, Start::Fill(0.0)),
            Weight::vector("mixer.dt_bias", heads, Start::Values(bias.collect())),
            Weight::vector("mixer.A_log", heads, Start::Values(a_log)),
            Weight::vector("mixer.D", heads, Start::Fill(1.0)),
            Weight::vector("mixer.norm.weight", inner, Start::Fill(1.0)),
            Weight::projection("mixer.out_proj.weight", self.width, inner, Start::Residual),
        ]
    }

    fn forward<E: Activation>(&self, tape: &mut Tape<'_, E>, whole: &Whole<'_>) -> Var {
        let (weights, inner, channels) = (whole.weights, self.scan.inner(), self.scan.row());
        let projected = tape.linear(whole.x, weights[IN]);
        let read = inner..inner + channels;
        let convolved = tape.conv_silu(projected, read, weights[CONV], weights[CONV_BIAS], whole.starts);
        let parameters = ScanParameters { a_log: weights[A_LOG], d: weights[SKIP], bias: weights[STEP_BIAS] };
        let steps = (projected, inner + channels);
        let scanned = tape.ssm_scan(convolved, steps, parameters, self.scan, whole.starts);
        let normed =
            tape.gated_norm(scanned, projected, 0..inner, weights[NORM], self.scan.groups, self.epsilon);
        tape.linear_residual(normed, weights[OUT], whole.residual)
    }

    fn new_state(&self, _: Isa, _: CacheFormat) -> Carried {
        let (conv, scan) = self.state();
        Carried::Fixed(vec![0.0; conv + scan])
    }

    fn step(&self, cpu: &Cpu, weights: &[Packed], step: Step<'_, '_>) {
        let (inner, channels, row) = (self.scan.inner(), self.scan.row(), self.row());
        let rows = step.x.len() / self.width;
        let mut projected = step.buffers.take::<f32>(rows * row);
        infer::project(cpu, step.x, weights[IN].projection(), step.words, &mut projected);
        let (conv_state, _) = self.state();
        let (mut convolutions, mut scans) = (Vec::new(), Vec::new());
        for Piece { carried, new, .. } in step.pieces.iter_mut() {
            let (conv, scan) = carried.fixed().split_at_mut(conv_state);
            convolutions.push(Carrying { new: *new, state: conv });
            scans.push(Carrying { new: *new, state: scan });
        }
        let filter = Filter { weight: weights[CONV].plain(), bias: weights[CONV_BIAS].plain() };
        let mut convolved = step.buffers.take::<f32>(rows * channels);
        let read = inner..inner + channels;
        recurrent::conv_silu(cpu, &projected, row, read, filter, convolutions, &mut convolved);
        let a: Vec<f32> = weights[A_LOG].plain().iter().map(|a| -a.exp()).collect();
        let decay = Decay {
            a: &a,
            d: weights[SKIP].plain(),
            bias: weights[STEP_BIAS].plain(),
            limits: self.scan.limits,
        };
        let mut scanned = step.buffers.take::<f32>(rows * inner);
        let steps = (row, inner + channels);
        recurrent::ssm(cpu, self.scan, &convolved, &projected, steps, decay, scans, &mut scanned);
        let wanted = step.keep_wanted(&mut scanned, inner);
        step.keep_wanted(&mut projected, row);
        let mut normed = step.buffers.take::<f32>(wanted * inner);
        let (values, gates) = (&scanned[..wanted * inner], &projected[..wanted * row]);
        let groups = (self.scan.groups, self.epsilon);
        recurrent::gated_norm(cpu, values, gates, row, 0..inner, weights[NORM].plain(), groups, &mut normed);
        infer::project(cpu, &normed, weights[OUT].projection(), step.words, step.y);
        [projected, convolved, scanned, normed].into_iter().for_each(|buffer| step.buffers.give(buffer));
    }

    fn state_bytes(&self, _: usize, _: CacheFormat) -> usize {
        let (conv, scan) = self.state();
        (conv + scan) * size_of::<f32>()
    }

    fn flops(&self, length: usize) -> f64 {
        // Pairs inside a chunk (half of them), for every head and, the scores, for every block of heads; reading and
        // writing of the states between chunks.
        let chunk = strata_tensor::ops::CHUNK.min(length) as f64;
        let (inner, state) = (self.scan.inner() as f64, self.scan.state as f64);
        let scores = self.scan.score_blocks() as f64 * state;
        (inner + scores) * chunk + 4.0 * inner * state + 2.0 * (self.kernel * self.scan.row()) as f64
    }
}
