"""A local web page on which a reviewer marks patches and slides; the marks are appended to a file.

``queues`` decides which items each reviewer judges and in which order, ``session`` keeps the state of one reviewer's work,
``app`` handles HTTP requests (only from this machine, with a token, not from other sites), ``serve`` runs it on a socket;
``page.html``, ``review.js``, ``viewer.js`` and ``review.css`` are the page.
"""

from wsiseg.qc.review.app import ReviewSource, create_app
from wsiseg.qc.review.queues import in_share, parse_share, patch_queue
from wsiseg.qc.review.serve import ReviewServer
from wsiseg.qc.review.session import ReviewSession

__all__ = ["ReviewServer", "ReviewSession", "ReviewSource", "create_app", "in_share", "parse_share", "patch_queue"]
