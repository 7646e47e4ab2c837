//! Placeholder until the data crate has it.
/// A packed batch.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Batch {
    pub tokens: Vec<u32>,
    pub targets: Vec<u32>,
    pub weights: Vec<f32>,
    pub starts: Vec<u32>,
    pub bytes: u64,
}
