#!/usr/bin/env bash
# Runs everything that decides whether a change may land: format, lints, documentation, all tests.
# Needs a Rust toolchain; what else the tests use is installed where that is possible, and tests that miss something say
# what they skip and why.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
./scripts/setup-tests.sh
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
cargo test --workspace --locked
./scripts/test-server.sh target/debug/strata
