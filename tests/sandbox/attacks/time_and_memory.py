"""Programs that do not end, and programs that eat."""

# ruff: noqa: E501  (a table: one attack a line)
from attacks.catalogue import attack, refused

LIMIT = "a time limit is all it takes"

ATTACKS = [
    attack("busy loop", "timeout", "while True: pass", "", anywhere=LIMIT),
    attack("sleep", "timeout", "import time; time.sleep(1e6)", "", anywhere=LIMIT),
    attack("C loop that never looks at signals", "timeout", "sum(range(10**12))", "", anywhere=LIMIT),
    attack("catastrophic regex", "timeout", "import re; re.match('(a+)+$', 'a' * 40 + 'b')", "", anywhere=LIMIT),
    attack("power tower", "timeout|error", "print(len(str(7 ** 7 ** 9)))", "", anywhere=LIMIT),
    attack("CPU limit ignored", "timeout", """
        import signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True: pass
    """, "", anywhere=LIMIT),
    attack("CPU limit caught and slept off", "timeout", """
        import signal, time
        signal.signal(signal.SIGXCPU, lambda *a: time.sleep(1e6))
        while True: pass
    """, "", anywhere=LIMIT),
    attack("CPU burnt by children", "timeout", """
        import os
        for _ in range(4):
            if os.fork() == 0:
                while True: pass
        os.wait()
    """, ""),
    attack("CPU burnt by children that each stay within the limit", "timeout", """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                while time.process_time() < 0.6: pass
                os._exit(0)
        for _ in range(4): os.wait()
    """, "", anywhere=LIMIT),
    attack("CPU burnt by orphans that each stay within the limit", "timeout", """
        import os, time
        ours, theirs = os.pipe()
        if os.fork() == 0:
            for _ in range(4):
                if os.fork() == 0:
                    while time.process_time() < 0.6: pass
                    os._exit(0)
            os._exit(0)
        os.wait()
        os.close(theirs)
        os.read(ours, 1)
    """, "", anywhere=LIMIT),
    attack("CPU burnt by threads", "timeout", """
        import threading
        def spin():
            while True: pass
        for _ in range(4): threading.Thread(target=spin).start()
    """, "", anywhere=LIMIT),
    attack("deadlock", "timeout", "import threading; a = threading.Lock(); a.acquire(); a.acquire()", "", anywhere=LIMIT),
    attack("stops itself", "timeout", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "", anywhere=LIMIT),
    attack("hangs in an exit hook", "timeout", "import atexit, time; atexit.register(time.sleep, 1e6)", "", anywhere=LIMIT),
    attack("pretends to have timed out", "killed", "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "", quick=True,
           needs="signals to itself", anywhere="it has no CPU limit to pretend to"),
    attack("waits for input", "error", "input()", "", quick=True, anywhere="its stdin is empty there too"),
    attack("huge allocation", "error", "bytearray(10**14)", "", quick=True, anywhere="no machine has it"),
    attack("memory, slowly", "error", "a = []\nwhile True: a.append(bytearray(1 << 20))", ""),
    attack("memory by mmap", "error", """
        import mmap
        kept = []
        for _ in range(64):
            block = mmap.mmap(-1, 1 << 26)
            block.write(b'x' * (1 << 26))
            kept.append(block)
        print('BREACH')
    """, ""),
    attack("memory by a long integer", "error", "x = 1 << (1 << 33)\nprint('BREACH')", ""),
    attack("memory by many processes", "ok|error|memory|timeout", """
        import os, time
        for _ in range(24):
            if os.fork() == 0:
                eaten = bytearray(os.urandom(1 << 20) * 120)
                time.sleep(1)
                os._exit(0)
        time.sleep(1)
    """),
    attack("memory by recursion", "error|killed|memory|timeout", """
        import sys
        sys.setrecursionlimit(10**9)
        def down(n): return down([n])
        down(0)
    """, anywhere="the memory limit of the container"),
    refused("locks memory", "ctypes.set_errno(0); libc.mlockall(3); verdict(ctypes.get_errno())"),
    attack("puts the kernel off its track when memory runs out", "ok", """
        import subprocess
        def lower(write):
            try: print('BREACH' if write() else 'refused')
            except OSError: print('refused')
        lower(lambda: open('/proc/self/oom_score_adj', 'w').write('0'))
        lower(lambda: subprocess.run(['/bin/sh', '-c', 'echo 0 > /proc/self/oom_score_adj'], stderr=-3).returncode == 0)
    """, "refused\n" * 2),
    refused("takes over its files in /proc", "call(157, 167, 4, 1, 0, 0, 0)"),
    attack("deep literal", "error", "eval('[' * 100000)", "", quick=True, anywhere="Python's own limit"),
]  # fmt: skip
