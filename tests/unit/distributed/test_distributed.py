"""Who gets what, how optimizer state is cut and put together, and which DeepSpeed settings are refused."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch

from grpo_tir.distributed import zero
from grpo_tir.distributed.optimizer_state import ParamShard, full_parameters, read_state, write_state
from grpo_tir.distributed.runtime import Runtime, balance, deal
from grpo_tir.errors import CheckpointError, ConfigError


def test_dearest_items_are_dealt_first_and_to_and_fro() -> None:
    assert deal([9, 8, 7, 6, 5, 4], 3) == [0, 1, 2, 2, 1, 0]  # 13 each
    assert deal([1, 9, 3, 3], 2) == [0, 0, 1, 1]  # in order of cost: 9 3 3 1 to ranks 0 1 1 0
    assert deal([], 2) == [] and deal([5], 4) == [0]


def test_ranks_get_equal_numbers_whatever_the_costs() -> None:
    for number in range(12):
        dealt = deal([float(i * i % 7) for i in range(number)], 4)
        counts = [dealt.count(rank) for rank in range(4)]
        assert max(counts) - min(counts) <= 1


def test_few_items_move_to_level_the_ranks() -> None:
    assert balance([[9, 5, 4], [6]]) == {(0, 1): 1}  # 13 and 11
    assert balance([[7], [3]]) == {} and balance([[], []]) == {}  # moving the 7 would only exchange the ranks
    rng = random.Random(0)
    costs = [[rng.lognormvariate(6, 0.7) for _ in range(256)] for _ in range(8)]
    costs[3] = costs[3][:200]
    moves = balance(costs)
    loads = [sum(each) for each in costs]
    for (rank, i), target in moves.items():
        loads[rank] -= costs[rank][i]
        loads[target] += costs[rank][i]
    assert max(loads) < 1.01 * sum(loads) / 8 and len(moves) < 8 * 256 / 20
    assert max(map(sum, costs)) > 1.05 * sum(loads) / 8


def stepped(sizes: list[int]) -> tuple[torch.nn.ParameterList, torch.optim.AdamW]:
    """Parameters after three steps of random gradients."""
    torch.manual_seed(0)
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(size)) for size in sizes])
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return model, optimizer


def cut(sizes: list[int], ranks: int) -> list[tuple[torch.optim.AdamW, list[ParamShard]]]:
    """As ZeRO-1 does: one flat buffer of all parameters, a contiguous part of it for each rank."""
    total, shards = sum(sizes), []
    bounds = [total * rank // ranks for rank in range(ranks + 1)]
    for low, high in pairwise(bounds):
        owner = torch.nn.Parameter(torch.zeros(high - low))
        at, stretches = 0, []
        for name, size in enumerate(sizes):
            start, end = max(at, low), min(at + size, high)
            if start < end:
                stretches.append(ParamShard(str(name), start - at, end - start, owner, start - low))
            at += size
        shards.append((torch.optim.AdamW([owner]), stretches))
    return shards


def test_moments_survive_being_cut_by_two_ranks_then_three_then_put_together() -> None:
    sizes = [7, 1, 12, 5]
    model, optimizer = stepped(sizes)
    files = [read_state(optimizer, full_parameters(model))]
    for ranks in (2, 3):
        shards = cut(sizes, ranks)
        for shard in shards:
            write_state(*shard, files)
        files = [read_state(*shard) for shard in shards]
    fresh = stepped(sizes)[0]
    again = torch.optim.AdamW(fresh.parameters())
    write_state(again, full_parameters(fresh), files)
    for ours, theirs in zip(fresh.parameters(), model.parameters(), strict=True):
        for key, value in optimizer.state[theirs].items():
            assert torch.equal(again.state[ours][key], value), key


def test_a_missing_file_of_one_rank_is_noticed() -> None:
    model, optimizer = stepped([7, 4])
    shards = cut([7, 4], 2)
    for shard in shards:
        write_state(*shard, [read_state(optimizer, full_parameters(model))])
    with pytest.raises(CheckpointError, match="has another size"):
        write_state(optimizer, full_parameters(model), [read_state(*shards[0])])


def deepspeed_config(**more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 2, **more.pop("zero", {})}, "train_batch_size": "auto", **more}


def test_the_loop_s_own_settings_are_put_into_deepspeed_s() -> None:
    config = deepspeed_config()
    assert zero.configure(config, bf16=True, shard_on_loading=True) == 2
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert config["gradient_accumulation_steps"] == config["train_micro_batch_size_per_gpu"] == 1
    assert "train_batch_size" not in config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (deepspeed_config(zero={"stage": 0}), "ZeRO stage 0"),
        (deepspeed_config(bf16={"enabled": True}), r"model\.precision: bf16"),
        (deepspeed_config(optimizer={"type": "Adam"}), "remove `optimizer` from"),
        (deepspeed_config(zero={"offload_optimizer": {"device": "cpu"}}), "remove offload_"),
    ],
)
def test_deepspeed_settings_that_would_train_something_else_are_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        zero.configure(config, bf16=False, shard_on_loading=True)


def test_asking_for_deepspeed_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """if True:
        import importlib.util, sys
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "deepspeed" else found(name, *rest)
        from grpo_tir.cli import main
        sys.exit(main(["train", "quickstart", "--model.path", "model", "--data.train", "problems.jsonl"]))
    """
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert (
        done.stderr == "grpo-tir: this launch asks for DeepSpeed; install it: pip install 'grpo-tir[deepspeed]'\n"
    )


def test_two_runtimes_of_one_process_may_differ_in_precision() -> None:
    """accelerate keeps one precision a process, and refuses a second one with a traceback."""
    half, full = Runtime("bf16"), Runtime("fp32")
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    with half.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with full.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == product.dtype == torch.float32
