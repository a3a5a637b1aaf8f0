"""Takes from the decoder's process what an exploited codec would use, and starts it: `-m pipeline.media.sandbox`.

Landlock leaves it the files of Python and its libraries, to read; the file that it decodes comes as an open descriptor.
A seccomp filter refuses sockets, new programs and a view into other processes. Both hold until the process ends, but
only for threads that start later, so nothing that may start threads is imported before: this module needs Linux and
the standard library. What a kernel lacks is told to the owner of the process, who warns: without any decoder most users
would be worse off.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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

LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # of BPF
CALL_OFFSET, ARCHITECTURE_OFFSET = 0, 4
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
X32_CALLS = 0x40000000  # the calls of x86_64 by other numbers


class Architecture(NamedTuple):
    number: int
    socket: int
    execve: int
    execveat: int
    ptrace: int
    process_vm_readv: int
    process_vm_writev: int
    io_uring_setup: int = 425  # a way around the refusal of sockets
    pidfd_getfd: int = 438


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 41, 59, 322, 101, 310, 311),
    "aarch64": Architecture(0xC00000B7, 198, 221, 281, 117, 270, 271),
}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def hide_process_memory() -> None:
    """Keep other processes of the same user from reading the memory and the environment of this one."""
    set_process_option(PR_SET_DUMPABLE, 0)


def enter_sandbox() -> list[str]:
    """What the kernel lacks, in words."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # a machine short of memory kills this process first
    set_process_option(PR_SET_NO_NEW_PRIVS, 1)
    missing = []
    try:
        limit_files()
    except OSError as error:
        missing.append(f"other files (Landlock: {error.strerror})")
    try:
        refuse_calls(ARCHITECTURES.get(os.uname().machine))
    except OSError as error:
        missing.append(f"the network (seccomp: {error.strerror})")
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


def refuse_calls(architecture: Architecture | None) -> None:
    if architecture is None:
        raise OSError(errno.ENOSYS, f"not known for {os.uname().machine}")
    instructions = [struct.pack("HBBI", *instruction) for instruction in build_filter(architecture)]
    code = ctypes.create_string_buffer(b"".join(instructions))
    program = ctypes.create_string_buffer(struct.pack("HP", len(instructions), ctypes.addressof(code)))
    set_process_option(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def build_filter(architecture: Architecture) -> Iterator[tuple[int, int, int, int]]:
    """Instructions: an operation, how many to skip where it holds and where it does not, and its operand."""
    yield LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET
    yield JUMP_IF_EQUAL, 1, 0, architecture.number
    yield RETURN, 0, 0, REFUSE
    yield LOAD_WORD, 0, 0, CALL_OFFSET
    yield from ((JUMP_IF_AT_LEAST, 0, 1, X32_CALLS), (RETURN, 0, 0, REFUSE))
    for call in architecture[1:]:
        yield from ((JUMP_IF_EQUAL, 0, 1, call), (RETURN, 0, 0, REFUSE))
    yield RETURN, 0, 0, ALLOW


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


def main(socket_fd: int, memory_bytes: int, threads: int) -> None:
    missing_protection = enter_sandbox()
    from pipeline.media import decoder_process

    decoder_process.main(socket_fd, memory_bytes, threads, missing_protection)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
