"""A real S3 server on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pyarrow.fs as pafs
import pytest

BUCKET = "bucket"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """moto's S3 over HTTP, with an empty bucket; gives what a client needs in its environment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "some-id",
            "AWS_SECRET_ACCESS_KEY": "the-secret-of-this-test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a new bucket that this process can write to."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    name = f"{BUCKET}-{os.urandom(4).hex()}"
    endpoint = s3_server["AWS_ENDPOINT_URL"]
    pafs.S3FileSystem(allow_bucket_creation=True, region="us-east-1", endpoint_override=endpoint).create_dir(name)
    return f"s3://{name}"
