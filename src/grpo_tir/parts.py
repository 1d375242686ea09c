"""Make the parts of a training run from its recipe."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_tir.checkpoint.journal import Journal, digest
from grpo_tir.checkpoint.load import find_start, load_optimizer, load_trainer
from grpo_tir.checkpoint.save import Saver, make_writable
from grpo_tir.config import Config, check_for_training, save_config
from grpo_tir.data.load import keep_fitting, read_all_problems
from grpo_tir.data.tokens import encode
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import StopRequest
from grpo_tir.distributed.watchdog import Watchdog
from grpo_tir.errors import CheckpointError
from grpo_tir.learning.learner import Learner
from grpo_tir.learning.lora import add_adapters
from grpo_tir.monitor.console import Console
from grpo_tir.monitor.run_log import Recorder, RunLog, describe_run
from grpo_tir.rollouts.collect import Collector
from grpo_tir.rollouts.policy import Policy, load_policy, load_reference
from grpo_tir.rollouts.rewards import RewardFunction, make_reward
from grpo_tir.tools.open import open_tool
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Problem
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


def build(config: Config, resume: bool = False, given: Objects = Objects()) -> Parts:  # noqa: B008 (frozen)
    """Make the parts of a run from its recipe and the given objects. On failure, close all that was opened.

    Raises:
        UserError: the recipe, a file, the model or the checkpoint cannot be used, or the executor cannot run here.
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
        stopping = policy.stopping
        opening = stopping.needed if config.tool.format == "tool_call" else stopping.format.opening
        call_token = encode(policy.tokenizer, opening)[0] if calls and opening else None
        learner = Learner(runtime, policy.model, config, reference, call_token, console.log)
        reward = make_reward(config.reward, config.rollout.max_completion_length, given.reward)
        # 4. Rollouts, journal, checkpoints, log.
        journal = Journal(folder / "journal", runtime.rank, digest(config), writer, resume)
        saver = Saver(folder / "checkpoints", config, journal, console.log, runtime)
        opened.callback(saver.close)
        fitting = keep_fitting(train, config, policy.tokenizer, policy.render, console.log)
        collector = Collector(config, runtime, policy, tool, reward, fitting, journal, stop, console)
        opened.callback(collector.close)
        # 5. Restore the checkpoint. Files of the run are changed only if this succeeds.
        state = load_trainer(checkpoint) if checkpoint else None
        if checkpoint and state:
            if state["seed"] != config.train.seed:
                raise CheckpointError(
                    f"the checkpoint is of a run with seed {state['seed']}: set train.seed to it"
                )
            load_optimizer(checkpoint, policy.model, learner.optimizer, runtime)
            learner.skipped = state["skipped"]
            collector.load_state_dict(state)
            console.log(f"resuming after step {state['step']}")
        last = state["step"] if state else -1
        log = None
        if runtime.is_main:
            if resume:
                saver.tidy(last)
            else:
                journal.drop()
            log = RunLog(folder, config.train.report_to, last, writer)
            save_config(config, folder / "config.yaml")
            log.describe(**describe_run(config, tool))
        runtime.barrier()
        recorder = Recorder(config, runtime, log, console, len(fitting))
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
