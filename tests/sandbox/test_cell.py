"""What a program finds in its cell, and what `open_executor` and `sandbox run` make of it.

The fast part of the suite: all of it runs on the process executor, wherever there is Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.executor.open import open_executor
from grpo_tir.executor.pool import Pool


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "last"),
    [
        ("print(1)", "ok", 0, ""),
        ("print(x)", "error", 1, "NameError: name 'x' is not defined"),
        ("print(", "error", 1, "SyntaxError: '(' was never closed"),
        ("import sys; sys.exit(3)", "error", 3, ""),
        ("raise SystemExit('bad')", "error", 1, "bad"),
        ("a = [0] * 10**12", "error", 1, "MemoryError"),
        ("x = '\ud800'", "error", 1, "UnicodeEncodeError: "),
        ("a\0b", "error", 1, "source code string cannot contain null bytes"),
    ],
)
def test_a_program_ends_as_under_an_ordinary_python(
    process_executor: Pool, code: str, status: str, exit_code: int, last: str
) -> None:
    result = process_executor.run(code)
    assert (result.status, result.exit_code) == (status, exit_code)
    assert last in (result.stderr.strip().splitlines() or [""])[-1]


def test_a_traceback_shows_the_program_and_nothing_of_ours(process_executor: Pool) -> None:
    """The oracle is the interpreter that runs these tests."""
    code = "def f(n):\n    return 1 / n\n\nf(0)\n"
    result = process_executor.run(code)
    script = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=False)
    ours, theirs = (text.replace("main.py", "<stdin>").splitlines() for text in (result.stderr, script.stderr))
    plain = [line for line in ours if line.startswith(("Traceback", "  File", "Zero"))]
    assert plain == [line for line in theirs if line.startswith(("Traceback", "  File", "Zero"))]
    assert "    return 1 / n" in ours


AS_CPYTHON = {
    "byte order mark": "\ufeffprint('marked')",
    "huge exit code": "import sys; sys.exit(10**30)",
    "exit code below zero": "import sys; sys.exit(-1)",
    "reads itself": "print(open(__file__).read()[:5])",
    "finaliser that uses a name": """
import math
class D:
    def __del__(self): print(math.sqrt(4), later)
d = D()
later = 'still here'
""",
    "finaliser of a cycle": "class D:\n    def __del__(self): print('bye')\na, b = D(), D()\na.b, b.a = b, a",
    "suggestion for a name": "length = 1\nprint(lenght)",
    "suggestion for an attribute": "import math\nmath.sqr(4)",
    "recursion that just fits": "def f(n): return n and f(n - 1)\nprint(f(990))",
    "source of a function": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f))",
    "exception with a cause": "try: 1 / 0\nexcept Exception as e: raise ValueError('no') from e",
    "exception hook that fails": "import sys\nsys.excepthook = lambda *a: None + 1\n1 / 0",
    "syntax error": "print(1))",
}


@pytest.mark.parametrize("code", AS_CPYTHON.values(), ids=AS_CPYTHON)
def test_a_program_says_what_it_says_under_cpython(process_executor: Pool, code: str, tmp_path: Path) -> None:
    """The oracle is the interpreter that runs these tests; of stderr, its last line."""
    (tmp_path / "main.py").write_text(code, encoding="utf-8")
    plain = subprocess.run([sys.executable, "main.py"], capture_output=True, text=True, check=False, cwd=tmp_path)
    result = process_executor.run(code)
    assert (result.exit_code, result.stdout) == (plain.returncode, plain.stdout), result.stderr
    assert result.stderr.strip().splitlines()[-1:] == plain.stderr.strip().splitlines()[-1:]


def test_recursion_goes_as_deep_as_under_cpython(process_executor: Pool, tmp_path: Path) -> None:
    code = "def f(n):\n    global deepest\n    deepest = n\n    f(n + 1)\n"
    code += "try: f(1)\nexcept RecursionError: print(deepest)"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process_executor.run(code).stdout == plain.stdout


def test_three_megabytes_of_accents_run_and_a_hundred_are_an_error(process_executor: Pool) -> None:
    """Six bytes each in a frame: it killed two runners, and was `killed`."""
    assert process_executor.run("print(len('" + "\u00e9" * 3_000_000 + "'))").stdout == "3000000\n"
    result = process_executor.run("x = '" + "y" * (40 << 20) + "'")
    assert (result.status, result.stderr) == ("error", "MemoryError: the program is too large")
    assert process_executor.workers[0].starts == 1


def test_head_and_tail_of_long_output_are_kept(process_executor: Pool) -> None:
    result = process_executor.run("for i in range(30000): print(f'{i:09d}')")
    assert (result.status, result.truncated, len(result.stdout)) == ("ok", True, 65536)
    assert result.stdout.startswith("000000000\n000000001\n") and result.stdout.endswith("\n000029999\n")


def test_output_at_the_limit_is_whole(process_executor: Pool) -> None:
    result = process_executor.run("import sys; sys.stdout.write('x' * 65536)")
    assert (result.truncated, result.stdout) == (False, "x" * 65536)


def test_nothing_of_earlier_programs_is_in_the_memory(process_executor: Pool) -> None:
    """The secret is assembled by the first program and by the second, so that neither's source gives it away."""
    plant = "secret = 'zebra' * 2 + 'crossing'\nprint(secret)\nkept = [secret.upper() for _ in range(1000)]"
    search = """
import gc, sys
needle = b'ZEBRAZEBRA' + b'CROSSING'
low = b'zebrazebra' + b'crossing'
found = 0
import ctypes
with open('/proc/self/maps') as maps: lines = maps.read().splitlines()
for line in lines:
    area, mode, *_ , = line.split()
    if mode.startswith('rw') and not line.endswith(('[vvar]', '[vsyscall]')):
        start, end = (int(part, 16) for part in area.split('-'))
        found += ctypes.string_at(start, end - start).count(low + b'\\n')
print(found)
"""
    assert process_executor.run("import os; print(os.path.exists('/proc/self/maps'))").stdout in (
        "True\n",
        "False\n",
    )
    for _ in range(process_executor.slots):
        assert process_executor.run(plant).stdout == "zebrazebracrossing\n"
    result = process_executor.run(search)
    if "FileNotFoundError" in result.stderr:
        pytest.skip("no /proc in this cell, so it cannot look")
    assert result.stdout == "0\n", result.stderr


