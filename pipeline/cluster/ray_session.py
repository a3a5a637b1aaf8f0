"""Connects to Ray and disconnects again, without the pages that Ray prints and without its signal handlers.

A run uses the cluster that RAY_ADDRESS names, or starts one of its own. It never joins a cluster that happens to run
on this machine. Its own cluster listens on all addresses of the machine and runs whatever code it is sent, so it has a
random token, which only the processes of the run know. What is needed of Ray's private parts is checked first, because
every version of Ray may change them.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from pipeline.errors import JobError

AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
RAYLET: Any = ray._raylet
UNUSED_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")  # autoscaler, log forwarding, dashboard
CLIENT_SCHEMES = ("ray://", "http://", "https://")  # of machines outside of the cluster


@contextmanager
def connect_to_ray(*, show_log: bool = False) -> Iterator[None]:
    """A caller who is connected already stays so. `show_log` prints what Ray and its workers log."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not show_log:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray logs the start of every actor as an error
    check_ray_version()
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    with require_random_token() if address == "local" else nullcontext():
        start_ray(address, show_log=show_log)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def require_random_token() -> Iterator[None]:
    """A cluster that is started here, and its processes, have a new token. Ray would take one from the home directory,
    or write one there.
    """
    variables_before = {name: os.environ.get(name) for name in AUTH_VARIABLES}
    set_auth_variables({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    try:
        yield
    finally:
        set_auth_variables(variables_before)


def set_auth_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    RAYLET.Config.initialize("")  # Ray reads the mode and the token once per process
    RAYLET.AuthenticationTokenLoader.instance().reset_cache()


def check_ray_version() -> None:
    """Raise a JobError if this version of Ray lacks what is used here."""
    used = (
        (ray._private.utils, "set_sigterm_handler"),
        (ray._private.worker, "listen_error_messages"),
        (RAYLET, "Config"),
        (RAYLET, "AuthenticationTokenLoader"),
        *((ray._private.node.Node, name) for name in UNUSED_SERVICES),
    )
    if missing := [f"{module.__name__}.{name}" for module, name in used if not hasattr(module, name)]:
        raise JobError(
            f"Ray {ray.__version__} lacks {', '.join(missing)}, which vlbatch uses; install the version of Ray that "
            "infra/constraints.txt names"
        )


def start_ray(address: str, *, show_log: bool) -> None:
    if address.startswith(CLIENT_SCHEMES):
        raise JobError(
            f"RAY_ADDRESS: a run cannot be started through {address}; from another machine, use "
            "`python -m pipeline submit JOB --address http://HEAD:8265`, and on a node of the cluster set HEAD:6379"
        )
    try:
        # Ray's own SIGTERM handler would end a run that is starting or ending with exit code 15 and no message.
        with (
            disable_function(ray._private.utils, "set_sigterm_handler"),
            nullcontext() if show_log else silence_ray_start(),
            nullcontext() if show_log or address != "local" else omit_unused_services(),
        ):
            ray.init(
                address=address,
                log_to_driver=show_log,
                logging_level=logging.INFO if show_log else logging.ERROR,
                include_dashboard=False if address == "local" else None,
            )
    except AuthenticationError as error:
        raise JobError(
            f"RAY_ADDRESS: the cluster at {address} refuses this process: {error.message}; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN to the token of the cluster"
        ) from error
    except (ConnectionError, ValueError) as error:
        raise JobError(f"RAY_ADDRESS: no Ray cluster at {address}; unset it to run on this machine") from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise JobError(
            f"RAY_ADDRESS: the cluster at {address} has other versions of Ray or Python than this process; install the "
            f"same ones. {' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # Ray raises no class of its own here; all but one message are passed on
        if "timed out during startup" in str(error):
            raise JobError(
                "Ray did not start within its limit of 30 s, as on a machine that is busy with other work; run this "
                "command again, or with --local"
            ) from error
        raise


@contextmanager
def silence_ray_start() -> Iterator[None]:
    """Drop what Ray's native code writes to stderr as it starts, and keep its thread of error messages from starting.

    `log_to_driver=False` turns off neither.
    """
    sys.stderr.flush()
    saved_stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        with disable_function(ray._private.worker, "listen_error_messages"):
            yield
    finally:
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
        os.close(devnull)


@contextmanager
def omit_unused_services() -> Iterator[None]:
    """A cluster that is started here does without services that take longer to start than Ray itself."""
    with ExitStack() as stack:
        for name in UNUSED_SERVICES:
            stack.enter_context(disable_function(ray._private.node.Node, name))
        yield


@contextmanager
def disable_function(module: Any, function_name: str) -> Iterator[None]:
    """Replace a function of Ray's with one that does nothing."""
    original = getattr(module, function_name)
    setattr(module, function_name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, function_name, original)
