"""The decoder's process: a file and sizes in, resized pixels out. `python -m pipeline.media.decoder_process FD`

Native decoders crash, hang and eat memory on broken files; here they may. This process knows no model,
no job and no credentials, allocates at most what it was given, is the first that a machine short of
memory ends, and is ended by the kernel's own alarm should nobody be left to end it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import ItemError
from pipeline.media.decoder_protocol import receive_message, send_message
from pipeline.media.kinds.base import DecodeLimits, Kind
from pipeline.registry import MEDIA_KINDS, load_registered


def serve_requests(connection: socket.socket) -> None:
    opened: Kind | None = None
    send_message(connection, {"ready": True})
    while True:
        try:
            message, data = receive_message(connection)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, message["deadline_s"])
        pixels, reply = None, dict[str, Any]()
        try:
            if message["do"] == "open":
                if opened:
                    opened.close()
                source = Path(message["path"]) if message["path"] else bytes(data)
                opened = load_registered(MEDIA_KINDS, message["kind"], "medium")(
                    source, DecodeLimits(**message["bounds"]), moving=message["moving"]
                )
                reply = {"probe": asdict(opened.probe)}
            elif message["do"] == "ranges":
                ranges: Any = getattr(opened, "ranges", None)
                reply = {"ranges": [ranges(indices) for indices in message["batches"]] if ranges else [None]}
            else:
                assert opened
                pixels = opened.read(message["indices"], tuple(message["size"]))
                reply = {"shape": pixels.shape}
        except ItemError as error:
            reply = {"error": [error.kind, error.message]}
        except MemoryError:
            reply = {"error": ["memory", "needs more memory than its limits allow"]}
        except Exception as error:  # noqa: BLE001 - the decoder's boundary: whatever a library throws is this file's fault
            reply = {"error": ["undecodable", f"{type(error).__name__}: {error}"[:500]]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send_message(connection, reply, b"" if pixels is None else pixels.data.cast("B"))


def confine_process(memory_bytes: int) -> None:
    """What was allocated already does not count against `memory`."""
    with contextlib.suppress(OSError, ValueError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        soft = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(socket_fd: int, memory_bytes: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    confine_process(memory_bytes)
    with open(os.devnull, "w") as nowhere:  # started well: what libraries say of broken files helps nobody
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    serve_requests(socket.socket(fileno=socket_fd))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