def test_random_state_is_new_in_every_call_and_hashes_are_not(process_executor: Pool) -> None:
    draw = "import random\nprint(random.random())"
    assert len({process_executor.run(draw).stdout for _ in range(8)}) == 8
    assert len({process_executor.run("print(hash('a'), list({'x', 'y', 'z'}))").stdout for _ in range(8)}) == 1


def test_a_working_folder_holds_the_program_alone_and_is_tmpdir(process_executor: Pool) -> None:
    code = (
        "import os, tempfile\nprint(os.listdir('.'), os.environ['TMPDIR'] == os.getcwd() == os.environ['HOME'])\n"
        "f = tempfile.NamedTemporaryFile(delete=False)\nprint(os.path.dirname(f.name) == os.getcwd())"
    )
    assert [process_executor.run(code).stdout for _ in range(6)] == ["['main.py'] True\nTrue\n"] * 6


def test_tmp_is_the_folder_of_the_call_and_root_has_a_name(process_executor: Pool) -> None:
    """So the limits of the folder hold there, and it is emptied with it."""
    if process_executor.workers[0].facts["walls"] == "none":
        pytest.skip("this machine grants no namespaces, and the executor says so")
    if Path(sys.prefix).is_relative_to("/tmp") or Path(sys.base_prefix).is_relative_to("/tmp"):
        pytest.skip("Python lies in /tmp, which therefore stays visible: run from another folder")
    code = "import os, pwd\nopen('/tmp/left', 'w').write('x')\n"
    code += "print(sorted(os.listdir()), pwd.getpwuid(0).pw_name)\n"
    code += "try: open('/tmp/big', 'wb').write(bytes(17 << 20))\nexcept OSError as error: print(error.errno)"
    futures = [process_executor.submit(code) for _ in range(12)]
    assert {future.result().stdout for future in futures} == {"['left', 'main.py'] root\n28\n"}


def test_31_threads_fit_into_the_memory_of_a_call(process_executor: Pool) -> None:
    """512 MB of address space hold 7 arenas of 64 MB; here it is 256 MB."""
    code = """
import threading, time
def work():
    kept = [bytearray(5000) for _ in range(50)]
    time.sleep(0.2)
threads = [threading.Thread(target=work) for _ in range(20)]
for t in threads: t.start()
for t in threads: t.join()
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool: print(sum(pool.map(lambda n: n * n, range(100))))
"""
    assert process_executor.run(code).stdout == "328350\n"


def test_the_state_of_a_folder_ends_with_the_call(process_executor: Pool) -> None:
    """Mode bits, times, flags, attributes and access lists: none carries a word to the next call."""
    leave = """
import fcntl, os, struct
os.chmod('.', 0o1700)
os.utime('.', (123456789, 123456789))
for action in (lambda: os.setxattr('.', 'user.left', b'word'),
               lambda: fcntl.ioctl(os.open('.', os.O_RDONLY), 0x40086602, struct.pack('@l', 0x40))):
    try: action()
    except OSError: pass
"""
    look = """
import fcntl, os, struct
found = os.stat('.')
flags = 0
try: flags = struct.unpack('@l', fcntl.ioctl(os.open('.', os.O_RDONLY), 0x80086601, bytes(8)))[0]
except OSError: pass
print(oct(found.st_mode), found.st_mtime > 1e9, found.st_atime > 1e9, os.listxattr('.'), flags & 0x40)
"""
    for _ in range(process_executor.slots):
        assert process_executor.run(leave).status == "ok"
    for _ in range(process_executor.slots):
        assert process_executor.run(look).stdout == "0o40700 True True [] 0\n"


