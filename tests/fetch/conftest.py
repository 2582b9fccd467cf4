"""A web server that misbehaves as configured, and an S3 server, both on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fetch.gdc_server import GdcServer, gdc_server
from tests.fetch.s3_server import Bucket, s3_server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GdcServer]:
    with gdc_server(tmp_path / "server") as running:
        monkeypatch.setenv("WSISEG_GDC_API", running.address)
        monkeypatch.delenv("GDC_TOKEN", raising=False)
        monkeypatch.delenv("GDC_TOKEN_FILE", raising=False)
        yield running


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An S3 server on loopback with one bucket; this process and those it starts find it by their environment."""
    with s3_server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running
