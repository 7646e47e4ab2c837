//! Work in progress.

pub mod world;
