//! The diagonal state-space layer over packed segments.

use super::segments::{Segments, columns_of};
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, ParameterId};
use std::ops::Range;
use strata_kernels::grid;
use strata_kernels::s4d::{LANES, Lane, S4dChannels, s4d_backward, s4d_forward};

/// The parameters of a diagonal state-space layer of `channels` channels with so many complex states each.
#[derive(Clone, Copy, Debug)]
pub struct S4dParameters {
    /// Logarithm of the time step of every channel.
    pub log_step: ParameterId,
    /// (channels, states): `ln(−Re a)`.
    pub a_log: ParameterId,
    /// (channels, states): `Im a`.
    pub a_imaginary: ParameterId,
    /// (channels, states, 2): what a state gives to the result, real and imaginary part.
    pub c: ParameterId,
    /// Weight of the input itself, per channel.
    pub d: ParameterId,
}

/// The numbers of [`S4dParameters`].
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "as in S4dParameters")]
pub struct S4dNumbers<'a> {
    pub log_step: &'a [f32],
    pub a_log: &'a [f32],
    pub a_imaginary: &'a [f32],
    pub c: &'a [f32],
    pub d: &'a [f32],
}

type Complex = (f64, f64);

fn times(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

fn conjugate(a: Complex) -> Complex {
    (a.0, -a.1)
}

fn over(a: Complex, b: Complex) -> Complex {
    let size = b.0 * b.0 + b.1 * b.1;
    let product = times(a, conjugate(b));
    (product.0 / size, product.1 / size)
}

/// One state in continuous and in discrete time (zero-order hold).
struct State {
    step: f64,
    a: Complex,
    /// `exp(step · a)`
    decay: Complex,
    /// `2 (exp(step · a) − 1) / a`: what `c` is multiplied by; twice, for the conjugate states that are not kept.
    factor: Complex,
    c: Complex,
}

impl S4dNumbers<'_> {
    fn states(&self) -> usize {
        self.a_log.len() / self.log_step.len()
    }

    fn state(&self, channel: usize, m: usize) -> State {
        let i = channel * self.states() + m;
        let step = f64::from(self.log_step[channel]).exp();
        let a = (-f64::from(self.a_log[i]).exp(), f64::from(self.a_imaginary[i]));
        let size = (step * a.0).exp();
        let decay = (size * (step * a.1).cos(), size * (step * a.1).sin());
        let factor = over((2.0 * (decay.0 - 1.0), 2.0 * decay.1), a);
        State { step, a, decay, factor, c: (f64::from(self.c[2 * i]), f64::from(self.c[2 * i + 1])) }
    }

    /// The channels in discrete time, in groups of [`LANES`].
    pub fn channels(&self) -> Vec<S4dChannels> {
        let group = |channels: Range<usize>| {
            let mut group = S4dChannels::zeros(self.states());
            for (lane, channel) in channels.enumerate() {
                group.d[lane] = self.d[channel];
                for m in 0..self.states() {
                    let State { decay, factor, c, .. } = self.state(channel, m);
                    let g = times(c, factor);
                    (group.a[m][0][lane], group.a[m][1][lane]) = (decay.0 as f32, decay.1 as f32);
                    (group.g[m][0][lane], group.g[m][1][lane]) = (g.0 as f32, g.1 as f32);
                }
            }
            group
        };
        groups(self.log_step.len()).into_iter().map(group).collect()
    }
}

fn groups(channels: usize) -> Vec<Range<usize>> {
    (0..channels).step_by(LANES).map(|start| start..channels.min(start + LANES)).collect()
}

impl<E: Activation> Tape<'_, E> {
    /// `silu(v)` of the layer's result `v`, each segment from states of zeros; `x` has a column per channel.
    ///
    /// # Panics
    /// Where the shapes do not fit together.
    pub fn s4d(&mut self, x: Var, parameters: S4dParameters, starts: &[u32]) -> Var {
        let (rows, width) = (self.rows(x), self.width(x));
        let operation = S4d { x, parameters, segments: Segments::new(starts, rows).0 };
        let channels = operation.numbers(self).channels();
        assert_eq!(channels.len(), width.div_ceil(LANES), "s4d: the input's width is not the layer's");
        let mut y = self.buffers.take::<E>(rows * width);
        let groups = groups(width);
        let outputs = grid::split(&mut y, width, &operation.segments, &groups);
        let value = self.value(x);
        self.cpu.for_each(outputs.into_iter().enumerate().collect(), |(item, mut y)| {
            let (segment, group) = (&operation.segments[item / groups.len()], item % groups.len());
            let u = columns_of(value, width, groups[group].clone()).row_range(segment.clone());
            let mut states: Vec<[Lane; 2]> = vec![[[0.0; LANES]; 2]; channels[group].a.len()];
            s4d_forward(self.cpu.isa(), u, &channels[group], &mut states, &mut y);
        });
        self.push(width, y, operation)
    }
}

