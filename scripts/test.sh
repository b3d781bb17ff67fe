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

status=0

# Everything runs, whatever fails before it: one round shows all there is to mend.
check() {
    echo "== $1"
    shift
    "$@" || status=1
}

if (($# == 0)); then
    check "ruff check" "$bin/ruff" check
    check "ruff format" "$bin/ruff" format --check
    check "mypy" "$bin/mypy"
    if ((status)); then echo "== not clean: see above (the tests still run)" >&2; fi
fi
if (($# == 0)); then
    # Side by side, a file's tests one after the other: they share what they prepare.
    set -- --numprocesses=auto --maxprocesses=2 --dist=loadfile
fi
check "pytest" "$bin/python" -m pytest --durations=25 "$@"
exit "$status"
