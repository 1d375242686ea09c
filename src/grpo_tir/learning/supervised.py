"""Fine-tune on written traces by maximum likelihood of their model tokens (SFT).

    loss = - sum over model tokens of log p(token) / number of model tokens

A trace is a rollout from any source. It passes through the learner of GRPO with advantage 1 and one
update per batch. The ratio is then 1, so the gradient of the GRPO loss is that of the loss above, with the same
mask: the prompt and the output of the tool are not trained.

    prompt  prompt  model  model  tool  tool  model  <eos>
      0       0       1      1     0     0      1      1

A trace has the keys `problem` and `segments` of `RUN/rollouts/step_*.jsonl`, so chosen lines of a run's own
rollouts are traces too.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grpo_tir.checkpoint.save import make_writable
from grpo_tir.config import AlgorithmConfig, Config, check_for_training, save_config
from grpo_tir.data.rows import read_rows
from grpo_tir.data.tokens import encode
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import ConfigError, DataError
from grpo_tir.learning.learner import Learner
from grpo_tir.monitor.run_log import RunLog
from grpo_tir.rollouts.policy import Policy, load_policy
from grpo_tir.types import Problem, Rollout, RolloutGroup, Segment

FORM = 'an object with "problem" and "segments", a list of {"kind": "model" or "tool", "text": …}'


def fine_tune(config: Config) -> Path:
    """Take `train.steps` steps on the traces of `data.train`, and save the model in `train.output_dir`/model.

    Raises:
        UserError: the recipe, the traces or the folder cannot be used.
    """
    config = for_likelihood(config)
    check_for_training(config)
    if config.model.lora_rank:
        raise ConfigError("model.lora_rank: sft trains all weights; set it to 0")
    torch.manual_seed(config.train.seed)
    folder, steps = Path(config.train.output_dir), config.train.steps
    make_writable(folder)
    runtime = Runtime(config.model.precision, trains=True)
    try:
        policy = load_policy(config, config.model.path, runtime.device, runtime.full_weights)
        traces, too_long = read_traces(config.data.train, policy, config)
        log = RunLog(folder, config.train.report_to) if runtime.is_main else None
        if log:
            save_config(config, folder / "config.yaml")
            print(f"{len(traces)} traces, {too_long} too long ones left out; {runtime.precision}", flush=True)
        learner = Learner(runtime, policy.model, config)
        endless = batches(traces, config.rollout.prompts_per_step, config.train.seed)
        for step, batch in enumerate(itertools.islice(endless, steps)):
            line = supervised_step(learner, runtime.share(batch), step)
            if log:
                log.metrics(step + 1, {**line})
                print(f"step {step + 1}/{steps}  loss {line['loss']:.4f}", flush=True)
        with runtime.full_weights(policy.model):
            if log:
                policy.model.save_pretrained(folder / "model")
                policy.tokenizer.save_pretrained(folder / "model")
                log.sync()
                print(f"saved {folder / 'model'}: train it with --model.path {folder / 'model'}")
    finally:
        runtime.close()
    return folder / "model"


def read_traces(path: str, policy: Policy, config: Config) -> tuple[list[Rollout], int]:
    """Read and encode the traces of a JSONL file, each segment separately, as a rollout is. An end-of-text token
    follows the last one, unless the trace is a recorded rollout that was cut off (`finish_reason`). Returns the
    traces, and the number of those left out because prompt or response is longer than the recipe allows.

    Raises:
        DataError: the file cannot be read, a line is no trace, or none is left.
    """
    traces, too_long = list[Rollout](), 0
    for position, row in read_rows(path):
        try:
            trace = _encode(row, policy)
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{path}, {position}: a trace must be {FORM}") from None
        if not any(trace.loss_mask):
            raise DataError(f"{path}, {position}: the trace has no model segment, so there is nothing to train")
        fits = len(trace.prompt_ids) <= config.data.max_prompt_length
        if fits and len(trace.token_ids) <= config.rollout.max_completion_length:
            trace.group = len(traces)
            traces.append(trace)
        else:
            too_long += 1
    if not traces:
        raise DataError(f"{path}: no trace that fits data.max_prompt_length and rollout.max_completion_length")
    return traces, too_long


def _encode(row: dict[str, Any], policy: Policy) -> Rollout:
    problem = Problem(str(row.get("problem_id", "")), row["problem"], str(row.get("answer", "")))
    trace = Rollout(problem, encode(policy.tokenizer, policy.render(problem)), advantage=1.0)
    for segment in row["segments"]:
        kind, ids = segment["kind"], encode(policy.tokenizer, segment["text"], literal=segment["kind"] == "tool")
        if kind not in ("model", "tool"):
            raise KeyError(kind)
        trace.segments.append(Segment(kind, ids, [0.0] * len(ids) * (kind == "model"), segment["text"]))
    if row.get("finish_reason", "eos") == "eos":
        trace.segments.append(Segment("model", policy.eos_ids[:1], [0.0]))
    return trace


def batches(traces: Sequence[Rollout], size: int, seed: int) -> Iterator[list[Rollout]]:
    """Yield batches without end. Each epoch visits every trace once, in an order of its own."""
    epoch, order = 0, list[Rollout]()
    while True:
        while len(order) < size:
            part = list(traces)
            random.Random(f"traces/{seed}/{epoch}").shuffle(part)
            order, epoch = order + part, epoch + 1
        yield order[:size]
        order = order[size:]


def for_likelihood(config: Config) -> Config:
    """Return the recipe with the algorithm and the temperature under which the GRPO loss is the likelihood."""
    return replace(config, algorithm=AlgorithmConfig(), rollout=replace(config.rollout, temperature=1.0))


def supervised_step(learner: Learner, traces: Sequence[Rollout], step: int) -> dict[str, float]:
    """Take one optimizer step on this rank's traces, with a learner made with `for_likelihood`; `step` counts from
    0. All ranks must call it together.

    Returns:
        `loss`, in nats per model token before the step, and the learner's metrics of the update.
    """
    groups = [RolloutGroup(trace.problem, [trace]) for trace in traces]
    with learner.updating(step):
        for batch in learner.mini_batches(groups):
            learner.backward(batch)
            learner.step(batch)
    report = learner.report()
    likelihoods = [sum(map(float, trace.old_logprobs)) for trace in traces if trace.old_logprobs is not None]
    total, tokens = learner.runtime.sum([-sum(likelihoods), sum(sum(trace.loss_mask) for trace in traces)])
    return {"loss": total / tokens, **{name: report[name] for name in ("grad_norm", "learning_rate", "entropy")}}
