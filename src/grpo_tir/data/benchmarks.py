"""Load the paper's five benchmarks (section 4.1). Each is pinned by its number of problems and a hash of its text.

The count detects incomplete files, such as one with 134 of the 500 problems of MATH500 (ToRL, issue 13). The hash
covers all problems and answers, but neither white space nor order, so that all copies of the same text have the
same hash. A local file with another hash is rejected. A Hub copy is pinned by its commit if one is known. Its
hash is written to the result, because copies differ in how they write an answer (`27.0`, `$27$`).

This module does not import torch. It imports datasets only to load from the Hub.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_tir.data.problems import load_problems
from grpo_tir.errors import DataError
from grpo_tir.types import Problem
from grpo_tir.utils import hub


@dataclass(frozen=True)
class Pin:
    """Source of a benchmark, with its expected size and hash."""

    rows: int
    sha256: str
    """`content_hash` of the text that the published tables use."""
    hub: str
    split: str
    revision: str | None
    """Commit on the Hub; None if unknown, which loads `main`."""
    problem_field: str = "problem"


@dataclass(frozen=True)
class Benchmark:
    """Problems with their name, source and hash."""

    name: str
    problems: list[Problem]
    source: str
    sha256: str

    @property
    def pinned(self) -> bool:
        """True if the hash equals the pinned one."""
        return self.name in PINS and self.sha256 == PINS[self.name].sha256

    def card(self) -> dict[str, Any]:
        """Describe the benchmark for a result file."""
        about = {"rows": len(self.problems), "sha256": self.sha256, "source": self.source}
        return {**about, "pinned": self.pinned}


PINS = {
    "aime24": Pin(30, "6feecef5596d24c87fee83ba9238c6cc0a61e86beee0f27fc7787d20e8a90ba8",
                  "HuggingFaceH4/aime_2024", "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
    "aime25": Pin(30, "509aa0715dfacfcf11c5060333f893720d182f8c1926789ebc9a7b44df2364d1",
                  "math-ai/aime25", "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
    "math500": Pin(500, "c33ea41dfe1209f6b9c7dfb7ac6afc314640a2578b83b690b48c0880a5dfe2c6",
                   "HuggingFaceH4/MATH-500", "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    # other copies of OlympiadBench on the Hub, the original among them, have 674 rows
    "olympiadbench": Pin(675, "e713d01244516b1e8334e023c56a880f5520f9a1c0efe2b214cdb063ae3d406f",
                         "knoveleng/OlympiadBench", "train", None, "question"),
    "amc23": Pin(40, "23ca07294149383e16eb8fd5e39d5548ed15f6e2bfd5d84dde96b1236650410f",
                 "math-ai/amc23", "test", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "question"),
}  # fmt: skip


def load_benchmark(name: str, folder: str | None = None, log: Callable[[str], None] = print) -> Benchmark:
    """Load a benchmark by name from `folder/NAME.jsonl` (or .json, .parquet); without a folder, from the Hub.

    Raises:
        DataError: no such benchmark or file, the Hub does not answer, or count or hash are not the pinned ones.
    """
    if name not in PINS:
        raise DataError(f"no benchmark `{name}`; known: {', '.join(PINS)}; for your own file use --data")
    made = _from_folder(name, folder) if folder else _from_hub(name)
    wanted = PINS[name].rows
    if len(made.problems) != wanted:
        raise DataError(
            f"{made.source}: {name} has {wanted} problems, this copy {len(made.problems)}; get a complete copy"
        )
    if not made.pinned and folder:
        raise DataError(
            f"{made.source}: this is not the pinned text of {name} (sha256 {made.sha256[:12]}…, "
            f"pinned {PINS[name].sha256[:12]}…); to evaluate on it anyway, give the file to --data"
        )
    if not made.pinned:
        log(f"{made.source}: the text differs from the pinned copy of {name}; its hash is in the result")
    return made


def load_file(path: str, problems: list[Problem]) -> Benchmark:
    """Make a benchmark of the user's own file, named after the file."""
    return Benchmark(Path(path).stem or path, problems, path, content_hash(problems))


def content_hash(problems: Sequence[Problem]) -> str:
    """Compute SHA-256 over all problems and answers. Order, ids and white space do not matter."""
    lines = sorted("".join(f"{problem.problem}\0{problem.answer}".split()) for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _from_folder(name: str, folder: str) -> Benchmark:
    for suffix in (".jsonl", ".json", ".parquet"):
        path = Path(folder).expanduser() / f"{name}{suffix}"
        if path.is_file():
            problems, _ = load_problems(path)
            return Benchmark(name, problems, str(path), content_hash(problems))
    raise DataError(f"--bench-dir {folder} has no {name}.jsonl (nor .json, .parquet)")


def _from_hub(name: str) -> Benchmark:
    pin = PINS[name]
    hub.go_offline_if_unreachable()
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise DataError(
            f"{name}: the Hub needs datasets; install it with: pip install 'grpo-tir[data]', or give --bench-dir"
        ) from None
    where = f"{pin.hub}@{pin.revision or 'main'}"
    try:
        rows = load_dataset(pin.hub, split=pin.split, revision=pin.revision)
    except Exception as error:  # offline, gated and removed data sets all raise different types
        fault = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name}: cannot load {where} from the Hub ({fault}); or give --bench-dir FOLDER"
        ) from error
    problems = [
        Problem(f"{name}-{i:03d}", row[pin.problem_field], plain_answer(str(row["answer"])), name)
        for i, row in enumerate(rows)
    ]
    return Benchmark(name, problems, where, content_hash(problems))


def plain_answer(text: str) -> str:
    """Remove the formatting that some copies add to an answer: `$27$.` and `27.0` become `27`."""
    text = text.strip().removesuffix(".").strip()
    if text.count("$") == 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return re.sub(r"(?<=\d)\.0+$", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text
