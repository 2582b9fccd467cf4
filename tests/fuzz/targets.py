"""Targets of fuzzing: each takes one malformed input and returns ``accepted`` or ``refused``; any other result is a defect.

Shared by the tests (some hundred cases) and benchmarks/fuzz.py (thousands).
"""

from __future__ import annotations

import contextlib
import csv
import functools
import http.client
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from wsiseg.config import RunConfig
from wsiseg.errors import WsisegError
from wsiseg.read.mpp import resolve_mpp
from wsiseg.results.manifest import collect_slides
from wsiseg.run.status import group_errors, run_status
from wsiseg.run.verify import verify_run

SLIDE = Path(__file__).resolve().parents[1] / "data" / "CMU-1-Small-Region.svs"

Outcome = str
Target = Callable[[object, Path], Outcome]

CASE_S = 20.0
"""Longest a case may take before it counts as hung."""

CASE_BYTES = 6 * 2**30
"""Limit of a case's address space; more is only requested if an implausible number was accepted."""


def said_no(work: Callable[[], object]) -> Outcome:
    try:
        work()
    except WsisegError as err:
        words = str(err).strip()
    else:
        return "accepted"
    assert words, "a refusal without words"
    return "refused"


# slides


def small_tiff(seed: int) -> bytes:
    """A little tiled TIFF with an Aperio-like description: every byte of it matters, so mutations hit."""
    import numpy as np
    import tifffile

    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=bool(seed % 2)) as tiff:
        for side in (512, 256):
            pixels = rng.integers(0, 255, (side, side, 3), np.uint8)
            tiff.write(
                pixels,
                tile=(128, 128),
                photometric="rgb",
                compression=(None, "deflate", "lzw")[seed % 3],
                description="Aperio Image Library v11\r\n512x512 (128x128)|AppMag = 20|MPP = 0.499",
                metadata=None,
                subfiletype=int(side != 512),
            )
    return buffer.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with flips, absurd numbers, cuts, repeats and swaps, most of them where a TIFF keeps its directories."""
    out = bytearray(data)
    head = min(len(out), 4096)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        kind = rng.randrange(6)
        at = rng.choice((rng.randrange(head), max(0, len(out) - 1 - rng.randrange(head)), rng.randrange(len(out))))
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 65535, len(out), rng.getrandbits(32)))
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif kind == 2:
            out[at : at + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
        elif kind == 3:
            del out[at : at + rng.randint(1, 1 + len(out) // 8)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randint(1, 256)]
        else:
            tag = out.find(struct.pack("<H", rng.choice((256, 257, 258, 259, 262, 277, 282, 322, 323, 324, 325, 347, 270))))
            if tag >= 0 and tag + 12 <= len(out):
                out[tag + 8 : tag + 12] = struct.pack("<I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1, rng.getrandbits(32))))
        out = out or bytearray(b"\0")
        head = min(len(out), 4096)
    return bytes(out)


def read_slide(path: Path, reader: str) -> Outcome:
    from wsiseg.read import fit_tissue, open_slide

    def work() -> None:
        slide = open_slide(path, reader=reader)
        try:
            fit_tissue(slide)
            width_px, height_px = slide.level_sizes_px[0]
            for x, y in ((0, 0), (width_px - 100, height_px - 100), (width_px // 2, height_px // 2)):
                slide.read_level(0, x, y, 300, 300)
        finally:
            slide.close()

    return said_no(work)


@functools.cache
def warm_up() -> None:
    """Load and compile once, not in every fork."""
    import openslide  # noqa: F401

    read_slide(SLIDE, "openslide")
    with contextlib.suppress(ImportError):
        import cucim  # noqa: F401


def in_a_process(work: Callable[[], Outcome]) -> Outcome:
    """Run a case in a fork, as a worker process would: ``crashed`` and ``hung`` end the fork, not the run."""
    warm_up()
    child = os.fork()
    if child == 0:
        code, talk = 3, os.dup(2)
        try:
            for stream in (1, 2):  # libtiff and cuCIM talk
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            resource.setrlimit(resource.RLIMIT_AS, (CASE_BYTES, CASE_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = {"accepted": 0, "refused": 1}[work()]
        except MemoryError:
            code = 2
        except BaseException as err:  # noqa: BLE001 - a fork must not go on with the test run
            os.write(talk, f"{type(err).__name__}: {err}\n"[:4000].encode())
        finally:
            os._exit(code)
    deadline = time.monotonic() + CASE_S
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hung"
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return "crashed"
    return {0: "accepted", 1: "refused", 2: "out of memory"}.get(os.WEXITSTATUS(status), "defect")


def slide_case(seed: object, scratch: Path) -> Outcome:
    """A slide with damaged bytes, opened and read in a process of its own, as in a run."""
    rng = random.Random(int(seed))  # type: ignore[call-overload]
    real = rng.random() < 0.3
    path = scratch / rng.choice(("s.svs", "s.tif", "s.ndpi", "s.png"))
    path.write_bytes(damaged(SLIDE.read_bytes() if real else small_tiff(rng.randrange(6)), rng))
    reader = rng.choice(("auto", "openslide"))
    return in_a_process(lambda: read_slide(path, reader))


# texts and tables

texts = st.text(max_size=40) | st.sampled_from(
    [
        "nan",
        "inf",
        "-1",
        "0",
        "1e400",
        "0.25",
        "0,25",
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "\0",
        "\n",
        "=cmd()",
        "٣",
        "0x1",
        "0.25 um",
    ]
)
PROPERTIES = ("openslide.mpp-x", "openslide.mpp-y", "openslide.objective-power", "tiff.XResolution", "tiff.YResolution",
              "tiff.ResolutionUnit")  # fmt: skip
tiff_metadata = st.dictionaries(st.sampled_from(PROPERTIES), texts, max_size=6)


def metadata_case(case: object, scratch: Path) -> Outcome:
    """Properties of a TIFF: a plausible mpp or a refusal, never a guess."""

    def work() -> None:
        found = resolve_mpp(case, user_mpp=None, vendor="aperio", where="slide x")  # type: ignore[arg-type]
        assert 0.1 <= found.value <= 2
        assert found.source in ("openslide", "tiff")

    return said_no(work)


rows = st.lists(
    st.dictionaries(st.sampled_from(["path", "wsi", "mpp", "cohort", "tissue_mask", "x"]), texts, max_size=5), max_size=5
)
manifest = st.tuples(st.sampled_from(["m.csv", "m.tsv", "m.parquet"]), st.binary(max_size=200) | rows)


def manifest_case(case: object, scratch: Path) -> Outcome:
    """A manifest: slides whose names stay names, or a refusal."""
    name, content = case  # type: ignore[misc]
    path = scratch / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".parquet"):
        keys = sorted({k for row in content for k in row})
        pq.write_table(pa.table({k: pa.array([row.get(k) for row in content], pa.string()) for k in keys}), path)
    else:
        with path.open("w", encoding="utf-8", newline="", errors="surrogatepass") as stream:
            writer = csv.DictWriter(
                stream, sorted({k for row in content for k in row}), delimiter="," if name == "m.csv" else "\t"
            )
            writer.writeheader()
            writer.writerows(content)

    def work() -> None:
        for slide in collect_slides([str(path)]):
            assert slide.slide_id not in ("", ".", "..")
            assert not set("/\\\0") & set(slide.slide_id)
            assert (scratch / "parts" / slide.slide_id).resolve().parent == (scratch / "parts").resolve()

    return said_no(work)


scalars = texts | st.integers() | st.floats() | st.booleans() | st.none()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
STAGES = [(s, f) for s, part in RunConfig().as_dict().items() for f in part]
known_options = st.lists(st.tuples(st.sampled_from(STAGES), values), max_size=4)
config = st.binary(max_size=200) | known_options | st.dictionaries(texts, values, max_size=3)


def config_case(case: object, scratch: Path) -> Outcome:
    """Bytes as a TOML file, or a tree as TOML would give it: a config or a refusal."""
    if isinstance(case, bytes):
        (scratch / "c.toml").write_bytes(case)
        return said_no(lambda: RunConfig.from_toml(scratch / "c.toml"))
    tree: dict[str, object] = dict(case) if isinstance(case, dict) else {}
    for (stage, option), value in case if isinstance(case, list) else ():
        part = tree.setdefault(stage, {})
        assert isinstance(part, dict)
        part[option] = value
    return said_no(lambda: RunConfig.from_dict(tree).digest())


GEOJSON = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "a",
            "geometry": {"type": "Polygon", "coordinates": [[[10, 10], [30, 10], [30, 30], [10, 30], [10, 10]]]},
            "properties": {"objectType": "detection", "classification": {"name": "Tumor", "color": [1, 2, 3]}},
        }
    ],
}
QUIP = "AreaInPixels,PhysicalSize,ClassId,Polygon\n400,25.0,1,[10.0:10.0:30.0:10.0:30.0:30.0:10.0:30.0]\n"
import_seed = st.integers(0, 2**32 - 1)


def import_case(seed: object, scratch: Path) -> Outcome:
    """Damaged GeoJSON or CSV of other tools: a run folder or a refusal, and nothing written beside it."""
    from wsiseg.export.imports import ImportOptions, import_files

    rng = random.Random(int(seed))  # type: ignore[call-overload]
    inside = scratch / "in"
    inside.mkdir()
    fmt = rng.choice(("qupath", "geojson", "quip"))
    fmt = fmt if fmt in import_formats() else "qupath"
    if fmt == "quip":
        (inside / "slide").mkdir()
        path = inside / "slide"
        (path / "0_0_4000_4000_0.25_1-features.csv").write_bytes(damaged_text(QUIP, rng))
    else:
        path = inside / "slide.geojson"
        tree = json.loads(json.dumps(GEOJSON))
        if rng.random() < 0.5:
            spoil(tree, rng)
            path.write_text(json.dumps(tree))
        else:
            path.write_bytes(damaged_text(json.dumps(GEOJSON), rng))
    before = listing(scratch)

    def work() -> None:
        import_files([path], fmt, scratch / "out", ImportOptions(mpp=0.25))

    outcome = said_no(work)
    strange = {p for p in listing(scratch) - before if not p.startswith("out")}
    assert not strange, strange
    return outcome


def import_formats() -> tuple[str, ...]:
    from wsiseg.export.imports import IMPORT_FORMATS

    return IMPORT_FORMATS


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


ODD = (None, True, -1, 0, 1e308, -1e308, 2**63, "", "x", "../../../x", [], {}, [[]], [[None]], "NaN", 1e-320)


def spoil(tree: object, rng: random.Random) -> None:
    """Put an odd value somewhere into a JSON tree, or take something away."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
        if not keys:
            return
        key = rng.choice(keys)
        child = tree[key]  # type: ignore[index]
        if isinstance(child, dict | list) and child and rng.random() < 0.8:
            tree = child
            continue
        if rng.random() < 0.25:
            del tree[key]  # type: ignore[attr-defined]
        else:
            tree[key] = rng.choice(ODD)  # type: ignore[index]
        return