def test_seconds_are_of_the_run_and_not_of_the_queue(process_executor: Pool) -> None:
    futures = [process_executor.submit("import time; time.sleep(0.2)") for _ in range(process_executor.slots * 4)]
    results = [future.result(30) for future in futures]
    assert all(result.status == "ok" and 0.2 <= result.seconds < 1.0 for result in results)


def test_limits_of_one_call_can_be_its_own(process_executor: Pool) -> None:
    assert process_executor.run("while True: pass", timeout=1).status == "timeout"
    assert process_executor.run("import time; time.sleep(3)", timeout=5).status == "ok"


def test_what_is_in_force_is_said_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with open_executor(ExecutorConfig(kind="process", slots=1)) as pool:
        facts = pool.describe()
    line = capsys.readouterr().out
    assert line.startswith("executor: process, 1 slots") and line.count("\n") == 1
    assert "NOT in force" in line
    host = facts["hosts"][0]
    assert {"walls", "cell", "seccomp", "python", "missing"} <= set(host) and facts["kind"] == "process"
    assert host["packages"].keys() >= {"numpy", "sympy"}


def test_without_walls_the_line_says_so_and_programs_still_run(tmp_path: Path) -> None:
    """What macOS and closed kernels get."""
    from grpo_tir.executor.open import isolation_line
    from grpo_tir.executor.process_client import LocalHost

    config = ExecutorConfig(kind="process", slots=2, timeout=1)
    pool = Pool([LocalHost(config, walls="none")], config, {"kind": "process"})
    with pool:
        pool.wait_ready()
        assert "NOT in force: own mounts" in isolation_line(pool)
        assert [
            pool.run("import os; open('f', 'w'); print(sorted(os.listdir('.')))").stdout for _ in range(5)
        ] == ["['f', 'main.py']\n"] * 5
        assert pool.run("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(99)").status == "ok"
        assert pool.run("while True: pass").status == "timeout"


def test_docker_by_name_is_not_replaced_by_something_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutorUnavailable, match=r"unix:///nowhere.sock.*executor.kind to process"):
        open_executor(ExecutorConfig(kind="docker", hosts=["unix:///nowhere.sock"]))


def test_auto_falls_back_and_says_so() -> None:
    said: list[str] = []
    config = ExecutorConfig(kind="auto", hosts=["unix:///nowhere.sock"], slots=1)
    with open_executor(config, log=said.append) as pool:
        assert pool.run("print(2)").stdout == "2\n"
    assert "no docker here" in said[0] and "process" in said[1]


def sandbox(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grpo_tir", "sandbox", "run", "--executor", "process", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def test_sandbox_run_answers_every_line_in_order(tmp_path: Path) -> None:
    programs = [{"id": i, "code": f"print({i} * 2)"} for i in range(40)]
    programs += [{"id": "no", "code": "1/0"}, {"id": None, "code": "import os; os.kill(os.getpid(), 11)"}]
    (tmp_path / "in").write_text("\n".join(map(json.dumps, programs)) + "\n\n")
    done = sandbox("--jsonl", str(tmp_path / "in"), str(tmp_path / "out"), "--concurrency", "8", "--slots", "3")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["id"] for row in rows] == [program["id"] for program in programs]
    assert [row["stdout"] for row in rows[:40]] == [f"{i * 2}\n" for i in range(40)]
    keys = {"id", "status", "stdout", "stderr", "exit_code", "signal", "truncated", "seconds"}
    assert set(rows[0]) == keys | {"cpu_seconds", "replay_differs"}
    assert [(row["status"], row["exit_code"]) for row in rows[40:41]] == [("error", 1)]


def test_sandbox_run_of_one_program_passes_its_output_and_exit_code(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    done = sandbox(str(tmp_path / "p.py"))
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (7, "out\n", "err")


def test_sandbox_run_says_when_it_drops_output_and_reads_any_character(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("print('x' * 100_000)")
    assert "the middle of the output is missing" in sandbox(str(tmp_path / "p.py")).stderr
    rows = [json.dumps({"id": 1, "code": "print('\u2028'.isspace())"}, ensure_ascii=False)]
    (tmp_path / "in").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    done = sandbox("--jsonl", str(tmp_path / "in"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out").read_text())["stdout"] == "True\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "cannot read nowhere.py"),
        ([], "needs a FILE.py"),
        (["--jsonl", "nowhere", "out"], "cannot read nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = sandbox(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"id": 1, "code": "print(1)"}\n{"id": 2}\n')
    done = sandbox("--jsonl", str(tmp_path / "in"), str(tmp_path / "out"))
    assert done.returncode == 2 and f"{tmp_path}/in line 2: " in done.stderr
    assert os.path.exists(tmp_path / "in") and not os.path.exists(tmp_path / "out")
