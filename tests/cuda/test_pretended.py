"""What a GPU would wait for, counted on a pretended device: a stray `.item()` in a hot path fails here."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cuda.pretended import DEVICE, CudaTensor, pretended_cuda, to_device
from grpo_tir.config import ModelConfig
from grpo_tir.distributed.optimizer_state import ParamShard, full_parameters, read_state, write_state
from grpo_tir.engine.engine import KV_SHARE, Engine
from grpo_tir.engine.static_step import StaticStep
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning import packing
from grpo_tir.learning.batching import collate, to_row
from grpo_tir.learning.lora import add_adapters
from parity.engine_models import FAMILIES, make_model, make_requests, make_tokenizer, run_with_tool
from tiny_policy import VOCABULARY, make_groups, make_learner, tiny_qwen2

INSERTED = [3, 1, 4, 1, 5]


def test_the_device_refuses_the_host_and_counts_reads_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda(monkeypatch) as log:
        a = torch.ones(3, device=DEVICE)
        assert isinstance(a, CudaTensor) and a.device == DEVICE and not log.reads and not log.copies
        with pytest.raises(AssertionError, match="mixes devices"):
            a + torch.ones(3)
        assert (a + 1 + torch.tensor(2.0)).tolist() == [4.0] * 3  # scalars of the host are allowed
        assert log.reads.total() == 1
        a.copy_(torch.zeros(3))
        torch.ones(2).to(DEVICE)
        assert log.copies.total() == 2
        assert bool((a == 0).all()) and a.sum().item() == 0 and a.cpu().device.type == "cpu"
        assert log.reads.total() == 4
        a[a == 0]  # as many elements as are True: the host must know
        assert log.reads.total() == 5


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("step", ["eager", "plain"])
def test_a_rollout_with_tools_reads_little_and_mixes_nothing(
    step: str, adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager steps read ids and log-probs at every forward; static steps read once a block, whatever its length."""
    stopping, requests = CodeBlockStopping(make_tokenizer()), make_requests(groups=4, samples=4, budget=40, seed=3)
    model = make_model(FAMILIES["qwen2"], torch.float64)
    if adapters:
        pytest.importorskip("peft")
        add_adapters(model, ModelConfig(lora_rank=2))
        model.double()
    wanted = run_with_tool(Engine(model, stopping, Sampling(), [11]), requests, INSERTED, calls=2)
    with pretended_cuda(monkeypatch) as log:
        engine = Engine(to_device(model), stopping, Sampling(), [11], step=step, page=8)  # type: ignore[arg-type]
        assert run_with_tool(engine, requests, INSERTED, calls=2) == wanted
    assert sum(len(segments) > 1 for segments in wanted.values()) >= 5, "too few rows called a tool"
    counts = engine.counts
    if step == "eager":
        assert log.reads == {"engine/engine.py:_sample": 2 * counts["forwards"]}
        assert log.copies["engine/kv_cache.py:__init__"] == counts["forwards"]
        return
    assert log.reads == {"engine/static_step.py:run": counts["blocks"]}
    assert log.copies["engine/static_step.py:run"] == 2 * counts["blocks"]
    assert counts["blocks"] * 4 < counts["forwards"]
    inside = {"_step", "attend", "block_mask", "_finish_step", "_draw_in_blocks", "_first_above"}
    assert not [line for line in [*log.reads, *log.copies] if line.split(":")[1] in inside]


def test_the_addresses_of_a_static_step_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph replays addresses: what a step reads and writes must not be made anew."""
    found: dict[int, set[tuple[int, ...]]] = {}
    run = StaticStep.run

    def watched(self: StaticStep, *args: object) -> object:
        tensors = [self.inputs, self.table, self.last, self.record, self.count, self.ends_row]
        tensors += chain(*self.cache.layers)
        found.setdefault(id(self), set()).add(tuple(tensor.data_ptr() for tensor in tensors))
        return run(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(StaticStep, "run", watched)
    stopping, requests = CodeBlockStopping(make_tokenizer()), make_requests(groups=4, samples=4, budget=40, seed=3)
    engine = Engine(make_model(FAMILIES["qwen2"]), stopping, Sampling(), [11], 0, 200, "plain", page=8)
    run_with_tool(engine, requests, INSERTED, calls=2)
    assert engine.counts["evictions"] > 0 and len(found) > 1
    assert all(len(addresses) == 1 for addresses in found.values())


def test_the_pool_keeps_its_size_where_that_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size of the pool is compiled by itself. Sizes have three significant bits, also where memory ends."""
    model, sizes = to_device(make_model(FAMILIES["qwen2"])), [0]
    with pretended_cuda(monkeypatch):
        few = [(9, 4000), (2, 4000), (9, 300), (9, 310), (12, 420), (12, 4000)]
        for rows, free in [*few, (200, 4000), (12, 3000)]:
            engine = Engine(model, None, Sampling(), [], step="plain", page=8)
            cache = engine.scheduler.cache
            memory = math.ceil(free * cache.token_bytes / KV_SHARE)  # type: ignore[union-attr]
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, memory=memory: (memory, memory))
            engine.pool_tokens = sizes[-1]
            for row in range(rows):
                engine.submit(Request(row, [3], 0, 39, False))  # 40 tokens: 5 pages
            engine._allocate()
            sizes.append(engine.pool_tokens)
            engine.close()
    # 360 tokens need 384 in three bits; 300 are 256 in three bits; 480 need 512, for which 420 have no room; 8,000
    # have none in 4,000, and the last 512 would be too few; 3,584 do not fit in 3,000
    assert sizes[1:] == [384, 384, 256, 256, 256, 512, 3584, 512]


