"""An S3 server for the tests of fetching."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def serve_scans(objects: Mapping[str, bytes]) -> Iterator[Any]:
    """An S3 server whose bucket s3://scans holds these objects; gives a client of it."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="scans")
        for key, body in objects.items():
            client.put_object(Bucket="scans", Key=key, Body=body)
        fsspec.filesystem("s3").clear_instance_cache()
        yield client
    server.stop()
