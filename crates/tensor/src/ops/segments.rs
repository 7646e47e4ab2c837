//! Packed segments and columns of a variable, as the recurrent operations read them.

use crate::tape::{Tape, Var};
use crate::{Activation, ParameterId};
use std::ops::Range;
use strata_kernels::{Element, MatrixRef, Store};

/// The segments of a flat run of tokens.
pub(crate) struct Segments(pub Vec<Range<usize>>);

impl Segments {
    /// From where each starts; the last one ends with the tokens.
    ///
    /// # Panics
    /// Where `starts` does not begin with 0 and ascend.
    pub fn new(starts: &[u32], rows: usize) -> Segments {
        assert!(rows == 0 || starts.first() == Some(&0), "segments: the first must start at 0");
        let ends = starts.iter().skip(1).map(|&start| start as usize).chain([rows]);
        Segments(starts.iter().zip(ends).map(|(&start, end)| start as usize..end).collect())
    }

    /// For every token, how many of its segment come before it.
    pub fn positions(&self) -> Vec<u32> {
        self.0.iter().flat_map(|segment| 0..segment.len() as u32).collect()
    }
}

/// Some columns of a row-major matrix of `width` columns.
pub(crate) fn columns_of<E: Element>(value: &[E], width: usize, columns: Range<usize>) -> MatrixRef<'_, E> {
    let start = columns.start.min(value.len());
    MatrixRef::with_stride(&value[start..], value.len() / width, columns.len(), width)
}

impl<E: Activation> Tape<'_, E> {
    /// As [`Tape::take_gradient`], for operations that read only some of the columns: those of the others, which they
    /// leave alone, are zero where nothing was there yet.
    pub(crate) fn take_column_gradient(&mut self, var: Var) -> Vec<E> {
        let (mut gradient, store) = self.take_gradient(var);
        if store == Store::Overwrite {
            gradient.fill(E::default());
        }
        gradient
    }

    /// Adds to the gradient of a parameter, from its first element on.
    pub(crate) fn add_to_parameter(&mut self, id: ParameterId, values: impl IntoIterator<Item = f32>) {
        let range = self.parameters.layout().range(id);
        if let Some(gradients) = &mut self.gradients {
            for (to, from) in gradients.values_mut()[range].iter_mut().zip(values) {
                *to += from;
            }
        }
    }
}
