"""Call the kernel by ctypes: limits, capabilities, namespaces, mounts and the seccomp filter.

On systems other than Linux only the limits apply.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
from typing import Any, ClassVar

LINUX = sys.platform == "linux"
FOLDER_MB, FOLDER_FILES = 16, 1024
NAMES = {"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "/etc/group": "root:x:0:\n"}
FS_IOC_SETFLAGS = 0x40006602 | struct.calcsize("@l") << 16
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 1, 4, 38, 22, 36
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)


def libc(name: str, *arguments: Any) -> int:
    """Call a C library function; raise OSError with the reason if it fails."""
    result = getattr(LIBC, name)(*(a.encode() if isinstance(a, str) else a for a in arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, value: Any) -> None:
    libc("prctl", option, ctypes.c_ulong(value) if isinstance(value, int) else value, 0, 0, 0)


def drop_capabilities() -> None:
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    libc("capset", header, bytes(24))


def limits(config: dict[str, Any], cell: str) -> dict[int, tuple[int, int]]:
    """Return the rlimits of a child. The address space limit is `memory_mb` beyond what the zygote has mapped."""
    mapped, tasks = 0, 0
    if LINUX:
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
    if cell == "group":  # no user id or namespace of its own: RLIMIT_NPROC counts all that this user runs
        tasks = count_tasks(os.getuid())
    wanted = {
        "RLIMIT_CORE": 0, "RLIMIT_FSIZE": FOLDER_MB << 20, "RLIMIT_NOFILE": 256, "RLIMIT_MEMLOCK": 0,
        "RLIMIT_STACK": 64 << 20, "RLIMIT_NPROC": config["processes"] + tasks, "RLIMIT_MSGQUEUE": 0,
    }  # fmt: skip
    if LINUX:  # macOS counts gigabytes of shared cache as ours
        wanted["RLIMIT_AS"] = mapped + (config["memory_mb"] << 20)
    result = {}
    for name, value in wanted.items():
        if hasattr(resource, name):
            hard = resource.getrlimit(getattr(resource, name))[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            result[getattr(resource, name)] = (value, value)
    return result


def count_tasks(uid: int) -> int:
    """Count the threads (Linux) or processes of a user."""
    if not LINUX:
        listing = subprocess.run(["ps", "-A", "-o", "uid="], capture_output=True, text=True, check=False)
        return listing.stdout.split().count(str(uid))
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in os.listdir("/proc")
               if pid.isdigit() and owner(int(pid)) == uid)  # fmt: skip


def owner(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return None


def uids_work(config: dict[str, Any]) -> bool:
    """Return True if this process may change its user id, and the new user can read Python's library."""
    try:
        os.seteuid(config["uid_base"])
    except OSError:
        return False
    try:
        return config["walls"] == "namespaces" or os.access(os.__file__, os.R_OK, effective_ids=True)
    finally:
        os.seteuid(0)


def write_id_maps(proc: int) -> None:
    """Map only our own user into a new user namespace."""
    for name, text in (("setgroups", "deny"), ("uid_map", "{0} {0} 1"), ("gid_map", "{1} {1} 1")):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(descriptor, text.format(*IDS).encode())
        os.close(descriptor)


IDS = (os.getuid(), os.getgid())


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    libc("mount", source, target, kind, ctypes.c_ulong(flags), options)


def mount_folder(target: str, options: str = "") -> None:
    options = f"size={FOLDER_MB}m,nr_inodes={FOLDER_FILES},mode=0700{options}"
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)


def mount_tmp(folder: str) -> None:
    """Make /tmp the folder of a call, unless Python itself lies in /tmp."""
    if not os.listdir("/tmp"):
        mount(folder, "/tmp", None, MS_BIND)


def clear_attributes(folder: int) -> None:
    """Remove flags (as of chattr) and extended attributes (access lists too) of an open folder."""
    if LINUX:
        for name in os.listxattr(folder):
            os.removexattr(folder, name)
        with contextlib.suppress(OSError):  # not every file system has them
            fcntl.ioctl(folder, FS_IOC_SETFLAGS, struct.pack("@l", 0))


