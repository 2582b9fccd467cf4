"""Write a run as a QuPath project: its slides as images, their nuclei as GeoJSON, and a script that loads them.

``project.qpproj`` holds what QuPath's own writer does (``DefaultProject``, read by QuPath 0.2 and later; compared with projects
that 0.6 and 0.7 saved). QuPath's ``data.qpdata`` is serialized Java, which only QuPath writes: the script makes it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from wsiseg.errors import EmptyExportError, InputError, WsisegError
from wsiseg.export.qupath import write_geojson
from wsiseg.export.text import NAMESPACE
from wsiseg.read import Slide
from wsiseg.results.reopen import slide_of_table
from wsiseg.tables import atomic_folder
from wsiseg.tables.source import Exported, NucleiFile, Selection

__all__ = ["SCRIPT_NAME", "write_qupath_project"]

VERSION = "0.4.0"
"""Version of QuPath whose form of a project this is; later ones read it and state their own when they save."""

SCRIPT_NAME = "Load nuclei of all images"
THUMBNAIL_PX = 1000
BUILDERS = {
    "openslide": ("qupath.lib.images.servers.openslide.OpenslideServerBuilder", []),
    "cucim": ("qupath.lib.images.servers.openslide.OpenslideServerBuilder", []),
    "pillow": ("qupath.lib.images.servers.bioformats.BioFormatsServerBuilder", ["--series", "0"]),
    "tifffile": ("qupath.lib.images.servers.bioformats.BioFormatsServerBuilder", ["--series", "0"]),
}
"""QuPath's reader, and its arguments, for what each reader of wsiseg opens."""

RGB = (("Red", -65536), ("Green", -16711936), ("Blue", -16776961))
"""Channels of a picture and their colors as QuPath counts them: ARGB as a signed 32-bit number."""

SCRIPT = """// Loads nuclei/<image name>.geojson.gz into every image of this project: choose Run > Run.
// No image needs to be open. Run again, it replaces the same nuclei; what you drew stays.
import qupath.lib.images.ImageData
import qupath.lib.io.PathIO

def project = getProject()
def opened = getProjectEntry()
for (entry in project.getImageList()) {
    def file = new File(buildFilePath(PROJECT_BASE_DIR, 'nuclei', entry.getOriginalImageName() + '.geojson.gz'))
    if (!file.exists()) {
        println 'no nuclei for ' + entry.getOriginalImageName() + ' (' + file + ')'
        continue
    }
    def data = entry == opened ? getCurrentImageData() : entry.readImageData()
    if (data.getImageType() == ImageData.ImageType.UNSET)
        data.setImageType(ImageData.ImageType.BRIGHTFIELD_H_E)
    def nuclei = PathIO.readObjects(file.toPath())
    def ids = nuclei.collect { it.getID() } as Set
    def hierarchy = data.getHierarchy()
    hierarchy.removeObjects(hierarchy.getDetectionObjects().findAll { ids.contains(it.getID()) }, true)
    hierarchy.addObjects(nuclei)
    entry.saveImageData(data)
    println nuclei.size() + ' nuclei loaded into ' + entry.getOriginalImageName()
}
"""


def write_qupath_project(
    sources: Sequence[NucleiFile],
    out: Path,
    selection: Selection | None = None,
    *,
    path_map: Sequence[str] = (),
    overwrite: bool = False,
) -> Iterator[Exported]:
    """Write the folder ``out``: ``project.qpproj``, ``nuclei/*.geojson.gz``, thumbnails, the script; yield each slide's result.

    Parameters
    ----------
    sources
        Tables of run folders; of tables ``with_cells`` the GeoJSON has cells.
    path_map
        New paths of slides that were moved.

    Raises
    ------
    InputError
        ``out`` exists, and ``overwrite`` is not set or QuPath has saved work in it; or QuPath cannot read the one slide.
    SlideOpenError
        The one slide is not there, or is not the file that was segmented. Of several slides, such ones are left out, with
        ``error`` set.
    EmptyExportError
        No table has a nucleus.
    """
    if saved := sorted(out.glob("data/*/data.qpdata")):
        raise InputError(f"{out}: QuPath has saved work in this project ({saved[0]}). Choose another --out.")
    results: list[Exported] = []
    images: list[dict[str, Any]] = []
    with atomic_folder(out, overwrite=overwrite) as folder:
        (folder / "nuclei").mkdir()
        for source in sources:
            number = len(images) + 1
            try:
                image = _image(source, number, folder, path_map)
                done = write_geojson(source, folder / "nuclei" / f"{source.path.stem}.geojson.gz", selection)
            except WsisegError as err:
                if len(sources) == 1:
                    raise
                results.append(Exported(source.path, 0, error=str(err)))
                continue
            images.append(image)
            results.append(Exported(out, done.n_nuclei, done.n_repaired, done.n_dropped))
        if not sum(r.n_nuclei for r in results) and not any(r.error for r in results):
            raise EmptyExportError(f"{out}: not written, because no slide has a nucleus to show.")
        if images:
            _write_project(folder, out, images, max(s.path.stat().st_mtime_ns for s in sources))
    yield from results


