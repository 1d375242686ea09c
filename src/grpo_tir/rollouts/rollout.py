"""Run the tool loop: sample responses, run their tool calls, insert the outputs, continue.

    submit ──► generator.step() ──► "call" ──► session.submit(code) ─ ─ future ─ ─► observe ──► resume ─┐
                   ▲      └──► "eos" | "length": done                                                   │
                   └────────────────────────────────────────────────────────────────────────────────────┘

A row that waits for its tool is parked while the others continue; a dict maps parked rows to their calls. After
`max_tool_calls` calls a row generates text only. One budget counts every response token, tool output included, so
that nothing is cut off later (bug 5 of the reference). Every token of a response was either sampled or inserted;
nothing else is appended (bugs 2, 3 and 4).
"""

import time
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from grpo_tir.data.chat import encode_answer
from grpo_tir.data.tokens import decode
from grpo_tir.generation.protocol import Generator, Request, Stopped
from grpo_tir.generation.sampling import row_key
from grpo_tir.tools.formats import load_format
from grpo_tir.tools.protocol import Session, Tool, open_session
from grpo_tir.types import FinishReason, Rollout, Segment, ToolCall, ToolResult

RunTool = Callable[[Session, Rollout, str], Future[ToolResult]]
NOT_RUN = ToolResult("error", stderr="CallLimit: not run, the limit of calls is reached")


@dataclass
class Turn:
    """The calls of a stopped segment. They run one after another: a later one may use the state of an earlier."""

    left: list[str | None]
    """Calls that have not begun; None stands for a marker without code."""
    outputs: list[str] = field(default_factory=list)
    code: str = ""
    future: Future[ToolResult] = field(default_factory=Future)
    since: float = 0.0
    """The call that runs, its result to come, and the time at which it began."""


