"""Slides named by the user in -> a run folder with tables, statistics and errors out; the main job."""