def enter_namespaces(proc: int) -> None:
    """Enter a user and a mount namespace of this call, and mount its folder and /tmp. The zygote has made its pid
    namespace."""
    libc("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    write_id_maps(proc)
    mount_folder("/slots/0")
    mount_tmp("/slots/0")
    mount("tmpfs", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k")


def slot_namespaces(slots: int) -> list[int]:
    """Make a mount namespace for each slot, where /tmp is the folder of the slot. Return their descriptors."""
    ours = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    made = []
    for slot in range(slots):
        libc("unshare", CLONE_NEWNS)
        mount_tmp(f"/slots/{slot}")
        made.append(os.open("/proc/self/ns/mnt", os.O_RDONLY))
        libc("setns", ours, CLONE_NEWNS)
    os.close(ours)
    return made


def build_walls(config: dict[str, Any], cell: str) -> None:
    """Enter namespaces for network, pids, ipc and mounts, with a root that holds only Python's libraries,
    read-only.

    The caller continues in a child that is process 1 of the new pid namespace: when it ends, all processes of the
    namespace end.
    """
    new = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if cell == "namespace":
        libc("unshare", CLONE_NEWUSER)
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        write_id_maps(proc)
        os.close(proc)
    libc("unshare", new)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    inner = os.fork()
    if inner:
        os.close(config["control"])
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0xFF)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = "/sys"  # exists everywhere and holds nothing that we bind
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for path in visible_paths():
        show(root, path)
    for name in ("proc", "slots", "tmp", "etc", "old"):
        os.makedirs(f"{root}/{name}", 0o755, exist_ok=True)
    for path, line in NAMES.items():
        with open(root + path, "w") as file:
            file.write(line)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for slot in range(config["slots"] if cell == "uid" else 1):
        uid = config["uid_base"] + slot
        os.mkdir(f"{root}/slots/{slot}", 0o700)
        if cell == "uid":
            mount_folder(f"{root}/slots/{slot}", f",uid={uid},gid={uid}")
    os.chdir(root)
    libc("syscall", Seccomp.NUMBERS["pivot_root"][Seccomp.MACHINES[platform.machine()][0]], b".", b"old")
    os.chdir("/")
    libc("umount2", "/old", 2)  # MNT_DETACH
    os.rmdir("/old")
    mount("none", "/", None, MS_RDONLY | MS_NOSUID | MS_NODEV | 0x20 | MS_BIND)  # MS_REMOUNT


def visible_paths() -> list[str]:
    """Return the paths that a program may read: Python, its packages and system libraries; no home, no secrets."""
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives"]
    wanted += [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    wanted += [sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    wanted += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    found = sorted({os.path.abspath(path) for path in wanted if os.path.exists(path)} - {"/"})
    return [p for p in found if not any(p != q and p.startswith(q + "/") and not os.path.islink(q) for q in found)]


def show(root: str, path: str) -> None:
    """Bind one path into the new root, read-only. A link stays a link."""
    target = root + path
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT))
    mount(path, target, None, MS_BIND | MS_REC)
    device = path.startswith("/dev/")
    flags = MS_RDONLY | MS_NOSUID | (MS_NOEXEC if device else MS_NODEV)
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)  # MOUNT_ATTR_* have the values of these MS_*
    libc("syscall", 442, -100, target, 0x8000, attributes, ctypes.c_size_t(32))  # mount_setattr, AT_RECURSIVE


