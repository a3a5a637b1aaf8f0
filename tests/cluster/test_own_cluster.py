"""A cluster that a run starts for itself takes no code from anybody else, though it listens on all addresses."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import psutil
import pytest
import ray
from ray._raylet import AuthenticationMode, get_authentication_mode

from pipeline.cluster.ray_session import AUTH_VARIABLES, connect_to_ray, require_random_token

STRANGER = """
import os, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: os.environ["AWS_SECRET_ACCESS_KEY"]).remote()))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


def start_stranger(address: str, **variables: str) -> subprocess.Popen[str]:
    """Another process on the network, which knows the address and, perhaps, credentials."""
    hidden = {*AUTH_VARIABLES, "AWS_SECRET_ACCESS_KEY"}
    env = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    command = [sys.executable, "-c", STRANGER, address]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_stranger_cannot_run_code_on_the_cluster_of_a_run(home, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with connect_to_ray():
        address = ray.get_runtime_context().gcs_address
        commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        assert not address.startswith("127.")
        token = {name: os.environ[name] for name in AUTH_VARIABLES}
        guess = {**token, "RAY_AUTH_TOKEN": "0" * 64}
        processes = [start_stranger(address, **variables) for variables in ({}, guess, token)]
        (nothing, why), (nothing_either, why_either), (secret, _) = [process.communicate() for process in processes]
    assert (nothing, nothing_either) == ("", "")
    assert "Unauthenticated" in why + why_either, why
    assert any("raylet" in command for command in commands)
    assert not [command for command in commands if re.search(r"monitor\.py|dashboard\.py", command)]
    assert secret == "hush\n"  # the attack itself works: only the token keeps the others out
    assert list(home.iterdir()) == []


def test_each_cluster_has_a_token_of_its_own_that_ends_with_it(home, monkeypatch):
    """Whatever the environment says, which is meant for other clusters."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    tokens = []
    for _ in range(2):
        with require_random_token():
            assert get_authentication_mode() == AuthenticationMode.TOKEN
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
        assert get_authentication_mode() == AuthenticationMode.DISABLED
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert len({token for token in tokens if len(token) == 64}) == 2
    assert list(home.iterdir()) == []
