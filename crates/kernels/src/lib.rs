//! Pure functions on slices, one implementation per instruction set.
