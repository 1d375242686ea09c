"""Tokenizer and pre-trained weights of the quickstart's base model.

Tokenizer: Qwen2's byte-level BPE, trained on the corpus with its digits taken out, plus every chunk of 1 to 3
digits as one token. Copying numbers is the bottleneck of the quickstart, and with 1-digit tokens a model of this
size never got there (measured).

Pre-training: next-token loss on the response; prompts and tool output are masked, as RL will mask the latter. The
summed loss of a batch is divided by a constant: a mean over each batch would under-weight the long tool documents,
because batches are sorted by length.

    ids    prompt  prompt  model  model  tool  tool  model  <eos>  pad
    loss     0       0       1      1     0     0      1      1     0

Shapes: B documents of a batch, T tokens of its longest, V vocabulary.
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

from grpo_tir.quickstart.world import Document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

EOS = "<|endoftext|>"
PROGRESS_SECONDS = 20.0
"""Seconds between two progress lines where the output is not a terminal."""
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's own rule of what BPE may merge within. transformers 5 gives this rule to every tokenizer that lies
beside a Qwen2 model, whatever its file says; so the chunks of digits, which it cuts up, are added tokens."""


@dataclass(frozen=True)
class PretrainConfig:
    """Shape of the base model and of its training; 0.5M parameters, because RL has to take a minute."""

    pieces: int = 420
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    """With 2, what a head copies passes through half the width: loss 1.12 instead of 0.74 after 250 steps."""
    ffn: int = 256
    init: float = 0.088
    """Std of fresh weights, 1/sqrt(hidden). With HF's 0.02 the loss after 150 steps is 1.7 instead of 1.3."""
    steps: int = 3600
    batch: int = 12
    """Documents. 24 in half as many steps copied worse (0.38 instead of 0.58 of programs, after 9,600)."""
    lr: float = 2e-3
    final_lr: float = 0.05
    """Share of `lr` that is left at the end of a linear decay, which begins at half-time."""


@dataclass(frozen=True)
class Encoded:
    """One document in tokens."""

    ids: list[int]
    trained: list[int]
    """1 where the model is to predict this token."""


def build_model(
    documents: Sequence[Document],
    folder: Path,
    seed: int,
    *,
    config: PretrainConfig | None = None,
    log: Callable[[str], None] = print,
    progress: bool = True,
) -> list[float]:
    """Train tokenizer and base model on `documents` and save both in HF format. Returns the losses."""
    import torch
    from transformers import AutoTokenizer

    config = config or PretrainConfig()
    learned = train_tokenizer((document.text for document in documents), config.pieces)
    model = new_model(config, learned, seed)
    learned.save_pretrained(folder)
    model.config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # the one that RL will read, which AutoTokenizer may change
    encoded = encode(tokenizer, documents)
    log(
        f"tokenizer: {len(tokenizer)} tokens; base model: Qwen2 with {model.num_parameters():,} parameters, "
        f"{config.steps} pre-training steps"
    )
    threads = torch.get_num_threads()
    # Matrices of this size gain little from a second thread, and lose a factor of 15 where the cores are busy.
    torch.set_num_threads(1)
    try:
        losses = pretrain(model, encoded, config, seed, log=log, progress=progress)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return losses


def train_tokenizer(texts: Iterable[str], pieces: int) -> PreTrainedTokenizerBase:
    """BPE of the digit-stripped texts, then the chunks "00" … "999" as tokens of their own; digits are bytes."""
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
    """Each part on its own, as a rollout is put together; all in one call, which is several times faster."""
    bounds = [0]
    parts = []
    for document in documents:
        parts += [("prompt", document.prompt), *document.segments]
        bounds.append(len(parts))
    ids = tokenizer([text for _, text in parts])["input_ids"]
    encoded = []
    for begin, end in itertools.pairwise(bounds):
        whole = [token for part in ids[begin:end] for token in part]
        trained = [int(kind == "model") for (kind, _), part in zip(parts[begin:end], ids[begin:end]) for _ in part]
        encoded.append(Encoded([*whole, tokenizer.eos_token_id], [*trained, 1]))
    return encoded


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights."""
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
    """AdamW over `config.steps` batches; the learning rate is flat to half-time, then falls linearly."""
    import torch
    from tqdm.auto import tqdm

    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    losses = []
    batches = make_batches(encoded, config, random.Random(f"batches/{seed}"))
    hidden = None if progress else True  # None: shown on a terminal only
    lines = progress and not sys.stderr.isatty()  # in a log file a line now and then takes the bar's place
    printed = time.monotonic()
    for step, batch in enumerate(tqdm(batches, "pre-training", disable=hidden, smoothing=0.05)):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step / config.steps, config.final_lr)
        loss = batch_loss(model, batch, model.config.eos_token_id)
        # A document has 20 trained tokens or so; it matters only that this is a constant, see above.
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
    """`config.steps` batches of documents of like length, in the order of the corpus but for stretches of 100."""
    documents = [encoded[i % len(encoded)] for i in range(config.steps * config.batch)]
    batches: list[list[Encoded]] = []
    for begin in range(0, len(documents), 100 * config.batch):
        stretch = sorted(documents[begin : begin + 100 * config.batch], key=lambda document: len(document.ids))
        shuffled = [stretch[i : i + config.batch] for i in range(0, len(stretch), config.batch)]
        draw.shuffle(shuffled)
        batches += shuffled
    return batches


def batch_loss(model: Qwen2ForCausalLM, batch: Sequence[Encoded], pad: int) -> torch.Tensor:
    """Summed cross-entropy of the trained tokens. Padding is on the right, where causal attention ignores it."""
    import torch

    longest = max(len(document.ids) for document in batch)
    ids = torch.tensor([document.ids + [pad] * (longest - len(document.ids)) for document in batch])  # (B, T)
    trained = torch.tensor([document.trained + [0] * (longest - len(document.ids)) for document in batch])
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state  # (B, T-1, hidden)
    chosen = trained[:, 1:].bool()
    logits = model.lm_head(hidden[chosen])  # (trained tokens, V): the head is a third of the work
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][chosen], reduction="sum")
