#!/usr/bin/env bash
# The server as its clients see it: the official SDKs, a property-based run, bad input and a soak (tests/server), and a
# browser (tests/browser), all against `strata serve` with models that `strata demo` makes in half a minute.
# Usage: test-server.sh [PATH OF strata]
set -euo pipefail
cd "$(dirname "$0")/.."
strata=$(realpath "${1:-target/debug/strata}")
export STRATA_BIN=$strata STRATA_HOME=$PWD/target/tests/home
if [ ! -d "$STRATA_HOME/models/demo-dialogue" ]; then
  rm -rf "$STRATA_HOME"
  "$strata" demo --minutes 0.5 >/dev/null
  # Half a minute teaches them 256 tokens of context; descriptions of tools take more. What they say there is no matter.
  sed -i 's/"max_position_embeddings": [0-9]*/"max_position_embeddings": 1024/' "$STRATA_HOME"/models/*/config.json
fi

if [ -x target/tests/python/bin/python ]; then
  target/tests/python/bin/python -m pytest -q tests/server
else
  echo "skipped: tests/server, for want of the Python clients (scripts/setup-tests.sh installs them)" >&2
fi

if command -v chromium >/dev/null && [ -d tests/browser/node_modules ]; then
  log=target/tests/server.log
  "$strata" serve --port 0 2>"$log" &
  server=$!
  trap 'kill $server 2>/dev/null || true' EXIT
  for _ in $(seq 100); do
    url=$(sed -n 's/.*serves at \(http:[^ ]*\).*/\1/p' "$log")
    [ -n "$url" ] && break
    sleep 0.1
  done
  STRATA_URL=$url STRATA_ARTIFACTS=$PWD/target/tests/screenshots npm --prefix tests/browser test --silent
else
  echo "skipped: tests/browser, for want of chromium or playwright-core (scripts/setup-tests.sh installs them)" >&2
fi
