"""The main job: segment the slides that the user names into a run folder with tables, statistics and errors."""
