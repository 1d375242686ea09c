"""Measure memory and CPU time of `grpo-tir data build` by number of rows; 100,000 rows must fit in 500 MB.

    python benchmarks/data.py [--rows 100000]

Rows are synthetic: half word problems, half algebra, with repeats, paraphrases and answers of every kind. 1,000
such rows serve as the benchmark to keep out. The result is the peak resident memory of the build's process minus
that of a bare interpreter. The grader processes take 60 MB more each. A second build with a quarter of the rows
shows whether memory grows with their number. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LIMIT_MB = 500
NAMES = "Ada Ben Cleo Dan Eva Finn Gita Hugo Ines Jan Kim Leo Mia Noor Omar Pia Quinn Rosa Sam Tara".split()
THINGS = (
    "apples books coins dots eggs flags games hats irons jars keys lamps maps nets oars pens quilts ropes".split()
)
STEPS = [
    "{a} has {x} {s} and gives {y} of them to {b}.",
    "Each of the {x} boxes of {a} holds {y} {s}.",
    "{a} buys {x} {s} at {y} cents each and {b} sells {z} of them on a market in the town of {c}.",
    "A train with {x} {s} for {a} leaves at noon and is met by {b} after {y} miles and {z} minutes.",
    "There are {x} ways in which {a}, {b} and {c} share {y} {s} with no more than {z} for each of them.",
]
ALGEBRA = (
    "If $x^{n} + {a}x = {b}$ and $y = \\frac{{c}}{{d}}x - {e}$, what is the value of ${f}x + {g}y$ on ${h} < x$?"
)


def make_rows(number: int, seed: int) -> Iterator[dict[str, str]]:
    """Make problems of 20 to 120 words; one of twenty repeats an earlier one, possibly in other words."""
    draw = random.Random(seed)
    kept: list[dict[str, str]] = []
    for n in range(number):
        if kept and draw.random() < 0.05:
            row = dict(draw.choice(kept))
            row["problem"] = row["problem"].replace("Find", "Please determine") if n % 2 else row["problem"]
        elif n % 2:
            row = {"problem": _word_problem(draw), "answer": str(draw.randrange(10**6))}
        else:
            numbers = {letter: str(draw.randrange(2, 9999)) for letter in "abcdefghn"}
            text = ALGEBRA
            for letter, value in numbers.items():
                text = text.replace("{" + letter + "}", value)
            row = {"problem": text, "answer": f"\\frac{{{draw.randrange(999)}}}{{{draw.randrange(2, 99)}}}"}
        if len(kept) < 1000:
            kept.append(row)
        yield row


def _word_problem(draw: random.Random) -> str:
    a, b, c = draw.sample(NAMES, 3)
    sentences = [
        draw.choice(STEPS).format(
            a=a,
            b=b,
            c=c,
            s=draw.choice(THINGS),
            x=draw.randrange(9999),
            y=draw.randrange(999),
            z=draw.randrange(99),
        )
        for _ in range(draw.randrange(2, 7))
    ]
    return " ".join([*sentences, f"Find the number of {draw.choice(THINGS)} that {a} has."])


def write_rows(path: Path, rows: Iterator[dict[str, str]]) -> Path:
    """Write rows as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


PEAK = """
import resource, sys
def peak():  # megabytes; ru_maxrss also counts what the process was before exec, a copy of whoever started it
    try:
        line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except OSError:
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
"""
BUILD = """
import json
from pathlib import Path
from grpo_tir.cli import main
code = main(sys.argv[2:])
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
used = {"code": code, "mb": peak(), "cpu": own.ru_utime + own.ru_stime,
        "worker_cpu": workers.ru_utime + workers.ru_stime}
Path(sys.argv[1]).write_text(json.dumps(used))
"""


def measure(arguments: list[str], folder: Path) -> dict[str, float]:
    """Run one build in a separate process."""
    result = folder / "used.json"
    subprocess.run([sys.executable, "-c", PEAK + BUILD, str(result), *arguments], check=True)
    used: dict[str, float] = json.loads(result.read_text())
    assert used["code"] == 0
    return used


def bare_megabytes() -> float:
    """Return the peak resident memory of a bare interpreter, in MB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + "print(peak())"], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Measure two sizes; print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    bare, found = bare_megabytes(), {}
    print(f"{'rows':>10}{'MB beyond a bare interpreter':>30}{'CPU-s':>8}{'of workers':>12}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = write_rows(folder / "bench.jsonl", make_rows(1000, seed=2))
        for size in (rows // 4, rows):
            source = write_rows(folder / f"rows{size}.jsonl", make_rows(size, seed=1))
            arguments = ["data", "build", "--source", str(source), "--bench", str(bench)]
            used = measure([*arguments, "--out", str(folder / f"out{size}.jsonl")], folder)
            found[size] = {**used, "mb": round(used["mb"] - bare, 1)}
            cells = (found[size]["mb"], used["cpu"], used["worker_cpu"])
            print("{:>10,}{:>30.0f}{:>8.0f}{:>12.0f}".format(size, *cells))
    peak = found[rows]["mb"]
    print(json.dumps({"benchmark": "data", "rows": rows, "mb": peak, "limit_mb": LIMIT_MB, "sizes": found}))
    sys.exit(peak > LIMIT_MB)


if __name__ == "__main__":
    main()