def _image(source: NucleiFile, number: int, folder: Path, path_map: Sequence[str]) -> dict[str, Any]:
    """Return the entry of one slide, and write its thumbnail."""
    with closing(slide_of_table(source.path, path_map)) as slide:
        entry = _entry(slide, source.path.stem, number)
        place = folder / "data" / str(number)
        place.mkdir(parents=True)
        Image.fromarray(slide.thumbnail(THUMBNAIL_PX)).save(place / "thumbnail.jpg", quality=90)
    return entry


def _entry(slide: Slide, name: str, number: int) -> dict[str, Any]:
    meta = slide.meta
    if meta.reader not in BUILDERS:
        raise InputError(f"Slide {name}: {meta.path} is read by {meta.reader}, and QuPath has no reader for it.")
    provider, args = BUILDERS[meta.reader]
    path = Path(meta.path).absolute()
    if path.is_dir():  # DICOM: OpenSlide finds the other files of a series by one of them
        path = next(p for p in sorted(path.rglob("*")) if p.is_file())
    return {
        "serverBuilder": {
            "builderType": "uri", "providerClassName": provider, "uri": path.as_uri(), "args": args,
            **({} if args else {"metadata": _metadata(slide, name)}),  # Bio-Formats counts levels in its own way
        },
        "entryID": number,
        "randomizedName": str(uuid.uuid5(NAMESPACE, f"qupath image {name}")),
        "imageName": name,
        "metadata": {},
    }  # fmt: skip


def _metadata(slide: Slide, name: str) -> dict[str, Any]:
    """Return size, levels and pixel size as QuPath's OpenSlide reader shows them: of the scanned area where there is one."""
    meta = slide.meta
    bounded = bool(meta.bounds_w and meta.bounds_h)
    width, height = (meta.bounds_w, meta.bounds_h) if bounded else (meta.width_px, meta.height_px)
    levels = []
    for downsample, size in zip(meta.level_downsamples, slide.level_sizes_px, strict=True):
        w, h = (int(width / downsample), int(height / downsample)) if bounded else size
        levels.append({"downsample": float(downsample), "width": w, "height": h})
    side = {"value": meta.mpp, "unit": "µm"}
    return {
        "name": name, "width": width, "height": height, "sizeZ": 1, "sizeT": 1, "channelType": "DEFAULT", "isRGB": True,
        "pixelType": "UINT8", "levels": levels, "channels": [{"name": n, "color": c} for n, c in RGB],
        "pixelCalibration": {
            "pixelWidth": side, "pixelHeight": side, "zSpacing": {"value": 1.0, "unit": "z-slice"}, "timeUnit": "SECONDS",
            "timepoints": [],
        },
        "preferredTileWidth": 256, "preferredTileHeight": 256,
    }  # fmt: skip


def _write_project(folder: Path, out: Path, images: list[dict[str, Any]], time_ns: int) -> None:
    """Write the project's own file and the script; ``out`` is where the folder will be."""
    project = {
        "version": VERSION,
        "createTimestamp": time_ns // 1_000_000,
        "modifyTimestamp": time_ns // 1_000_000,
        "uri": (out.absolute() / "project.qpproj").as_uri(),
        "lastID": len(images),
        "images": images,
    }
    text = json.dumps(project, indent=2, ensure_ascii=False)
    (folder / "project.qpproj").write_text(text, encoding="utf-8")
    (folder / "scripts").mkdir()
    (folder / "scripts" / f"{SCRIPT_NAME}.groovy").write_text(SCRIPT, encoding="utf-8")
