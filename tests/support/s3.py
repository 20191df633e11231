"""A real server that speaks S3, for tests of a remote store.

Import the fixture into a `conftest.py` or a test module:

    from tests.support.s3 import s3_url
"""

from __future__ import annotations

import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

_ACCESS = {
    "AWS_ACCESS_KEY_ID": "disp",
    "AWS_SECRET_ACCESS_KEY": "disp",
    "AWS_DEFAULT_REGION": "us-east-1",
}

_WRITE = """
import sys
import s3fs
place, content = sys.argv[1:]
s3fs.S3FileSystem().pipe_file(place, content.encode())
"""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Its address; one server for the session."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a fresh bucket; the environment of this process and its children leads there."""
    for name, value in (_ACCESS | {"AWS_ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(name, value)
    bucket = f"disp-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def write_elsewhere(url: str, key: str, content: str) -> None:
    """Writes a file from another process."""
    place = f"{url.removeprefix('s3://')}/{key}"
    subprocess.run([sys.executable, "-c", _WRITE, place, content], check=True)
