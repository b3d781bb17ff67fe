#!/usr/bin/env bash
#
# Set up, lint, check types and run the tests.
#
#   ./scripts/test.sh                        everything
#   ./scripts/test.sh tests/beton -k writer  only these tests: the arguments are pytest's
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=$repo/.venv/bin
cd "$repo"

echo "== set-up"
./scripts/setup.sh --dev

if (($# == 0)); then
    echo "== ruff check"
    "$bin/ruff" check
    echo "== ruff format"
    "$bin/ruff" format --check
    echo "== mypy"
    "$bin/mypy"
fi

echo "== pytest"
exec "$bin/python" -m pytest "$@"
