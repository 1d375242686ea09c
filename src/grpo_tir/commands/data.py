"""`grpo-tir data check | build | limr`: check, build and select training problems."""

import argparse
import dataclasses
import json
from pathlib import Path

from grpo_tir.curation.limr import History, LimScores, lim_scores, read_history
from grpo_tir.data.problems import load_problems
from grpo_tir.data.rows import short
from grpo_tir.errors import DataError
from grpo_tir.grading.grader import GOLD_SECONDS, Grader
from grpo_tir.utils.files import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="count the usable rows and name the others by line")
    check.set_defaults(function=run_check)
    check.add_argument("file", help="JSONL, JSON or parquet, or module:function")
    check.add_argument("--problem-field", default="problem")
    check.add_argument("--answer-field", default="answer")
    check.add_argument("--id-field", default="id")
    add_build_arguments(actions.add_parser("build", help="one clean file from raw sources, with a card"))
    add_limr_arguments(actions.add_parser("limr", help="choose problems by their learning impact (LIMR)"))


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(function=run_build)
    add = parser.add_argument
    sources = "numina, math, deepscaler, owner/name[:config][@revision][#split] or a file"
    add("--source", action="append", required=True, metavar="[NAME=]SOURCE", help=f"{sources}; may be repeated")
    add("--out", type=Path, required=True, help="JSONL to write; its card and rejects lie beside it")
    benchmarks = "benchmarks to keep out: aime24,math500,… or a source; may be repeated"
    add("--bench", action="append", default=[], metavar="NAMES|[NAME=]SOURCE", help=benchmarks)
    add("--bench-dir", help="folder with NAME.jsonl for each named benchmark; default: the Hub")
    add("--problem-field", default="problem")
    add("--answer-field", default="answer", help="where it is missing, the box of `solution` serves")
    add("--tokenizer", help="folder, tokenizer.json or Hub id[@revision]: limits the length of prompts")
    add("--template", default="torl", help="torl, torl_0307, plain or a text file (default: torl)")
    add("--max-prompt-length", type=int, default=400, help="tokens of the prompt (default: 400)")
    add("--balance", type=int, metavar="N", help="draw N problems, equally of each difficulty")
    add("--difficulty-field", default="level", help="column for --balance (default: level, else source)")
    add("--seed", type=int, default=0, help="of the draw of --balance")
    add("--workers", type=int, default=2, help="processes that check golds, 60 MB each (default: 2)")
    add("--on-bad", choices=["stop", "skip"], default="stop", help="a row that cannot be used")


def add_limr_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(function=run_limr)
    parser.add_argument("history", nargs="?", type=Path, help="folder of a run, or its problem_rewards.jsonl")
    parser.add_argument("--scores", type=Path, help="finished scores instead: a JSON object {id: score}")
    parser.add_argument("--threshold", type=float, required=True, help="a score from here on is taken (LIMR: 0.6)")
    parser.add_argument("--out", type=Path, required=True, help="the chosen ids, one a line")
    parser.add_argument("--problems", help="write the rows of this problem file to --out, not the bare ids")
    parser.add_argument("--save-scores", type=Path, metavar="FILE", help="write all scores, as JSON {id: score}")
    parser.add_argument("--on-bad", choices=["stop", "skip"], default="stop", help="a bad row of --problems")


def run(args: argparse.Namespace) -> int:
    code: int = args.function(args)
    return code


def run_check(args: argparse.Namespace) -> int:
    """Check the rows and their golds. Returns 0 only if every row can be used."""
    fields = {name: getattr(args, name) for name in ("problem_field", "answer_field", "id_field")}
    read, skipped = load_problems(args.file, **fields, on_bad="skip")
    problems = []
    with Grader(timeout=GOLD_SECONDS) as grader:
        for problem, fault in grader.each(read, lambda problem: grader.check_gold(problem.answer)):
            if fault:
                skipped.append(f"{args.file} id {short(problem.id)}: {fault}: {short(problem.answer)}")
            else:
                problems.append(problem)
    for line in skipped:
        print(line)
    print(f"{args.file}: {len(problems)} problems, {len(skipped)} rows that cannot be used")
    if problems:
        print(f"first: {problems[0].problem[:200]!r} -> {problems[0].answer!r}")
    return 2 if skipped else 0


