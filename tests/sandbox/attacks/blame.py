"""Programs that would have others blamed or held up, that hide what they use, and that leave a word behind."""

# ruff: noqa: E501  (a table: one attack a line)
from attacks.catalogue import attack, refused

LIMIT = "a time limit is all it takes"
OWN = "a process of its own is enough"
SEEN = "test_cell.py looks at what is left"
NOTHING = "nothing of ours lies there"
TRY = """
import os
def tried(action):
    try: print('BREACH' if action() else 'refused')
    except OSError: print('refused')
"""

ATTACKS = [
    # Time
    attack("31 busy processes", "timeout", """
        import os
        for _ in range(30):
            if not os.fork(): break
        while True: pass
    """, "", anywhere=LIMIT),
    attack("31 busy sessions", "timeout", """
        import os
        for _ in range(30):
            if not os.fork():
                os.setsid()
                break
        while True: pass
    """, "", anywhere=LIMIT),
    attack("busy threads without the lock", "timeout", """
        import hashlib, threading
        def spin():
            while True: hashlib.sha256(bytes(1 << 20))
        for _ in range(8): threading.Thread(target=spin).start()
    """, "", anywhere=LIMIT),
    attack("CPU burnt by children whose end nobody awaits", "timeout", """
        import os, signal, time
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(6):
            if os.fork() == 0:
                while time.process_time() < 0.8: pass
                os._exit(0)
        time.sleep(60)
    """, "", anywhere=LIMIT),
    attack("CPU burnt in a relay of orphans", "timeout", """
        import os, time
        ours, theirs = os.pipe()
        if os.fork() == 0:
            for _ in range(9):
                while time.process_time() < 0.3: pass
                if os.fork(): os._exit(0)
            os._exit(0)
        os.close(theirs)
        os.read(ours, 1)
        while True: pass
    """, "", anywhere=LIMIT),
    attack("sleeps a little, for ever", "timeout", "import time\nwhile True: time.sleep(0.0005)", "", anywhere=LIMIT),
    attack("gives its core away, for ever", "timeout", "import os\nwhile True: os.sched_yield()", "", anywhere=LIMIT),
    attack("two processes that wait for each other", "timeout", """
        import os
        a, b = os.pipe(), os.pipe()
        mine, other = (a[0], b[1]) if os.fork() else (b[0], a[1])
        os.write(other, b'x')
        while True: os.write(other, os.read(mine, 1))
    """, "", anywhere=LIMIT),
    attack("waits for a stopped child", "timeout", """
        import os, signal
        if os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)
        os.wait()
    """, "", anywhere=LIMIT, needs="signals to itself"),
    attack("one short process after the other", "timeout", """
        import os
        while True:
            if os.fork() == 0: os._exit(0)
            os.wait()
    """, "", anywhere=LIMIT),
    refused("weighs the zygote", "attempt(lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19))"),
    refused("weighs all of a user", "attempt(lambda: os.setpriority(os.PRIO_USER, 0, 10))"),
    refused("makes itself light, to look starved", "attempt(lambda: os.nice(10))"),
    refused("idle scheduling, to look starved", "attempt(lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)))"),
    refused("batch scheduling", "attempt(lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))"),
    refused("scheduling parameters", "call(142, 118, 0, ctypes.byref(ctypes.c_int(0)))"),
    refused("scheduling attributes", """
        import struct
        call(314, 274, 0, struct.pack('=IIQiIQQQ', 48, 0, 0, 10, 0, 0, 0, 0), 0)
    """),
    refused("pins the zygote to a core", "attempt(lambda: os.sched_setaffinity(os.getppid() or 1, os.sched_getaffinity(0)))"),
    refused("idle input and output", "call(251, 30, 1, 0, 3 << 13)"),
    refused("limits the CPU of its parent", """
        import resource
        if os.getppid(): attempt(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (100, 100)))
        else: verdict(errno.EPERM)
    """),
    attack("the weight of its session", "ok", TRY + "tried(lambda: open('/proc/self/autogroup', 'w').write('19'))", "refused\n", quick=True),
    # Memory
    attack("scores others for memory", "ok", TRY + """
for pid in os.listdir('/proc') if os.path.isdir('/proc') else []:
    if pid.isdigit() and int(pid) != os.getpid():
        try:
            open(f'/proc/{pid}/oom_score_adj', 'w').write('1000')
            print('BREACH', pid)
        except OSError: pass
print('tried')
""", "tried\n", quick=True),
    attack("the old score for memory", "ok", TRY + "tried(lambda: open('/proc/self/oom_adj', 'w').write('-1'))", "refused\n", quick=True),
    attack("forgets which pages it used", "ok", TRY + "tried(lambda: open('/proc/self/clear_refs', 'w').write('1'))", "refused\n", quick=True),
    attack("memory by 30 small processes", "ok|error|memory|timeout", """
        import os, time
        for _ in range(30):
            if os.fork() == 0:
                eaten = bytearray(os.urandom(1 << 20) * 80)
                time.sleep(1)
                os._exit(0)
        time.sleep(1)
    """),
    attack("memory by threads", "error|memory", """
        from concurrent.futures import ThreadPoolExecutor
        def eat(n): return b'x' * (64 << 20)
        with ThreadPoolExecutor(8) as pool: print(len(list(pool.map(eat, range(64)))))
    """, "", quick=True),
    attack("memory by shared maps", "error", """
        import mmap
        kept = [mmap.mmap(-1, 1 << 26, flags=mmap.MAP_SHARED) for _ in range(64)]
        print('BREACH')
    """, "", quick=True),
    attack("memory in pipes", "ok|error", """
        import fcntl, os
        for _ in range(100):
            ours, theirs = os.pipe()
            try: fcntl.fcntl(theirs, 1031, 1 << 20)
            except OSError: pass
            os.set_blocking(theirs, False)
            try:
                while True: os.write(theirs, bytes(4096))
            except OSError: pass
        print('full')
    """, quick=True, anywhere="the kernel's own limit for a user"),
    attack("more threads than its share", "ok", """
        import threading, time
        started = 0
        try:
            for _ in range(100):
                threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
                started += 1
        except RuntimeError: pass
        print('BREACH' if started > 40 else 'enough' if started >= 8 else started)
    """, "enough\n", quick=True),
    # What is left
    attack("sticky and set-id bits on its folder", "ok", "import os; os.chmod('.', 0o7777)", "", quick=True, anywhere=SEEN),
    attack("a folder from the year 2099", "ok", "import os; os.utime('.', (4e9, 4e9))", "", quick=True, anywhere=SEEN),
    attack("attributes of its folder", "ok", """
        import os
        for name in ('user.word', 'trusted.word', 'system.posix_acl_default', 'security.word'):
            try: os.setxattr('.', name, b'read me')
            except OSError: pass
    """, "", quick=True, anywhere=SEEN),
    attack("a folder that may not change", "ok", """
        import fcntl, os, struct
        open('left', 'w').close()
        for name in ('left', '.'):
            for flag in (0x10, 0x20, 0x40, 0x80):
                try: fcntl.ioctl(os.open(name, os.O_RDONLY), 0x40086602, struct.pack('@l', flag))
                except OSError: pass
    """, "", quick=True),
    attack("a folder in place of its own text", "ok", """
        import os
        if os.path.exists('main.py'): os.remove('main.py')
        os.makedirs('main.py/deep')
        os.chmod('main.py', 0)
    """, "", quick=True, anywhere=NOTHING),
    attack("a link in place of its own text", "ok", """
        import os
        if os.path.exists('main.py'): os.remove('main.py')
        os.symlink('../0/main.py', 'main.py')
    """, "", quick=True, anywhere=NOTHING),
    attack("orphans that it adopts", "ok", """
        import ctypes, os, time
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        for _ in range(3):
            if os.fork() == 0:
                if os.fork() == 0: time.sleep(1000)
                os._exit(0)
            os.wait()
        print('adopted')
    """, "adopted\n", quick=True),
    # The end
    attack("a far negative exit code", "error", "import sys; sys.exit(-10**30)", "", quick=True, anywhere=OWN),
    attack("an exception hook that always fails", "error", "import sys; sys.excepthook = lambda *a: 1 / 0\n1 / 0", "", quick=True, anywhere=OWN),
    attack("the collector replaced", "ok", "import gc, weakref, sys; gc.collect = weakref.ref = sys._getframe = lambda *a: print('BREACH')", "", quick=True, anywhere=OWN),
    attack("a finaliser that comes back to life", "ok", """
        class D:
            def __del__(self):
                global d
                d = self
        d = D()
    """, "", quick=True, anywhere=OWN),
    attack("a main module that is none", "ok|error", """
        import sys
        class M:
            __dict__ = property(lambda self: 1 / 0)
        sys.modules['__main__'] = M()
        sys.setrecursionlimit(50)
    """, "", quick=True, anywhere=OWN),
    attack("output that grows six times in a frame", "ok", r"import os; os.write(1, b'\x01' * 60000)", "\x01" * 60000, quick=True, anywhere=OWN),
]  # fmt: skip
