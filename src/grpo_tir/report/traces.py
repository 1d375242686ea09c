"""Which rollouts the page holds, and what it says of each.

Of all runs together, up to 50,000 rollouts are summarised (one row of numbers each) and up to 2,000 are kept
whole, as groups: G samples of one problem are the unit that GRPO compares. The choice is deterministic and covers
the run:

    step   1 ............. 250 ............. 500 ............. 750 ............ 1000
    order  1st              4th               3rd              5th               2nd      then the gaps again

after the first example of each behaviour below, and within a step the problems drawn most often come first, so
that one problem can be followed across training.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_tir.errors import UserError
from grpo_tir.grading.extract import extract_answer
from grpo_tir.monitor.metrics import contradicts, fake_outputs
from grpo_tir.report.read import Run, clean, decoder, json_lines, number, pack, parsed
from grpo_tir.tools.python import code_blocks

MAX_SUMMARIES = 50_000
MAX_WHOLE = 2_000
MAX_OUTPUT = 4_000
"""Characters of one call's stdout or stderr in the page."""

FLAGS = ("correct", "code", "failed", "recovered", "contradiction", "fake", "aha", "cut", "invalid")
SHOWN_FIRST = ("recovered", "contradiction", "fake", "aha", "failed")
COLUMNS = ("run", "step", "group", "sample", "problem", "reward", "advantage", "tokens", "calls", "flags", "chunk")

_DOUBT = re.compile(r"\b(wait|mistake|incorrect|wrong|re-?check|reconsider|double.check)\b", re.IGNORECASE)

Key = tuple[int, int, int]
"""(run, step, group)"""


