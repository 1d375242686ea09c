"""Chat templates and tokenizers for tests of native tool calls. The templates have the structure of the models'
own (turn markers, roles, where tools and thoughts stand), in our words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TOOLS_IN_SYSTEM = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}"
    "{{- 'You may call these functions:\n<tools>' }}"
    "{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\n</tools>\nWrite a call as <tool_call>JSON</tool_call>.<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
)
CALLS = (
    "{%- for call in message.tool_calls or [] %}{{- '\n' if content or not loop.first }}"
    '{{- \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
)
ANSWERS = (
    "{%- elif message.role == 'tool' %}"
    "{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}{%- endif %}"
)
USER = "{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
BEGIN = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
QWEN = (
    TOOLS_IN_SYSTEM + "{%- for message in messages %}{%- set content = message.content or '' %}" + USER
    + "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' + content }}" + CALLS
    + "{{- '<|im_end|>\n' }}" + ANSWERS + "{%- endfor %}" + BEGIN
)  # fmt: skip
"""Like Qwen2.5: answers of one turn share a user turn."""
QWEN_THINKS = (
    TOOLS_IN_SYSTEM
    + "{%- set ns = namespace(query=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.query = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{%- set content = message.content or '' %}" + USER
    + "{%- elif message.role == 'assistant' %}{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.query and (loop.last or thought) %}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- content }}" + CALLS
    + "{{- '<|im_end|>\n' }}" + ANSWERS + "{%- endfor %}" + BEGIN
)  # fmt: skip
"""Like Qwen3: thoughts before the last question are deleted; a last turn without a thought gets an empty one."""
QWEN_TAGS = QWEN.replace(
    '{{- \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}",
    "{{- '<tool_call>\n<function=' + call.function.name + '>\n' }}"
    "{%- for key, value in call.function.arguments | items %}"
    "{{- '<parameter=' + key + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' }}"
    "{%- endfor %}{{- '</function>\n</tool_call>' }}",
)
"""Like Qwen3-Coder and Qwen3.5: a call is a function tag with parameter tags."""
assert QWEN_TAGS != QWEN
FORGETS = QWEN.replace("+ content }}", "+ content.split('</think>')[-1].lstrip() }}")
"""Like DeepSeek-R1: thoughts of every finished turn are deleted."""
LLAMA = (
    "{{- '<|begin_of_text|>' }}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{%- if tools %}{{- 'Environment: ipython\n' }}{%- endif %}{{- 'Today Date: ' + date_string + '\n\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}{{- '<|eot_id|>' }}"
    "{%- set ns = namespace(told=false) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|start_header_id|>user<|end_header_id|>\n\n' }}"
    "{%- if tools and not ns.told %}{%- set ns.told = true %}{{- 'Call a function with JSON.\n\n' }}"
    "{%- for tool in tools %}{{- tool | tojson }}{{- '\n\n' }}{%- endfor %}{%- endif %}"
    "{{- message.content | trim + '<|eot_id|>' }}"
    "{%- elif message.tool_calls %}{%- if message.tool_calls | length != 1 %}"
    "{{- raise_exception('one call at a time') }}{%- endif %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    '{{- \'{"name": "\' + message.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{- message.tool_calls[0].function.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{%- elif message.role == 'tool' %}{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{{- message.content | tojson }}{{- '<|eot_id|>' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{- message.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
"""Like Llama 3.2: answers are JSON in a turn of `ipython`, and a turn has one call."""
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = [
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>",
]  # fmt: skip
CORPUS = [
    '<tool_call>\n{"name": "python", "arguments": {"code": "print(6 * 7)"}}\n</tool_call>',
    '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>\n<tool_call>\n{"name"',
    "<tool_response>\n42\n</tool_response>\nassistant user system ipython JSON functions",
    "<search>who</search>\n<information>\nnobody\n</information>\n So the answer is \\boxed{42}.",
]


def bpe_tokenizer(
    template: str, special: Sequence[str], size: int = 0, added: Sequence[str] = (), regex: bool = True
) -> PreTrainedTokenizerFast:
    """A real byte-level BPE with `size` merges.

    Args:
        special: special tokens; the last `<|im_end|>` or `<|eot_id|>` ends a text.
        added: tokens that are added but not special, as `<tool_call>` of Qwen.
        regex: split words before merging. Without it merges run over the markers' borders.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=256 + size, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    end = "<|eot_id|>" if "<|eot_id|>" in special else "<|im_end|>"
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)
    made.add_special_tokens({"additional_special_tokens": [token for token in special if token != end]})
    made.chat_template = template
    return made


def qwen_tokenizer(size: int = 120, **settings: Any) -> PreTrainedTokenizerFast:
    return bpe_tokenizer(QWEN, CHATML_TOKENS, size, **{"added": ["<tool_call>", "</tool_call>"], **settings})


def llama_tokenizer(size: int = 120) -> PreTrainedTokenizerFast:
    return bpe_tokenizer(LLAMA, LLAMA_TOKENS, size)
