"""A failure keeps of what kind its reason is: by the error and what it was raised from, whatever its words are."""

from __future__ import annotations

import errno
import os

import pytest

from wsiseg.errors import BackendUnavailableError, FormatError, MissingMppError
from wsiseg.run.failures import failure_kind
from wsiseg.run.hosts import Hosts
from wsiseg.types import FailureKind


def from_full_disk() -> Exception:
    try:
        try:
            raise OSError(errno.ENOSPC, "space")
        except OSError as err:
            raise FormatError("the part cannot be written") from err
    except FormatError as err:
        return err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MissingMppError("no mpp"), "fact"),
        (ModuleNotFoundError("No module named 'imagecodecs'"), "library"),
        (BackendUnavailableError("no cuCIM"), "library"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "disk"),
        (RuntimeError(f"HDF5: {os.strerror(errno.ENOSPC)}"), "disk"),
        (from_full_disk(), "disk"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), ""),
        (ValueError("ImportError: only words that begin so"), ""),
    ],
)
def test_kind_is_that_of_the_error(error: Exception, kind: FailureKind) -> None:
    assert failure_kind(error) == kind


@pytest.mark.parametrize(("kind", "again"), [("library", True), ("", False)])
def test_what_one_worker_lacks_is_sought_at_another_of_its_host(kind: FailureKind, again: bool) -> None:
    hosts = Hosts()
    there = ["tcp://10.0.0.1:1", "tcp://10.0.0.1:2"]
    for worker in there:
        hosts.add(worker, "one")
    item = ("prepare", "s", -1)
    hosts.failed(there[0], item, "ImportError: libopenslide.so.1", kind=kind)
    assert hosts.may_be_done(item, there) is again
