#!/usr/bin/env bash
# Installs what the tests of the server use beside Rust: the official client SDKs in a Python environment of their own
# (target/tests/python), playwright-core (tests/browser/node_modules), and from Debian's packages chromium and strace.
# Safe to run again: what is there is kept. What cannot be installed is said, and the tests that need it say that they skip.
set -uo pipefail
cd "$(dirname "$0")/.."
missing() { echo "not installed: $1; the tests that need it are skipped" >&2; }

packages=()
command -v chromium >/dev/null || packages+=(chromium)
command -v strace >/dev/null || packages+=(strace)
if [ ${#packages[@]} -gt 0 ]; then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get install -y -qq --no-install-recommends "${packages[@]}" ||
      { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; }; } >/dev/null 2>&1 ||
      missing "${packages[*]}"
  else
    missing "${packages[*]} (install them as root: apt-get install ${packages[*]})"
  fi
fi

python=target/tests/python
mkdir -p target/tests
if ! cmp -s tests/server/requirements.txt "$python/requirements.txt"; then
  { python3 -m venv "$python" &&
    "$python/bin/pip" install -q --disable-pip-version-check -r tests/server/requirements.txt &&
    cp tests/server/requirements.txt "$python/requirements.txt"; } || missing "the Python clients"
fi

if command -v npm >/dev/null; then
  cmp -s tests/browser/package-lock.json tests/browser/node_modules/installed.json ||
    { (cd tests/browser && npm ci --silent --no-audit --no-fund) &&
      cp tests/browser/package-lock.json tests/browser/node_modules/installed.json; } || missing "playwright-core"
else
  missing "npm"
fi
