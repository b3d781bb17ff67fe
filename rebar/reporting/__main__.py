"""Write the HTML report of a run, or a comparison of several.

python -m rebar.reporting RUN                          writes RUN/report.html
python -m rebar.reporting RUN1 RUN2 ... [--out PAGE]   writes comparison.html next to the runs
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rebar.cli import CommandParser, escape_control_characters, run_command
from rebar.errors import RebarError
from rebar.reporting.report import is_page, write_comparison, write_report
from rebar.storage.files import check_writable


def main(argv: Sequence[str]) -> None:
    """Write the page and print its path."""
    parser = CommandParser(
        prog="python -m rebar.reporting", description="Write the HTML report of a run, or a comparison of several."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--out",
        type=Path,
        help="path of the comparison (default: comparison.html in the folder that contains the runs)",
    )
    options = parser.parse_args(list(argv))
    if len(options.runs) == 1:
        if options.out is not None:
            raise RebarError(
                "--out: applies to a comparison only. Leave it out: the report of one run is RUN/report.html.",
                code="config-conflict",
            )
        target = write_report(options.runs[0])
    else:
        parents = [str(folder.resolve().parent) for folder in options.runs]
        out = options.out or Path(os.path.commonpath(parents)) / "comparison.html"
        if out.is_file() and not is_page(out):
            raise RebarError(
                f"{out} exists, and is not an HTML page. Choose another path with --out.", code="write-target-exists"
            )
        check_writable(out)
        target = write_comparison(options.runs, out)
    print(escape_control_characters(str(target)))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
