"""Check the model: template, tool markers, end-of-text ids, sampling, memory and disk space."""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from grpo_tir.checkpoint.save import make_writable
from grpo_tir.config import Config, change
from grpo_tir.data.chat import apply_chat, tool_answer
from grpo_tir.data.tokens import decode, encode
from grpo_tir.diagnostics.finding import Finding, fault, fine, guarded, warning
from grpo_tir.diagnostics.fit import check_plan
from grpo_tir.diagnostics.memory import GIB, Hardware, plan, shape_of
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.learning.batching import collate, to_row
from grpo_tir.learning.certificate import SINGLE, TOLERANCE
from grpo_tir.learning.logprobs import TokenLogprobs
from grpo_tir.rollouts.policy import Policy, load_policy
from grpo_tir.rollouts.sample import make_groups, sample_responses
from grpo_tir.tools.arguments import read_call
from grpo_tir.tools.open import tool_schemas
from grpo_tir.tools.python import OUTPUT_MARKER
from grpo_tir.types import Problem, Rollout

CALL = "So:\n```python\nprint(6 * 7)\n```\n"
PLAIN = "Let x = 3.5; then f(x) is 12, so\n\nthe answer is: no.\tDone!\n"
SAMPLE = Problem("sample", "What is 6 times 7?", "42")
ROWS, TOKENS = 4, 12
"""Number and length of the samples whose log-probs are checked."""


