"""Choose the rollouts that the page shows, and summarise them.

For all runs together, up to 50,000 rollouts are summarised (one row of numbers each). Up to 2,000 are kept in
full, by groups, because GRPO compares the G samples of one problem. The choice is deterministic:

1. The first group with each behaviour of `SHOWN_FIRST`, and the one with the longest response.
2. Groups spread over the steps:

    step   1 ............. 250 ............. 500 ............. 750 ............ 1000
    order  1st              4th               3rd              5th               2nd      then the gaps again

Within a step the problems that were drawn most often come first, so that one problem can be followed over
training.
"""

import math
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from grpo_tir.errors import UserError
from grpo_tir.grading.extract import extract_answer
from grpo_tir.monitor.metrics import contradicts, fake_outputs
from grpo_tir.report.read import Run, clean, decoder, json_lines, number, pack, parsed
from grpo_tir.tools.formats import written_calls

MAX_SUMMARIES = 50_000
MAX_FULL = 2_000
MAX_OUTPUT = 4_000
"""Maximum number of characters of a call's stdout or stderr in the page."""

FLAGS = ("correct", "code", "failed", "recovered", "contradiction", "fake", "aha", "cut", "invalid")
SHOWN_FIRST = ("recovered", "contradiction", "fake", "aha", "failed")
COLUMNS = ("run", "step", "group", "sample", "problem", "reward", "advantage", "tokens", "calls", "flags", "chunk")

_DOUBT = re.compile(r"\b(wait|mistake|incorrect|wrong|re-?check|reconsider|double.check)\b", re.IGNORECASE)

Key = tuple[int, int, int]
"""(run, step, group)"""


