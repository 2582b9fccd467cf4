"""One logger for the package; the CLI decides where it goes."""

from __future__ import annotations

import logging

__all__ = ["log"]

log = logging.getLogger("wsiseg")
log.addHandler(logging.NullHandler())
