"""Train the tokenizer and the weights of the quickstart's base model.

Tokenizer: Qwen2's byte-level BPE, trained on the corpus without its digits, plus every string of 1 to 3 digits as
one token. The bottleneck of the quickstart is copying numbers. With 1-digit tokens a model of this size never
learned it (measured).

Pre-training: next-token loss on the response. Prompts and tool output are masked; RL masks tool output too. The
summed loss of a batch is divided by a constant. A mean over each batch would give long tool documents too little
weight, because batches are sorted by length.

    ids    prompt  prompt  model  model  tool  tool  model  <eos>  pad
    loss     0       0       1      1     0     0      1      1     0

Shapes: B documents in a batch, T tokens of the longest document, V vocabulary.
"""

from __future__ import annotations

import itertools
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quickstart.world import Document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

EOS = "<|endoftext|>"
PROGRESS_SECONDS = 20.0
"""Seconds between two progress lines if the output is not a terminal."""
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pattern for the parts in which BPE may merge. transformers 5 uses it for every tokenizer in the
folder of a Qwen2 model, whatever its file says. It splits numbers into digits, so they are added tokens."""


@dataclass(frozen=True)
class PretrainConfig:
    """Shape and training of the base model: 0.5M parameters, so that RL takes minutes."""

    pieces: int = 420
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    """With 2, the values that a head copies have half the width: loss 1.12 instead of 0.74 after 250 steps."""
    ffn: int = 256
    init: float = 0.088
    """Std of initial weights, 1/sqrt(hidden). With HF's 0.02 the loss after 150 steps is 1.7 instead of 1.3."""
    steps: int = 3600
    batch: int = 12
    """Documents. 24 in half as many steps copied worse: 0.38 instead of 0.58 of programs, after 9,600."""
    lr: float = 2e-3
    final_lr: float = 0.05
    """Share of `lr` that is left at the end of the linear decay. The decay starts at half of the steps."""


@dataclass(frozen=True)
class Encoded:
    """One document in tokens."""

    ids: list[int]
    trained: list[int]
    """1 if the loss covers this token, else 0."""


def build_model(
    documents: Sequence[Document],
    folder: Path,
    seed: int,
    *,
    config: PretrainConfig | None = None,
    log: Callable[[str], None] = print,
    progress: bool = True,
) -> list[float]:
    """Train tokenizer and base model on `documents` and save both in HF format in `folder`.

    Returns the mean loss per trained token of each step, in nats. `seed`: of weights and batch order.
    """
    import torch
    from transformers import AutoTokenizer

    config = config or PretrainConfig()
    learned = train_tokenizer((document.text for document in documents), config.pieces)
    model = new_model(config, learned, seed)
    learned.save_pretrained(folder)
    model.config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # as RL will load it; AutoTokenizer may change it
    encoded = encode(tokenizer, documents)
    log(
        f"tokenizer: {len(tokenizer)} tokens; base model: Qwen2 with {model.num_parameters():,} parameters, "
        f"{config.steps} pre-training steps"
    )
    threads = torch.get_num_threads()
    # Small matrices gain little from a second thread, and are 15 times slower with it if the cores are busy.
    torch.set_num_threads(1)
    try:
        losses = pretrain(model, encoded, config, seed, log=log, progress=progress)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return losses


def train_tokenizer(texts: Iterable[str], pieces: int) -> PreTrainedTokenizerBase:
    """Train BPE on the texts without digits, then add "00" … "999" as tokens. Single digits are byte tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"), bytewise]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[EOS],
        show_progress=False,
    )
    tokenizer.train_from_iterator((re.sub(r"\d", "", text) for text in texts), trainer)
    chunks = [f"{number:0{width}d}" for width in (2, 3) for number in range(10**width)]
    tokenizer.add_tokens([AddedToken(chunk, normalized=False) for chunk in chunks])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[Encoded]:
    """Encode each segment separately, as a rollout does; one tokenizer call for all is several times faster."""
    bounds = [0]
    parts = []
    for document in documents:
        parts += [("prompt", document.prompt), *document.segments]
        bounds.append(len(parts))
    ids = tokenizer([text for _, text in parts])["input_ids"]
    encoded = []
    for begin, end in itertools.pairwise(bounds):
        tokens = [token for part in ids[begin:end] for token in part]
        trained = [int(kind == "model") for (kind, _), part in zip(parts[begin:end], ids[begin:end]) for _ in part]
        encoded.append(Encoded([*tokens, tokenizer.eos_token_id], [*trained, 1]))
    return encoded


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """Make a Qwen2 with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    eos = tokenizer.eos_token_id
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.ffn,
            max_position_embeddings=1024,
            initializer_range=config.init,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def pretrain(
    model: Qwen2ForCausalLM,
    encoded: Sequence[Encoded],
    config: PretrainConfig,
    seed: int,
    *,
    log: Callable[[str], None] = print,
    progress: bool = True,
) -> list[float]:
    """Train with AdamW for `config.steps` batches and return their losses as `build_model` does.

    The learning rate is constant for half of the steps, then decays linearly.
    """
    import torch
    from tqdm.auto import tqdm

    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    losses = []
    batches = make_batches(encoded, config, random.Random(f"batches/{seed}"))
    hidden = None if progress else True  # None: shown on a terminal only
    lines = progress and not sys.stderr.isatty()  # in a log file: lines instead of a progress bar
    printed = time.monotonic()
    for step, batch in enumerate(tqdm(batches, "pre-training", disable=hidden, smoothing=0.05)):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step / config.steps, config.final_lr)
        loss = batch_loss(model, batch, model.config.eos_token_id)
        # A document has about 20 trained tokens. The divisor only has to be constant, see above.
        (loss / (30 * config.batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if lines and time.monotonic() - printed > PROGRESS_SECONDS:
            printed = time.monotonic()
            log(f"pre-training: {step + 1} of {config.steps} steps")
        losses.append(loss.item() / sum(sum(document.trained) for document in batch))
    return losses


def _schedule(done: float, final: float) -> float:
    warmup = min(1.0, (done + 1e-4) / 0.02)
    return warmup * (1.0 - (1.0 - final) * max(0.0, 2 * done - 1))


def make_batches(encoded: Sequence[Encoded], config: PretrainConfig, draw: random.Random) -> list[list[Encoded]]:
    """Make `config.steps` batches of documents of similar length, shuffled within each 100 batches."""
    documents = [encoded[i % len(encoded)] for i in range(config.steps * config.batch)]
    batches: list[list[Encoded]] = []
    for begin in range(0, len(documents), 100 * config.batch):
        block = sorted(documents[begin : begin + 100 * config.batch], key=lambda document: len(document.ids))
        shuffled = [block[i : i + config.batch] for i in range(0, len(block), config.batch)]
        draw.shuffle(shuffled)
        batches += shuffled
    return batches


def batch_loss(model: Qwen2ForCausalLM, batch: Sequence[Encoded], pad: int) -> torch.Tensor:
    """Return the summed cross-entropy of the trained tokens, a scalar in nats. Padding is on the right."""
    import torch

    longest = max(len(document.ids) for document in batch)
    ids = torch.tensor([document.ids + [pad] * (longest - len(document.ids)) for document in batch])  # (B, T)
    trained = torch.tensor([document.trained + [0] * (longest - len(document.ids)) for document in batch])
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # (B, T-1, hidden)
    chosen = trained[:, 1:].bool()
    logits = model.lm_head(hidden[chosen])  # (trained tokens, V); the head is a third of the cost
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][chosen], reduction="sum")
