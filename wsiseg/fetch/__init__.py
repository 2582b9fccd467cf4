"""Addresses -> files on this machine's disk: several ranges at a time, resumed, size and checksum verified.

What comes in: an address (``https://``, ``s3://``, ``gs://``, anything that fsspec opens) with what a manifest says of it. What
goes out: a whole, verified file or folder below a staging folder, or a ``FetchError`` with the address and the reason. Secrets
(tokens, signatures in a query) are in no message and no file: ``address.shown`` is what is written.
"""

from wsiseg.fetch.address import Wanted, absolute_place, is_address, local_of, shown
from wsiseg.fetch.download import FetchOptions, FetchStopped
from wsiseg.fetch.listing import list_address
from wsiseg.fetch.staged import Held, bring, held, in_staging, named_size
from wsiseg.fetch.stores import StoredObject, send_file, stored_objects

__all__ = [
    "FetchOptions",
    "FetchStopped",
    "Held",
    "StoredObject",
    "Wanted",
    "absolute_place",
    "bring",
    "held",
    "in_staging",
    "is_address",
    "list_address",
    "local_of",
    "named_size",
    "send_file",
    "shown",
    "stored_objects",
]
