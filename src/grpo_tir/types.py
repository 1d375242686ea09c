"""Define the data of the pipeline: problems, rollouts and their loss mask.

One rollout with c = 1, and its loss mask:

    prompt_ids      segments[0] model          segments[1] tool          segments[2] model
    "…Assistant:"   "```python…``````output"   "\\n42\\n```\\n"             "so \\boxed{42}<eos>"
    not trained      1 1 1 1 1 1 1 1 1 1 1      0 0 0 0 0 0 0             1 1 1 1 1 1

Sampled ids are kept as they were sampled. They are never decoded and encoded again (bug 3 of the reference). The
mask of a token is derived from the kind of its segment, so the two cannot disagree (bug 1).

This module imports only the standard library.
"""

import itertools
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

ToolStatus = Literal[
    "ok",  # exit code 0
    "error",  # any other exit code, MemoryError included
    "timeout",  # reached its CPU or wall limit, both counted from its fork
    "memory",  # killed by the memory cgroup
    "output_limit",  # printed more than 1 MB
    "killed",  # any other signal
    "infrastructure",  # failure of the executor: never shown to the model, never scored
]
FinishReason = Literal["eos", "length", "aborted"]


@dataclass(frozen=True)
class Problem:
    """A question with a verifiable answer."""

    id: str
    problem: str
    answer: str
    source: str = ""


@dataclass(frozen=True)
class ToolResult:
    """Result of running a program. The status depends on how the program *ended*, never on its output."""

    status: ToolStatus
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    signal: int | None = None
    truncated: bool = False
    """True if output beyond 64 KB was dropped."""
    seconds: float = 0.0
    """Wall time of the program, from its fork. The replay of earlier blocks is not counted."""
    cpu_seconds: float = 0.0
    """CPU time of the program, counted in the same way."""
    replay_differs: int = 0
    """Number of earlier blocks that failed, or printed something else, when they were replayed."""
    tool: str = ""
    """Name of the tool, if the model calls tools by name."""


@dataclass(frozen=True)
class ToolCall:
    """One tool call. `code` is None if the model wrote no code block."""

    code: str | None
    result: ToolResult | None
    seconds: float = 0.0
    """Wall time from the call to the result, waiting in the queue included."""

    @property
    def failed(self) -> bool:
        """True if code was executed and did not exit with 0 (the paper's "unexecutable")."""
        return self.result is not None and self.result.status not in ("ok", "infrastructure")


@dataclass
class Segment:
    """Consecutive tokens from one source. `logprobs` has one value for each model token, none for tool tokens."""

    kind: Literal["model", "tool"]
    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    """Text of the tokens without a final end-of-text token, decoded once for grading and display."""
    versions: list[int] = field(default_factory=list)
    """Training step whose weights drew each model token (`rollout.carry_over`); empty if it is not recorded."""


@dataclass(frozen=True)
class Reward:
    """Reward of a rollout. `value` is optimised; `parts` names its components. `correct` (0 or 1), if present,
    gives the metric `accuracy`."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)


class Stamp(NamedTuple):
    """Checksum of a segment, made when it was added: its kind, number of tokens, and CRC-32."""

    kind: str
    length: int
    crc: int


def stamp(kind: str, token_ids: Sequence[int], before: Stamp | None = None) -> Stamp:
    """Compute the stamp of a segment, or that of its first tokens, stamped `before`, and these."""
    _, length, crc = before or (kind, 0, 0)
    return Stamp(kind, length + len(token_ids), zlib.crc32(array("q", token_ids).tobytes(), crc))


@dataclass
class Rollout:
    """One sampled response to one problem."""

    problem: Problem
    prompt_ids: list[int]
    group: int = 0
    """Number of the group in the run. Every draw is keyed by seed, group, sample and position."""
    sample: int = 0
    segments: list[Segment] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: FinishReason = "aborted"
    valid: bool = True
    """False after an outage of sandbox or grader. The rollout is then left out of group statistics and loss."""
    reward: Reward | None = None
    advantage: float = 0.0
    turn_advantages: list[float] = field(default_factory=list)
    """Advantage of each model segment; empty if all have `advantage`."""
    trained: bool = True
    """False if the rollout is invalid, or if an option leaves it out of the loss."""
    stamps: list[Stamp] = field(default_factory=list)
    """Stamp of each segment, made when it was added. The certificate compares the trained tokens with it."""
    cut: bool = False
    """True if a training step ended within the last segment, which the next step continues."""
    old_logprobs: Sequence[float] | None = None
    """(T,) log-probs of the learner before its update, 0.0 at tool tokens; None before the update."""

    def add(self, segment: Segment) -> None:
        """Append and stamp a segment, or continue the last one if it was cut. All tokens enter here."""
        before, added = None, segment.token_ids
        if self.cut:
            last, before = self.segments.pop(), self.stamps.pop()
            segment.token_ids = last.token_ids + added
            segment.logprobs = last.logprobs + segment.logprobs
            segment.versions = last.versions + segment.versions
        self.segments.append(segment)
        self.stamps.append(stamp(segment.kind, added, before))
        self.cut = False

    @property
    def ended(self) -> bool:
        """True if no token will be added: the response is complete, or its tool or its grader was lost."""
        return self.finish_reason != "aborted" or not self.valid

    @property
    def token_ids(self) -> list[int]:
        """Response tokens, tool output included, in order. (T,)"""
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def loss_mask(self) -> list[int]:
        """1 where the policy chose the token, 0 where the tool wrote it. (T,)"""
        return [int(segment.kind == "model") for segment in self.segments for _ in segment.token_ids]

    @property
    def logprobs(self) -> list[float]:
        """Log-probs that the generator recorded, 0.0 for tool tokens. (T,)"""
        return [
            logprob
            for segment in self.segments
            for logprob in (segment.logprobs if segment.kind == "model" else [0.0] * len(segment.token_ids))
        ]

    @property
    def versions(self) -> list[int]:
        """Training step whose weights drew each token; 0 for tool tokens, and where it is not recorded. (T,)"""
        return [
            version for segment in self.segments for version in (segment.versions or [0] * len(segment.token_ids))
        ]

    @property
    def advantages(self) -> list[float]:
        """Advantage of each model token, that of its turn; 0.0 for tool tokens. (T,)"""
        turns = iter(self.turn_advantages or itertools.repeat(self.advantage))
        return [
            advantage
            for segment in self.segments
            for advantage in [next(turns) if segment.kind == "model" else 0.0] * len(segment.token_ids)
        ]

    @property
    def model_text(self) -> str:
        """Text written by the model, without tool output."""
        return "".join(segment.text for segment in self.segments if segment.kind == "model")

    @property
    def text(self) -> str:
        """Text of the complete response."""
        return "".join(segment.text for segment in self.segments)


@dataclass
class RolloutGroup:
    """The G samples of one problem, which GRPO compares."""

    problem: Problem
    rollouts: list[Rollout]

    @property
    def rewards(self) -> list[float]:
        """Rewards of the valid rollouts."""
        return [r.reward.value for r in self.rollouts if r.valid and r.reward is not None]

    @property
    def whole(self) -> bool:
        """True if all its rollouts have ended."""
        return all(rollout.ended for rollout in self.rollouts)
