"""Run `grpo-tir quickstart`: train a tiny model with ToRL on a CPU, in minutes.

The base model has seen some broken Python but cannot calculate. The same recipe trains it twice: with one tool
call a response, and without the tool as a control. Both are evaluated greedily on held-out problems. The printed
result is read from the files of the two runs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from grpo_tir.config import Config
from grpo_tir.monitor.console import segment_lines
from grpo_tir.utils.files import read_jsonl
from grpo_tir.utils.recipe import find_recipe, load_config

TAKES_OVERRIDES = True
CACHE = Path(".cache/grpo-tir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add seed and folder."""
    parser.add_argument("--seed", type=int, default=1, help="of data, base model and training (default 1)")
    parser.add_argument("--out", default="runs/quickstart", help="where the runs go (default runs/quickstart)")
    parser.add_argument("--cache", default=str(CACHE), help=f"where the base model is kept (default {CACHE})")


def run(args: argparse.Namespace) -> int:
    """Build, train twice, compare. Prints one JSON object last."""
    import torch

    from grpo_tir.report.page import write_report
    from grpo_tir.train import train
    from quickstart.build import build_quickstart

    # A second thread gains little on matrices of this size, and loses a factor of 15 where the cores are busy.
    torch.set_num_threads(1)
    started = time.perf_counter()
    print("1/4  problems, tokenizer and base model", flush=True)
    files = build_quickstart(Path(args.cache), args.seed)
    folder = new_folder(Path(args.out), args.seed)
    common = ["--data.train", str(files.train), "--data.eval", str(files.eval), "--model.path", str(files.model)]
    common += ["--train.seed", str(args.seed), *args.overrides]
    runs: dict[str, Config] = {}
    for number, (name, calls, text) in enumerate(
        (("tool", 1, "with the tool"), ("control", 0, "without")), start=2
    ):
        own = ["--tool.max_tool_calls", str(calls), "--train.output_dir", str(folder / name)]
        runs[name] = load_config(find_recipe("quickstart"), [*common, *own])
        print(f"\n{number}/4  GRPO {text} (c = {calls})", flush=True)
        code = train(runs[name])
        if code:
            return code
    print("\n4/4  what came of it", flush=True)
    report = write_report([folder / "tool", folder / "control"], folder / "report.html", title="Quickstart")
    result = compare(folder)
    result |= {"seconds": round(time.perf_counter() - started, 1), "report": str(report)}
    for text in trajectories(folder / "tool"):
        print(text)
    print(table(result))
    print(f"The curves, and every trajectory: {report}")
    print(json.dumps(result))
    return 0


def new_folder(out: Path, seed: int) -> Path:
    """Return a new folder; runs of earlier quickstarts are kept."""
    number = 1
    while (folder := out / (f"seed{seed}" if number == 1 else f"seed{seed}-{number}")).exists():
        number += 1
    return folder


def compare(folder: Path) -> dict[str, Any]:
    """Read the first and last figures of the two runs from their metrics."""
    tool, control = read_jsonl(folder / "tool/metrics.jsonl"), read_jsonl(folder / "control/metrics.jsonl")
    executor = json.loads((folder / "tool/metadata.json").read_text(encoding="utf-8"))["executor"]
    return {
        "accuracy_before": tool[0]["eval/accuracy"],
        "accuracy_after": tool[-1]["eval/accuracy"],
        "accuracy_control": control[-1]["eval/accuracy"],
        "code_ratio_first": tool[1]["tools/code_ratio"],
        "code_ratio_last": tool[-1]["tools/code_ratio"],
        "pass_ratio_last": tool[-1]["tools/pass_ratio"],
        "executor": executor["kind"],
    }


def table(result: dict[str, Any]) -> str:
    """Format before, after and control side by side."""
    rows = [
        ("greedy accuracy, 500 held-out problems", "accuracy_before", "accuracy_after", "accuracy_control"),
        ("sampled responses with code", "code_ratio_first", "code_ratio_last", None),
        ("code that ran without error", None, "pass_ratio_last", None),
    ]
    lines = [f"{'':<40}{'before':>10}{'after':>10}{'no tool':>10}"]
    for label, *names in rows:
        cells = [f"{result[name]:>10.3f}" if name and result[name] is not None else f"{'-':>10}" for name in names]
        lines.append(f"{label:<40}{''.join(cells)}")
    return "\n" + "\n".join(lines) + "\n"


def trajectories(run: Path) -> list[str]:
    """Return the first recorded response of the first, the middle and the last step."""
    kept = sorted((run / "rollouts").glob("step_*.jsonl"))
    chosen = dict.fromkeys((kept[0], kept[len(kept) // 2], kept[-1]))
    return [_show(read_jsonl(path)[0]) for path in chosen]


def _show(record: dict[str, Any]) -> str:
    verdict = "right" if record["reward_parts"].get("correct") else "wrong"
    lines = [f"--- step {record['step']}: {record['problem']} ({verdict}, gold {record['answer']})"]
    lines += segment_lines((segment["kind"], segment["text"]) for segment in record["segments"])
    return "\n".join([*lines, ""])