class Traces:
    """Summaries of the rollouts of all runs, and the chosen groups as packed chunks."""

    def __init__(self, runs: list[Run], *, max_characters: int) -> None:
        self.rows: list[list[Any]] = []
        self.problems: dict[tuple[str, str], int] = {}
        self.chunks: list[str] = []
        self._groups: dict[Key, list[int]] = defaultdict(list)  # indices into self.rows
        self._places: list[tuple[Path, int]] = []  # file and byte offset of each row
        for i, run in enumerate(runs):
            for path in spread_files(run.rollout_files, MAX_SUMMARIES // len(runs)):
                self._summarise(i, path, run.notes)
        self._keep_full([decoder(run) for run in runs], max_characters)

    def as_data(self) -> dict[str, Any]:
        """Return the summaries as columns: 50,000 rows stay small and decode fast."""
        columns = zip(*self.rows) if self.rows else ([] for _ in COLUMNS)
        return {
            "names": FLAGS,
            "problems": [*self.problems],
            **dict(zip(COLUMNS, map(list, columns))),
        }

    def _summarise(self, run: int, path: Path, notes: list[str]) -> None:
        """Add one summary for each rollout in the file of a step."""
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

    def _keep_full(self, decoders: list[Any], max_characters: int) -> None:
        """Pack groups in the chosen order until the maximum number of rollouts or characters is reached."""
        kept = characters = 0
        for key in self._coverage():
            rows = self._groups[key]
            if kept + len(rows) > MAX_FULL:
                continue
            chunk = pack([full_rollout(self._read(row), decoders[key[0]]) for row in rows])
            if characters + len(chunk) > max_characters:
                break
            for row in rows:
                self.rows[row][-1] = len(self.chunks)
            self.chunks.append(chunk)
            kept, characters = kept + len(rows), characters + len(chunk)

    def _coverage(self) -> dict[Key, None]:
        """Return all groups in the order in which they are to be kept."""
        # 1. Examples of each behaviour, and the longest response.
        masks = [1 << FLAGS.index(flag) for flag in SHOWN_FIRST]
        first = [next((row for row in self.rows if row[9] & mask), None) for mask in masks]
        longest = max(self.rows, key=lambda row: row[7], default=None)
        order = {(row[0], row[1], row[2]): None for row in [*first, longest] if row is not None}
        # 2. In each step, sort the groups by how often their problem was drawn.
        problem = {key: self.rows[rows[0]][4] for key, rows in self._groups.items()}
        drawn = Counter(problem.values())
        steps: dict[tuple[int, int], list[Key]] = defaultdict(list)
        for key in sorted(self._groups, key=lambda key: (-drawn[problem[key]], key)):
            steps[key[1], key[0]].append(key)
        # 3. Go through the steps in bisecting order: one group of each step, then a second one, ….
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
            raise UserError(f"{path} changed while it was read: run the report again")
        return rollout


def spread_files(files: list[Path], limit: int) -> list[Path]:
    """Choose files with about `limit` rollouts in total, evenly spaced, with the first and the last step."""
    if not files:
        return []
    largest = max(sum(1 for _ in json_lines(path)) for path in (files[0], files[len(files) // 2], files[-1]))
    count = max(2, limit // max(largest, 1))
    if len(files) <= count:
        return files
    return [files[round(i * (len(files) - 1) / (count - 1))] for i in range(count)]


def bisected(items: list[Any]) -> list[Any]:
    """Reorder as first, last, middle, middles of the halves, …: every prefix covers the full range."""
    order = [0, len(items) - 1][: len(items)]
    gaps = [(0, len(items) - 1)]
    for low, high in gaps:  # the list grows in the loop: breadth first
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [items[i] for i in order]


def full_rollout(rollout: dict[str, Any], tokenizer: Any = None) -> dict[str, Any]:
    """Return a rollout as the page shows it: log-probs in 1/100 nat, ratios in 1/1000."""
    segments, calls = _dicts(rollout, "segments"), _dicts(rollout, "calls")
    prompt, prompt_ids = rollout.get("prompt"), rollout.get("prompt_ids")
    if prompt is None and prompt_ids and tokenizer:
        prompt = tokenizer.decode(prompt_ids, skip_special_tokens=False)
    return {
        **{key: clean(rollout.get(key)) for key in ("problem", "answer", "finish_reason", "reward_parts")},
        "prompt": prompt,
        "trained": rollout.get("trained") is not False,
        "segments": [_segment(segment, tokenizer) for segment in segments],
        "calls": [
            {
                "status": str(call.get("status") or "no code"),
                "seconds": number(call.get("seconds")),
                **{key: str(call.get(key) or "")[:MAX_OUTPUT] for key in ("stdout", "stderr")},
            }
            for call in calls
        ],
    }


def _segment(segment: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return a segment's text and, if known, its tokens. The text is left out if it equals the joined tokens."""
    plain: dict[str, Any] = {"tool": segment.get("kind") == "tool", "text": str(segment.get("text") or "")}
    if plain["tool"]:
        return plain
    ids, logprobs, old = (segment.get(key) or [] for key in ("token_ids", "logprobs", "old_logprobs"))
    tokens = segment.get("tokens") or ([_piece(tokenizer, token) for token in ids] if tokenizer else [])
    if tokens:
        plain["tokens"] = [str(token) for token in tokens]
        if "".join(plain["tokens"]) == plain["text"]:
            del plain["text"]
    else:
        plain["ids"] = clean(ids)
    pairs = [(number(o), number(n)) for o, n in zip(old, logprobs)]  # learner, sampler
    ratios = [math.exp(min(o - n, 9.0)) if o is not None and n is not None else None for o, n in pairs]
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
    """Return the FLAGS of one rollout as a bit mask."""
    segments, calls = _dicts(rollout, "segments"), _dicts(rollout, "calls")
    written = [str(segment.get("text") or "") for segment in segments if segment.get("kind") == "model"]
    inserted = [str(segment.get("text") or "") for segment in segments if segment.get("kind") == "tool"]
    last = calls[-1] if calls else {}
    parts = rollout.get("reward_parts") or {"correct": rollout.get("reward")}
    correct = (number(parts.get("correct")) or 0.0) > 0
    ran = [call["status"] == "ok" for call in calls if call.get("status") not in (None, "infrastructure")]
    answers = [extract_answer(text) for text in written]
    values = {
        "correct": correct,
        "code": any(call.get("status") for call in calls) or any(written_calls(text) for text in written),
        "failed": False in ran,
        "recovered": False in ran and True in ran[ran.index(False) :],
        "contradiction": bool(
            contradicts(answers[-1] if answers else None, last.get("status"), str(last.get("stdout") or ""))
        ),
        "fake": fake_outputs(written, inserted, len(calls)) > 0,
        "aha": correct and (len({*answers} - {None}) > 1 or any(_DOUBT.search(text) for text in written[1:])),
        "cut": rollout.get("finish_reason") == "length",
        "invalid": rollout.get("valid") is False,
    }
    return sum(1 << i for i, flag in enumerate(FLAGS) if values[flag])


def _dicts(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    inner = value.get(key)
    return [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []
