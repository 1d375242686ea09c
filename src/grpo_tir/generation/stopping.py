"""Pause a row where the policy calls its tool, in the format that `tool.format` names.

`CodeBlockStopping` is an ordinary `transformers.StoppingCriteria` and works with any `model.generate`. It checks a
row only when its newest token could complete the marker, and then decodes a short tail:

    tokens   … "```" "\\n" "```" "out" "put\\n"
                             └─ tail ────────┘   "```output" ends inside the newest token: stop

The newest token is kept as it was sampled, even if it continues after the marker ("put\\n"): the policy chose it.

A format without a marker, such as `tool_call`, pauses a row at an end-of-text token, if its segment holds a call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from grpo_tir.data.tokens import decode
from grpo_tir.tools.formats import CODE_FORMATS, OPENING, load_format


class CodeBlockStopping(StoppingCriteria):
    """Stop each row whose newest token completes a tool call. Make a new object for each plain `generate`.

    Args:
        tokenizer: tokenizer of the policy.
        stop: name of the format: `output` for the paper's marker "```output", `fence` for the fence that closes a
            ```python block, or another (`ToolConfig.format`).
        start: column at which the model's own tokens begin; None takes the column of the newest token at the first
            call, which is right for a plain `generate`.
        eos_ids: tokens that end a turn; default: that of the tokenizer.

    Attributes:
        may_stop: False for rows that have used all their calls: they never stop; None lets every row stop.
        stopped_at: for each row, the width at which it first stopped; None while it has not.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: str = "output",
        start: int | None = None,
        eos_ids: Sequence[int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.stop, self.format = stop, load_format(stop)
        self.marker = self.format.marker
        # a model whose template writes <tool_call> must not learn the bare JSON of Llama
        template = str(getattr(tokenizer, "chat_template", None))
        self.needed = OPENING if stop == "tool_call" and OPENING in template else ""
        self.closers = frozenset([tokenizer.eos_token_id] if eos_ids is None else eos_ids)
        if self.marker:
            self.closers = find_closers(tokenizer, self.marker, special=stop not in CODE_FORMATS)
        self.begin(start)

    def begin(self, start: int | None, may_stop: Sequence[bool] | None = None) -> None:
        """Reset before the next `generate`."""
        self.start = start
        self.may_stop = may_stop
        self.stopped_at: list[int | None] = []

    def stops(self, token_ids: Sequence[int]) -> bool:
        """True if the last token completes a call. `token_ids` is one model segment so far."""
        if not token_ids or token_ids[-1] not in self.closers:
            return False
        if not self.marker:
            text = self._decode(token_ids[:-1])
            return self.needed in text and bool(self.format.find(text))
        # each character of the marker may be one token; three more tokens complete a UTF-8 character before them
        tail = token_ids[-len(self.marker) - 3 :]
        if self.marker not in self._decode(tail):
            return False
        if self.stop == "output":
            return self.marker not in self._decode(tail[:-1])
        find = self.format.find
        return bool(find(self._decode(token_ids))) and not find(self._decode(token_ids[:-1]))

    def __call__(self, input_ids: torch.LongTensor, scores: Any = None, **_: Any) -> torch.BoolTensor:
        """Map `input_ids` (B, T) to (B,) bool: True for rows that have stopped."""
        width = input_ids.shape[1]
        if self.start is None:
            self.start = width - 1
        if not self.stopped_at:
            self.stopped_at = [None] * input_ids.shape[0]
        newest = input_ids[:, -1].tolist()
        for row, token in enumerate(newest):
            checked = self.stopped_at[row] is None and (not self.may_stop or self.may_stop[row])
            if checked and token in self.closers and self.stops(input_ids[row, self.start :].tolist()):
                self.stopped_at[row] = width
        done = [stopped is not None for stopped in self.stopped_at]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids)


def find_closers(tokenizer: PreTrainedTokenizerBase, marker: str, special: bool) -> frozenset[int]:
    """Return the tokens in which `marker` can end. If `special`, a special token may be the marker."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    excluded = {i for i in tokenizer.all_special_ids if not special or texts[i] != marker}
    return frozenset(i for i, text in enumerate(texts) if can_close(text, marker)) - excluded


def can_close(token: str, marker: str) -> bool:
    """True if `marker` can end inside `token` after some earlier text."""
    return marker in token or any(token.startswith(marker[-k:]) for k in range(1, len(marker) + 1))
