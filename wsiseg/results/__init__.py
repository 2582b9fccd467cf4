"""The files of a run: the run folder, slide records, the list of slides, the maps of a slide.

Comes in: paths that a user names. Goes out: ``RunFolder``, ``SlideInput``, records of finished slides. Every task reads runs
through this package, so none needs another task.
"""
