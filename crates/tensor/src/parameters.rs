//! Parameters in one flat buffer, their gradients in another.

use crate::buffers::Buffers;
use crate::cpu::Cpu;
use std::ops::Range;
use strata_kernels::buffer::filled_vec;
use strata_kernels::tiles::PackedB;
use strata_kernels::{Element, MatrixRef, bf16, element};

/// Names one parameter of a [`Layout`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParameterId(usize);

#[derive(Clone, Debug)]
struct Entry {
    rows: usize,
    columns: usize,
    decay: bool,
    /// Whether products are taken with it, so that it is worth packing.
    multiplied: bool,
    start: usize,
}

/// Shapes and places of parameters in a flat buffer.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    entries: Vec<Entry>,
    length: usize,
}

impl Layout {
    /// A layout without parameters.
    pub fn new() -> Layout {
        Layout::default()
    }

    /// Adds a weight matrix (rows, columns); weight decay applies to it.
    pub fn matrix(&mut self, rows: usize, columns: usize) -> ParameterId {
        self.push(rows, columns, true, true)
    }

    /// Adds a table (rows, columns) whose rows are looked up and which nothing is multiplied with; weight decay applies
    /// to it.
    pub fn table(&mut self, rows: usize, columns: usize) -> ParameterId {
        self.push(rows, columns, true, false)
    }

    /// Adds a vector, such as the gain of a norm; weight decay does not apply to it.
    pub fn vector(&mut self, length: usize) -> ParameterId {
        self.push(1, length, false, false)
    }

    fn push(&mut self, rows: usize, columns: usize, decay: bool, multiplied: bool) -> ParameterId {
        self.entries.push(Entry { rows, columns, decay, multiplied, start: self.length });
        self.length += rows * columns;
        ParameterId(self.entries.len() - 1)
    }

    /// Number of elements of all parameters.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Shape (rows, columns) of a parameter; a vector has one row.
    pub fn shape(&self, id: ParameterId) -> (usize, usize) {
        let entry = &self.entries[id.0];
        (entry.rows, entry.columns)
    }

    /// Place of a parameter in the flat buffer.
    pub fn range(&self, id: ParameterId) -> Range<usize> {
        let entry = &self.entries[id.0];
        entry.start..entry.start + entry.rows * entry.columns
    }

    /// Place of every parameter, and whether weight decay applies to it.
    pub(crate) fn decayed(&self) -> impl Iterator<Item = (Range<usize>, bool)> + '_ {
        self.entries.iter().map(|e| (e.start..e.start + e.rows * e.columns, e.decay))
    }
}

/// The values of all parameters: f32 masters and, where training runs in bf16, a bf16 copy.
#[derive(Clone, Debug)]
pub struct Parameters {
    layout: Layout,
    values: Vec<f32>,
    half: Vec<bf16>,
    packed: PackedWeights,
}

impl Parameters {
    /// Zeros of the given layout.
    pub fn zeros(layout: Layout) -> Parameters {
        let values = filled_vec(layout.len(), 0.0);
        Parameters { layout, values, half: Vec::new(), packed: PackedWeights::default() }
    }

    /// Shapes and places.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The f32 values of one parameter.
    pub fn get(&self, id: ParameterId) -> &[f32] {
        &self.values[self.layout.range(id)]
    }

    /// The f32 values of one parameter, to be changed. Drops the bf16 copy.
    pub fn get_mut(&mut self, id: ParameterId) -> &mut [f32] {
        self.half.clear();
        &mut self.values[self.layout.range(id)]
    }

    /// All values, flat.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, flat, to be changed. Drops the bf16 copy.
    pub fn values_mut(&mut self) -> &mut [f32] {
        self.half.clear();
        &mut self.values
    }

    /// Takes the last parameter away: `read` gets it, then its memory is given back. So all weights can be brought
    /// into another form without being held twice.
    ///
    /// # Panics
    /// Where `id` is not the last parameter.
    pub fn take_last<R>(&mut self, id: ParameterId, read: impl FnOnce(&[f32]) -> R) -> R {
        assert_eq!(id.0 + 1, self.layout.entries.len(), "parameters: the last one is taken first");
        let start = self.layout.range(id).start;
        self.layout.entries.pop();
        self.half = Vec::new();
        self.packed = PackedWeights::default();
        let result = read(&self.values[start..]);
        self.layout.length = start;
        self.values.truncate(start);
        self.values.shrink_to_fit();
        result
    }

    /// Masters and, where it exists, their bf16 copy, to be changed together.
    pub(crate) fn parts_mut(&mut self) -> (&Layout, &mut [f32], &mut [bf16]) {
        self.packed.stale = true;
        (&self.layout, &mut self.values, &mut self.half)
    }