def check_model(config: Config, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Load the model as `train` does and run all checks on it."""
    runtime = Runtime(config.model.precision)
    policy = load_policy(config, config.model.path, runtime.device)
    size = sum(parameter.numel() for parameter in policy.model.parameters())
    yield fine("model", f"{config.model.path}: {size / 1e6:.4g}M parameters, {runtime.precision}")
    if policy.engine_refused:
        yield warning("model", f"the engine cannot decode this model, `generate` is used: {policy.engine_refused}")
    yield from check_prompt(policy, problems, config)
    yield from check_markers(policy)
    if policy.stopping.format.by_template and config.tool.max_tool_calls:
        yield from guarded("format", lambda: check_format(policy, config))
    yield from check_ends(policy)
    yield from check_sampling(policy, runtime, config, problems)
    yield from guarded("memory", lambda: check_memory(config, this_machine(runtime.device)))
    yield from check_disk(policy, config)


def check_prompt(policy: Policy, problems: Sequence[Problem], config: Config) -> Iterator[Finding]:
    """Check that the template contains the problem, that tokens decode to the prompt, and that prompts fit."""
    problem = next(iter(problems), SAMPLE)
    text = policy.render(problem)
    ids = encode(policy.tokenizer, text)
    if problem.problem.strip() not in text:
        yield fault(
            "template", f"data.template {config.data.template} loses the problem: its prompt is {text!r:.200}"
        )
    back = decode(policy.tokenizer, ids)
    if back != text:
        yield fault(
            "template",
            f"the tokenizer changes the prompt: {text!r:.120} comes back as {back!r:.120}. Use the tokenizer that "
            "the model was trained with, or a data.template in its alphabet",
        )
    lengths = [len(encode(policy.tokenizer, policy.render(one))) for one in list(problems)[:1000]]
    long = sum(length > config.data.max_prompt_length for length in lengths)
    if lengths and long > len(lengths) / 10:
        yield fault(
            "template",
            f"{long} of {len(lengths)} prompts are longer than data.max_prompt_length "
            f"{config.data.max_prompt_length} and would be left out: raise it to {max(lengths)}",
        )
    yield fine("template", f"{config.data.template} renders; the first prompt has {len(ids)} tokens")


def check_markers(policy: Policy) -> Iterator[Finding]:
    """Check that code fences and the output marker survive tokenisation, and that a call pauses the sequence
    once."""
    tokenizer, marker, form = policy.tokenizer, policy.stopping.marker, policy.stopping.format
    if not marker:
        return
    own = f"So {form.opening}6*7{form.closing}"
    written = {"output": CALL + OUTPUT_MARKER, "fence": CALL}.get(form.name, own)
    lost = [text for text in (written, "\n42\n```\n") if decode(tokenizer, encode(tokenizer, text, True)) != text]
    if lost:
        back = decode(tokenizer, encode(tokenizer, lost[0], True))
        yield fault(
            "markers",
            f"the tokenizer turns {lost[0]!r} into {back!r}: no call can be written or answered. Use a tokenizer "
            "that keeps backticks and newlines",
        )
        return
    # Tokens as the tokenizer merges them, and one token for each character.
    spellings = [encode(tokenizer, written), [i for letter in written for i in encode(tokenizer, letter)]]
    for ids in spellings:
        if decode(tokenizer, ids) != written:
            continue  # some tokenizers put a space before a letter that stands alone
        stops = [n for n in range(1, len(ids) + 1) if policy.stopping.stops(ids[:n])]
        if len(stops) != 1 or marker not in decode(tokenizer, ids[: stops[0]]):
            yield fault(
                "markers",
                f"a call ending in {marker!r} pauses the sequence {len(stops)} times, not once, when written in "
                f"{len(ids)} tokens: the stop marker cannot be detected with this tokenizer; try tool.format "
                f"{'fence' if form.name == 'output' else 'output'}",
            )
            return
    yield fine("markers", f"survive tokenisation; {marker!r} pauses a sequence, also in one-character tokens")


def check_format(policy: Policy, config: Config) -> Iterator[Finding]:
    """Check that chat template, format and tokenizer fit together: the prompt shows the tools, the format reads
    the calls that the template writes, and a turn ends in an end-of-text id."""
    tokenizer, schemas = policy.tokenizer, tool_schemas(config)
    by_name = {schema["function"]["name"]: schema for schema in schemas}
    names = list(by_name)
    prompt = policy.render(SAMPLE)
    if unseen := [name for name in names if name not in prompt]:
        yield fault("format", f"the prompt does not name the tool {unseen[0]}: set data.template chat")
    # 1. The template writes a call.
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Go."}]
    start = len(apply_chat(tokenizer, messages, tools=schemas))
    call = {"name": names[0], "arguments": {"code": "print(6 * 7)"}}
    messages.append({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]})
    said = apply_chat(tokenizer, [*messages, {"role": "tool", "content": "42"}], tools=schemas)[start:]
    for token in policy.eos_ids:
        said = said.partition(decode(tokenizer, [token]))[0]
    try:
        read = [read_call(each, by_name) for each in policy.stopping.format.find(said)]
    except ValueError:
        read = []
    if read != [(call["name"], call["arguments"])]:
        yield fault(
            "format",
            f"the chat template writes a call as {said.strip()[:80]!r}, which tool.format "
            f"{config.tool.format} does not read: describe it in a YAML file",
        )
    # 2. A call ends its turn, and the answer survives tokenisation.
    answer = "".join(tool_answer(tokenizer, ["42"]))
    ids = encode(tokenizer, answer)
    if ids[0] not in policy.eos_ids:
        yield fault(
            "format",
            f"the chat template ends a turn with {decode(tokenizer, ids[:1])!r}, which is no end-of-text id of "
            "this model: no call would be answered. Add its id to eos_token_id in generation_config.json",
        )
    if decode(tokenizer, ids) != answer:
        yield fault("format", f"the tokenizer turns the answer {answer!r} into {decode(tokenizer, ids)!r}")
    yield fine("format", f"{', '.join(names)}: called as {said.strip()[:80]!r}, answered as {answer!r}")


def check_ends(policy: Policy) -> Iterator[Finding]:
    """Check that end-of-text ids are in the vocabulary, do not occur in plain text, and cannot be printed by a
    tool."""
    tokenizer, vocabulary = policy.tokenizer, policy.model.get_input_embeddings().weight.shape[0]
    names = [f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in policy.eos_ids if i < vocabulary]
    if outside := [i for i in policy.eos_ids if not 0 <= i < vocabulary]:
        yield fault(
            "ends",
            f"end-of-text id {outside[0]} is outside the vocabulary of {vocabulary}: correct eos_token_id in "
            "config.json and generation_config.json",
        )
    in_text = set(encode(tokenizer, CALL + OUTPUT_MARKER + PLAIN)) & set(policy.eos_ids)
    if in_text:
        token = decode(tokenizer, [min(in_text)])
        yield fault("ends", f"the end-of-text id {min(in_text)} is ordinary text, {token!r}: correct eos_token_id")
    for i in policy.eos_ids:
        text = decode(tokenizer, [i]) if i < vocabulary else ""
        if text and i in encode(tokenizer, text, literal=True) and i not in in_text:
            yield fault(
                "ends",
                f"a program that prints {text!r} would end its response: mark that token as special in the "
                "tokenizer",
            )
    if outside or in_text:
        return
    pad = tokenizer.pad_token_id
    shared = "is one of them (harmless: sequences are masked by length)" if pad in policy.eos_ids else "differs"
    yield fine("ends", f"{len(names)} end-of-text id(s): {', '.join(names)}; the padding id {pad} {shared}")


def check_sampling(
    policy: Policy, runtime: Runtime, config: Config, problems: Sequence[Problem]
) -> Iterator[Finding]:
    """Draw a few tokens and recompute their log-probs, to check that the checkpoint's own generation_config (a low
    temperature, top-k, a repetition penalty) does not change sampling."""
    settings = policy.model.generation_config.to_diff_dict()
    own = {
        k: v for k, v in settings.items() if k in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }
    (group,) = make_groups([next(iter(problems), SAMPLE)], policy.render, policy.tokenizer, ROWS, 0)
    tokens = min(TOKENS, config.rollout.max_completion_length)
    short = change(config, {"rollout.max_completion_length": tokens, "tool.max_tool_calls": 0})
    sample_responses(group.rollouts, policy, None, short, runtime)
    gaps, tolerance = logprob_gaps(policy, group.rollouts, runtime, config)
    gap, tolerance = gaps.mean().item(), SINGLE * tolerance
    ignored = f"; its generation_config sets {own}, which is ignored" if own else ""
    if not gap <= tolerance:
        yield fault(
            "sampling",
            f"samples do not follow the policy at temperature {config.rollout.temperature}: log-probs differ by "
            f"{gap:.2g} nats a token, {tolerance:g} is allowed. Its generation_config sets "
            f"{own or 'nothing'}: set rollout.generator to `engine`, or clear that file",
        )
    else:
        yield fine(
            "sampling", f"temperature {config.rollout.temperature}; log-probs agree to {gap:.1g} nats{ignored}"
        )


def logprob_gaps(
    policy: Policy, rollouts: Sequence[Rollout], runtime: Runtime, config: Config
) -> tuple[torch.Tensor, float]:
    """Return |recorded - recomputed| in nats for each model token, and the tolerance for a batch's mean."""
    batch = collate([to_row(rollout) for rollout in rollouts], runtime.device)
    with torch.no_grad(), runtime.autocast():
        module = TokenLogprobs(policy.model, config.rollout.temperature)
        logprobs, _ = module(*batch.host)  # (B, T)
    gaps = (logprobs - batch.sampled_logprobs).abs()[batch.loss_mask.bool()]
    return gaps, config.train.logprob_tolerance or TOLERANCE["bf16" if runtime.bf16 else "fp32"]


