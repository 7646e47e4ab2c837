#!/usr/bin/env bash
# Runs everything that decides whether a change may land: format, lints, documentation, all tests.
# Needs a Rust toolchain; tests that need more (a Python with transformers) say what they skip and why.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
cargo test --workspace --locked
