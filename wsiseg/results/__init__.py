"""The files of a run: the run folder, slide records, the list of slides, the maps of a slide.

Input: paths given by the user. Output: ``RunFolder``, ``SlideInput``, records of finished slides. All tasks read runs through
this package, so that they do not depend on each other.
"""