def this_machine(device: torch.device) -> Hardware:
    """Return all GPUs of this machine, one process each, with the memory of the first; without GPU its RAM."""
    if device.type == "cuda":
        return Hardware(torch.cuda.device_count(), torch.cuda.get_device_properties(device).total_memory)
    return Hardware(1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cpu=True)


def check_memory(config: Config, machine: Hardware) -> Iterator[Finding]:
    """Check that the recipe fits on this machine. `grpo-tir plan` answers this for ZeRO or several machines."""
    shape = shape_of(config.model.path, config.model.revision)
    found = plan(config, shape, machine)
    check_plan(found, config, shape, machine)  # its error names settings that fit
    yield fine("memory", f"fits on {machine}: needs at most {found.need / GIB:.3g} GiB")


def check_disk(policy: Policy, config: Config) -> Iterator[Finding]:
    """Check the disk space for all checkpoints kept at the same time: weights and two moments in float32."""
    folder = Path(config.train.output_dir)
    existed = folder.exists()
    make_writable(folder)
    free = shutil.disk_usage(folder).free
    if not existed:
        folder.rmdir()
    size = 12 * sum(parameter.numel() for parameter in policy.model.parameters())
    saves = math.ceil(config.train.steps / config.train.save_every) if config.train.save_every else 1
    kept = min(saves, config.train.save_total_limit or saves) + 1  # a new one is written before one is deleted
    text = f"{kept} checkpoints of {size / 1e9:.3g} GB in {folder}, {free / 1e9:.3g} GB free"
    if kept * size > free:
        yield fault(
            "disk",
            f"not enough space for {text}: lower train.save_total_limit, or name another --train.output_dir",
        )
    else:
        yield fine("disk", f"enough space for {text}")
