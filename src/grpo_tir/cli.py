"""Parse the command line. Heavy packages are imported only by the command that needs them, so help is instant."""

import argparse
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

import grpo_tir
from grpo_tir.distributed import launcher
from grpo_tir.errors import GrpoTirError, UserError

COMMANDS = {
    "quickstart": "teach a tiny model to use the tool, in minutes, on a CPU",
    "paper": "test the findings of the paper again, in a miniature world, on a CPU",
    "train": "train a recipe",
    "sft": "fine-tune a model on written traces of tool use",
    "plan": "estimate the memory, KV rows and executor slots that a recipe needs",
    "eval": "evaluate models on benchmarks or problem files, with intervals",
    "solve": "solve one problem with the tool, on the terminal",
    "report": "write one HTML page about one or several runs",
    "watch": "show the report of a running job, live",
    "doctor": "find what would go wrong before training starts",
    "replay": "compare one recorded response with executor, model and loss mask",
    "data": "check, build and select training problems",
    "grade": "judge recorded outputs against gold answers",
    "sandbox": "build, check and use the executor",
}
PROGRAMS = {"quickstart", "paper"}
"""Commands that are programs on top of the library, in recipes/programs/NAME/command.py."""
TRAINER_NEEDS = ("accelerate", "jinja2", "tensorboard", "torch", "transformers")
"""The extra `train` in setup.cfg."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0; 2 for bad input and for a full or read-only disk; 1 for other
    failures; 130 after Ctrl-C (in `train` 130 or 143, after SIGINT or SIGTERM)."""
    try:
        return dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `grpo-tir … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        launcher.report_failure(error)  # the launcher of several processes must know which one failed
        line = in_one_line(error)
        if line is None:
            raise
        print(f"grpo-tir: {line}", file=sys.stderr)
        return getattr(error, "exit_code", 1 if launcher.lost_contact(error) else 2)


def in_one_line(error: Exception) -> str | None:
    """Return the message of an error that the user can act on; None for a bug, shown with its traceback."""
    if isinstance(error, GrpoTirError):
        return str(error)
    if launcher.lost_contact(error):
        return f"lost the connection to another process; this one did not fail ({str(error).splitlines()[0]})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; files saved before are unchanged"
    if isinstance(error, ModuleNotFoundError) and error.name in TRAINER_NEEDS:
        return f"{error.name} is not installed, and this command needs it: pip install 'grpo-tir[train]'"
    return None


def dispatch(arguments: list[str]) -> int:
    """Import a command and run it with its arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(), flush=True)
        return 0
    if arguments[0] == "--version":
        print(f"grpo-tir {grpo_tir.__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "see grpo-tir --help"
        raise UserError(f"unknown command `{name}`; {hint}")
    if name in PROGRAMS:
        from grpo_tir.utils.recipe import import_program

        module = import_program(f"{name}.command")
    else:
        module = importlib.import_module(f"grpo_tir.commands.{name}")
    parser = argparse.ArgumentParser(f"grpo-tir {name}", description=COMMANDS[name])
    module.add_arguments(parser)
    if getattr(module, "TAKES_OVERRIDES", False):
        parser.epilog = "Any setting of the recipe can be overridden: --section.key VALUE, e.g. --optim.lr 1e-6"
        rest, overrides = split_overrides(rest)
        parser.set_defaults(overrides=overrides)
    code: int = module.run(parser.parse_args(rest))
    return code


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `--section.key VALUE` and `--section.key=VALUE` from a command's own arguments."""
    rest: list[str] = []
    overrides: list[str] = []
    pending = list(arguments)
    while pending:
        token = pending.pop(0)
        if not token.startswith("--") or "." not in token.partition("=")[0]:
            rest.append(token)
            continue
        overrides.append(token)
        if "=" not in token and pending and not pending[0].startswith("--"):
            overrides.append(pending.pop(0))
    return rest, overrides


def overview() -> str:
    """Format the top-level help."""
    lines = ["grpo-tir: GRPO that teaches a language model to reason with a Python tool", ""]
    lines += [f"  grpo-tir {name:<11} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "Options of a command: grpo-tir COMMAND --help"])