def damaged_text(text: str, rng: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 5)):
        if not data:
            break
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 20)]
        elif kind == 2:
            data[at:at] = rng.choice(
                (b"[" * 50, b"{", b"}", b"]", b'"', b",", b"1e999", b"NaN", b"-", b"\xff\xfe", b"null", b"[[" * 3000)
            )
        else:
            data = data[: max(1, at)]
    return bytes(data)


# a run folder

run_seed = st.integers(0, 2**32 - 1)


def run_folder_case(case: object, scratch: Path) -> Outcome:
    """A run folder with one damaged file: status, errors and verify say so or work, and none of them writes a byte."""
    seed, whole = case  # type: ignore[misc]
    rng = random.Random(seed)
    root = scratch / "run"
    shutil.copytree(whole, root)
    victim = rng.choice(sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size))
    data = victim.read_bytes()
    if victim.suffix == ".json" and rng.random() < 0.6:
        tree = json.loads(data)
        spoil(tree, rng)
        victim.write_text(json.dumps(tree))
    else:
        victim.write_bytes(damaged(data, rng))
    before = {p: (root / p).stat().st_mtime_ns for p in listing(root)}
    outcomes = [said_no(lambda: run_status(root)), said_no(lambda: group_errors(root))]
    found: list[bool] = []
    outcomes.append(said_no(lambda: found.append(verify_run(root).ok)))
    assert {p: (root / p).stat().st_mtime_ns for p in listing(root)} == before
    return "refused" if "refused" in outcomes or found == [False] else "accepted"


