"""Pre-training, at a thirtieth of its length."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from quickstart import base_model as tiny_model
from quickstart import world as tiny


def test_short_pretraining_learns_more_than_how_frequent_each_token_is(tmp_path: Path) -> None:
    """Loss falls from ln V to less than half the unigram entropy, the best that a model without context can do."""
    world = tiny.WorldConfig(seed=5, documents=1200)
    documents = list(tiny.make_documents(world, tiny.make_problems(world)[2]))
    config = tiny_model.PretrainConfig(steps=100)
    losses = tiny_model.build_model(documents, tmp_path, 5, config=config, log=lambda _: None, progress=False)
    assert abs(losses[0] - math.log(1520)) < 1.0

    tokenizer = tiny_model.train_tokenizer((document.text for document in documents), config.pieces)
    pages = tiny_model.encode(tokenizer, documents)
    counts = Counter(token for page in pages for token, keep in zip(page.ids, page.trained) if keep)
    total = sum(counts.values())
    unigram = -sum(count / total * math.log(count / total) for count in counts.values())
    assert sum(losses[-20:]) / 20 < unigram / 2