def test_the_learner_reads_nothing_in_a_micro_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Layout, loss, metrics and the certificate's sums wait for nothing; the certificate reads once for all."""
    learner = make_learner(tiny_qwen2())
    samples = [to_row(rollout) for group in make_groups() for rollout in group.rollouts]
    with torch.no_grad(), learner.updating(0):
        wanted = learner._loss(collate(samples, torch.device("cpu")), 10.0)
    learner = make_learner(tiny_qwen2())
    to_device(learner.module)
    with pretended_cuda(monkeypatch) as log, torch.no_grad(), learner.updating(0):
        learner.statistics.gap_max = learner.statistics.gap_max.to(DEVICE)
        monkeypatch.setattr(packing, "has_kernel", lambda value: False)
        loss = learner._loss(collate(samples, DEVICE), 10.0)
        learner._loss(collate(samples, DEVICE), 10.0)
        assert not log.reads
        learner.statistics.certify()
        assert log.reads == {"learning/statistics.py:certify": 1}
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_resumed_optimizer_has_its_whole_state_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's fused AdamW, which a GPU uses, also reads its step count there. (The pretended device holds no
    gradients, so no step is taken.)"""
    # 1. Two steps on the CPU.
    model = tiny_qwen2(tie_word_embeddings=False)
    optimizer = torch.optim.AdamW(model.parameters())
    for seed in (1, 2):
        random = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=random)
        optimizer.step()
    saved = read_state(optimizer, full_parameters(model))
    # 2. Their state, on the device.
    to_device(model)
    with pretended_cuda(monkeypatch):
        resumed = torch.optim.AdamW(model.parameters(), fused=True)
        shards = [ParamShard(name, 0, weight.numel(), weight, 0) for name, weight in model.named_parameters()]
        write_state(resumed, shards, [saved])
        tensors = [tensor for state in resumed.state.values() for tensor in state.values()]
        assert len(tensors) == 3 * len(shards) and all(tensor.device == DEVICE for tensor in tensors)
        again = read_state(resumed, shards)
        assert again["step"] == saved["step"] == 2
        for name, moments in saved["moments"].items():
            assert torch.equal(again["moments"][name]["exp_avg"], moments["exp_avg"])
            assert torch.equal(again["moments"][name]["exp_avg_sq"], moments["exp_avg_sq"])


class WaitsInBackward(TorchDispatchMode):
    """Collect the operators for which a GPU's host would wait. The pretended device has no gradients, so a
    backward pass is watched on the CPU."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "masked_scatter_backward",
        "_unique2",
        "unique_dim",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_unsafe_index_put") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if by_mask or name in self.WAITS:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["plain", "checkpointing", "adapters", "head in chunks", "padded"])
def test_a_backward_pass_waits_for_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_qwen2()
    if kind == "adapters":
        pytest.importorskip("peft")
        add_adapters(model, ModelConfig(lora_rank=2))
    if kind == "checkpointing":
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    learner = make_learner(model, optim__micro_batch_tokens=64, optim__packing=kind != "padded")
    if kind == "head in chunks":
        learner.module.logits_mb = 4 * 4 * VOCABULARY / 2**20
    watched, passes, backward = WaitsInBackward(), [], learner.runtime.backward

    def watch(*args: Any) -> None:
        with watched:
            passes.append(backward(*args))

    monkeypatch.setattr(learner.runtime, "backward", watch)
    with learner.updating(0):
        for batch in learner.mini_batches(make_groups()):
            learner.backward(batch)
    assert len(passes) > 1 and not watched.found


def test_the_watch_of_a_backward_pass_sees_a_wait() -> None:
    """`masked_scatter` counts its mask for the gradient; the learner used it once."""
    values = torch.ones(2, requires_grad=True)
    out = torch.zeros(3).masked_scatter(torch.tensor([True, False, True]), values)
    with WaitsInBackward() as watched:
        out.sum().backward()
    assert watched.found == {"masked_scatter_backward"}