class RolloutLoop:
    """Fill rollouts in place.

    Args:
        tool: finds calls, runs them and formats their output; None only with `max_tool_calls` 0.
        tokenizer: of the policy. It encodes tool output, and decodes tokens only for display and grading.
        budget: tokens of a response, tool output included (`max_completion_length`).
        max_tool_calls: c in the paper; with 0, no row is ever paused.
        seed: seed of the run. Every draw is keyed by seed, group, sample and position.
        fixed_waves: insert results only when no row can continue, and all at once. The same rows then decode
            together in every run, so that results repeat to the last bit.
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
        budget: int,
        max_tool_calls: int,
        seed: int,
        fixed_waves: bool = False,
        run_tool: RunTool = lambda session, rollout, code: session.submit(code),
        on_finish: Callable[[Rollout], None] = lambda rollout: None,
        check: Callable[[int, int], None] = lambda finished, waiting: None,
        enough: Callable[[], bool] = lambda: False,
        version: int = 0,
    ) -> None:
        self.generator, self.tool, self.tokenizer = generator, tool, tokenizer
        self.budget, self.max_tool_calls = budget, max_tool_calls
        self.seed, self.fixed_waves = seed, fixed_waves
        self.run_tool, self.on_finish, self.check = run_tool, on_finish, check
        self.enough, self.version = enough, version
        self.rollouts: list[Rollout] = []
        self.turns: dict[int, Turn] = {}  # by row, while it waits for its tool
        self.sessions: dict[int, Session] = {}  # by row, from its first call to its end
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
        self.turns.clear()  # an abandoned batch may have left some
        if not self.fixed_waves:
            self.generator.ready = lambda: any(turn.future.done() for turn in self.turns.values())
        for row, rollout in enumerate(rollouts):
            key = row_key(self.seed, rollout.group, rollout.sample)
            # a checkpoint may hold a longer response than the recipe allows now: it ends with its next token
            budget = max(self.budget, len(rollout.token_ids) + 1)
            may_call = len(rollout.calls) < self.max_tool_calls
            cut = len(rollout.segments[-1].token_ids) if rollout.cut else 0
            self.generator.submit(Request(row, rollout.prompt_ids, key, budget, may_call, rollout.token_ids, cut))
        try:
            while self.finished < len(rollouts) and not self.enough():
                stopped = self.generator.step()
                for stop in sorted(stopped, key=lambda stop: stop.row):
                    self._take(stop)
                self._collect(block=not stopped)
                self.check(self.finished, len(self.turns))
            self._cut()
        finally:
            for row in list(self.sessions):
                self._close_session(row)

    def _take(self, stop: Stopped) -> None:
        """Store the sampled tokens of a stopped row, whatever the reason (bug 2); then run its calls or end it."""
        row, rollout = stop.row, self.rollouts[stop.row]
        ended = stop.reason == "eos" or (stop.reason == "call" and not self.format.marker)
        segment = self._add(rollout, stop.token_ids, stop.logprobs, ended)
        if stop.reason != "call":
            self._finish(row, stop.reason)
            return
        if row not in self.sessions:
            assert self.tool is not None
            self.sessions[row] = open_session(self.tool, rollout)
        found = self.sessions[row].find_call(segment.text)
        self.turns[row] = Turn(list(found) if isinstance(found, list) else [found])
        self._run_calls(row)

    def _add(self, rollout: Rollout, token_ids: list[int], logprobs: list[float], ended: bool) -> Segment:
        """Add sampled tokens to a rollout. A final end-of-text token is not in the text."""
        segment = Segment("model", token_ids, logprobs)
        segment.versions = [self.version] * len(token_ids) if self.version else []
        rollout.add(segment)
        ids = segment.token_ids
        segment.text = decode(self.tokenizer, ids[:-1] if ended else ids)
        return segment

    def _run_calls(self, row: int) -> None:
        """Start the next call of a turn. After the last one, or at the limit of calls, answer the turn."""
        rollout, turn, session = self.rollouts[row], self.turns[row], self.sessions[row]
        said = rollout.segments[-1].text
        while turn.left and len(rollout.calls) < self.max_tool_calls:
            code = turn.left.pop(0)
            if code is not None:
                turn.code, turn.future = code, self.run_tool(session, rollout, code)
                turn.since = time.monotonic()
                return
            rollout.calls.append(ToolCall(None, None))
            turn.outputs.append(session.observe(None, said))
        self._answer(row, turn.outputs + [session.observe(NOT_RUN, said) for _ in turn.left])

    def _collect(self, block: bool) -> None:
        """Take the results that have come. Wait for results only if no other row can continue."""
        all_at_once = self.generator.barrier or self.fixed_waves
        while self.turns and (block or not self.fixed_waves):
            if all_at_once or block:
                futures = [turn.future for turn in self.turns.values()]
                since = time.monotonic()
                wait(futures, return_when=ALL_COMPLETED if all_at_once else FIRST_COMPLETED)
                self.idle += time.monotonic() - since
            for row in sorted(row for row, turn in self.turns.items() if turn.future.done()):
                self._take_result(row)
            if not all_at_once:  # else there may be further calls of the same turns
                return

    def _take_result(self, row: int) -> None:
        """Store the result of a call. Then run the next call of its turn, or answer the turn."""
        rollout, turn = self.rollouts[row], self.turns[row]
        result = turn.future.result()
        rollout.calls.append(ToolCall(turn.code, result, time.monotonic() - turn.since))
        if result.status == "infrastructure":  # neither shown to the model nor scored (bug 7)
            rollout.valid = False
            self.generator.release(row)
            self._finish(row, "aborted")
        else:
            turn.outputs.append(self.sessions[row].observe(result, rollout.segments[-1].text))
            self._run_calls(row)

    def _answer(self, row: int, outputs: list[str]) -> None:
        """Insert the outputs of a turn's calls and resume the row, or end it at the end of its budget."""
        rollout = self.rollouts[row]
        # 1. Encode the answer, cut to the remaining budget.
        room = max(self.budget - len(rollout.token_ids), 0)
        ended = not self.format.marker
        token_ids, text = encode_answer(self.tokenizer, outputs, ended, self.format.answer)
        if len(token_ids) >= room:
            token_ids = token_ids[:room]
            text = decode(self.tokenizer, token_ids)
        # 2. Insert it. End the row if its budget is spent, else resume it.
        if token_ids:
            rollout.add(Segment("tool", token_ids, text=text))
        if len(token_ids) == room:
            self.generator.release(row)
            self._finish(row, "length")
        else:
            del self.turns[row]
            self.generator.resume(row, token_ids, len(rollout.calls) < self.max_tool_calls)

    def _cut(self) -> None:
        """Wait for the calls under way and insert their outputs; then keep what unfinished rollouts have drawn."""
        while self.turns:
            self._collect(block=True)
            self.check(self.finished, len(self.turns))
        for row, rollout in enumerate(self.rollouts):
            if not rollout.ended:
                token_ids, logprobs = self.generator.drawn(row)
                if token_ids:
                    self._add(rollout, token_ids, logprobs, ended=False)
                    rollout.cut = True

    def _finish(self, row: int, reason: FinishReason) -> None:
        rollout = self.rollouts[row]
        rollout.finish_reason = reason
        self._close_session(row)
        self.turns.pop(row, None)
        self.finished += 1
        self.on_finish(rollout)

    def _close_session(self, row: int) -> None:
        """Close the session of a row, unless it is the tool itself, which belongs to its owner."""
        session = self.sessions.pop(row, None)
        if session is not None and session is not self.tool:
            session.close()
