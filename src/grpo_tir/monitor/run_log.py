"""Write the files of a run: metrics, rewards by problem, rollouts, trackers and metadata."""

import importlib.util
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpo_tir
from grpo_tir.config import Config
from grpo_tir.errors import ConfigError
from grpo_tir.monitor.alarms import find_alarms, grad_norm_spiked
from grpo_tir.monitor.metrics import carry_metrics, decode_metrics, step_metrics, summarize, time_metrics
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Rollout, RolloutGroup
from grpo_tir.utils.files import Writer, append_lines, read_jsonl, sync, write_atomically

if TYPE_CHECKING:  # reading or writing a log does not import torch
    from grpo_tir.distributed.runtime import Runtime
    from grpo_tir.engine.choose_step import Choice
    from grpo_tir.monitor.console import Console


RESULT = ("status", "stdout", "stderr", "exit_code", "signal")
"""What a trajectory keeps of the result of a call."""


def describe_run(config: Config, tool: Tool | None) -> dict[str, Any]:
    """Collect the facts needed to repeat a run."""
    executor = getattr(tool, "executor", None)
    return {
        "name": config.train.output_dir,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [*sys.argv],
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}",
        "executor": executor.describe() if executor is not None else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {"grpo-tir": grpo_tir.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "numpy", "sympy", "docker"):
        with suppress(metadata.PackageNotFoundError):  # the process executor needs no docker
            found[name] = metadata.version(name)
    return found


def trajectory(rollout: Rollout, step: int) -> dict[str, Any]:
    """Return all data of one rollout, for the report and for replay."""
    return {
        "step": step,
        "group": rollout.group,
        "sample": rollout.sample,
        "problem_id": rollout.problem.id,
        "problem": rollout.problem.problem,
        "answer": rollout.problem.answer,
        "prompt_ids": rollout.prompt_ids,
        "segments": [
            {**vars(segment), "logprobs": _rounded(segment.logprobs), "old_logprobs": _rounded(old)}
            for segment, old in zip(rollout.segments, _old_logprobs(rollout), strict=True)
        ],
        "stamps": rollout.stamps,
        "calls": [
            {
                "code": call.code,
                "seconds": round(call.seconds, 4),
                **{name: getattr(call.result, name) for name in RESULT if call.result},
            }
            for call in rollout.calls
        ],
        "finish_reason": rollout.finish_reason,
        "reward": rollout.reward.value if rollout.reward else None,
        "reward_parts": rollout.reward.parts if rollout.reward else {},
        "advantage": rollout.advantage,
        "valid": rollout.valid,
        "trained": rollout.trained,
    }


