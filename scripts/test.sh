#!/usr/bin/env bash
#
# Set up, lint, check types and run the tests.
#
#   ./scripts/test.sh                        everything but the nightly tests
#   ./scripts/test.sh --all                  everything
#   ./scripts/test.sh tests/beton -k writer  only these tests; the arguments are pytest's
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=$repo/.venv/bin
cd "$repo"

echo "== set-up"
./scripts/setup.sh --dev

status=0

# Run every check, even if one fails, so that one run shows all failures.
check() {
    echo "== $1"
    shift
    "$@" || status=1
}

# Two tests run in parallel. A file's tests share fixtures, so they stay in one process.
parallel=(--numprocesses=auto --maxprocesses=2 --dist=loadfile --no-loadscope-reorder)
case ${1:-} in
    "") set -- "${parallel[@]}" -m "not nightly" ;;
    --all) set -- "${parallel[@]}" ;;
esac
if [[ $1 == "${parallel[0]}" ]]; then
    check "ruff check" "$bin/ruff" check
    check "ruff format" "$bin/ruff" format --check
    check "mypy" "$bin/mypy"
    if ((status)); then echo "== lint or type errors: see above (the tests still run)" >&2; fi
fi
check "pytest" "$bin/python" -m pytest --durations=25 "$@"
exit "$status"
