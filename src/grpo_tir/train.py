"""The training loop of ToRL: `Trainer.train`, and one step of it in `Trainer.step`.

    problems → rollouts (with the tool) → rewards → advantages → loss → step → metrics, evaluation, checkpoint

`build` makes the parts of a run; `Trainer` runs them. Departures from the paper's own code, and the reasons for
them, are in docs/algorithm.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_tir.checkpoint.journal import Journal, digest
from grpo_tir.checkpoint.load import find_start, load_optimizer, load_trainer
from grpo_tir.checkpoint.save import Saver, make_writable
from grpo_tir.config import Config, check_for_training, save_config
from grpo_tir.data.load import read_all_problems
from grpo_tir.data.prompts import encode
from grpo_tir.distributed.launcher import lost_contact
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import Interrupted, StopRequest
from grpo_tir.distributed.watchdog import Watchdog
from grpo_tir.errors import CheckpointError, TrainingDiverged
from grpo_tir.evaluation.held_out import evaluate
from grpo_tir.learning.advantages import assign_advantages
from grpo_tir.learning.learner import Learner
from grpo_tir.learning.lora import add_adapters
from grpo_tir.monitor.console import Console
from grpo_tir.monitor.run_log import Recorder, RunLog, describe_run
from grpo_tir.rollouts.collect import Collector, keep_fitting
from grpo_tir.rollouts.policy import Policy, load_policy, load_reference
from grpo_tir.rollouts.rewards import RewardFunction, make_reward
from grpo_tir.tools.formats import CODE_FORMATS
from grpo_tir.tools.open import open_tool
from grpo_tir.tools.protocol import Tool
from grpo_tir.tools.python import CALL_MARKER
from grpo_tir.types import Problem, RolloutGroup
from grpo_tir.utils.files import Writer
from grpo_tir.utils.objects import Objects


@dataclass
class Parts:
    """The parts of a run. `opened` closes them, in the reverse order of opening."""

    runtime: Runtime
    console: Console
    stop: StopRequest
    watchdog: Watchdog
    policy: Policy
    tool: Tool | None
    reward: RewardFunction
    collector: Collector
    learner: Learner
    held_out: list[Problem]
    saver: Saver
    recorder: Recorder
    writer: Writer
    state: dict[str, Any] | None
    """State of the run at the checkpoint to resume from (`Trainer.save`); None for a new run."""
    opened: ExitStack


class Trainer:
    """Run the algorithm: `train` to the last step, `step` for one. Close it, or use it as a context manager.

    Args:
        config: the recipe.
        resume: continue from the last checkpoint in `train.output_dir`.
        callbacks: objects with any of `on_rollouts(groups)`, `on_step(metrics)` and `on_save(path)`, which are
            called after sampling, after a step (0: the evaluation before training), and after a checkpoint.
        objects: Python objects in place of what the recipe names: `problems` and `eval_problems` (`Problem`s or
            mappings), `reward` (a function), `tool`, `model` with `tokenizer` (see `utils.objects`). The recipe in
            the run's folder records their names. A tool given here is not closed.

    Raises:
        UserError: the recipe or an object cannot be used; see `build`.
    """

    def __init__(
        self, config: Config, resume: bool = False, *, callbacks: Sequence[Any] = (), **objects: Any
    ) -> None:
        given = Objects(**objects)
        self.config = config = given.named_in(config)
        self.callbacks = callbacks
        self.folder = Path(config.train.output_dir)
        self.parts = build(config, resume, given)
        self.exit_code = 0
        """0, or 130/143 after a signal; set at the end of `train`."""
        state = self.parts.state
        self.steps_done: int = state["step"] if state else 0
        self.saved: int | None = state["step"] if state else None
        """Step of the last checkpoint."""
        self.line: dict[str, Any] | None = state["line"] if state else {} if self.evaluation_is_due else None
        """Metrics that are not written yet, because an evaluation belongs to them."""

    def train(self) -> list[dict[str, Any]]:
        """Train to the last step, or until a signal.

        Returns:
            The metrics of every step of the run, earlier ones of a resumed run included, on the main process; []
            on the others.

        Raises:
            GrpoTirError: as `step`, or a checkpoint or metrics cannot be written.
        """
        parts, steps = self.parts, self.config.train.steps
        with parts.stop, parts.watchdog:
            try:
                self.finish_step()  # the evaluation before training, or one that a signal interrupted
                parts.console.start(steps, self.steps_done)  # after it, so that "left" does not count it
                while self.steps_done < steps:
                    self.step()
            except Interrupted:  # the batch or the evaluation under way is abandoned
                pass
            parts.console.finish()
            if self.saved != self.steps_done:
                self.save()
            parts.saver.flush()
            parts.writer.flush()
            self.exit_code = parts.stop.exit_code
        return parts.recorder.log.history if parts.recorder.log is not None else []

    def step(self) -> None:
        """Take one training step (paper, section 3).

        Raises:
            Interrupted: a signal. The batch is taken again on `--resume`.
            ExecutorOutage, GraderOutage: too much of the batch was lost.
            CertificateError: the tokens to be trained differ from those sampled, or their log-probs disagree.
            TrainingDiverged: too many gradients in a row were not finite.
        """
        config, collector, learner = self.config, self.parts.collector, self.parts.learner
        started = time.perf_counter()
        with collector.batch(self.steps_done + 1):
            groups = collector.sample_rollouts()  # G responses a problem, with tool calls
            collector.assign_rewards(groups)  # most were graded while others were sampled
            groups = collector.replace_flat_groups(groups)  # only with algorithm.dynamic_sampling
        assign_advantages(groups, config.algorithm)
        self._notify("on_rollouts", groups)
        sampled = time.perf_counter()
        dump = self.folder / "dumps" / f"step_{self.steps_done + 1:06d}"
        with self._recorded_if_it_diverges(groups), learner.updating(self.steps_done, dump):
            for batch in learner.mini_batches(groups):
                learner.backward(batch)  # GRPO loss and its gradient
                learner.step(batch)  # clip, AdamW
        learned = learner.report()
        self.steps_done += 1
        seconds = sampled - started, time.perf_counter() - sampled
        problems = len(collector.problems.problems)
        self.line = self.parts.recorder.measure(
            groups, self.steps_done, learned, seconds, collector.idle, self.parts.policy.choice, problems,
            len(collector.carried),
        )  # fmt: skip
        self.finish_step()

    def finish_step(self) -> None:
        """Evaluate, write metrics and save a checkpoint, where they are due after the step just taken.

        Raises:
            Interrupted: a signal. An evaluation that it interrupted is repeated on `--resume`.
        """
        if self.line is not None:
            found = self.evaluate() if self.evaluation_is_due else {}
            metrics = {**self.line, **found}
            self.parts.recorder.write(self.steps_done, metrics)
            self.line = None
            self._notify("on_step", {"step": self.steps_done, **metrics})
        self.parts.saver.check()
        self.parts.stop.agree()
        every = self.config.train.save_every
        if every and self.steps_done and self.steps_done % every == 0 and self.saved != self.steps_done:
            self.save()

    @property
    def evaluation_is_due(self) -> bool:
        """True before the first step, every `train.eval_every` steps, and after the last one."""
        every, done = self.config.train.eval_every, self.steps_done
        return bool(every and self.parts.held_out) and (done % every == 0 or done == self.config.train.steps)

    def evaluate(self) -> dict[str, Any]:
        """Measure greedy accuracy on the held-out problems with the current weights."""
        parts = self.parts
        _, metrics = evaluate(
            parts.policy, parts.tool, parts.reward, parts.held_out, self.config, parts.runtime, parts.stop
        )
        return metrics

    def save(self) -> None:
        """Write a checkpoint of the step just taken."""
        parts = self.parts
        if parts.recorder.log is not None:
            parts.recorder.log.sync()
        # Every draw is keyed by seed, group and sample, so there is no state of a random generator to save.
        state = {
            "step": self.steps_done,
            "seed": self.config.train.seed,
            "skipped": parts.learner.skipped,
            **parts.collector.state_dict(),
            "line": self.line,
        }
        parts.saver.save(
            self.steps_done, parts.policy.model, parts.policy.tokenizer, parts.learner.optimizer, state
        )
        self.saved = self.steps_done
        parts.runtime.barrier()
        self._notify("on_save", self.folder / "checkpoints" / f"step_{self.steps_done:06d}")

    def close(self) -> None:
        """Close executor, threads and process group. A checkpoint being written is finished first."""
        self.parts.opened.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _notify(self, event: str, argument: Any) -> None:
        """Call the method `event` of each callback that has it."""
        for callback in self.callbacks:
            if (method := getattr(callback, event, None)) is not None:
                method(argument)

    @contextmanager
    def _recorded_if_it_diverges(self, groups: list[RolloutGroup]) -> Iterator[None]:
        """Write the trajectories of the batch if `TrainingDiverged` ends the run, for `grpo-tir replay`."""
        try:
            yield
        except TrainingDiverged:  # on all ranks together
            self.parts.recorder.rollouts(groups, self.steps_done + 1)
            raise


def build(config: Config, resume: bool = False, given: Objects = Objects()) -> Parts:  # noqa: B008 (frozen)
    """Make the parts of a run from its recipe and the given objects. On failure, close all that was opened.

    Raises:
        UserError: the recipe, a file or the model that it names cannot be used, or the executor cannot run here.
    """
    check_for_training(config)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.train.seed)
    with ExitStack() as opened:
        # 1. Processes, run folder, signals.
        runtime = Runtime(config.model.precision, max(30.0, 2 * config.train.watchdog_minutes), trains=True)
        opened.callback(runtime.close)
        console, folder = Console(runtime.is_main), Path(config.train.output_dir)
        make_writable(folder)
        console.log(f"precision: {runtime.precision}")
        if runtime.world > 1:  # shows whether the launcher started as many processes as wanted
            console.log(f"{runtime.world} processes")
        checkpoint = find_start(folder, resume, console.log)
        if len(set(runtime.gather([checkpoint and checkpoint.name]))) > 1:
            raise CheckpointError(f"nodes see different checkpoints in {folder}: they must share this folder")
        stop = StopRequest(runtime, console.log)
        watchdog = Watchdog(
            folder / "alive", runtime.rank, runtime.world, runtime.progress, config.train.watchdog_minutes
        )
        writer = Writer("log")
        # 2. Tool and problems. They come before the model, because their errors show sooner.
        tool = given.tool if given.tool and config.tool.max_tool_calls else open_tool(config, console.log)
        if tool is not None and tool is not given.tool:
            opened.callback(tool.close)
        opened.callback(writer.close)
        train, held_out = read_all_problems(config, console.log, given)
        # 3. Policy and learner.
        reference = load_reference(config, runtime.full_weights, given.model)
        policy = _open_policy(config, checkpoint, runtime, console, given)
        calls = tool is not None and config.tool.name == "python"
        openings = {**dict.fromkeys(CODE_FORMATS, CALL_MARKER), "tool_call": policy.stopping.needed}
        opening = openings.get(config.tool.format, policy.stopping.format.opening)
        call_token = encode(policy.tokenizer, opening)[0] if calls and opening else None
        learner = Learner(runtime, policy.model, config, reference, call_token, console.log)
        reward = make_reward(config.reward, config.rollout.max_completion_length, given.reward)
        # 4. Rollouts, journal, checkpoints, log.
        journal = Journal(folder / "journal", runtime.rank, digest(config), writer, resume)
        saver = Saver(folder / "checkpoints", config, journal, console.log, runtime)
        opened.callback(saver.close)
        fitting = keep_fitting(train, config, policy, console.log)
        collector = Collector(config, runtime, policy, tool, reward, fitting, journal, stop, console)
        opened.callback(collector.close)
        # 5. Restore the checkpoint. Files of the run are changed only if this succeeds.
        state = _restore(checkpoint, config, policy, learner, collector, runtime) if checkpoint else None
        if state:
            console.log(f"resuming after step {state['step']}")
        if runtime.is_main:
            if not resume:
                journal.clear()
            saver.tidy(state["step"] if state else 0)
        log = _open_log(config, folder, state, writer, tool) if runtime.is_main else None
        runtime.barrier()
        recorder = Recorder(config, runtime, log, console)
        return Parts(
            runtime, console, stop, watchdog, policy, tool, reward, collector,
            learner, held_out, saver, recorder, writer, state, opened.pop_all(),
        )  # fmt: skip


def _open_policy(
    config: Config, checkpoint: Path | None, runtime: Runtime, console: Console, given: Objects
) -> Policy:
    """Load the policy, from the checkpoint if there is one. With LoRA, load the original weights and the adapters
    of the checkpoint, whose own weights are merged."""
    adapts = config.model.lora_rank > 0
    path = str(checkpoint) if checkpoint and not adapts else config.model.path
    is_given = given.model is not None and path == config.model.path
    loaded = (given.model.float(), given.tokenizer) if is_given else None
    policy = load_policy(config, path, runtime.device, runtime.full_weights, loaded=loaded)
    if adapts:
        add_adapters(policy.model, config.model, checkpoint)
    policy.log = console.log
    if policy.engine_refused:
        console.log(f"rollout.generator: `generate`, not `engine`: {policy.engine_refused}")
    return policy


def _restore(
    checkpoint: Path, config: Config, policy: Policy, learner: Learner, collector: Collector, runtime: Runtime
) -> dict[str, Any]:
    """Load optimizer, sampler and counters from a checkpoint. Returns the state that `Trainer.save` wrote.

    Raises:
        CheckpointError: it belongs to a run with another seed or other parameters.
    """
    state = load_trainer(checkpoint)
    if state["seed"] != config.train.seed:
        raise CheckpointError(f"the checkpoint is of a run with seed {state['seed']}: set train.seed to it")
    load_optimizer(checkpoint, policy.model, learner.optimizer, runtime)
    learner.skipped = state["skipped"]
    collector.load_state_dict(state)
    return state


def _open_log(
    config: Config, folder: Path, state: dict[str, Any] | None, writer: Writer, tool: Tool | None
) -> RunLog:
    """Open the files of the run and write its recipe and metadata. Lines after the checkpoint are cut off."""
    log = RunLog(folder, config.train.report_to, state["step"] if state else -1, writer)
    save_config(config, folder / "config.yaml")
    log.describe(**describe_run(config, tool))
    return log


def train(config: Config, resume: bool = False) -> int:
    """Run a recipe. Returns the exit code: 0, or 130/143 after a signal."""
    with Trainer(config, resume) as trainer:
        try:
            trainer.train()
        except Exception as error:
            number = trainer.parts.stop.signal
            if number and lost_contact(error):  # the launcher ends all ranks, because another one ended
                return 128 + number
            raise
        return trainer.exit_code
