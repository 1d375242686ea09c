"""Record rollouts and tool results since the last checkpoint, so that a killed run does not sample them again.

    journal/step_000012.rank0.jsonl     {"recipe": digest}                                the first line
                                        {"call": [group, sample, number], "code", …}      a result of the tool
                                        {"rollout": [group, sample], "segments", …}       a finished response

A finished rollout is read from the journal with its exact ids and log-probs, and graded again. With
`train.deterministic`, only complete waves are read: log-probs depend in their last bits on which rows decode
together, so an incomplete wave starts again from its prompts. A call that it repeats gets the recorded result.
Lost calls and lost rollouts are not recorded.

Each rank writes its own file and reads the files of all ranks, so that a run may resume with another number of
ranks. A journal of another recipe is ignored, and so are journals of steps after the first one that had to sample
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Rollout, Segment, Stamp, ToolCall, ToolResult
from grpo_tir.utils.files import Writer, append_lines, complete_lines, cut_torn_line
from grpo_tir.utils.recipe import to_dict

Key = tuple[int, ...]


class Journal:
    """The journal of one rank.

    Args:
        folder: shared by all ranks.
        rank: of this process.
        recipe: `digest` of the run's recipe.
        writer: writes the lines in a thread of its own.
        resume: read existing files.
    """

    def __init__(self, folder: Path, rank: int, recipe: str, writer: Writer, resume: bool) -> None:
        self.folder, self.rank, self.recipe, self.writer = folder, rank, recipe, writer
        self.reading = resume
        self.calls: dict[Key, tuple[str, ToolResult]] = {}
        self.rollouts: dict[Key, dict[str, Any]] = {}
        self.file = folder

    def begin(self, step: int) -> None:
        """Start a step: read the journal of an earlier attempt, and append to it."""
        self.calls, self.rollouts = {}, {}
        self.file = self.folder / f"{step_name(step)}.rank{self.rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.reading:
            for path in sorted(self.folder.glob(f"{step_name(step)}.rank*.jsonl")):
                self._read(path)
        if not self.reading or cut_torn_line(self.file)[:1] != [{"recipe": self.recipe}]:
            self.file.unlink(missing_ok=True)
            self.writer.do(append_lines, self.file, {"recipe": self.recipe})

    def recall(self, rollouts: Sequence[Rollout], whole: bool) -> list[Rollout]:
        """Fill the rollouts that the journal holds. Returns those that are still to be sampled.

        Args:
            whole: fill all or none of them.
        """
        missing = [rollout for rollout in rollouts if not self._knows(rollout)]
        if whole and missing:
            return list(rollouts)
        for rollout in rollouts:
            if self._knows(rollout):
                _fill(rollout, self.rollouts[rollout.group, rollout.sample])
        return missing

    def run(self, tool: Tool | None, rollout: Rollout, code: str) -> Future[ToolResult]:
        """Return the recorded result of a call, else run the tool and record its result."""
        assert tool is not None
        key = (rollout.group, rollout.sample, len(rollout.calls))
        known = self.calls.get(key)
        if known and known[0] == code:
            future: Future[ToolResult] = Future()
            future.set_result(known[1])
            return future
        future = tool.submit(code)
        file = self.file
        future.add_done_callback(lambda done: self._record_call(file, key, code, done))
        return future

    def record(self, rollout: Rollout) -> None:
        """Record a finished rollout."""
        if rollout.valid:
            self.writer.do(_append_rollout, self.file, rollout)

    def end_batch(
        self, step: int, sampled: int, number: int, runtime: Runtime, log: Callable[[str], None]
    ) -> None:
        """Wait until this batch is on the disk, on all ranks. All ranks must call it together.

        Once any rank had to sample, the journals of later steps belong to an abandoned future and are deleted.

        Args:
            step: of training, from 1.
            sampled: rollouts that this rank had to sample; the others came from the journal.
            number: rollouts of this rank.
            runtime: sums over the ranks.
            log: prints a line.
        """
        self.flush()
        sampled, number = map(int, runtime.sum([sampled, number]))
        if self.reading and sampled < number:
            log(f"step {step}: {number - sampled} of {number} rollouts taken from the journal")
        if not sampled or not self.reading:
            return
        if runtime.is_main:
            self.drop_after(step)
        runtime.barrier()
        self.reading = False

    def drop_after(self, step: int) -> None:
        """Delete the journals of later steps: they belong to an abandoned future."""
        for path, of_step in self._files():
            if of_step > step:
                path.unlink(missing_ok=True)

    def drop_through(self, step: int) -> None:
        """Delete the journals of steps that a checkpoint covers."""
        for path, of_step in self._files():
            if of_step <= step:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all journals, for a new run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def flush(self) -> None:
        """Wait until all lines are written."""
        self.writer.flush()

    def _knows(self, rollout: Rollout) -> bool:
        entry = self.rollouts.get((rollout.group, rollout.sample))
        return entry is not None and entry["prompt_ids"] == rollout.prompt_ids

    def _read(self, path: Path) -> None:
        lines, _ = complete_lines(path)
        if lines[:1] != [{"recipe": self.recipe}]:
            return
        for line in lines[1:]:
            if "call" in line:
                self.calls[tuple(line["call"])] = (line["code"], ToolResult(**line["result"]))
            else:
                self.rollouts[tuple(line["rollout"])] = line

    def _record_call(self, file: Path, key: Key, code: str, done: Future[ToolResult]) -> None:
        """Record a result, in a thread of the executor. An error of the writer is raised in the main thread."""
        if done.cancelled() or done.exception() or done.result().status == "infrastructure":
            return
        line = {"call": key, "code": code, "result": dataclasses.asdict(done.result())}
        with contextlib.suppress(Exception):
            self.writer.do(append_lines, file, line)

    def _files(self) -> Iterator[tuple[Path, int]]:
        for path in self.folder.glob("step_*.rank*.jsonl"):
            yield path, int(path.name.removeprefix("step_").partition(".")[0])


def digest(config: Config) -> str:
    """Hash all settings that influence what is sampled. Executor and logging settings do not."""
    plain = to_dict(config)
    kept = {name: plain[name] for name in ("model", "data", "rollout", "tool", "reward", "algorithm", "optim")}
    kept["train"] = {name: plain["train"][name] for name in ("seed", "deterministic")}
    if config.optim.schedule != "constant":
        kept["train"]["steps"] = config.train.steps
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def step_name(step: int) -> str:
    """Return the file name prefix of a step."""
    return f"step_{step:06d}"


def _append_rollout(path: Path, rollout: Rollout) -> None:
    calls = [
        {"code": call.code, "result": call.result and dataclasses.asdict(call.result), "seconds": call.seconds}
        for call in rollout.calls
    ]
    line = {
        "rollout": [rollout.group, rollout.sample],
        "prompt_ids": rollout.prompt_ids,
        "segments": [vars(segment) for segment in rollout.segments],
        "stamps": rollout.stamps,
        "calls": calls,
        "finish_reason": rollout.finish_reason,
    }
    append_lines(path, line)


def _fill(rollout: Rollout, line: dict[str, Any]) -> None:
    rollout.segments = [Segment(**segment) for segment in line["segments"]]
    rollout.stamps = [Stamp(*stamp) for stamp in line["stamps"]]  # as they were made: the certificate holds on
    rollout.calls = [
        ToolCall(call["code"], call["result"] and ToolResult(**call["result"]), call["seconds"])
        for call in line["calls"]
    ]
    rollout.finish_reason = line["finish_reason"]
