"""Run in a forked child: enter and close the cell, then run one program as `python main.py` would."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import linecache
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import kernel

if TYPE_CHECKING:
    from zygote import Zygote


def child(zygote: Zygote, slot: int, folder: str, cpu: float, setup: int, descriptors: list[int]) -> NoReturn:
    leave, kill, pid, crash = os._exit, os.kill, os.getpid(), ctypes.string_at
    code = 70
    try:
        try:
            source = enter_cell(zygote, slot, folder, cpu, setup, descriptors)
            fresh_interpreter(source)
        except BaseException as error:
            os.write(setup, f"{type(error).__name__}: {error}".encode())
            leave(70)
        os.close(setup)
        code = run_program(source)
    finally:  # a program may have replaced all it can name; it must not fall back into the zygote's loop
        while True:
            for end in (lambda: leave(code), lambda: kill(pid, 9), lambda: crash(0)):
                try:
                    end()
                except BaseException:
                    continue


def enter_cell(zygote: Zygote, slot: int, folder: str, cpu: float, setup: int, descriptors: list[int]) -> str:
    """Turn a copy of the zygote into a closed cell. Returns the code, which is read after the cell is closed."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    uid = zygote.config["uid_base"] + slot
    if kernel.LINUX:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else our own /proc files are not ours to write
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)  # out of memory: us first, never the zygote
        os.write(score, b"1000")
    if zygote.cell == "namespace":
        kernel.enter_namespaces(zygote.proc)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((null, descriptors[1], descriptors[2])):
        os.dup2(source, target)
    keep = sorted((descriptors[0], setup))
    for low, high in ((3, keep[0]), (keep[0] + 1, keep[1]), (keep[1] + 1, 2048)):
        os.closerange(low, high)
    for name, (soft, hard) in zygote.limits.items():
        resource.setrlimit(name, (soft, hard))
    seconds = max(int(-(-cpu // 1)), 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if zygote.cell == "uid":
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.chdir(folder)
    if kernel.LINUX:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        if zygote.cell == "namespace":
            kernel.drop_capabilities()
        if zygote.filter:
            zygote.filter.install(ban_signals=zygote.cell == "group")
    with open(descriptors[0], "rb") as pipe:
        return pipe.read().decode("utf-8", "surrogatepass")


def fresh_interpreter(source: str) -> None:
    """Make the process look newly started to the program: streams, `__main__`, random state."""
    folder = os.getcwd()
    os.environ.update(HOME=folder, TMPDIR=folder, PWD=folder)
    tempfile.tempdir = None
    os.umask(0o077)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(os.urandom(4), "big"))
    if "sympy" in sys.modules:
        sys.modules["sympy"].core.random.rng.seed()
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if name == "stderr" else "strict"
        mode, buffering = "w" if descriptor else "r", 1 if name == "stderr" else -1
        stream = open(descriptor, mode, buffering, encoding="utf-8", errors=errors)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # Larger than the folder, it runs, but cannot read itself.
    with contextlib.suppress(OSError), open("main.py", "wb") as file:
        file.write(source.encode("utf-8", "surrogatepass"))
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __file__="main.py")
    sys.modules["__main__"] = main
    sys.argv, sys.path[:] = ["main.py"], [folder, *sys.path]
    linecache.cache["main.py"] = (len(source), None, source.splitlines(True), "main.py")
    gc.enable()


def run_program(source: str) -> int:
    """Run the program and end as an interpreter does: threads, exit hooks, finalizers, flush, exit code."""
    streams, collect, main = (sys.stdout, sys.stderr), gc.collect, weakref.ref(sys.modules["__main__"])
    code = guarded(lambda: execute(source.removeprefix("\ufeff"), main))
    code = guarded(threading._shutdown) or code  # type: ignore[attr-defined]
    guarded(atexit._run_exitfuncs)
    guarded(lambda: end_main(main, collect))
    for stream in (sys.stdout, *streams):  # what it has put in their place, and what it printed before it did
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            code = code or 120
    return code


def execute(source: str, main: weakref.ref[types.ModuleType]) -> None:
    """Run the program with the stack depth of an interpreter of its own: our frames do not count."""
    frame: types.FrameType | None = sys._getframe()
    depth = int(sys.version_info < (3, 12))  # where `exec` counts as well
    while frame:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(sys.getrecursionlimit() + depth)
    exec(compile(source, "main.py", "exec", dont_inherit=True), vars(main()))


def end_main(main: weakref.ref[types.ModuleType], collect: Callable[[], Any]) -> None:
    """Delete the module first, so that finalizers still find the names that they use; then delete the rest."""
    sys.modules.pop("__main__", None)
    collect()
    if held := main():
        vars(held).clear()


def guarded(action: Callable[[], Any]) -> int:
    """Handle exceptions as the interpreter does: SystemExit gives its code, others a traceback and 1."""
    try:
        action()
        return 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            code = stop.code or 0
            return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF  # what no C long holds is -1
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        error.__traceback__ = trace
        try:
            sys.excepthook(type(error), error, trace)
        except BaseException:
            with contextlib.suppress(BaseException):
                sys.__excepthook__(type(error), error, trace)
        return 1
