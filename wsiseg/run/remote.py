"""A scheduler of others -> a client of it, and the first look at its workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import dask
from distributed import Client
from distributed.security import Security

from wsiseg import __version__
from wsiseg.config import ScheduleConfig
from wsiseg.errors import InputError, one_line
from wsiseg.log import log

__all__ = ["QUIET_DASK", "connect_remote", "dashboard_link", "fitting_workers"]

QUIET_DASK = {
    "distributed.admin.low-level-log-length": 20,
    "distributed.admin.log-length": 100,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "500ms",
}
"""For Dask, which else remembers the last 1000 messages of every connection with all the tiles in them, and 10,000 events; and
in every worker looks at its threads 100 times a second, at its event loop 50 times and at the machine's counters twice."""

CONNECT_S = 20
"""How long a scheduler may take to answer, s."""


@contextlib.contextmanager
def connect_remote(config: ScheduleConfig) -> Iterator[Client]:
    """Yield a client of the scheduler that the config names.

    Raises
    ------
    InputError
        Nothing answers there, or not with these certificates.
    """
    where = config.scheduler or config.scheduler_file
    if config.scheduler_file and not Path(config.scheduler_file).is_file():
        raise InputError(f"--scheduler-file {config.scheduler_file}: no such file. Has the scheduler been started?")
    security = None
    if config.tls_ca:
        security = Security(
            tls_ca_file=config.tls_ca,
            tls_client_cert=config.tls_cert,
            tls_client_key=config.tls_key,
            require_encryption=True,
        )
    try:
        with dask.config.set(QUIET_DASK):
            client = Client(
                config.scheduler or None,
                scheduler_file=config.scheduler_file or None,
                security=security,
                timeout=f"{CONNECT_S}s",
                set_as_default=False,
            )
    except (OSError, TimeoutError, ValueError, TypeError) as err:
        tls = " With tls:// the scheduler's authority must be that of --tls-ca." if where.startswith("tls://") else ""
        raise InputError(
            f"No Dask scheduler answers at {where!r} ({one_line(err)}). Start one with 'dask scheduler', or leave --scheduler "
            f"away to use this machine.{tls}"
        ) from err
    with client:
        yield client


def dashboard_link(client: Client) -> str:
    """Return the address of the scheduler's dashboard, empty where it has none."""
    if "dashboard" not in client.scheduler_info().get("services", {}):
        return ""
    return str(client.dashboard_link)


def fitting_workers(client: Client) -> list[str]:
    """Return the addresses of workers that have this version of wsiseg, one a machine, waiting until there is a worker at all.

    Raises
    ------
    InputError
        There are workers, and none of them has it; the message names what each has.
    """
    told = False
    while not client.nthreads(callback_timeout=f"{CONNECT_S}s"):
        if not told:
            log.warning("no worker has joined the scheduler yet; waiting. Ctrl-C stops")
            told = True
        time.sleep(0.5)
    versions = client.run(_version, on_error="return", callback_timeout=f"{CONNECT_S}s")
    good = {urlsplit(address).hostname: str(address) for address, version in versions.items() if version == __version__}
    if good:
        return list(good.values())
    lines = [f"  {a}: {one_line(v) if isinstance(v, BaseException) else v}" for a, v in sorted(versions.items())]
    raise InputError(
        f"Every worker of the scheduler was refused: the run has wsiseg version {__version__}, the workers have\n"
        + "\n".join(lines)
        + "\nInstall one version everywhere."
    )


def _version() -> str:
    import wsiseg

    return wsiseg.__version__
