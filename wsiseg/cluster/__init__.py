"""Where work is computed: Dask clients and local workers, the devices that they use, cores and memory that may be used."""
