//! The Strata binary.
fn main() {}
