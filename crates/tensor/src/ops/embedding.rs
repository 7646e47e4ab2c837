//! Token embeddings.

use crate::tape::{Operation, Tape, Var};
use crate::{Activation, ParameterId};
use strata_kernels::{embedding, grid};

impl<E: Activation> Tape<'_, E> {
    /// The rows of a table (vocabulary, width) that the tokens name.
    ///
    /// # Panics
    /// Where a token is outside the vocabulary; callers check what comes from outside.
    pub fn embedding(&mut self, table: ParameterId, tokens: &[u32]) -> Var {
        let (_, width) = self.parameters.layout().shape(table);
        let mut y = self.buffers.take::<E>(tokens.len() * width);
        embedding::embedding_forward(E::weights(self.parameters, table), width, tokens, &mut y);
        let tokens = if self.recording() { tokens.to_vec() } else { Vec::new() };
        self.push(width, y, Embedding { table, tokens })
    }
}

struct Embedding {
    table: ParameterId,
    tokens: Vec<u32>,
}

impl<E: Activation> Operation<E> for Embedding {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let (vocabulary, width) = tape.parameters.layout().shape(self.table);
        let range = tape.parameters.layout().range(self.table);
        if let Some(gradients) = &mut tape.gradients {
            let columns = tape.cpu.ranges(width, 16);
            let rows = 0..vocabulary;
            let d_table = &mut gradients.values_mut()[range];
            let blocks = grid::split(d_table, width, std::slice::from_ref(&rows), &columns);
            tape.cpu.for_each(columns.into_iter().zip(blocks).collect(), |(columns, mut block)| {
                embedding::embedding_backward(&d_y, width, columns.start, &self.tokens, &mut block);
            });
        }
        tape.buffers.give(d_y);
    }
}
