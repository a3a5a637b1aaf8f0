"""What a codec can do that runs the code of a file: next to nothing. The tests attack from inside the decoder."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import DecodeError
from pipeline.fetch.blob import Blob
from pipeline.media import sandbox
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.kinds.base import DecodeLimits
from pipeline.registry import MEDIA_KINDS

pytestmark = pytest.mark.process
LIMITS = DecodeLimits(1_000_000, 1_000_000, 100.0)
EXPLOITED = """
from pipeline.errors import DecodeError

class Exploited:
    def __init__(self, source, limits, *, claimed_kind=None):
        scope = {"source": source}
        try:
            exec(source if isinstance(source, bytes) else source.read(), scope)
        except OSError as error:
            scope["loot"] = error.strerror
        raise DecodeError("exploited", str(scope["loot"]))
"""
CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
loot = libc.syscall(*{arguments}) >= 0 or os.strerror(ctypes.get_errno())
"""
ARCHITECTURE = sandbox.ARCHITECTURES[os.uname().machine][1]
RunInDecoder = Callable[..., str]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home directory with credentials, and a project in it with settings."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".aws").mkdir()
    (folder / ".aws/credentials").write_text("hush")
    (folder / "project").mkdir()
    (folder / "project/.env").write_text("hush")
    (folder / "project/exploited_kind.py").write_text(EXPLOITED)
    (folder / "b.mp4").write_text("another video")
    return folder


@pytest.fixture(scope="module")
def decoder(home) -> Iterator[DecoderClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        patch.syspath_prepend(str(home / "project"))
        decoder = DecoderClient(LIMITS)
        decoder.wait_until_ready()
        yield decoder
        decoder.close()


@pytest.fixture
def run_in_decoder(decoder, monkeypatch) -> RunInDecoder:
    """Runs code in the decoder's process. Returns what it leaves in `loot`, or the error of the kernel."""
    monkeypatch.setitem(MEDIA_KINDS, "image", "exploited_kind:Exploited")

    def run(code: str, path: Path | None = None) -> str:
        data = None if path else code.encode()
        if path:
            path.write_text(code)
        blob = Blob("x", "image", data=data, path=path)
        with pytest.raises(DecodeError) as raised:
            decoder.open(blob, "image", claimed_kind=None, deadline=time.monotonic() + 20)
        assert raised.value.kind == "exploited", raised.value
        return raised.value.message

    return run


def test_the_process_reads_the_file_and_its_libraries(run_in_decoder, home):
    assert run_in_decoder("import colorsys; loot = colorsys.rgb_to_hsv(0, 0, 0)[2]", home / "a.mp4") == "0"


def test_libraries_may_ask_for_the_name_of_the_temporary_folder(run_in_decoder):
    """dill does as it is imported, and torch imports dill where it is installed."""
    assert run_in_decoder("import tempfile; loot = tempfile.gettempdir()") == "/tmp"


def test_the_file_is_not_written(run_in_decoder, home):
    code = "import os; loot = os.open(f'/proc/self/fd/{source.fileno()}', os.O_WRONLY)"
    assert run_in_decoder(code, home / "a.mp4") == "Permission denied"
    assert run_in_decoder("import os; loot = os.write(source.fileno(), b'x')", home / "a.mp4") == "Bad file descriptor"


@pytest.mark.parametrize(
    "path",
    [
        "{home}/.aws/credentials",
        "{home}/b.mp4",
        "{home}/project/.env",
        "/etc/passwd",
        "/proc/{owner}/environ",
        "/proc/{owner}/mem",
    ],
)
def test_no_other_file_is_read(path, run_in_decoder, home):
    path = path.format(home=home, owner=os.getpid())
    if os.geteuid() == 0 or not path.startswith("/proc/"):  # a user's own worker is hidden even from itself
        Path(path).open("rb").close()
    assert run_in_decoder(f"loot = open('{path}', 'rb').read(9)") == "Permission denied"


def test_no_file_is_written(run_in_decoder, home):
    for path in (home / "c.mp4", "/tmp/left-by-a-decoder", home / "project/exploited_kind.py"):
        assert run_in_decoder(f"loot = open('{path}', 'w').write('x')") == "Permission denied"


def test_the_environment_holds_no_credentials_and_no_home(run_in_decoder):
    names = json.loads(run_in_decoder("import json, os; loot = json.dumps(list(os.environ))"))
    assert "PATH" in names
    assert not {"HOME", "AWS_SECRET_ACCESS_KEY"} & {*names}


def test_the_memory_limit_is_not_raised(run_in_decoder):
    code = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))"
    assert run_in_decoder(f"try:\n {code}\nexcept ValueError as error:\n loot = error") == (
        "not allowed to raise maximum limit"
    )


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"])
def test_no_socket_is_opened(family, run_in_decoder):
    code = f"import socket; loot = socket.socket(socket.{family}, socket.SOCK_DGRAM)"
    assert run_in_decoder(code) == "Operation not permitted"


