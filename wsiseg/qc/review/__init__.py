"""Items to judge and pictures of them in -> a local web page, and marks appended to the reviewer's file out.

``queues`` decides what each reviewer sees and in which order, ``session`` holds one reviewer's work, ``app`` serves HTTP
(loopback only, a token, no foreign scripts), ``page.html``, ``review.js`` and ``review.css`` are the page.
"""

from wsiseg.qc.review.app import ReviewSource, create_app
from wsiseg.qc.review.queues import in_share, parse_share, patch_queue
from wsiseg.qc.review.serve import ReviewServer
from wsiseg.qc.review.session import ReviewSession

__all__ = ["ReviewServer", "ReviewSession", "ReviewSource", "create_app", "in_share", "parse_share", "patch_queue"]
