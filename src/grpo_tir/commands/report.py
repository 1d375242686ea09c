"""`grpo-tir report`: write one HTML page about one or several runs."""

import argparse
from pathlib import Path

from grpo_tir.report.page import write_report
from grpo_tir.utils.recipe import import_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory (train.output_dir)")
    parser.add_argument("--out", type=Path, help="the HTML file to write (default: report.html in the first RUN)")
    parser.add_argument("--title", help="headline of the page (default: the names of the runs)")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path. The page of `grpo-tir paper` has its findings too."""
    out = args.out or args.runs[0] / "report.html"
    if any((run / "findings.json").is_file() for run in args.runs):
        print(import_program("paper.page").write_page(args.runs, out, args.title))
    else:
        print(write_report(args.runs, out, title=args.title))
    return 0
