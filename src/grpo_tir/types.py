"""What travels through the pipeline: problems in, rollouts out.

One rollout with c = 1, and the mask that training sees:

    prompt_ids      segments[0] model          segments[1] tool          segments[2] model
    "…Assistant:"   "```python…``````output"   "\\n42\\n```\\n"             "so \\boxed{42}<eos>"
    not trained      1 1 1 1 1 1 1 1 1 1 1      0 0 0 0 0 0 0             1 1 1 1 1 1

Sampled ids are kept as sampled. They are never decoded and encoded again (bug 3 of the reference), so the
mask cannot drift: it *is* the kind of the segment a token stands in (bug 1).

This module imports nothing but the standard library and the certificate's stamps.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

ToolStatus = Literal[
    "ok",  # exit code 0
    "error",  # any other exit code, MemoryError included
    "timeout",  # its CPU or wall limit, both counted from its own fork
    "memory",  # killed by the memory cgroup
    "output_limit",  # printed more than 1 MB
    "killed",  # any other signal
    "infrastructure",  # ours, not the model's: never shown to it, never scored
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
    """What one run of a piece of code came to. The status follows from how it *ended*, never from its text."""

    status: ToolStatus
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    signal: int | None = None
    truncated: bool = False
    """Output beyond 64 KB was dropped."""
    seconds: float = 0.0
    """Wall time of the run itself, from its fork."""


@dataclass(frozen=True)
class ToolCall:
    """One call that the model made. `code` is None where it called without a code block."""

    code: str | None
    result: ToolResult | None
    seconds: float = 0.0
    """Wall time from the stop to the result, queueing included."""

    @property
    def failed(self) -> bool:
        """Some code was executed and did not exit with 0 (the paper's "unexecutable")."""
        return self.result is not None and self.result.status not in ("ok", "infrastructure")


@dataclass
class Segment:
    """A run of tokens from one source. `logprobs` has one entry a token for the model, none for the tool."""

    kind: Literal["model", "tool"]
    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    """Decoded once, for grading and for people; never encoded again."""


@dataclass(frozen=True)
class Reward:
    """`value` is what is optimised; `parts` says what it is made of (at least `correct`: 0 or 1)."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass
class Rollout:
    """One sampled response to one problem."""

    problem: Problem
    prompt_ids: list[int]
    group: int = 0
    """Ordinal of its group in the run; with `sample` it keys every random draw."""
    sample: int = 0
    segments: list[Segment] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: FinishReason = "aborted"
    valid: bool = True
    """False after an outage of sandbox or grader: out of the group's statistics and out of the loss."""
    reward: Reward | None = None
    advantage: float = 0.0
    trained: bool = True
    """False where an option (flat group, over-long, void turn) takes it out of the loss."""
    stamps: list[Stamp] = field(default_factory=list)
    """Of each segment, made as it entered: what the certificate holds the trained row against."""

    old_logprobs: Sequence[float] | None = None
    """(T,) of the learner before its update, 0.0 at tool tokens; known once it has learned from this rollout."""

    def add(self, segment: Segment) -> None:
        """Append and stamp a segment; the way in for whatever is sampled or inserted."""
        self.segments.append(segment)
        self.stamps.append(stamp(segment.kind, segment.token_ids))

    @property
    def token_ids(self) -> list[int]:
        """Response tokens, tool output included, in order. (T,)"""
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def loss_mask(self) -> list[int]:
        """1 where the policy chose the token, 0 where the tool wrote it. (T,) The only place where it is made."""
        return [int(segment.kind == "model") for segment in self.segments for _ in segment.token_ids]

    @property
    def logprobs(self) -> list[float]:
        """What the generator recorded for each sampled token, 0.0 for tool tokens. (T,)"""
        return [
            logprob
            for segment in self.segments
            for logprob in (segment.logprobs if segment.kind == "model" else [0.0] * len(segment.token_ids))
        ]

    @property
    def model_text(self) -> str:
        """All that the model wrote, without what the tool answered."""
        return "".join(segment.text for segment in self.segments if segment.kind == "model")

    @property
    def text(self) -> str:
        """The whole response as a reader sees it."""
        return "".join(segment.text for segment in self.segments)


@dataclass
class RolloutGroup:
    """The G samples of one problem: GRPO's unit of comparison."""

    problem: Problem
    rollouts: list[Rollout]

    @property
    def rewards(self) -> list[float]:
        """Rewards of the valid rollouts only."""
        return [r.reward.value for r in self.rollouts if r.valid and r.reward is not None]


class Stamp(NamedTuple):
    """One piece of a response as it was when it entered: who wrote it, how many tokens, and their CRC-32."""

    kind: str
    length: int
    crc: int


def stamp(kind: str, token_ids: Sequence[int]) -> Stamp:
    """The stamp of a piece. Costs about 20 ns a token."""
    return Stamp(kind, len(token_ids), zlib.crc32(array("q", token_ids).tobytes()))