class Seccomp:
    """Build and install a filter that a child cannot remove: no sockets, no io_uring, no namespaces, …"""

    NUMBERS: ClassVar = {  # name: (x86_64, aarch64); -1: not there
        "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
        "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "chroot": (161, 51),
        "pivot_root": (155, 41), "mknod": (133, -1), "mknodat": (259, 33), "add_key": (248, 217),
        "request_key": (249, 218), "keyctl": (250, 219), "perf_event_open": (298, 241), "bpf": (321, 280),
        "userfaultfd": (323, 282), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
        "semget": (64, 190), "semctl": (66, 191), "semop": (65, 193), "msgget": (68, 186), "msgsnd": (69, 189),
        "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
        "personality": (135, 92), "memfd_create": (319, 279), "kcmp": (312, 272), "quotactl": (179, 60),
        "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
        "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
        "clock_settime": (227, 112), "sethostname": (170, 161),
        # The zygote sets the nice value of a slot's tasks under their user id. Meanwhile they could set its own.
        "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
        "sched_setattr": (314, 274), "ioprio_set": (251, 30),
        "pidfd_send_signal": (424, 424), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
        "fsmount": (432, 432), "pidfd_getfd": (438, 438), "mount_setattr": (442, 442), "memfd_secret": (447, 447),
    }  # fmt: skip
    SIGNALS: ClassVar = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
               "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)}  # fmt: skip
    CLONE, CLONE3, SETAFFINITY, PRCTL = (56, 220), 435, (203, 122), (157, 167)
    MACHINES: ClassVar = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
    NAMESPACES = 0x7E020080
    DENY, MISSING, ALLOW = 0x00050001, 0x00050026, 0x7FFF0000  # EPERM, ENOSYS, go on

    def __init__(self, column: int, arch: int) -> None:
        self.column, self.arch = column, arch

    @classmethod
    def build(cls) -> Seccomp | None:
        known = cls.MACHINES.get(platform.machine())
        return cls(*known) if known else None

    def program(self, ban_signals: bool) -> bytes:
        """Build the classic BPF program: denied numbers return an error, all others reach `ALLOW`."""
        load, equal, above, bits, ret = 0x20, 0x15, 0x35, 0x45, 0x06
        code = [(load, 0, 0, 4), (equal, 1, 0, self.arch), (ret, 0, 0, self.DENY), (load, 0, 0, 0),
                (above, 0, 1, 0x40000000), (ret, 0, 0, self.DENY)]  # fmt: skip
        for numbers in self.NUMBERS.values():
            if numbers[self.column] >= 0:
                code += [(equal, 0, 1, numbers[self.column]), (ret, 0, 0, self.DENY)]
        code += [
            (equal, 0, 4, self.SETAFFINITY[self.column]),
            (load, 0, 0, 16),
            (equal, 1, 0, 0),
            (ret, 0, 0, self.DENY),
            (ret, 0, 0, self.ALLOW),
        ]  # a process may set its own affinity only
        code += [
            (equal, 0, 4, self.PRCTL[self.column]),
            (load, 0, 0, 16),
            (equal, 0, 1, PR_SET_DUMPABLE),
            (ret, 0, 0, self.DENY),
            (ret, 0, 0, self.ALLOW),
        ]  # the child's files in /proc stay root's
        # A filter cannot read the flags of clone3. ENOSYS makes libc call clone instead.
        code += [(equal, 0, 1, self.CLONE3), (ret, 0, 0, self.MISSING)]
        code += [(equal, 0, 4, self.CLONE[self.column]), (load, 0, 0, 16), (bits, 0, 1, self.NAMESPACES),
                 (ret, 0, 0, self.DENY), (ret, 0, 0, self.ALLOW)]  # fmt: skip
        if ban_signals:
            for numbers in self.SIGNALS.values():
                code += [(equal, 0, 4, numbers[self.column]), (load, 0, 0, 16), (equal, 1, 0, os.getpid()),
                         (ret, 0, 0, self.DENY), (ret, 0, 0, self.ALLOW)]  # fmt: skip
        code.append((ret, 0, 0, self.ALLOW))
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

    def install(self, ban_signals: bool) -> None:
        program = ctypes.create_string_buffer(self.program(ban_signals))
        header = struct.pack("@HP", len(program) // 8, ctypes.addressof(program))
        libc("prctl", PR_SET_SECCOMP, 2, header, 0, 0)
