"""The training loop of ToRL: `Trainer.train`, and one step of it in `Trainer.step`.

    problems → rollouts (with the tool) → rewards → advantages → loss → step → metrics, evaluation, checkpoint

`parts.build` makes the parts of a run; `Trainer` runs them. Departures from the paper's own code, and the reasons
for them, are in docs/algorithm.md.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from grpo_tir.config import Config
from grpo_tir.distributed.launcher import lost_contact
from grpo_tir.distributed.signals import Interrupted
from grpo_tir.errors import TrainingDiverged
from grpo_tir.evaluation.held_out import evaluate
from grpo_tir.learning.advantages import assign_advantages
from grpo_tir.parts import build
from grpo_tir.types import RolloutGroup
from grpo_tir.utils.objects import Objects


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
        with self._recorded_if_it_diverges(groups), learner.updating(self.steps_done):
            for batch in learner.mini_batches(groups):
                learner.backward(batch)  # GRPO loss and its gradient
                learner.step(batch)  # clip, AdamW
        learned = learner.report()
        self.steps_done += 1
        seconds = sampled - started, time.perf_counter() - sampled
        carried, choice = len(collector.carried), self.parts.policy.choice
        self.line = self.parts.recorder.measure(
            groups, self.steps_done, learned, seconds, collector.idle, choice, carried
        )
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

    def __enter__(self) -> Self:
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