class Traces:
    """Summaries of all runs as columns, and the chosen groups as packed chunks."""

    def __init__(self, runs: list[Run], *, max_characters: int) -> None:
        self.rows: list[list[Any]] = []
        self.problems: dict[tuple[str, str], int] = {}
        self.chunks: list[str] = []
        self._groups: dict[Key, list[int]] = defaultdict(list)  # to rows
        self._places: list[tuple[Path, int]] = []  # of each row on disk
        for i, run in enumerate(runs):
            for path in spread_files(run.rollout_files, MAX_SUMMARIES // len(runs)):
                self._summarise(i, path, run.notes)
        self._keep_whole([decoder(run) for run in runs], max_characters)

    def as_data(self) -> dict[str, Any]:
        """Columns, so that 50,000 rows stay small and decode fast."""
        columns = zip(*self.rows) if self.rows else ([] for _ in COLUMNS)
        return {
            "names": FLAGS,
            "problems": [*self.problems],
            **dict(zip(COLUMNS, map(list, columns))),
        }

    def _summarise(self, run: int, path: Path, notes: list[str]) -> None:
        """One row a rollout of one step's file."""
        for i, (offset, rollout) in enumerate(json_lines(path, notes)):
            step, group, sample = (int(number(rollout.get(key, i)) or 0) for key in ("step", "group", "sample"))
            name = (str(rollout.get("problem_id", "")), str(rollout.get("problem", ""))[:160])
            problem = self.problems.setdefault(name, len(self.problems))
            reward, advantage = number(rollout.get("reward")), number(rollout.get("advantage"))
            tokens = sum(len(segment.get("token_ids") or ()) for segment in _dicts(rollout, "segments"))
            calls, flags = len(_dicts(rollout, "calls")), bits(rollout)
            self._groups[run, step, group].append(len(self.rows))
            self.rows.append([run, step, group, sample, problem, reward, advantage, tokens, calls, flags, -1])
            self._places.append((path, offset))

    def _keep_whole(self, decoders: list[Any], max_characters: int) -> None:
        """Pack groups in the order of coverage until either bound is reached."""
        kept = characters = 0
        for key in self._coverage():
            rows = self._groups[key]
            if kept + len(rows) > MAX_WHOLE:
                continue
            chunk = pack([whole(self._read(row), decoders[key[0]]) for row in rows])
            if characters + len(chunk) > max_characters:
                break
            for row in rows:
                self.rows[row][-1] = len(self.chunks)
            self.chunks.append(chunk)
            kept, characters = kept + len(rows), characters + len(chunk)

    def _coverage(self) -> dict[Key, None]:
        """Every group once, best first."""
        masks = [1 << FLAGS.index(flag) for flag in SHOWN_FIRST]
        first = [next((row for row in self.rows if row[9] & mask), None) for mask in masks]
        longest = max(self.rows, key=lambda row: row[7], default=None)
        order = {(row[0], row[1], row[2]): None for row in [*first, longest] if row is not None}
        problem = {key: self.rows[rows[0]][4] for key, rows in self._groups.items()}
        drawn = Counter(problem.values())
        steps: dict[tuple[int, int], list[Key]] = defaultdict(list)
        for key in sorted(self._groups, key=lambda key: (-drawn[problem[key]], key)):
            steps[key[1], key[0]].append(key)
        turns = bisected(sorted(steps))
        for depth in range(max(map(len, steps.values()), default=0)):
            order.update({steps[turn][depth]: None for turn in turns if depth < len(steps[turn])})
        return order

    def _read(self, row: int) -> dict[str, Any]:
        path, offset = self._places[row]
        with path.open("rb") as file:
            file.seek(offset)
            rollout = parsed(file.readline())
        if rollout is None:
            raise UserError(f"{path} was rewritten while it was read: run the report again")
        return rollout


def spread_files(files: list[Path], limit: int) -> list[Path]:
    """As many steps as give about `limit` rollouts, evenly, with the first and the last."""
    if not files:
        return []
    largest = max(sum(1 for _ in json_lines(path)) for path in (files[0], files[len(files) // 2], files[-1]))
    count = max(2, limit // max(largest, 1))
    if len(files) <= count:
        return files
    return [files[round(i * (len(files) - 1) / (count - 1))] for i in range(count)]


def bisected(items: list[Any]) -> list[Any]:
    """First, last, middle, middles of the halves, …: every prefix covers the whole."""
    order = [0, len(items) - 1][: len(items)]
    gaps = [(0, len(items) - 1)]
    for low, high in gaps:  # grows as it is walked: breadth first
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [items[i] for i in order]


def whole(rollout: dict[str, Any], tokenizer: Any = None) -> dict[str, Any]:
    """A rollout as the page shows it; log-probs in hundredths of a nat, ratios in thousandths."""
    segments, calls = _dicts(rollout, "segments"), _dicts(rollout, "calls")
    columns = [per_segment(rollout, key, segments) for key in ("tokens", "logprobs", "ratios", "old_logprobs")]
    prompt, prompt_ids = rollout.get("prompt"), rollout.get("prompt_ids")
    if prompt is None and prompt_ids and tokenizer:
        prompt = tokenizer.decode(prompt_ids, skip_special_tokens=False)
    return {
        **{key: clean(rollout.get(key)) for key in ("problem", "answer", "finish_reason", "reward_parts")},
        "prompt": prompt,
        "trained": rollout.get("trained") is not False,
        "segments": [_segment(segment, one, tokenizer) for segment, *one in zip(segments, *columns)],
        "calls": [
            {
                "status": str(call.get("status") or "no code"),
                "seconds": number(call.get("seconds")),
                **{key: str(call.get(key) or "")[:MAX_OUTPUT] for key in ("stdout", "stderr")},
            }
            for call in calls
        ],
    }


def per_segment(rollout: dict[str, Any], key: str, segments: list[dict[str, Any]]) -> list[list[Any]]:
    """`key` of each segment: recorded there, as one list a segment, or flat over all or the model's tokens."""
    value = rollout.get(key)
    if not isinstance(value, list):
        return [segment.get(key) or [] for segment in segments]
    if all(isinstance(inner, list) for inner in value):
        return [*value, *([] for _ in segments)][: len(segments)]
    sizes = [len(segment.get("token_ids") or ()) for segment in segments]
    if len(value) != sum(sizes):
        sizes = [size * (segment.get("kind") == "model") for size, segment in zip(sizes, segments)]
    walk = iter(value)
    return [list(islice(walk, size)) for size in sizes]


def _segment(segment: dict[str, Any], columns: list[list[Any]], tokenizer: Any) -> dict[str, Any]:
    """Text, and where known its tokens; the text is left out where the tokens spell it."""
    plain: dict[str, Any] = {"tool": segment.get("kind") == "tool", "text": str(segment.get("text") or "")}
    if plain["tool"]:
        return plain
    tokens, logprobs, ratios, old = columns
    ids = segment.get("token_ids") or []
    if not tokens and tokenizer:
        tokens = [_piece(tokenizer, token) for token in ids]
    if tokens:
        plain["tokens"] = [str(token) for token in tokens]
        if "".join(plain["tokens"]) == plain["text"]:
            del plain["text"]
    else:
        plain["ids"] = clean(ids)
    if not ratios and len(old) == len(logprobs):  # the learner's against what the engine sampled with
        both = [(number(o), number(n)) for o, n in zip(old, logprobs)]
        ratios = [math.exp(min(o - n, 9.0)) if o is not None and n is not None else None for o, n in both]
    scaled = {"logprobs": _scaled(logprobs, 100), "ratios": _scaled(ratios, 1000)}
    return {**plain, **{key: values for key, values in scaled.items() if values}}


@lru_cache(maxsize=1 << 18)
def _piece(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text


def _scaled(values: list[Any], scale: int) -> list[int | None]:
    known = [isinstance(value, int | float) and math.isfinite(value) for value in values]
    return [round(value * scale) if fine else None for value, fine in zip(values, known)]


def bits(rollout: dict[str, Any]) -> int:
    """FLAGS of one rollout as a bit mask."""
    segments, calls = _dicts(rollout, "segments"), _dicts(rollout, "calls")
    written = [str(segment.get("text") or "") for segment in segments if segment.get("kind") == "model"]
    last = calls[-1] if calls else {}
    parts = rollout.get("reward_parts") or {"correct": rollout.get("reward")}
    correct = (number(parts.get("correct")) or 0.0) > 0
    ran = [call["status"] == "ok" for call in calls if call.get("status") not in (None, "infrastructure")]
    answers = [extract_answer(text) for text in written]
    values = {
        "correct": correct,
        "code": any(code_blocks(text) for text in written),
        "failed": False in ran,
        "recovered": False in ran and True in ran[ran.index(False) :],
        "contradiction": bool(
            contradicts(answers[-1] if answers else None, last.get("status"), str(last.get("stdout") or ""))
        ),
        "fake": fake_outputs(written, len(calls)) > 0,
        "aha": correct and (len({*answers} - {None}) > 1 or any(_DOUBT.search(text) for text in written[1:])),
        "cut": rollout.get("finish_reason") == "length",
        "invalid": rollout.get("valid") is False,
    }
    return sum(1 << i for i, flag in enumerate(FLAGS) if values[flag])


def _dicts(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    inner = value.get(key)
    return [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []
