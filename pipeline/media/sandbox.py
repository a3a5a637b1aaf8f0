"""Takes from the decoder's process what an exploited codec would use, and starts it: `-m pipeline.media.sandbox`.

Landlock leaves it the files of Python and its libraries, to read; the file that it decodes comes as an open descriptor.
A seccomp filter refuses sockets, new processes and programs, and whatever looks into other processes or ends them. Both
hold until the process ends, but only for threads that start later, so nothing that may start threads is imported
before: this module needs the standard library alone. What a kernel lacks (macOS lacks both) is told to the owner of the
process, who warns: without any decoder most users would be worse off.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
SECCOMP_MODE_FILTER = 2

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's calls, on every architecture
VERSION_FLAG, PATH_RULE = 1, 1
WRITE_FILE, READ_FILE, LIST_FOLDER = 1 << 1, 1 << 2, 1 << 3
FILE_ACCESS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # of a version of Landlock; 16 of later ones
ALL_TCP_ACCESS, ALL_SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals
SYSTEM_PATHS = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/fonts", "/etc/localtime", "/nix/store"),
    *("/dev/urandom", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system"),
)
MODULE_ENDINGS = (".py", ".pyc", ".so")

LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of BPF
CALL_OFFSET, ARCHITECTURE_OFFSET, FIRST_ARGUMENT_OFFSET = 0, 4, 16
ALLOW, REFUSE, NOT_IMPLEMENTED = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
X32_CALLS = 0x40000000  # the calls of x86_64 by other numbers
CLONE_THREAD = 0x10000
KEPT_CAPABILITIES = 0b110  # of root: to read modules that only another user may read
CAPABILITY_VERSION = 0x20080522

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # a number, and the index of its calls
ABSENT = 0xFFFFFFFF
REFUSED_CALLS = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),  # opens sockets, too
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, ABSENT),
    "vfork": (58, ABSENT),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
KILL, TGKILL, PRLIMIT = (62, 129), (234, 131), (302, 261)  # allowed for this process
CLONE, CLONE3 = (56, 220), (435, 435)  # allowed for threads

Instruction = tuple[int, int, int, int]  # an operation, how many to skip where it holds and where not, its operand
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def hide_process_memory() -> None:
    """Keep other processes of the same user from reading the memory and the environment of this one, on Linux."""
    if sys.platform == "linux":
        set_process_option(PR_SET_DUMPABLE, 0)


def enter_sandbox() -> list[str]:
    """What the kernel lacks, in words."""
    if sys.platform != "linux":
        return ["other files, the network and other processes (Landlock and seccomp: only on Linux)"]
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # a machine short of memory kills this process first
    drop_capabilities()
    set_process_option(PR_SET_NO_NEW_PRIVS, 1)
    missing = []
    try:
        limit_files()
    except OSError as error:
        missing.append(f"other files (Landlock: {error.strerror})")
    try:
        filter_calls([*build_filter(os.uname().machine)])
    except OSError as error:
        missing.append(f"the network and other processes (seccomp: {error.strerror})")
    return missing


def limit_files() -> None:
    version = call_kernel(CREATE_RULESET, None, 0, VERSION_FLAG)
    fields = [(1 << FILE_ACCESS_BITS.get(version, 16)) - 1]
    fields += [ALL_TCP_ACCESS] * (version >= 4) + [ALL_SCOPES] * (version >= 6)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = call_kernel(CREATE_RULESET, attributes, len(attributes), 0)
    for path, access in list_library_access():
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # what cannot be opened needs no rule
            continue
        rule = struct.pack("=Qi", access if os.path.isdir(path) else access & ~LIST_FOLDER, descriptor)
        call_kernel(ADD_RULE, ruleset, PATH_RULE, rule, 0)
        os.close(descriptor)
    call_kernel(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def list_library_access() -> Iterator[tuple[str, int]]:
    """What Python and its libraries need. Of a project's folder only the modules are read: secrets may lie there."""
    yield os.devnull, READ_FILE | WRITE_FILE
    libraries = [*SYSTEM_PATHS, sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])]
    libraries += filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    yield from ((path, READ_FILE | LIST_FOLDER) for path in libraries)
    for entry in dict.fromkeys(sys.path):
        if any(Path(entry).is_relative_to(path) for path in libraries):
            continue
        if not os.path.isdir(entry) or any(Path(entry).glob("*.dist-info")):
            yield entry, READ_FILE | LIST_FOLDER
            continue
        yield entry, LIST_FOLDER
        with suppress(PermissionError), os.scandir(entry) as children:
            for child in children:
                is_package = child.is_dir() and os.path.exists(f"{child.path}/__init__.py")
                if is_package or child.name.endswith(MODULE_ENDINGS):
                    yield child.path, READ_FILE | LIST_FOLDER


def build_filter(machine: str) -> Iterator[Instruction]:
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"not known for {machine}")
    number, index = ARCHITECTURES[machine]
    yield LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET
    yield from ((JUMP_IF_EQUAL, 1, 0, number), (RETURN, 0, 0, REFUSE))
    yield LOAD_WORD, 0, 0, CALL_OFFSET
    yield from ((JUMP_IF_AT_LEAST, 0, 1, X32_CALLS), (RETURN, 0, 0, REFUSE))
    for numbers in REFUSED_CALLS.values():
        yield from ((JUMP_IF_EQUAL, 0, 1, numbers[index]), (RETURN, 0, 0, REFUSE))
    for numbers, condition, operand in (
        (KILL, JUMP_IF_EQUAL, os.getpid()),
        (TGKILL, JUMP_IF_EQUAL, os.getpid()),
        (PRLIMIT, JUMP_IF_EQUAL, 0),
        (CLONE, JUMP_IF_SET, CLONE_THREAD),
    ):
        yield from ((JUMP_IF_EQUAL, 0, 4, numbers[index]), (LOAD_WORD, 0, 0, FIRST_ARGUMENT_OFFSET))
        yield from ((condition, 1, 0, operand), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW))
    # A filter cannot read what clone3 is to do. Without it, the C library starts its threads with clone.
    yield from ((JUMP_IF_EQUAL, 0, 1, CLONE3[index]), (RETURN, 0, 0, NOT_IMPLEMENTED))
    yield RETURN, 0, 0, ALLOW


def filter_calls(instructions: Sequence[Instruction]) -> None:
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    code = ctypes.create_string_buffer(packed)
    program = ctypes.create_string_buffer(struct.pack("HP", len(instructions), ctypes.addressof(code)))
    set_process_option(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def drop_capabilities() -> None:
    """Of those that this process has: an ordinary user has none."""
    header, data = struct.pack("Ii", CAPABILITY_VERSION, 0), ctypes.create_string_buffer(24)
    libc.capget(header, data)
    kept = struct.unpack("6I", data.raw)[1] & KEPT_CAPABILITIES
    if libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def set_process_option(option: int, value: int, address: int = 0) -> None:
    if libc.prctl(option, *map(ctypes.c_ulong, (value, address, 0, 0))):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call_kernel(number: int, *arguments: int | bytes | None) -> int:
    """A pointer is given as bytes."""
    values = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def main(socket_fd: int, memory_bytes: int, threads: int, reads_pixels: int) -> None:
    missing_protection = enter_sandbox()
    from pipeline.media import decoder_process

    decoder_process.main(socket_fd, memory_bytes, threads, missing_protection, reads_pixels=bool(reads_pixels))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
