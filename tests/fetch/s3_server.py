"""An S3 server (moto's) on loopback, a process of its own, asked by tests with boto3, which wsiseg does not use itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAME = "slides"


@dataclass(frozen=True)
class Bucket:
    """The server and its bucket ``slides``."""

    url: str
    client: Any

    @property
    def environment(self) -> dict[str, str]:
        """How a process finds the server, and an account on it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def put(self, key: str, data: bytes, acl: str = "private") -> str:
        """Add an object; return its address."""
        self.client.put_object(Bucket=NAME, Key=key, Body=data, ACL=acl)
        return f"s3://{NAME}/{key}"

    def keys(self) -> dict[str, int]:
        """Return all objects and their sizes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME)
        return {o["Key"]: int(o["Size"]) for page in pages for o in page.get("Contents", [])}

    def get(self, key: str) -> bytes:
        """Return an object."""
        return bytes(self.client.get_object(Bucket=NAME, Key=key)["Body"].read())


@contextlib.contextmanager
def s3_server() -> Iterator[Bucket]:
    """Run the server while the block does."""
    import boto3

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}"
        account = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=url, **account)
        client.create_bucket(Bucket=NAME)
        yield Bucket(url, client)
        client.close()
    finally:
        process.kill()
        process.wait()
