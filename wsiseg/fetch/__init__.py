"""Fetch slides from URLs and buckets to local disk: parallel byte ranges, resumable, size and checksum verified.

Input is an address (``https://``, ``s3://``, ``gs://``, or any other scheme of fsspec) with the size and checksum that a
manifest states. The result is a complete, verified file or folder in a staging folder, or a ``FetchError`` with the address and
the reason. Secrets (tokens, signatures in a query) never appear in messages or files; ``address.shown`` removes them.
"""

from wsiseg.fetch.address import Wanted, absolute_place, is_address, local_of, shown
from wsiseg.fetch.download import FetchOptions, FetchStopped
from wsiseg.fetch.listing import list_address
from wsiseg.fetch.staged import StagedSlide, fetch_to_staging, find_staged, slide_size_bytes, staged_sizes
from wsiseg.fetch.stores import StoredObject, send_file, stored_objects

__all__ = [
    "FetchOptions",
    "FetchStopped",
    "StagedSlide",
    "StoredObject",
    "Wanted",
    "absolute_place",
    "fetch_to_staging",
    "find_staged",
    "is_address",
    "list_address",
    "local_of",
    "send_file",
    "shown",
    "slide_size_bytes",
    "staged_sizes",
    "stored_objects",
]
