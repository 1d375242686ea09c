"""Read and check the name and the arguments of a call."""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from grpo_tir.tools.formats import read_json

JSON_TYPES: dict[str, Any] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict,
}  # fmt: skip


def read_call(text: str, schemas: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a call in JSON, or in tags as Qwen3-Coder and Qwen3.5 write it:

        <function=calculator>⏎<parameter=expression>⏎6*7⏎</parameter>⏎</function>

    A tag holds text. It is read as JSON if the schema wants another type.

    Raises:
        ValueError: one line that the model reads.
    """
    if not text.startswith("<function="):
        return read_json(text)
    name, _, body = text.removeprefix("<function=").partition(">")
    known = schemas[name]["function"]["parameters"]["properties"] if name in schemas else {}
    arguments: dict[str, Any] = dict(re.findall(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", body, re.DOTALL))
    for key, value in arguments.items():
        if known.get(key, {}).get("type") != "string":
            with contextlib.suppress(ValueError, RecursionError):
                arguments[key] = json.loads(value)
    return name, arguments


def check_call(name: str, arguments: dict[str, Any], schemas: Mapping[str, Any]) -> None:
    """Check the arguments of a call against the JSON schema of its tool.

    Raises:
        ValueError: one line that the model reads.
    """
    if name not in schemas:
        raise ValueError(f"UnknownTool: there is no tool {name[:60]!r}; there is {', '.join(schemas)}")
    parameters = schemas[name]["function"]["parameters"]
    known, needed = parameters["properties"], parameters.get("required", [])
    faults = [f"`{key}` is missing" for key in needed if key not in arguments]
    faults += [f"{key[:60]!r} is unknown" for key in arguments if key not in known]
    for key, value in arguments.items():
        wanted = known.get(key, {}).get("type")
        right = JSON_TYPES.get(wanted, object) if isinstance(wanted, str) else object
        wrong = not isinstance(value, right) or (isinstance(value, bool) and wanted in ("integer", "number"))
        if wrong and not (value is None and known[key].get("nullable")):
            faults.append(f"`{key}` must be of type {wanted}")
    if faults:
        raise ValueError(f"WrongArguments: {name}: {', '.join(faults)}")
