"""`grpo-tir report`: write one HTML page about one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_tir.report.page import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory (train.output_dir)")
    parser.add_argument("--out", type=Path, help="the HTML file to write (default: report.html in the first RUN)")
    parser.add_argument("--title", help="headline of the page (default: the names of the runs)")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path."""
    print(write_report(args.runs, args.out or args.runs[0] / "report.html", title=args.title))
    return 0
