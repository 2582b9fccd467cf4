"""Objects of a bucket: fetched, listed, refused by name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.fetch.s3_server import Bucket
from wsiseg.errors import FetchDamagedError, FetchError, FetchMissingError
from wsiseg.fetch import FetchOptions, Wanted, fetch_to_staging, list_address
from wsiseg.fetch import stores as stores_module

DATA = os.urandom(1_200_003)


def test_an_object_is_fetched_in_ranges_and_its_etag_is_its_checksum(bucket: Bucket, tmp_path: Path) -> None:
    address = bucket.put("a/b/one.svs", DATA)
    got = fetch_to_staging(Wanted(address), "one", tmp_path, FetchOptions())
    assert got.path.name == "one.svs"
    assert got.path.read_bytes() == DATA
    assert got.version == hashlib.md5(DATA).hexdigest()
    with pytest.raises(FetchDamagedError, match="expected MD5 0000"):
        fetch_to_staging(Wanted(address, md5="0" * 32), "two", tmp_path, FetchOptions())


def test_what_is_not_there_is_reported_with_its_address(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(FetchMissingError, match=r"s3://slides/none\.svs"):
        fetch_to_staging(Wanted("s3://slides/none.svs"), "none", tmp_path, FetchOptions())
    with pytest.raises(FetchError, match=r"s3://nobody/x\.svs"):
        fetch_to_staging(Wanted("s3://nobody/x.svs"), "x", tmp_path, FetchOptions())
    with pytest.raises(FetchError, match="nothing://x/y: unsupported kind of address"):
        fetch_to_staging(Wanted("nothing://x/y"), "x", tmp_path, FetchOptions())


def test_without_an_account_a_public_bucket_is_read(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = bucket.put("one.svs", DATA, acl="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert stores_module.logins(address) == [True]
    assert fetch_to_staging(Wanted(address), "one", tmp_path, FetchOptions()).path.read_bytes() == DATA


def test_folders_and_patterns_are_listed_with_size_and_checksum(bucket: Bucket) -> None:
    for name in ("p/1.svs", "p/2.svs", "p/q/3.svs", "p/notes.txt", "other.svs"):
        bucket.put(name, name.encode() * 10)
    listed = list_address("s3://slides/p/")
    assert [w.address for w in listed] == [f"s3://slides/p/{n}" for n in ("1.svs", "2.svs", "notes.txt", "q/3.svs")]
    assert listed[0].size_bytes == 70
    assert listed[0].md5 == hashlib.md5(b"p/1.svs" * 10).hexdigest()
    assert [w.address for w in list_address("s3://slides/p/*.svs")] == ["s3://slides/p/1.svs", "s3://slides/p/2.svs"]
    with pytest.raises(FetchError, match="folders of web servers cannot be listed"):
        list_address("https://somewhere/p/")


def test_any_other_file_system_of_fsspec_is_read(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/one.svs", DATA)
    assert fetch_to_staging(Wanted("memory://one.svs"), "one", tmp_path, FetchOptions()).path.read_bytes() == DATA
