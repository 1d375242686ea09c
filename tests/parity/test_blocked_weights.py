"""A CPU model that decodes from a copy of its weights in another layout is the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo_tir.engine.decode_weights import BlockedWeights
from grpo_tir.engine.engine import Engine
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling
from parity.engine_models import FAMILIES, VOCABULARY, make_model


def logits_of(model: Any, rows: int = 3) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randint(VOCABULARY, (rows, 9))).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_plain_layers_in_every_family(name: str) -> None:
    model = make_model(FAMILIES[name])
    plain, weights = logits_of(model), BlockedWeights(model)
    assert len(weights.layers) >= 7, "the layers are not replaced at all"
    with weights.used():
        blocked = logits_of(model)
        assert all("forward" in vars(layer) for layer in weights.layers)
    torch.testing.assert_close(blocked, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))
    assert torch.equal(logits_of(model), plain), "the model was not given back as it was"


def test_new_weights_are_seen_at_once() -> None:
    model = make_model(FAMILIES["qwen2"])
    weights = BlockedWeights(model)
    with weights.used():
        before = logits_of(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    with weights.used():
        after = logits_of(model)
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, logits_of(model), rtol=1e-5, atol=1e-5)


def test_an_error_inside_gives_the_model_back() -> None:
    model = make_model(FAMILIES["qwen2"])
    weights = BlockedWeights(model)
    with pytest.raises(KeyError), weights.used():
        raise KeyError
    assert all("forward" not in vars(layer) for layer in model.modules())


def test_weights_without_a_version_keep_their_plain_layers() -> None:
    with torch.inference_mode():
        model = make_model(FAMILIES["qwen2"])
    assert BlockedWeights(model).layers == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_keep_their_plain_layers(dtype: torch.dtype) -> None:
    assert BlockedWeights(make_model(FAMILIES["qwen2"], dtype)).layers == []


def test_under_autocast_the_layers_stay_plain() -> None:
    model = make_model(FAMILIES["qwen2"])
    weights = BlockedWeights(model)
    with torch.autocast("cpu", torch.bfloat16):
        plain = logits_of(model)
        with weights.used():
            assert torch.equal(logits_of(model), plain)


def test_a_forward_that_somebody_else_has_put_stays() -> None:
    model = make_model(FAMILIES["qwen2"])
    theirs = model.lm_head.forward = lambda hidden: torch.zeros(*hidden.shape[:2], VOCABULARY)
    with BlockedWeights(model).used():
        assert logits_of(model).abs().max() == 0
    assert vars(model.lm_head)["forward"] is theirs


def test_the_engine_decodes_from_copies_and_drops_them_with_its_last_row() -> None:
    engine = Engine(make_model(FAMILIES["qwen2"]), None, Sampling(0.0), [])
    engine.ready = lambda: True  # one token at a time
    for row in range(3):  # a batch each
        engine.submit(Request(row, [5, 6, 7], 0, 4, False))
        engine.step()
        assert len(engine.weights.copies) == len(engine.weights.layers) > 0
        while not engine.step():
            pass
        assert not engine.weights.copies