class RunLog:
    """Write the files of a run, on the main process only. Lines and files of steps after `resume_at` are deleted;
    -1 means a new run. `report_to` names the trackers besides metrics.jsonl."""

    def __init__(
        self, folder: Path, report_to: Sequence[str], resume_at: int = -1, writer: Writer | None = None
    ) -> None:
        self.folder, self.writer = folder, writer or Writer("log")
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        self.files = [folder / "metrics.jsonl", folder / "problem_rewards.jsonl"]
        for path in self.files:
            kept = [row for row in read_jsonl(path) if row["step"] <= resume_at]
            if path.exists():
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        for path in (folder / "rollouts").glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > resume_at:
                path.unlink()
        self.history = read_jsonl(folder / "metrics.jsonl")
        self.metadata: dict[str, Any] = {}
        self.trackers = [make_tracker(name, folder, resume_at) for name in report_to]

    def sync(self) -> None:
        """Flush all lines to the disk. Call it before a checkpoint of the same step."""
        self.writer.flush()
        for path in self.files:
            if path.exists():
                sync(path)

    def describe(self, **facts: Any) -> None:
        """Add facts to the metadata of the run. Facts of the same name are replaced."""
        self.metadata |= facts
        write_atomically(self.folder / "metadata.json", json.dumps(self.metadata, indent=1))

    def metrics(self, step: int, metrics: dict[str, float | None]) -> None:
        """Write the metrics of a step. A value that is not finite becomes null, because JSON has no NaN."""
        metrics = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        self.history.append({"step": step, **metrics})
        self.writer.do(self._track, step, metrics)

    def rewards(self, step: int, summaries: Sequence[dict[str, Any]], problems: int) -> None:
        """Write the rewards of each problem. The epoch follows from the group's number, because the sampler
        returns each of the `problems` once per epoch."""
        groups: dict[int, dict[str, Any]] = {}
        for row in summaries:
            entry = {"step": step, "epoch": row["group"] // problems, "problem_id": row["problem_id"]}
            entry = groups.setdefault(row["group"], {**entry, "rewards": [], "correct": []})
            if row["valid"]:
                entry["rewards"].append(row["reward"])
                entry["correct"].append(row["correct"])
        self.writer.do(append_lines, self.folder / "problem_rewards.jsonl", *groups.values())

    def rollouts(self, step: int, trajectories: Iterable[dict[str, Any]]) -> None:
        """Write the trajectories of one step. They replace those of an interrupted attempt."""
        path = self.folder / "rollouts" / f"step_{step:06d}.jsonl"
        self.writer.do(lambda: write_atomically(path, "".join(json.dumps(item) + "\n" for item in trajectories)))

    def _track(self, step: int, metrics: dict[str, float | None]) -> None:
        append_lines(self.folder / "metrics.jsonl", {"step": step, **metrics})
        for tracker in self.trackers:
            tracker(step, {name: value for name, value in metrics.items() if value is not None})


class Recorder:
    """Measure each training step on all ranks, and write it on the main process. `log` is None on other ranks.
    `problems` is the number of training problems, from which the epoch follows."""

    def __init__(
        self, config: Config, runtime: "Runtime", log: RunLog | None, console: "Console", problems: int
    ) -> None:
        self.config, self.runtime, self.log, self.console = config, runtime, log, console
        self.problems = problems
        self.choice: Choice | None = None  # the last one written

    def rollouts(self, groups: Sequence[RolloutGroup], step: int) -> None:
        """Write the trajectories of all ranks into one file. All ranks must call it together."""
        found = self.runtime.gather([trajectory(rollout, step) for group in groups for rollout in group.rollouts])
        if self.log is not None:
            self.log.rollouts(step, found)

    def measure(
        self,
        groups: Sequence[RolloutGroup],
        step: int,
        learned: dict[str, float],
        seconds: tuple[float, float],
        idle: float,
        choice: "Choice | None",
        carried: int,
    ) -> dict[str, float | None]:
        """Compute the metrics of a training step. Write its rewards and, if they are due, its trajectories. All
        ranks must call it together.

        Args:
            learned: metrics of the update (`Learner.report`).
            seconds: of sampling, and of the update.
            idle: seconds of sampling in which all rows of this rank waited for their tool.
            choice: the decode step, if it was measured. It is written once.
            carried: number of groups of all ranks that are carried over.

        Returns:
            The metrics on the main process, an empty mapping on other ranks.
        """
        # 1. Gather the summaries and sums of all ranks.
        config, (sampling, learning) = self.config, seconds
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        summaries = self.runtime.gather([summarize(rollout, config.tool.max_tool_calls) for rollout in rollouts])
        if self._keeps_trajectories(step, learned):
            self.rollouts(groups, step)
        idle = self.runtime.sum([idle])[0]
        if self.log is None:
            return {}
        # 2. On the main process, write the rewards and compute the metrics.
        self.log.rewards(step, summaries, self.problems)
        if config.train.sample_every and step % config.train.sample_every == 0:
            self.console.trajectory(rollouts[0])
        tokens = sum(row["length"] for row in summaries)
        times = time_metrics(tokens, sampling, learning, idle / self.runtime.world)
        choice, self.choice = choice if choice is not self.choice else None, choice
        if choice:
            self.log.describe(decode_step=vars(choice))
        carry = carry_metrics(summaries, step, carried) if config.rollout.carry_over else {}
        return {**step_metrics(summaries), **learned, **times, **decode_metrics(choice), **carry}

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Write and print the metrics of a step. Step 0 is the evaluation before training."""
        if self.log is None:
            return
        self.log.metrics(step, metrics)
        if step:
            self.console.step(step, self.config.train.steps, metrics)
            self.console.alarms(find_alarms(self.log.history, self.config))
        else:
            self.console.log(f"before training: held-out accuracy {metrics.get('eval/accuracy')} (greedy)")

    def _keeps_trajectories(self, step: int, learned: dict[str, float]) -> bool:
        """True if `train.rollouts_every` is due, or if this step was skipped or had a gradient spike. All ranks
        must call it together."""
        options = self.config.train
        every = options.rollouts_every or options.steps
        due = (step - 1) % every == 0 or bool(options.rollouts_every and step == options.steps)
        wrong = self.log is not None and (
            bool(learned["skipped_updates"]) or grad_norm_spiked([*self.log.history, learned])
        )
        return bool(self.runtime.max([float(due or wrong)])[0])


def make_tracker(name: str, folder: Path, resume_at: int = -1) -> Any:
    """Make a function of (step, metrics) for one entry of `train.report_to`. Steps after `resume_at` are replaced.

    Raises:
        ConfigError: the tracker is not installed or does not start.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"train.report_to names {name}, which is not installed: pip install 'grpo-tir[tracking]'"
        )
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at + 1 if resume_at >= 0 else None)

        def track(step: int, metrics: dict[str, float]) -> None:
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)
            writer.flush()

        return track
    module = importlib.import_module(name)  # wandb and trackio have the same interface
    options = {"dir": str(folder)} if name == "wandb" else {}
    try:
        run = module.init(project="grpo-tir", name=folder.name, **options)
    except Exception as error:  # no account, no network, …: each tracker has its own types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"train.report_to: {name} does not start ({reason}); offline: WANDB_MODE=offline"
        ) from error
    # not `module.log`: in trackio it works only in the thread that started the run
    return lambda step, metrics: run.log(metrics, step=step)


def _old_logprobs(rollout: Rollout) -> list[list[float]]:
    """Split the learner's log-probs by segment. They are empty for a rollout that was not trained."""
    old = rollout.old_logprobs  # a tensor of the learner's device: one read for all
    values = iter(getattr(old, "tolist", lambda: old or ())())
    parts = [list(itertools.islice(values, len(segment.token_ids))) for segment in rollout.segments]
    return [part if segment.kind == "model" else [] for part, segment in zip(parts, rollout.segments, strict=True)]


def _rounded(logprobs: Iterable[float]) -> list[float]:
    return [round(logprob, 4) for logprob in logprobs]