def test_no_server_is_reached(run_in_decoder):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; loot = socket.create_connection({server.getsockname()})"
        assert run_in_decoder(code) == "Operation not permitted"


def test_no_server_is_reached_from_half_of_a_pair(run_in_decoder):
    """A pair of datagram sockets may send to any other socket of the machine."""
    code = "import socket; loot = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"
    assert run_in_decoder(code) == "Operation not permitted"


def test_every_thread_is_confined(decoder):
    """Numpy starts them, and stops them when Python tries to fork, as tests below do."""
    statuses = [path.read_text() for path in Path(f"/proc/{decoder.process.pid}/task").glob("*/status")]
    assert len(statuses) > 1
    assert all("NoNewPrivs:\t1\n" in status and "Seccomp:\t2\n" in status for status in statuses)
    capabilities = {int(re.search(r"CapPrm:\t(\w+)", status)[1], 16) for status in statuses}
    assert not any(each & ~sandbox.KEPT_CAPABILITIES for each in capabilities)


@pytest.mark.parametrize(
    "code",
    [
        "os.execv('/bin/sh', ['sh', '-c', 'env'])",
        "import subprocess; loot = subprocess.check_output(['env'])",
        "loot = os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
def test_no_process_is_started(code, run_in_decoder):
    assert run_in_decoder(f"import os; loot = 'nothing'; {code}") == "Operation not permitted"


def test_threads_are_started(run_in_decoder):
    code = "import threading; work = threading.Thread(target=print); work.start(); loot = work.join()"
    assert run_in_decoder(code) == "None"


@pytest.mark.parametrize(
    "code", ["os.kill({owner}, 0)", "os.kill(0, 0)", "import resource; resource.prlimit({owner}, resource.RLIMIT_CPU)"]
)
def test_no_other_process_is_ended(code, run_in_decoder):
    """A limit on the processor time of a process ends it, too."""
    assert (
        run_in_decoder(f"import os; loot = 'no error'; {code.format(owner=os.getpid())}") == "Operation not permitted"
    )


@pytest.mark.parametrize("call", ["ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "io_uring_setup"])
def test_no_other_process_is_entered_and_no_socket_opened_another_way(call, run_in_decoder):
    arguments = (sandbox.REFUSED_CALLS[call][ARCHITECTURE], 16, os.getpid(), 0, 0, 0, 0)
    assert run_in_decoder(CALL.format(arguments=arguments)) == "Operation not permitted"


def test_no_copy_of_the_process_outlives_it(run_in_decoder):
    arguments = (sandbox.CLONE[ARCHITECTURE], signal.SIGCHLD.value, 0, 0, 0, 0)
    assert run_in_decoder(CALL.format(arguments=arguments)) == "Operation not permitted"


OWNER = """
import os, sys
from pipeline.media import sandbox
if os.geteuid() == 0:  # root reads everything
    os.setuid(65534)
sandbox.set_process_option(sandbox.PR_SET_DUMPABLE, 1)  # as every process starts
print("plain", flush=True)
sys.stdin.readline()
sandbox.hide_process_memory()
print("hidden", flush=True)
sys.stdin.readline()
"""


def test_another_process_of_the_same_user_does_not_read_the_environment_of_a_worker():
    """Where the kernel has no Landlock, this keeps the decoder from its owner."""
    user = 65534 if os.geteuid() == 0 else None
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env={**os.environ, "AWS_SECRET_ACCESS_KEY": "hush"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for state, can_read in (("plain", True), ("hidden", False)):
        assert owner.stdout.readline() == f"{state}\n"
        command = ["cat", f"/proc/{owner.pid}/environ"]
        thief = subprocess.run(command, user=user, capture_output=True, text=True, check=False)
        assert ("=hush\0" in thief.stdout) == can_read, thief.stderr
        owner.stdin.write("\n")
        owner.stdin.flush()
    owner.communicate()


def test_a_reply_that_nobody_asked_for_costs_the_row_and_the_process(decoder, monkeypatch):
    monkeypatch.setitem(MEDIA_KINDS, "image", "exploited_kind:Exploited")
    code = b"import os, struct, sys; os.write(int(sys.argv[1]), struct.pack('>IQ', 2, 1 << 60) + b'{}')"
    with pytest.raises(DecodeError, match="its reply on this file is broken"):
        decoder.open(Blob("x", "image", data=code), "image", claimed_kind=None, deadline=time.monotonic() + 60)
    assert decoder.process.returncode is not None


OLD_KERNEL = """
import time
from pipeline.fetch.blob import Blob
from pipeline.media import sandbox
from pipeline.media.decoder_client import DecoderClient
from tests.media.sample_media import draw_pixels, encode_image
from tests.media.test_sandbox import LIMITS

sandbox.set_process_option(sandbox.PR_SET_NO_NEW_PRIVS, 1)
sandbox.KEPT_CAPABILITIES = 0  # as an ordinary user; its children get none back
sandbox.drop_capabilities()
sandbox.filter_calls([
    (sandbox.LOAD_WORD, 0, 0, sandbox.CALL_OFFSET),
    (sandbox.JUMP_IF_EQUAL, 0, 1, sandbox.CREATE_RULESET),
    (sandbox.RETURN, 0, 0, sandbox.NOT_IMPLEMENTED),
    (sandbox.RETURN, 0, 0, sandbox.ALLOW),
])
sandbox.libc.personality(8)  # of 32 bits: the children are told another name of the architecture
for _ in range(2):
    decoder = DecoderClient(LIMITS)
    decoder.wait_until_ready()
    picture = Blob("x", "image", data=encode_image(draw_pixels(56, 56)))
    print(decoder.open(picture, "image", claimed_kind=None, deadline=time.monotonic() + 60).sizes)
    decoder.close()
"""


def test_a_kernel_that_lacks_both_protections_is_warned_of_once_and_decodes():
    """Also for a user without capabilities."""
    done = subprocess.run([sys.executable, "-c", OLD_KERNEL], capture_output=True, text=True, check=True)
    assert done.stdout == "((56, 56),)\n" * 2
    assert done.stderr == (
        "vlbatch: this kernel does not keep the decoder from other files (Landlock: Function not implemented) "
        "and the network and other processes (seccomp: not known for i686); see REFERENCE.md\n"
    )


def test_a_system_other_than_linux_has_no_sandbox_and_says_so(monkeypatch):
    monkeypatch.setattr(sandbox, "libc", None)  # whose calls are those of Linux
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    sandbox.hide_process_memory()
    assert sandbox.enter_sandbox() == [
        "other files, the network and other processes (Landlock and seccomp: only on Linux)"
    ]


def test_a_torch_for_cuda_starts_in_the_sandbox(tmp_path, monkeypatch):
    """As they are imported, cuda.bindings of PyPI look for libdl by running a compiler on a temporary file."""
    bindings = tmp_path / "cuda/bindings/__init__.py"
    bindings.parent.mkdir(parents=True)
    bindings.write_text("import tempfile\ntempfile.NamedTemporaryFile()\ndriver = runtime = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    decoder = DecoderClient(LIMITS)
    try:
        decoder.wait_until_ready()
    finally:
        decoder.close()