# the review server

PATHS = (
    "/",
    "/api/state",
    "/api/mark",
    "/patch/",
    "/slide/0",
    "/slide/0/tile/0/0/0.jpg",
    "/slide/0/nuclei",
    "/review.js",
    "/x",
)
TAILS = (
    "", "?queue=patches", "?queue=\0", "/../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "?x=1e999&y=nan&w=1&h=1",
    "?x=0&y=0&w=16384&h=16384", "..%5c..%5c", "a" * 3000, "/-1/99999999999999999999/0.jpg", "%00", "?token=%ff", "//",
    "?" + "a=&" * 500,
)  # fmt: skip
request = st.tuples(
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "OPTIONS", "TRACE"]),
    st.sampled_from(PATHS),
    st.sampled_from(TAILS),
    st.binary(max_size=60)
    | st.builds(
        lambda t: json.dumps(t).encode(),
        st.dictionaries(st.sampled_from(["queue", "item", "mark", "comment", "seconds"]), values, max_size=5),
    ),
    st.sampled_from(["own", "own", "own", "none", "foreign", "host", "origin"]),
)


def request_case(case: object, port: int, cookie: str) -> Outcome:
    """A request: an answer in time, never a 5xx, never any data without the token."""
    method, path, tail, body, who = case  # type: ignore[misc]
    headers = {"Cookie": {"none": "", "foreign": cookie[:-3] + "abc"}.get(who, cookie), "Content-Type": "application/json"}
    if who == "host":
        headers["Host"] = "evil.example"
    if who == "origin":
        headers["Origin"] = "http://evil.example"
    target = (path + tail).encode("latin-1", "replace").decode("latin-1").replace("\0", "%00").replace(" ", "%20")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CASE_S)
    try:
        connection.request(method, target, body if method in ("POST", "PUT") else None, headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    assert answer.status < 500, (case, answer.status, data[:300])
    assert answer.getheader("access-control-allow-origin") is None
    assert b"root:" not in data
    if who != "own":
        assert answer.status in (400, 403, 405, 421), (case, answer.status)
    return "accepted" if answer.status < 400 else "refused"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wsiseg-fuzz-") as name:
        yield Path(name)


def small_run(folder: Path, run_here: Callable[..., object]) -> Path:
    """Make a run of two tiny slides, one of which fails, and what a review needs."""
    import openslide
    from PIL import Image

    from wsiseg.qc.patch_pictures import make_patches
    from wsiseg.qc.runs import load_run

    with openslide.OpenSlide(SLIDE) as slide:
        slide.read_region((1000, 1200), 0, (300, 260)).convert("RGB").save(folder / "tissue.png")
    Image.new("RGB", (300, 260), "white").save(folder / "broken.png")
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:200])
    root = folder / "run"
    run_here("segment", folder / "tissue.png", folder / "broken.png", "--mpp", "0.499", "--out", root)
    make_patches(load_run(root), 2)
    return root


@contextlib.contextmanager
def review_server(root: Path) -> Iterator[tuple[int, str]]:
    """Serve a run's review page; yield its port and the cookie of one who may come in."""
    import threading

    from wsiseg.qc.review_run import open_review
    from wsiseg.qc.runs import load_run

    server, slide_cache = open_review(load_run(root), "fuzz")
    with server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + CASE_S
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=CASE_S)
            try:
                connection.request("GET", f"/?token={server.token}")
                cookie = str(connection.getresponse().getheader("set-cookie")).split(";")[0]
                break
            except ConnectionError:
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.05)
            finally:
                connection.close()
        yield server.port, cookie
        server.stop()
        thread.join(20)
        slide_cache.close()
