"""Dask clients, local workers and their devices, and the cores and memory that a run may use."""
