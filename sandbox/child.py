"""Run in a forked child: enter and close the cell, then run one program as `python main.py` would."""

from __future__ import annotations

import ast
import atexit
import contextlib
import ctypes
import functools
import gc
import json
import linecache
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import types
import weakref
import zlib
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
            request = json.loads(enter_cell(zygote, slot, folder, cpu, setup, descriptors))
            fresh_interpreter(request)
        except BaseException as error:
            os.write(setup, f"{type(error).__name__}: {error}".encode())
            leave(70)
        os.close(setup)
        code = run_program(request)
    finally:  # a program may have replaced all it can name; it must not fall back into the zygote's loop
        while True:
            for end in (lambda: leave(code), lambda: kill(pid, 9), lambda: crash(0)):
                try:
                    end()
                except BaseException:
                    continue


def enter_cell(zygote: Zygote, slot: int, folder: str, cpu: float, setup: int, descriptors: list[int]) -> str:
    """Turn a copy of the zygote into a closed cell. Return the request, read after the cell is closed."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    uid = zygote.config["uid_base"] + slot
    if kernel.LINUX:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else we may not write our own files in /proc
        # Out of memory, the kernel then kills us first, never the zygote.
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, b"1000")
    if zygote.cell == "namespace":
        kernel.enter_namespaces(zygote.proc)
    elif zygote.mounts:
        kernel.libc("setns", zygote.mounts[slot], kernel.CLONE_NEWNS)
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
        return pipe.read().decode()


def fresh_interpreter(request: dict[str, Any]) -> None:
    """Make the process look newly started to the program: streams, `__main__`, random state."""
    source, folder = request["code"], os.getcwd()
    os.environ.update(HOME=folder, TMPDIR=folder, PWD=folder)
    tempfile.tempdir = None
    os.umask(0o077)
    seed = int.from_bytes(os.urandom(4), "big")
    if (earlier := request.get("earlier")) is not None:  # random draws of a session repeat when it is replayed
        seed = checksum(earlier[0][0] if earlier else source)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "sympy" in sys.modules:
        sys.modules["sympy"].core.random.rng.seed(seed)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if name == "stderr" else "strict"
        mode, buffering = "w" if descriptor else "r", 1 if name == "stderr" else -1
        stream = open(descriptor, mode, buffering, encoding="utf-8", errors=errors)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # A program larger than the folder runs, but cannot read its own file.
    with contextlib.suppress(OSError), open("main.py", "wb") as file:
        file.write(source.encode("utf-8", "surrogatepass"))
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __file__="main.py")
    sys.modules["__main__"] = main
    sys.argv, sys.path[:] = ["main.py"], [folder, *sys.path]
    linecache.cache["main.py"] = (len(source), None, source.splitlines(True), "main.py")
    gc.enable()


def run_program(request: dict[str, Any]) -> int:
    """Run the program and end as an interpreter does: threads, exit hooks, finalizers, flush, exit code."""
    streams, collect, main = (sys.stdout, sys.stderr), gc.collect, weakref.ref(sys.modules["__main__"])
    source, earlier, echo = request["code"], request.get("earlier"), request.get("echo", False)
    if earlier:
        replay(earlier, request["cpu"], echo, main)
    code = guarded(lambda: execute(source, main, echo=echo, first=not earlier))
    code = guarded(threading._shutdown) or code  # type: ignore[attr-defined]
    guarded(atexit._run_exitfuncs)
    guarded(lambda: end_main(main, collect))
    for stream in (sys.stdout, *streams):  # a program may have replaced sys.stdout after it printed: flush both
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            code = code or 120
    return code


def replay(earlier: list[list[Any]], cpu: float, echo: bool, main: weakref.ref[types.ModuleType]) -> None:
    """Run the earlier blocks of a session without output, so that their names exist.

    The first line of stdout then tells the supervisor what this took (CPU and wall seconds), and how many blocks
    failed or printed something else than before. A program can forge it; the supervisor bounds the times."""
    began, streams, real = time.monotonic(), (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    differs = 0
    with tempfile.TemporaryFile() as printed, open(os.devnull, "wb") as nowhere:
        os.dup2(printed.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        for number, (source, said) in enumerate(earlier):
            name = f"block{number + 1}.py"
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
            failed = guarded(functools.partial(execute, source, main, name, echo, first=number == 0))
            guarded(end_block)
            sys.stdout, sys.stderr = streams
            text = os.pread(1, os.fstat(1).st_size, 0).decode("utf-8", "replace")
            os.ftruncate(1, os.lseek(1, 0, os.SEEK_SET))
            differs += bool(failed) or (said is not None and checksum(text) != said)
        for target, source_fd in enumerate(real, start=1):
            os.dup2(source_fd, target)
            os.close(source_fd)
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    seconds = min(max(int(-(-(used + cpu) // 1)), 1), hard - 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    os.write(1, f"replayed {used:.6f} {time.monotonic() - began:.6f} {differs}\n".encode())


def end_block() -> None:
    """End a replayed block as its process ended: join its threads, run its exit hooks, flush."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()


def checksum(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def execute(
    source: str, main: weakref.ref[types.ModuleType], name: str = "main.py", echo: bool = False, first: bool = True
) -> None:
    """Run a program with the stack depth of an interpreter of its own: our frames do not count.

    With `echo`, show the value of a last expression, as a notebook does, unless a semicolon ends it."""
    frame: types.FrameType | None = sys._getframe() if first else None
    depth = int(sys.version_info < (3, 12)) if first else 0  # where `exec` counts as well
    while frame:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(sys.getrecursionlimit() + depth)
    source, names = source.removeprefix("\ufeff"), vars(main())
    program: Any = ast.parse(source, name) if echo else source
    last: Any = None
    if echo and program.body and isinstance(program.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = compile(ast.Expression(program.body.pop().value), name, "eval", dont_inherit=True)
    exec(compile(program, name, "exec", dont_inherit=True), names)
    if last is not None:
        sys.displayhook(eval(last, names))


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
