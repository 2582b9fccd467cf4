"""Connect to an existing Dask scheduler and check its workers."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import dask
from distributed import Client, KilledWorker, Worker
from distributed.security import Security

from wsiseg import __version__
from wsiseg.cluster.exits import last_end
from wsiseg.config import ScheduleConfig
from wsiseg.errors import InputError, WorkersLostError, one_line
from wsiseg.log import log

__all__ = ["QUIET_DASK", "answer_of", "connect_remote", "dashboard_link", "fitting_workers", "is_reader"]

QUIET_DASK = {
    "distributed.admin.low-level-log-length": 20,
    "distributed.admin.log-length": 100,
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "500ms",
}
"""Settings that turn off Dask's own records: by default it keeps the last 1000 messages of every connection with all their
tiles, and 10,000 events, and every worker samples its threads 100 times and its event loop 50 times per second."""

T = TypeVar("T")

TRIES = 3
"""The run stops after this many workers have ended while they loaded the network."""

LOOK_S = 2.0
"""Timeout of a request to the dashboard, s."""

CONNECT_S = 20
"""Timeout of requests to the scheduler, s."""


@contextlib.contextmanager
def connect_remote(config: ScheduleConfig) -> Iterator[Client]:
    """Yield a client of the scheduler that the config names.

    Raises
    ------
    InputError
        The scheduler does not answer, or not with these certificates.
    """
    where = config.scheduler or config.scheduler_file
    if config.scheduler_file and not Path(config.scheduler_file).is_file():
        raise InputError(
            f"--scheduler-file {config.scheduler_file}: no such file. Start the scheduler with this --scheduler-file first."
        )
    _check_tls(config)
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
        tls = " With tls:// its certificate must be signed by the authority of --tls-ca." if where.startswith("tls://") else ""
        raise InputError(
            f"No Dask scheduler answers at {where!r} ({one_line(err)}). Start one with 'dask scheduler', or omit --scheduler "
            f"to use this machine.{tls}"
        ) from err
    with client:
        yield client


def _check_tls(config: ScheduleConfig) -> None:
    """Raise ``InputError`` if the address and the certificates do not agree on TLS, or a certificate is missing."""
    address = config.scheduler
    if config.scheduler_file:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            address = str(json.loads(Path(config.scheduler_file).read_text(encoding="utf-8")).get("address", ""))
    given = {"--tls-ca": config.tls_ca, "--tls-cert": config.tls_cert, "--tls-key": config.tls_key}
    for option, file in given.items():
        if file and not os.access(file, os.R_OK):
            raise InputError(f"{option} {file}: no such file, or it cannot be read.")
    if not address.startswith("tls://"):
        if any(given.values()) and "://" in address:
            raise InputError(
                f"Certificates are given ({', '.join(o for o, f in given.items() if f)}) but the scheduler's address is "
                f"{address}, without TLS. Start the scheduler with --protocol tls, or omit the certificates."
            )
        return
    known = {"--tls-ca": "ca-file", "--tls-cert": "client.cert", "--tls-key": "client.key"}
    missing = [o for o, f in given.items() if not f and not dask.config.get(f"distributed.comm.tls.{known[o]}", None)]
    if missing:
        raise InputError(
            f"The scheduler {address} uses TLS, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: "
            "--tls-ca, --tls-cert and --tls-key name PEM files, as scripts/cluster/make_certificates.sh makes them."
        )


def dashboard_link(client: Client) -> str:
    """Return the URL of the scheduler's dashboard; empty if there is none.

    The scheduler reports a URL even without a dashboard, so the page itself is requested.
    """
    if "dashboard" not in client.scheduler_info().get("services", {}):
        return ""
    link = str(client.dashboard_link)
    plain = ssl.create_default_context()
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE  # no data is sent or read over this connection
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=plain))
    try:
        with direct.open(link, timeout=LOOK_S) as page:
            found = page.status == HTTPStatus.OK and b"Dask needs" not in page.read(1000)  # the dashboard needs bokeh
    except (OSError, ValueError, HTTPException):
        return ""
    return link if found else ""


def answer_of(client: Client, function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Return the result of a function on a worker; if the worker ends, another one or its replacement is used.

    Raises
    ------
    WorkersLostError
        ``TRIES`` workers ended, in the way that the message states.
    """
    for attempt in range(1, TRIES + 1):
        try:
            answer: T = client.submit(function, *args, pure=False, **options).result()
            return answer
        except KilledWorker as err:
            how = last_end() or "ended"
            if attempt == TRIES:
                raise WorkersLostError(
                    f"{TRIES} workers ended one after the other while they loaded the network; the last one, at "
                    f"{err.last_worker.address}, {how}. If memory is short, use fewer "
                    "--workers; 'wsiseg doctor' loads the network by itself."
                ) from err
            log.warning("a worker %s while it loaded the network; trying again (%d of %d)", how, attempt + 1, TRIES)
            while not set(client.nthreads(callback_timeout=f"{CONNECT_S}s")) - {err.last_worker.address}:
                time.sleep(0.1)  # work submitted before its replacement is there may never start
            if "workers" in options:
                options["workers"] = fitting_workers(client)
    raise AssertionError("unreachable")


def fitting_workers(client: Client) -> list[str]:
    """Return the addresses of workers that compute and have this version of wsiseg, waiting until there is at least one.

    Workers with a GPU (``--resources GPU=1``) are first. Among equals, one worker per machine is first, then the others, so
    that the caller soon tries another machine. Workers that only read (``CPU=1`` without ``GPU``) are left out.

    Raises
    ------
    InputError
        There are workers, but none has this version; the message states the version of each.
    """
    printed = ""
    while True:
        everyone = client.nthreads(callback_timeout=f"{CONNECT_S}s")
        versions = client.run(_version, on_error="return", callback_timeout=f"{CONNECT_S}s") if everyone else {}
        same = [str(address) for address, version in versions.items() if version == __version__]
        if versions and not same:
            break
        found = client.run(_declared, workers=same, on_error="return", callback_timeout=f"{CONNECT_S}s") if same else {}
        declared = {str(address): names for address, names in found.items() if isinstance(names, list)}
        good = [address for address, names in declared.items() if not is_reader(names)]
        if good:
            firsts = {urlsplit(address).hostname: address for address in good}.values()
            return sorted(good, key=lambda address: ("GPU" not in declared[address], address not in firsts))
        what = "only workers that read (CPU=1) have joined yet" if declared else "no worker has joined the scheduler yet"
        if what != printed:
            log.warning("%s; waiting. Ctrl-C stops", what)
            printed = what
        time.sleep(0.5)
    lines = [f"  {a}: {one_line(v) if isinstance(v, BaseException) else v}" for a, v in sorted(versions.items())]
    raise InputError(
        f"Every worker of the scheduler was refused: the run has wsiseg version {__version__}, the workers have\n"
        + "\n".join(lines)
        + "\nInstall one version everywhere."
    )


def is_reader(resources: Collection[str]) -> bool:
    """Return whether a worker with these resources only reads and writes, in a cluster whose other workers have GPUs."""
    return "CPU" in resources and "GPU" not in resources


def _declared(dask_worker: Worker) -> list[str]:
    """Return the names of the resources that a worker was started with (run on the worker by the client)."""
    return sorted(dask_worker.state.total_resources)


def _version() -> str:
    import wsiseg

    return wsiseg.__version__
