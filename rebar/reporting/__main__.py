"""A run as a page, or several runs side by side.

python -m rebar.reporting RUN                          writes RUN/report.html
python -m rebar.reporting RUN1 RUN2 ... [--out PAGE]   writes comparison.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rebar.cli import run_command
from rebar.errors import RebarError
from rebar.reporting.report import write_comparison, write_report


def main(argv: Sequence[str]) -> None:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(prog="python -m rebar.reporting", description="A run as a page, or several.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", type=Path, help="where the page of several runs goes; default comparison.html")
    options = parser.parse_args(list(argv))
    if len(options.runs) == 1:
        if options.out is not None:
            raise RebarError("--out is for the page of several runs; one run's is its report.html")
        print(write_report(options.runs[0]))
    else:
        print(write_comparison(options.runs, options.out or Path("comparison.html")))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
