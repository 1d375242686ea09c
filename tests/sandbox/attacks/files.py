"""Programs that fill, leave, link, hide and pry."""

from attacks.catalogue import attack, refused

ATTACKS = [
    attack("fills the disk", "error", """
        for i in range(1000):
            with open(f'f{i}', 'wb') as file: file.write(bytes(1 << 20))
    """, "", quick=True),
    attack("one huge file", "error|killed", "open('f', 'wb').truncate(1 << 40)\nprint('BREACH')", "", quick=True),
    attack("uses up the inodes", "error", "for i in range(20000): open(f'f{i}', 'w')", "", quick=True),
    attack("leaves a file", "ok", "open('left', 'w').write('read me')", "", quick=True),
    attack("leaves hidden and odd names", "ok", r"""
        import os
        for name in (b'.hidden', b'new\nline', b'\xff\xfe', b'-rf', b'x' * 255): open(name, 'w')
    """, "", quick=True),
    attack("chmod 0 on its folder", "ok", "import os; os.chmod('.', 0)", "", quick=True,
           anywhere="root passes any mode; it wedges a runner without that power"),
    attack("chmod 0 all the way down", "ok", """
        import os
        os.makedirs('a/b/c')
        open('a/b/c/f', 'w')
        for path in ('a/b/c/f', 'a/b/c', 'a/b', 'a', '.'): os.chmod(path, 0)
    """, "", quick=True),
    attack("a thousand folders deep", "ok", """
        import os
        for _ in range(900):
            os.mkdir('d' * 50)
            os.chdir('d' * 50)
        print('deep')
    """, "deep\n", quick=True),
    attack("links to everywhere", "ok", """
        import os
        for i, target in enumerate(('/', '/slots', '/etc', '/usr', '..', '/proc/1/root', '.')):
            os.symlink(target, f'link{i}')
        os.makedirs('a')
        os.symlink('/usr', 'a/usr')
    """, "", quick=True),
    refused("a named pipe", "attempt(lambda: os.mkfifo('pipe'))"),
    attack("a file that is open, unlinked and mapped", "ok", """
        import mmap, os
        file = open('f', 'w+b'); file.truncate(1 << 20)
        mapped = mmap.mmap(file.fileno(), 1 << 20)
        os.unlink('f')
        if os.fork() == 0:
            import time; time.sleep(1000)
    """, "", quick=True),
    attack("reads other folders", "ok", """
        import os
        here = os.path.basename(os.getcwd())
        for name in os.listdir(os.path.dirname(os.getcwd())):
            if name != here:
                try: print('BREACH', name, os.listdir(os.path.join('..', name)))
                except OSError: pass
        print('looked')
    """, "looked\n", quick=True, anywhere="all share one folder there"),
    attack("reads what the neighbour wrote", "ok", """
        import glob, time
        time.sleep(0.1)
        for place in ('..', '/slots', '/tmp', '/var/tmp', '/run', '/root', '/home', '/dev/shm'):
            for path in glob.glob(place + '/*') + glob.glob(place + '/*/*'):
                try:
                    if b'neighbour-secret' in open(path, 'rb').read(100): print('BREACH')
                except OSError: pass
        print('looked')
    """, "looked\n", quick=True),
    attack("writes everywhere", "ok", """
        import os, sys
        here = os.getcwd()
        places = ['/', '/tmp', '/var/tmp', '/dev/shm', '/run', '/run/lock', '/opt/runner', '/opt/sandbox', '/root',
                  '/home', '/slots', '/etc', '/usr/lib', '/dev', '/dev/mqueue', '/proc', *sys.path]
        for place in places:
            if os.path.exists(place) and os.path.samefile(place, here): continue
            try:
                open(os.path.join(place, 'planted'), 'w')
                print('BREACH', place)
            except OSError: pass
        print('tried')
    """, "tried\n", quick=True),
    attack("changes the libraries", "ok", """
        import os, sys
        for module in list(sys.modules.values()):
            path = getattr(module, '__file__', None)
            if path and path != 'main.py':
                try:
                    open(path, 'a')
                    print('BREACH', path)
                except OSError: pass
        print('tried')
    """, "tried\n", quick=True),
    refused("runs a binary of its own", """
        import shutil, subprocess
        shutil.copy('/bin/true', 'mine'); os.chmod('mine', 0o755)
        attempt(lambda: subprocess.run([os.path.abspath('mine')]))
    """),
    refused("runs a binary from memory", "call(319, 279, b'x', 0)"),
    attack("finds a setuid binary", "ok", """
        import os, stat
        for folder in ('/bin', '/sbin', '/usr/bin', '/usr/sbin'):
            for entry in os.scandir(folder) if os.path.isdir(folder) else ():
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) and mode & stat.S_ISUID and not os.statvfs(entry.path).f_flag & os.ST_NOSUID:
                    print('BREACH', entry.path)
        print('looked')
    """, "looked\n", quick=True, anywhere="the image has none"),
    attack("shared memory", "ok", """
        try:
            from multiprocessing.shared_memory import SharedMemory
            SharedMemory(name='grpo_tir_left', create=True, size=10)
            print('BREACH')
        except OSError: print('refused')
    """, "refused\n", quick=True),
    attack("a module for the next one", "ok", """
        import os
        open('sympy.py', 'w').write('print("BREACH")'); open('sitecustomize.py', 'w').write('print("BREACH")')
        os.mkdir('.local')
    """, "", quick=True),
    attack("secrets in the environment", "ok", """
        import os
        words = ('KEY', 'TOKEN', 'SECRET', 'PASS', 'PROXY', 'AWS', 'HF_', 'WANDB', 'SSH')
        print([name for name in os.environ if any(word in name.upper() for word in words)])
        os.environ['LEFT'] = 'read me'
    """, "[]\n", quick=True, anywhere="the container is started without them"),
]  # fmt: skip