def run_build(args: argparse.Namespace) -> int:
    """Build the file and print one table with the number of rows kept and rejected."""
    if not args.out.parent.is_dir():
        raise DataError(f"{args.out.parent} is no folder: make it first, or name another --out")
    from grpo_tir.curation.build import Build
    from grpo_tir.curation.contamination import Benchmarks
    from grpo_tir.curation.examine import Settings
    from grpo_tir.curation.sources import open_benchmark, open_source

    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(args, name) for name in names})
    sources = [open_source(argument) for argument in args.source]
    if len({source.name for source in sources}) < len(sources):
        raise DataError("two sources have one name: give them names with --source NAME=…")
    named = [name for argument in args.bench for name in ([argument] if "=" in argument else argument.split(","))]
    if not named:
        print("no --bench: benchmark problems are not removed (--bench aime24,aime25,math500,… removes them)")
    benchmarks = [open_benchmark(name, args.bench_dir, args.problem_field, args.answer_field) for name in named]
    forbidden = Benchmarks(entry for _, problems in benchmarks for entry in problems)
    build = Build(
        sources, [source for source, _ in benchmarks], forbidden, args.out, settings, args.on_bad, args.workers
    )
    card = build.run()
    for reason, number in card["counts"]["all"].items():
        if number and reason != "kept":
            print(f"{reason:20} {number:>9,}")
    print(f"{card['counts']['all']['kept']} problems -> {args.out}, its card and its rejects beside it")
    return 0


def run_limr(args: argparse.Namespace) -> int:
    """Score and choose problems, report missing scores, write."""
    if (args.history is None) == (args.scores is None):
        raise DataError("name either the folder of a run (or its problem_rewards.jsonl) or --scores FILE")
    history = read_history(args.scores or args.history)
    lim = lim_scores(history.visits) if history.visits else LimScores(history.scores)
    chosen = [name for name, score in lim.scores.items() if score >= args.threshold]
    describe_history(history, lim)
    above = f"{len(chosen)} of {len(lim.scores)} scores are {args.threshold:g} or more"
    if args.save_scores:
        write_atomically(args.save_scores, json.dumps(lim.scores, indent=0) + "\n")
    write_atomically(args.out, chosen_rows(chosen, args) if args.problems else "".join(f"{n}\n" for n in chosen))
    print(f"{above} -> {args.out}")
    return 0


def describe_history(history: History, lim: LimScores) -> None:
    """Describe the reward history: what was read and what was missing."""
    if not history.visits:
        return
    problems = f"{len(history.visits)} problems in {len(lim.epochs)} epochs"
    print(f"{problems}; {history.unjudged} visits without a verdict")
    for epoch, number in lim.thin_epochs.items():
        print(f"epoch {epoch} left out: only {number} of {len(history.visits)} problems were met in it")
    print(f"missing epochs: {lim.filled} filled from the next one, {len(lim.dropped)} problems dropped")
    if len(lim.scores) <= 20:
        print("".join(f"  {name}  {score:.6f}\n" for name, score in lim.scores.items()), end="")


def chosen_rows(chosen: list[str], args: argparse.Namespace) -> str:
    """Return the chosen rows of the problem file, in its order."""
    wanted = set(chosen)
    problems, skipped = load_problems(args.problems, on_bad=args.on_bad)
    rows = [vars(problem) for problem in problems if problem.id in wanted]
    if skipped:
        print(f"{args.problems}: {len(skipped)} rows skipped, the first: {skipped[0]}")
    if len(rows) < len(wanted):
        print(f"{args.problems} lacks {len(wanted) - len(rows)} of the chosen ids")
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
