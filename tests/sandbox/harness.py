"""Runs an attack beside an innocent neighbour and before a canary, and says what was not as it must be."""

from __future__ import annotations

import importlib
from concurrent.futures import Future
from typing import Any

from attacks.catalogue import Attack

from grpo_tir.types import ToolResult

CATEGORIES = (
    "time_and_memory",
    "processes",
    "output_and_signals",
    "files",
    "interpreter",
    "network_and_kernel",
    "blame",
)
ATTACKS: list[Attack] = [
    attack for name in CATEGORIES for attack in importlib.import_module(f"attacks.{name}").ATTACKS
]

NEIGHBOUR = """
import hashlib, os, time
secret = 'neighbour' + '-secret'
open('mine', 'w').write(secret)
end, total, rounds = time.monotonic() + 0.4, hashlib.sha256(), 0
while time.monotonic() < end:
    time.sleep(0.01)
    rounds += 1
    assert open('mine').read() == secret and set(os.listdir('.')) <= {'main.py', 'mine'}
for i in range(1000): total.update(b'%d' % i)
print(total.hexdigest()[:16])
"""
NEIGHBOUR_SAYS = "14e7fd93e3d8dd8d\n"

BARE_NEIGHBOUR = NEIGHBOUR.replace(" and set(os.listdir('.')) <= {'main.py', 'mine'}", "") + "os.remove('mine')\n"
"""Where all share one folder, the innocent at least clean up after themselves."""

LIGHT_CANARY = """
import os
found = [name for name in os.listdir('.') if name != 'main.py'] + [name for name in os.environ if name == 'LEFT']
children = os.path.exists('/proc/self/task') and open(f'/proc/self/task/{os.getpid()}/children').read().split()
print(found, children or [], os.access('.', 7))
"""
LIGHT_CANARY_SAYS = "[] [] True\n"
"""For the bare runner, which has nothing loaded."""

CANARY = """
import os, sys, math, random, builtins
import numpy, sympy
x = sympy.Symbol('x')
found = [name for name in os.listdir('.') if name != 'main.py'] + [name for name in os.environ if name == 'LEFT']
children = os.path.exists('/proc/self/task') and open(f'/proc/self/task/{os.getpid()}/children').read().split()
print(sympy.solve(x**2 - 4, x), numpy.array([1, 2]).sum(), math.sqrt(4), found, children or [], os.access('.', 7))
open('w', 'w').write('x' * 1000)
"""
CANARY_SAYS = "[-2, 2] 3 2.0 [] [] True\n"


def faults(
    attack: Attack,
    attacked: ToolResult,
    neighbour: ToolResult,
    canaries: list[ToolResult],
    says: str = CANARY_SAYS,
) -> list[str]:
    """Empty when everything is as it must be. The same judge for our executor and for the bare runner."""
    found = []
    if attacked.status not in attack.status.split("|"):
        found.append(f"status {attacked.status}, not {attack.status} (stderr: {attacked.stderr[-200:]!r})")
    if attack.stdout is not None and attacked.stdout != attack.stdout:
        found.append(
            f"stdout {attacked.stdout[:200]!r}, not {attack.stdout!r} (stderr: {attacked.stderr[-300:]!r})"
        )
    if "BREACH" in attacked.stdout + attacked.stderr.replace("print('BREACH')", ""):
        found.append("BREACH")
    if len(attacked.stdout) > 70_000 or len(attacked.stderr) > 70_000:
        found.append(f"{len(attacked.stdout)} characters of output kept")
    if (neighbour.status, neighbour.stdout) != ("ok", NEIGHBOUR_SAYS):
        found.append(f"the neighbour: {neighbour.status} {neighbour.stdout[:100]!r} {neighbour.stderr[-300:]!r}")
    for canary in canaries:
        if (canary.status, canary.stdout) != ("ok", says):
            found.append(f"the canary: {canary.status} {canary.stdout[:200]!r} {canary.stderr[-300:]!r}")
    return found


def strike(executor: Any, attack: Attack, **session: Any) -> list[str]:
    """The neighbour is running before the attack starts; canaries fill every slot after it has ended."""
    neighbour: Future[ToolResult] = executor.submit(NEIGHBOUR)
    attacked = executor.submit(attack.code, **session).result(timeout=60)
    innocent = neighbour.result(timeout=60)
    canaries = [executor.submit(CANARY) for _ in range(executor.slots)]
    return faults(attack, attacked, innocent, [canary.result(timeout=60) for canary in canaries])