    /// Makes sure that the bf16 copy exists and is packed for products; the optimiser keeps the copy fresh from then
    /// on, and this packs it again after a step.
    pub fn ensure_half(&mut self, cpu: &Cpu) {
        if self.half.len() != self.values.len() {
            self.half = filled_vec(self.values.len(), bf16::ZERO);
            let chunk = self.values.len().div_ceil(cpu.threads()).max(1);
            let items: Vec<_> = self.values.chunks(chunk).zip(self.half.chunks_mut(chunk)).collect();
            cpu.for_each(items, |(from, to)| element::convert(cpu.isa(), from, to));
            self.packed.stale = true;
        }
        if self.packed.stale {
            self.packed.refresh(cpu, &self.layout, &self.half);
        }
    }
}

/// The bf16 copy of every matrix once more, as products read it; empty where the CPU does not multiply bf16.
#[derive(Debug, Default)]
struct PackedWeights {
    weights: Vec<Option<PackedWeight>>,
    /// Whether the weights have changed since.
    stale: bool,
}

/// A weight of shape (n, k), packed for both products that a training step takes with it.
#[derive(Debug, Default)]
pub struct PackedWeight {
    /// For `y = x · Wᵀ`.
    pub forward: PackedB,
    /// For `dx = dy · W`.
    pub backward: PackedB,
}

impl PackedWeights {
    fn refresh(&mut self, cpu: &Cpu, layout: &Layout, half: &[bf16]) {
        self.stale = false;
        if cpu.isa().bf16_unit().is_none() {
            return;
        }
        let packed = |entry: &Entry| entry.multiplied.then(PackedWeight::default);
        if self.weights.is_empty() {
            self.weights = layout.entries.iter().map(packed).collect();
        }
        let mut tasks = Vec::new();
        for (entry, weight) in layout.entries.iter().zip(&mut self.weights) {
            let Some(PackedWeight { forward, backward }) = weight else { continue };
            let values = &half[entry.start..entry.start + entry.rows * entry.columns];
            let view = MatrixRef::new(values, entry.rows, entry.columns);
            tasks.extend([(forward, view.transposed()), (backward, view)]);
        }
        cpu.for_each(tasks, |(packed, view)| packed.refresh(cpu.isa(), view));
    }
}

/// A copy packs its own when it needs it.
impl Clone for PackedWeights {
    fn clone(&self) -> PackedWeights {
        PackedWeights { weights: Vec::new(), stale: true }
    }
}

/// Gradients of all parameters, accumulated until the optimiser clears them.
#[derive(Clone, Debug)]
pub struct Gradients {
    values: Vec<f32>,
}

impl Gradients {
    /// Zeros of the given layout.
    pub fn zeros(layout: &Layout) -> Gradients {
        Gradients { values: filled_vec(layout.len(), 0.0) }
    }

    /// All gradients, flat.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All gradients, flat, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        self.values.fill(0.0);
    }

    /// Euclidean norm of all gradients together.
    pub fn norm(&self, cpu: &Cpu) -> f64 {
        // Fixed chunks, so that the sum does not depend on the number of threads.
        let chunks: Vec<&[f32]> = self.values.chunks(1 << 16).collect();
        cpu.map(chunks, |c| strata_kernels::math::sum_of_squares(cpu.isa(), c)).iter().sum::<f64>().sqrt()
    }
}

/// An element type for activations: knows where its weights and its free buffers are.
pub trait Activation: Element {
    /// The weights of a parameter in this type.
    fn weights(parameters: &Parameters, id: ParameterId) -> &[Self];
    /// A weight as products read it, where it was packed.
    fn packed(parameters: &Parameters, id: ParameterId) -> Option<&PackedWeight>;
    /// The free buffers of this type.
    fn free(buffers: &mut Buffers) -> &mut Vec<Vec<Self>>;
}

impl Activation for f32 {
    fn weights(parameters: &Parameters, id: ParameterId) -> &[f32] {
        parameters.get(id)
    }
    fn packed(_: &Parameters, _: ParameterId) -> Option<&PackedWeight> {
        None
    }
    fn free(buffers: &mut Buffers) -> &mut Vec<Vec<f32>> {
        buffers.f32_list()
    }
}

impl Activation for bf16 {
    /// # Panics
    /// Where [`Parameters::ensure_half`] was not called.
    fn weights(parameters: &Parameters, id: ParameterId) -> &[bf16] {
        &parameters.half[parameters.layout.range(id)]
    }
    fn packed(parameters: &Parameters, id: ParameterId) -> Option<&PackedWeight> {
        parameters.packed.weights.get(id.0)?.as_ref()
    }
    fn free(buffers: &mut Buffers) -> &mut Vec<Vec<bf16>> {
        buffers.bf16_list()
    }
}
