"""Lock the current process down with Landlock, seccomp and resource limits, using only ctypes.

A sandbox child loads this file on its own, so it imports nothing from the package. What each layer refuses:

* Landlock (Linux 5.13 or newer): every file that `readable` and `writable` do not name, TCP (ABI 4), abstract sockets
  and signals to other processes (ABI 6). See the kernel's documentation, userspace-api/landlock.
* seccomp (a filter of system calls): new processes and programs, sockets, signals, tracing, other processes' memory,
  limits and priorities, shared memory, changed owners, modes and times of files, mounts, modules, io_uring. System
  calls newer than this list do not exist for the child. Threads are allowed.
* resource limits: memory, processor time, file size, open files, no core dumps.

A locked child cannot unlock itself, not even as root.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `collections` costs a child a millisecond
    from collections.abc import Iterable

# Numbers of system calls: x86-64, AArch64 (None: there is none). From the kernel's syscall tables.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "setpgid": (109, 154), "setsid": (112, 157), "personality": (135, 92), "ptrace": (101, 117),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206),
    "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212), "bind": (49, 200), "listen": (50, 201),
    "socketpair": (53, 199), "sendmmsg": (307, 269), "recvmmsg": (299, 243),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "mknod": (133, None), "mknodat": (259, 33),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "open_by_handle_at": (304, 265),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setaffinity": (203, 122),
    "setrlimit": (160, 164), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "adjtimex": (159, 171),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "iopl": (172, None), "ioperm": (173, None),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "quotactl": (179, 60), "syslog": (103, 116), "vhangup": (153, 58),
    "modify_ldt": (154, None), "uselib": (134, None), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282),
}  # fmt: skip
# Column of the table above, AUDIT_ARCH, and the calls that depend on their arguments: clone, prlimit64, fcntl.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E, 56, 302, 72), "aarch64": (1, 0xC00000B7, 220, 261, 25)}
_FIRST_NEW = 424  # from here on, all architectures share their numbers
_ALLOWED_NEW = (436, 437, 439, 441, 449, 451, 454, 455, 456)  # close_range, openat2, faccessat2, epoll_pwait2, futexes
_EPERM, _ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CLONE_THREAD = 0x00010000

# Landlock's file rights: 13 bits in ABI 1, then refer (ABI 2), truncate (ABI 3) and ioctl_dev (ABI 5).
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_WRITE_FILE = 1 << 1 | 1 << 14  # write, truncate
_WRITE = _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13  # remove and make folders and files, move them


def landlock_abi() -> int:
    """Version of Landlock in this kernel; 0 if it has none."""
    if not sys.platform.startswith("linux") or os.uname().machine not in _ARCHITECTURES:
        return 0
    return max(0, int(_libc().syscall(444, None, 0, 1)))


def lock(readable: Iterable[str], writable: Iterable[str], listable: Iterable[str] = ()) -> None:
    """Refuse this process everything but computing and the named files, for the rest of its life.

    Args:
        readable: files and folders (with everything in them) that may be read.
        writable: folders in which files may be read, created, changed and removed.
        listable: folders whose entries may be listed, but not read.

    Raises:
        OSError: the kernel refused a layer. The caller must not go on.
    """
    _checked(_libc().prctl(38, 1, 0, 0, 0), "no_new_privs")
    _landlock(readable, writable, listable)
    _seccomp()


def limit(memory: int, seconds: float, file_bytes: int, files: int = 64, strong: bool = True) -> None:
    """Set the resource limits: bytes of address space, processor seconds, bytes per file, open files.

    Without seccomp (`strong` is False) the number of processes is limited too. That limit also counts threads, and does
    not hold for root.
    """
    import resource  # Windows has no such module, and no sandbox

    whole = int(seconds) + 1
    wanted = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, whole, whole + 1),
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_NOFILE, files, files),
        (resource.RLIMIT_AS, memory, memory),
    ]
    if not strong:
        wanted.append((resource.RLIMIT_NPROC, 0, 0))
    for kind, soft, hard in wanted:
        top = resource.getrlimit(kind)[1]
        top = hard if top == resource.RLIM_INFINITY else top
        try:
            resource.setrlimit(kind, (min(soft, top), min(hard, top)))
        except (OSError, ValueError):  # macOS has no limit of address space
            if sys.platform.startswith("linux"):
                raise


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _landlock(readable: Iterable[str], writable: Iterable[str], listable: Iterable[str]) -> None:
    abi, libc = landlock_abi(), _libc()
    if not abi:
        raise OSError(_ENOSYS, "Landlock: not in this kernel")
    files = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0) | (1 << 15 if abi >= 5 else 0)
    fields = [files] + ([3] if abi >= 4 else []) + ([3] if abi >= 6 else [])  # TCP; abstract sockets and signals
    ruleset = struct.pack(f"={len(fields)}Q", *fields)
    handle = _checked(libc.syscall(444, ruleset, len(ruleset), 0), "landlock_create_ruleset")
    try:
        for paths, rights in (
            (readable, _READ_FILE | _READ_DIR),
            (listable, _READ_DIR),
            (writable, (_READ_FILE | _READ_DIR | _WRITE) & files),
        ):
            for path in filter(os.path.exists, paths):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                given = rights if os.path.isdir(path) else rights & (_READ_FILE | _WRITE_FILE)
                rule = libc.syscall(445, handle, 1, struct.pack("=Qi", given, place), 0)
                os.close(place)
                _checked(rule, f"landlock_add_rule {path}")
        _checked(libc.syscall(446, handle, 0), "landlock_restrict_self")
    finally:
        os.close(handle)


def _seccomp() -> None:
    column, architecture, clone, prlimit, fcntl = _ARCHITECTURES[os.uname().machine]
    refused = sorted(number for numbers in _REFUSED.values() if (number := numbers[column]) is not None)
    # Offsets in struct seccomp_data, whose arguments have 8 bytes each, and the codes of BPF instructions.
    call_at, architecture_at, first, second, third = 0, 4, 16, 24, 32
    load, equal, above, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    program: list[tuple[int, int, int, int]] = [
        (load, 0, 0, architecture_at),
        (equal, 1, 0, architecture),
        (give, 0, 0, _KILL),
        (load, 0, 0, call_at),
        # calls that are newer than the list, and x32 calls of x86-64, which have a high bit set
        (above, 0, len(_ALLOWED_NEW) + 1, _FIRST_NEW),
        *((equal, len(_ALLOWED_NEW) - k, 0, new) for k, new in enumerate(_ALLOWED_NEW)),
        (give, 0, 0, _ERRNO | _ENOSYS),
        # clone may make threads, but no processes
        (equal, 0, 3, clone),
        (load, 0, 0, first),
        (bits, 1, 0, _CLONE_THREAD),
        (give, 0, 0, _ERRNO | _EPERM),
        # prlimit64 may read limits, but not set them
        (equal, 0, 5, prlimit),
        (load, 0, 0, third),
        (equal, 0, 2, 0),
        (load, 0, 0, third + 4),
        (equal, 1, 0, 0),
        (give, 0, 0, _ERRNO | _EPERM),
        # fcntl must not redirect signals (F_SETOWN, F_SETOWN_EX); before Landlock's ABI 6 nothing else refuses that
        (load, 0, 0, call_at),
        (equal, 0, 4, fcntl),
        (load, 0, 0, second),
        (equal, 1, 0, 8),
        (equal, 0, 1, 15),
        (give, 0, 0, _ERRNO | _EPERM),
        (load, 0, 0, call_at),
        *((equal, len(refused) - k, 0, value) for k, value in enumerate(refused)),
        (give, 0, 0, _ALLOW),
        (give, 0, 0, _ERRNO | _EPERM),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    given = struct.pack("HP", len(program), ctypes.addressof(buffer))  # struct sock_fprog
    _checked(_libc().prctl(22, 2, given, 0, 0), "seccomp")
