"""Run the tool loop: sample responses, run their tool calls, insert the outputs, continue.

    submit ──► generator.step() ──► "call" ──► session.submit(code) ─ ─ future ─ ─► observe ──► resume ─┐
                   ▲      └──► "eos" | "length": done                                                   │
                   └────────────────────────────────────────────────────────────────────────────────────┘

A row that waits for its tool is parked while the others continue; a dict maps parked rows to futures. After
`max_tool_calls` calls a row generates text only. One budget counts every response token, tool output included, so
that nothing is cut off later (bug 5 of the reference). Every token of a response was either sampled or inserted;
nothing else is appended (bugs 2, 3 and 4).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from grpo_tir.config import Config, ExecutorConfig
from grpo_tir.data.chat import encode_answer
from grpo_tir.data.prompts import Renderer, make_renderer
from grpo_tir.data.tokens import decode, encode
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.generation.protocol import Generator, Request, Stopped
from grpo_tir.generation.sampling import Sampling, row_key
from grpo_tir.rollouts.policy import Policy, load_policy
from grpo_tir.tools.formats import load_format
from grpo_tir.tools.open import open_tool, tool_schemas
from grpo_tir.tools.protocol import Session, Tool, open_session
from grpo_tir.types import Problem, Rollout, RolloutGroup, Segment, ToolCall, ToolResult
from grpo_tir.utils.objects import as_problems, name_of

RunTool = Callable[[Session, Rollout, str], Future[ToolResult]]
NOTED_SETUP = 5.0
"""Seconds of compilation in a batch, over which the console tells of it."""
NOT_RUN = ToolResult("error", stderr="CallLimit: not run, the limit of calls is reached")


@dataclass(frozen=True)
class Limits:
    """Limits of a response."""

    max_completion_length: int
    """Tokens of a response, tool output included."""
    max_tool_calls: int
    """c in the paper; with 0, no row is ever paused."""
    fixed_waves: bool = False
    """Insert results only when no row can continue, and all at once. The same rows then decode together in every
    run, so that results repeat to the last bit."""


def make_groups(
    problems: Sequence[Problem], render: Renderer, tokenizer: Any, samples: int, first_group: int
) -> list[RolloutGroup]:
    """Make G empty rollouts for each problem. Groups are numbered through the run, here from `first_group` on."""
    groups = []
    for ordinal, problem in enumerate(problems, start=first_group):
        prompt_ids = encode(tokenizer, render(problem))
        rollouts = [Rollout(problem, prompt_ids, group=ordinal, sample=sample) for sample in range(samples)]
        groups.append(RolloutGroup(problem, rollouts))
    return groups


def prompt_length(group: RolloutGroup) -> float:
    """Estimate the cost of a group: longer problems get longer responses."""
    return len(group.rollouts[0].prompt_ids)


def sample_responses(
    rollouts: list[Rollout],
    policy: Policy,
    tool: Tool | None,
    config: Config,
    runtime: Runtime,
    *,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    fixed_waves: bool = False,
    **hooks: Any,
) -> float:
    """Sample rollouts to their end, in place. Used by training, evaluation, `solve` and `doctor`.

    Args:
        rollouts: from `make_groups`, empty or carried over from an earlier step.
        policy: with its current weights. Under ZeRO-3 the caller gathers them first (`Policy.gathered`).
        tool: None only where no call is allowed.
        config: its sections `rollout`, `tool` and `train.seed` are read.
        runtime: gives the precision of the forward passes.
        sampling: distribution of the draws; default: that of the section `rollout`.
        limits: budget and number of calls; default: those of the recipe.
        fixed_waves: see `Limits`.
        hooks: `run_tool`, `on_finish`, `check`, `enough` and `version` of `RolloutLoop`.

    Returns:
        Seconds in which no row could continue, because all waited for their tool.

    Raises:
        ExecutorOutage: the executor lost so many calls that it gave up.
    """
    budget, calls = config.rollout.max_completion_length, config.tool.max_tool_calls
    with runtime.autocast():
        generator = policy.generator(config, sampling, rollouts)
    loop = RolloutLoop(
        generator, tool, policy.tokenizer, limits or Limits(budget, calls, fixed_waves), config.train.seed, **hooks
    )
    try:
        with runtime.autocast():
            loop.run(rollouts)
    finally:
        generator.close()
    policy.pool_tokens = getattr(generator, "pool_tokens", 0)
    if (seconds := getattr(generator, "setup_seconds", 0.0)) > NOTED_SETUP:
        policy.log(f"decode step: compiled and captured in {seconds:.0f} s; later batches do not need it")
    if failed := getattr(generator, "failed", None):
        policy.log(f"decode step: eager from here on ({failed})")
    return loop.idle


def rollout(
    model: Any,
    tokenizer: Any,
    problems: Iterable[Any],
    *,
    samples: int = 1,
    tool: Tool | None = None,
    config: Config | None = None,
) -> list[RolloutGroup]:
    """Sample responses with tool calls, outside of any run. The rollouts have no rewards.

    Args:
        model: a causal language model. It stays on its device, in its precision.
        tokenizer: of the model.
        problems: `Problem`s, or mappings with `problem` and `answer`.
        samples: number of responses to each problem.
        tool: default: the tool of the config, opened for this call. A tool given here is not closed.
        config: its sections `data`, `rollout`, `tool`, `executor` and `train.seed` are read. Default: `Config()`
            with the executor `auto`.

    Raises:
        UserError: the problems, the model or the executor cannot be used.
    """
    # 1. Render the prompts.
    config = config or Config(executor=ExecutorConfig(kind="auto"))
    render = make_renderer(config.data.template, tokenizer, config.data.system, tool_schemas(config))
    groups = make_groups(as_problems(problems, config, "problems"), render, tokenizer, samples, first_group=0)
    # 2. Make a policy of the model.
    longest, was_training = int(max(map(prompt_length, groups))), model.training
    policy = load_policy(config, name_of(model), model.device, prompt_length=longest, loaded=(model, tokenizer))
    # 3. Sample.
    used = tool or open_tool(config, lambda line: None)
    try:
        rollouts = [each for group in groups for each in group.rollouts]
        sample_responses(rollouts, policy, used, config, Runtime(config.model.precision))
    finally:
        model.train(was_training)
        if used is not None and used is not tool:
            used.close()
    return groups


@dataclass
class Turn:
    """The calls of a stopped segment. They run one after another: a later one may use the state of an earlier."""

    left: list[str | None]
    """Calls that have not run; None stands for a marker without code."""
    outputs: list[str] = field(default_factory=list)


class RolloutLoop:
    """Fill rollouts in place.

    Args:
        generator: decodes the rows.
        tool: finds calls, runs them and formats their output; None only with `max_tool_calls` 0.
        tokenizer: of the policy. It encodes tool output, and decodes tokens only for display and grading.
        limits: token budget and number of calls.
        seed: seed of the run. Every draw is keyed by seed, group, sample and position.
        run_tool: runs a call, `(session, rollout, code) -> future`; default: the session's `submit`.
        on_finish: called with each finished rollout at once, so that it is graded while others decode.
        check: called between steps with (finished, waiting); may raise to abandon the batch.
        enough: called between steps; if it returns True, the unfinished rollouts are cut, to be continued later.
        version: training step whose weights draw; 0 means that it is not recorded.
    """

    def __init__(
        self,
        generator: Generator,
        tool: Tool | None,
        tokenizer: Any,
        limits: Limits,
        seed: int,
        run_tool: RunTool = lambda session, rollout, code: session.submit(code),
        on_finish: Callable[[Rollout], None] = lambda rollout: None,
        check: Callable[[int, int], None] = lambda finished, waiting: None,
        enough: Callable[[], bool] = lambda: False,
        version: int = 0,
    ) -> None:
        self.generator, self.tool, self.tokenizer = generator, tool, tokenizer
        self.limits, self.seed = limits, seed
        self.run_tool, self.on_finish, self.check = run_tool, on_finish, check
        self.enough, self.version = enough, version
        self.rollouts: list[Rollout] = []
        # row to (future, code, time of the call); a tool with a cache may return one future for two rows
        self.waiting: dict[int, tuple[Future[ToolResult], str, float]] = {}
        self.sessions: dict[int, Session] = {}  # by row, from its first call to its end
        self.turns: dict[int, Turn] = {}  # by row, while its calls run
        self.format = load_format(getattr(tool, "stop", "output"))
        self.finished = 0
        self.idle = 0.0
        """Seconds in which no row could continue, because all waited for their tool."""

    def run(self, rollouts: list[Rollout]) -> None:
        """Sample every rollout to its end, or until `enough`.

        Raises:
            ExecutorOutage: the executor lost so many calls that it gave up.
        """
        self.rollouts, self.finished = rollouts, 0
        self.waiting.clear()  # an abandoned batch may have left some
        if not self.limits.fixed_waves:
            self.generator.ready = lambda: any(future.done() for future, _, _ in self.waiting.values())
        for row, rollout in enumerate(rollouts):
            key = row_key(self.seed, rollout.group, rollout.sample)
            # a checkpoint may hold a longer response than the recipe allows now: it ends with its next token
            budget = max(self.limits.max_completion_length, len(rollout.token_ids) + 1)
            may_call = len(rollout.calls) < self.limits.max_tool_calls
            cut = len(rollout.segments[-1].token_ids) if rollout.cut else 0
            self.generator.submit(Request(row, rollout.prompt_ids, key, budget, may_call, rollout.token_ids, cut))
        try:
            while self.finished < len(rollouts) and not self.enough():
                stopped = self.generator.step()
                for stop in sorted(stopped, key=lambda stop: stop.row):
                    self._take(stop)
                self._collect(block=not stopped)
                self.check(self.finished, len(self.waiting))
            self._cut()
        finally:
            for row in list(self.sessions):
                self._close_session(row)

    def _take(self, stop: Stopped) -> None:
        """Store the sampled tokens of a stopped row, whatever the reason (bug 2); then run its call or end it."""
        rollout = self.rollouts[stop.row]
        ended = stop.reason == "eos" or (stop.reason == "call" and not self.format.marker)
        segment = self._add(rollout, stop.token_ids, stop.logprobs, ended)
        if stop.reason != "call":
            rollout.finish_reason = stop.reason
            self._finish(stop.row)
            return
        if stop.row not in self.sessions:
            assert self.tool is not None
            self.sessions[stop.row] = open_session(self.tool, rollout)
        found = self.sessions[stop.row].find_call(segment.text)
        self.turns[stop.row] = Turn(list(found) if isinstance(found, list) else [found])
        self._run_next(stop.row)

    def _add(self, rollout: Rollout, token_ids: list[int], logprobs: list[float], ended: bool) -> Segment:
        """Add sampled tokens to a rollout. A final end-of-text token is not in the text."""
        segment = Segment("model", token_ids, logprobs)
        segment.versions = [self.version] * len(token_ids) if self.version else []
        rollout.add(segment)
        ids = segment.token_ids
        segment.text = decode(self.tokenizer, ids[:-1] if ended else ids)
        return segment

    def _cut(self) -> None:
        """Wait for the calls under way and insert their outputs; then keep what unfinished rollouts have drawn."""
        while self.waiting:
            self._collect(block=True)
            self.check(self.finished, len(self.waiting))
        for row, rollout in enumerate(self.rollouts):
            if not rollout.ended:
                token_ids, logprobs = self.generator.drawn(row)
                if token_ids:
                    self._add(rollout, token_ids, logprobs, ended=False)
                    rollout.cut = True

    def _run_next(self, row: int) -> None:
        """Start the next call of a turn."""
        code, session = self.turns[row].left.pop(0), self.sessions[row]
        if code is None:
            self._take_result(row, ToolCall(None, None))
        else:
            future = self.run_tool(session, self.rollouts[row], code)
            self.waiting[row] = (future, code, time.monotonic())

    def _collect(self, block: bool) -> None:
        """Resume the rows whose results have come. Wait for results only if no other row can continue."""
        if not self.waiting or (self.limits.fixed_waves and not block):
            return
        all_at_once = self.generator.barrier or self.limits.fixed_waves
        if all_at_once or block:
            futures = [future for future, _, _ in self.waiting.values()]
            since = time.monotonic()
            wait(futures, return_when=ALL_COMPLETED if all_at_once else FIRST_COMPLETED)
            self.idle += time.monotonic() - since
        for row in sorted(row for row, (future, _, _) in self.waiting.items() if future.done()):
            future, code, since = self.waiting.pop(row)
            self._take_result(row, ToolCall(code, future.result(), time.monotonic() - since))
        if all_at_once and self.waiting:  # further calls of the same turns
            self._collect(block)

    def _take_result(self, row: int, call: ToolCall) -> None:
        """Store the result of a call. Then run the next call of its turn, or answer the turn."""
        rollout, turn, session = self.rollouts[row], self.turns[row], self.sessions[row]
        rollout.calls.append(call)
        # 1. After an outage, end the row: it is neither shown to the model nor scored (bug 7).
        if call.result is not None and call.result.status == "infrastructure":
            rollout.valid = False
            self.generator.release(row)
            self._finish(row)
            return
        # 2. Go on to the next call. Those over the limit are not run.
        said = rollout.segments[-1].text
        turn.outputs.append(session.observe(call.result, said))
        if turn.left and len(rollout.calls) < self.limits.max_tool_calls:
            self._run_next(row)
        else:
            self._answer(row, turn.outputs + [session.observe(NOT_RUN, said) for _ in turn.left])

    def _answer(self, row: int, outputs: list[str]) -> None:
        """Insert the outputs of a turn's calls and resume the row, or end it at the end of its budget."""
        rollout = self.rollouts[row]
        # 1. Encode the answer, cut to the remaining budget.
        room = max(self.limits.max_completion_length - len(rollout.token_ids), 0)
        ended = not self.format.marker
        token_ids, text = encode_answer(self.tokenizer, outputs, ended, self.format.answer)
        if len(token_ids) >= room:
            token_ids = token_ids[:room]
            text = decode(self.tokenizer, token_ids)
        # 2. Insert it. End the row if its budget is spent, else resume it.
        if token_ids:
            rollout.add(Segment("tool", token_ids, text=text))
        if len(token_ids) == room:
            rollout.finish_reason = "length"
            self.generator.release(row)
            self._finish(row)
        else:
            self.generator.resume(row, token_ids, len(rollout.calls) < self.limits.max_tool_calls)

    def _finish(self, row: int) -> None:
        self._close_session(row)
        self.turns.pop(row, None)
        self.finished += 1
        self.on_finish(self.rollouts[row])

    def _close_session(self, row: int) -> None:
        """Close the session of a row, unless it is the tool itself, which belongs to its owner."""
        session = self.sessions.pop(row, None)
        if session is not None and session is not self.tool:
            session.close()
