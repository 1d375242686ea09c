"""Record rollouts and tool results since the last checkpoint, so that a killed run does not sample them again.

    journal/step_000012.rank0.jsonl     {"recipe": digest}                                the first line
                                        {"call": [group, sample, number], "code", …}      a result of the tool
                                        {"rollout": [group, sample], "segments", …}       a finished rollout, or
                                                                                          one that is carried over

A finished rollout is restored from the journal with its exact ids and log-probs, and graded again. With
`train.deterministic`, only complete waves are restored, because the last bits of log-probs depend on which rows
decode together. An incomplete wave is sampled again from its prompts; a call that it repeats gets the recorded
result. Lost calls and lost rollouts are not recorded.

Each rank writes its own file and reads the files of all ranks, so that a run can resume with another number of
ranks. A journal of another recipe is ignored. After a step in which a rollout had to be sampled, the journals of
later steps are ignored too.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.tools.protocol import Session
from grpo_tir.types import Problem, Reward, Rollout, Segment, Stamp, ToolCall, ToolResult
from grpo_tir.utils.files import Writer, append_lines, complete_lines, cut_torn_line

Key = tuple[int, ...]


class Journal:
    """Write and read the journal of one rank. `recipe` is the `digest` of the run's recipe. If `resume`, existing
    journals are read; if not, they are replaced."""

    def __init__(self, folder: Path, rank: int, recipe: str, writer: Writer, resume: bool) -> None:
        self.folder, self.rank, self.recipe, self.writer = folder, rank, recipe, writer
        self.reading = resume
        self.calls: dict[Key, tuple[str, ToolResult]] = {}
        self.rollouts: dict[Key, dict[str, Any]] = {}
        self.file = folder

    def begin(self, step: int) -> None:
        """Start a step: read the journal of an earlier attempt, and open it for appending."""
        self.calls, self.rollouts = {}, {}
        name = f"step_{step:06d}"
        self.file = self.folder / f"{name}.rank{self.rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.reading:
            for path in sorted(self.folder.glob(f"{name}.rank*.jsonl")):
                self._read(path)
        if not self.reading or cut_torn_line(self.file)[:1] != [{"recipe": self.recipe}]:
            self.file.unlink(missing_ok=True)
            self.writer.do(append_lines, self.file, {"recipe": self.recipe})

    def recall(self, rollouts: Sequence[Rollout], whole: bool) -> list[Rollout]:
        """Fill the rollouts that are in the journal with the same prompt; if `whole`, either all or none. Returns
        those that have not ended. None of `rollouts` had."""
        lines = [self.rollouts.get((rollout.group, rollout.sample)) for rollout in rollouts]
        known = [
            (rollout, line)
            for rollout, line in zip(rollouts, lines, strict=True)
            if line and line["prompt_ids"] == rollout.prompt_ids
        ]
        if not whole or len(known) == len(rollouts):
            for rollout, line in known:
                _fill(rollout, line)
        return [rollout for rollout in rollouts if not rollout.ended]

    def run(self, session: Session, rollout: Rollout, code: str) -> Future[ToolResult]:
        """Return the recorded result of a call. Without a record, run it and record its result."""
        key = (rollout.group, rollout.sample, len(rollout.calls))
        known = self.calls.get(key)
        if known and known[0] == code:
            future: Future[ToolResult] = Future()
            future.set_result(known[1])
            return future
        future = session.submit(code)
        file = self.file
        future.add_done_callback(lambda done: self._record_call(file, key, code, done))
        return future

    def record(self, rollout: Rollout) -> None:
        """Record a rollout that has finished or is carried over, unless it is invalid."""
        if rollout.valid:
            self.writer.do(append_lines, self.file, to_line(rollout))

    def end_batch(
        self, step: int, sampled: int, number: int, runtime: Runtime, log: Callable[[str], None]
    ) -> None:
        """Wait until the batch of `step` is written on all ranks. All ranks must call it together.

        If a rank had to sample, the journals of later steps no longer belong to this run and are deleted. This
        rank sampled `sampled` of its `number` rollouts. The others came from the journal.
        """
        self.writer.flush()
        sampled, number = map(int, runtime.sum([sampled, number]))
        if self.reading and sampled < number:
            log(f"step {step}: {number - sampled} of {number} rollouts taken from the journal")
        if not sampled or not self.reading:
            return
        if runtime.is_main:
            self.drop(first=step + 1)
        runtime.barrier()
        self.reading = False

    def drop(self, first: int = 0, last: float = math.inf) -> None:
        """Delete the journals of the steps from `first` to `last`, of all ranks."""
        for path in self.folder.glob("step_*.rank*.jsonl"):
            if first <= int(path.name.removeprefix("step_").partition(".")[0]) <= last:
                path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        lines, _ = complete_lines(path)
        if lines[:1] != [{"recipe": self.recipe}]:
            return
        for line in lines[1:]:
            if "call" in line:
                self.calls[tuple(line["call"])] = (line["code"], ToolResult(**line["result"]))
                continue
            earlier = self.rollouts.get(tuple(line["rollout"]))
            if line["finish_reason"] != "aborted" or earlier is None or earlier["finish_reason"] == "aborted":
                self.rollouts[tuple(line["rollout"])] = line

    def _record_call(self, file: Path, key: Key, code: str, done: Future[ToolResult]) -> None:
        """Record a result, in a thread of the executor. The main thread raises the error of a failed write."""
        if done.cancelled() or done.exception() or done.result().status == "infrastructure":
            return
        line = {"call": key, "code": code, "result": dataclasses.asdict(done.result())}
        with contextlib.suppress(Exception):
            self.writer.do(append_lines, file, line)


def digest(config: Config) -> str:
    """Hash all settings that influence sampling. Executor and logging settings do not."""
    plain = dataclasses.asdict(config)
    kept = {name: plain[name] for name in ("model", "data", "rollout", "tool", "reward", "algorithm", "optim")}
    kept["train"] = {name: plain["train"][name] for name in ("seed", "deterministic")}
    if config.optim.schedule != "constant":
        kept["train"]["steps"] = config.train.steps
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def to_line(rollout: Rollout) -> dict[str, Any]:
    """Return all data of a rollout before its update as plain values, for the journal or a checkpoint."""
    reward = rollout.reward and {
        "value": float(rollout.reward.value),
        "parts": {name: float(value) for name, value in rollout.reward.parts.items()},
    }
    return {
        "rollout": [rollout.group, rollout.sample],
        "problem": dict(vars(rollout.problem)),
        "prompt_ids": rollout.prompt_ids,
        "segments": [dict(vars(segment)) for segment in rollout.segments],
        "stamps": [list(stamp) for stamp in rollout.stamps],
        "calls": [dataclasses.asdict(call) for call in rollout.calls],
        "finish_reason": rollout.finish_reason,
        "cut": rollout.cut,
        "valid": rollout.valid,
        "reward": reward,
    }


def from_line(line: dict[str, Any]) -> Rollout:
    """Rebuild the rollout of `to_line`."""
    group, sample = line["rollout"]
    rollout = Rollout(Problem(**line["problem"]), line["prompt_ids"], group, sample, valid=line["valid"])
    rollout.reward = line["reward"] and Reward(**line["reward"])
    _fill(rollout, line)
    return rollout


def _fill(rollout: Rollout, line: dict[str, Any]) -> None:
    rollout.segments = [Segment(**segment) for segment in line["segments"]]
    rollout.stamps = [Stamp(*stamp) for stamp in line["stamps"]]  # as recorded, for the certificate
    rollout.calls = [
        ToolCall(call["code"], call["result"] and ToolResult(**call["result"]), call["seconds"])
        for call in line["calls"]
    ]
    rollout.finish_reason, rollout.cut = line["finish_reason"], line.get("cut", False)