struct S4d {
    x: Var,
    parameters: S4dParameters,
    segments: Vec<Range<usize>>,
}

impl S4d {
    fn numbers<'a, E: Activation>(&self, tape: &'a Tape<'_, E>) -> S4dNumbers<'a> {
        let get = |id| tape.parameters.get(id);
        let S4dParameters { log_step, a_log, a_imaginary, c, d } = self.parameters;
        S4dNumbers {
            log_step: get(log_step),
            a_log: get(a_log),
            a_imaginary: get(a_imaginary),
            c: get(c),
            d: get(d),
        }
    }
}

impl<E: Activation> Operation<E> for S4d {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let width = tape.width(self.x);
        let channels = self.numbers(tape).channels();
        let states = channels.first().map_or(0, |group| group.a.len());
        let mut d_x = tape.buffers.take::<E>(d_y.len());
        let groups = groups(width);
        let outputs = grid::split(&mut d_x, width, &self.segments, &groups);
        let value = tape.value(self.x);
        let parts = tape.cpu.map(outputs.into_iter().enumerate().collect(), |(item, mut d_x)| {
            let (segment, group) = (&self.segments[item / groups.len()], item % groups.len());
            let part = |values| columns_of(values, width, groups[group].clone()).row_range(segment.clone());
            let mut to = S4dChannels::zeros(states);
            s4d_backward(tape.cpu.isa(), part(value), part(&d_y), &channels[group], &mut d_x, &mut to);
            to
        });
        let numbers = self.numbers(tape);
        let (mut d_step, mut d_d) = (vec![0.0; width], vec![0.0; width]);
        let (mut d_a_log, mut d_a_imaginary) = (vec![0.0; width * states], vec![0.0; width * states]);
        let mut d_c = vec![0.0; 2 * width * states];
        for (group, own) in groups.iter().enumerate() {
            for (lane, channel) in own.clone().enumerate() {
                let of_group = || parts.iter().skip(group).step_by(groups.len());
                d_d[channel] = of_group().map(|part| part.d[lane]).sum();
                let mut by_step = 0.0;
                for m in 0..states {
                    let sum = |pair: fn(&S4dChannels) -> &Vec<[Lane; 2]>| -> Complex {
                        of_group().fold((0.0, 0.0), |sum, part| {
                            let [re, im] = &pair(part)[m];
                            (sum.0 + f64::from(re[lane]), sum.1 + f64::from(im[lane]))
                        })
                    };
                    let (to_decay, to_g) = (sum(|part| &part.a), sum(|part| &part.g));
                    let State { step, a, decay, factor, c } = numbers.state(channel, m);
                    let i = channel * states + m;
                    // Through a function of a complex number goes the conjugate of its derivative.
                    let to_c = times(to_g, conjugate(factor));
                    let of_decay = times(c, over((2.0, 0.0), a));
                    let through = times(to_g, conjugate(of_decay));
                    let to_decay = (to_decay.0 + through.0, to_decay.1 + through.1);
                    let minus = over(times(c, factor), a);
                    let direct = times(to_g, conjugate((-minus.0, -minus.1)));
                    let by_decay = times(to_decay, conjugate((step * decay.0, step * decay.1)));
                    let to_a = (direct.0 + by_decay.0, direct.1 + by_decay.1);
                    by_step += times(to_decay, conjugate(times(a, decay))).0 * step;
                    (d_c[2 * i], d_c[2 * i + 1]) = (to_c.0 as f32, to_c.1 as f32);
                    (d_a_log[i], d_a_imaginary[i]) = ((to_a.0 * a.0) as f32, to_a.1 as f32);
                }
                d_step[channel] = by_step as f32;
            }
        }
        let S4dParameters { log_step, a_log, a_imaginary, c, d } = self.parameters;
        for (id, values) in
            [(log_step, d_step), (a_log, d_a_log), (a_imaginary, d_a_imaginary), (c, d_c), (d, d_d)]
        {
            tape.add_to_parameter(id, values);
        }
        tape.add_gradient(self.x, d_x);
        tape.buffers.give(d_y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn the_layer_over_segments_passes_the_gradient_check() {
        let mut layout = Layout::new();
        let table = layout.matrix(3, 18);
        let own = S4dParameters {
            log_step: layout.vector(18),
            a_log: layout.vector(36),
            a_imaginary: layout.vector(36),
            c: layout.matrix(18, 4),
            d: layout.vector(18),
        };
        let mut parameters = Parameters::zeros(layout);
        let values = random_values(13, parameters.values().len());
        parameters.values_mut().copy_from_slice(&values);
        // Truncation of the differences: steps and decays stand in exponents.
        check::parameters(&parameters, 3e-3, |tape| {
            let x = tape.embedding(table, &[0, 1, 2, 2, 1, 0, 1]);
            tape.s4d(x, own, &[0, 1, 5])
        });
    }
}
