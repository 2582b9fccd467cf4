"""Classes of nuclei as other programs show them: a name for each nucleus, colors, and numbers of names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsiseg.tables.source import Chunk

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CLASS_RGB", "PLAIN_CLASS", "ClassCodes", "shown_classes"]

PLAIN_CLASS = "Nucleus"
"""Name shown for nuclei without a class."""

CLASS_RGB = (
    (0, 200, 83),
    (255, 64, 64),
    (64, 96, 255),
    (255, 176, 0),
    (176, 64, 224),
    (0, 192, 208),
    (150, 110, 60),
    (240, 90, 170),
)
"""Colors of classes in order of first appearance, repeated after the last."""


def shown_classes(chunk: Chunk) -> pa.StringArray:
    """Return the class name of each nucleus of a chunk that was read with ``class_name``; ``PLAIN_CLASS`` if it has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "class_name" not in chunk.table.column_names:
        return pa.array([PLAIN_CLASS] * len(chunk), pa.string())
    names = chunk.table["class_name"].combine_chunks().cast(pa.string()).fill_null("")
    return pc.if_else(pc.equal(names, ""), PLAIN_CLASS, names)


@dataclass(slots=True)
class ClassCodes:
    """Integer codes of class names, numbered in order of first appearance."""

    names: dict[str, int] = field(default_factory=dict)

    def of(self, classes: pa.StringArray) -> npt.NDArray[np.int32]:
        """Return the codes of names without nulls, and number those that are new."""
        column = classes.dictionary_encode()
        found = [self.names.setdefault(name, len(self.names)) for name in column.dictionary.to_pylist()]
        codes: npt.NDArray[np.int32] = np.array(found, np.int32)[column.indices.to_numpy()]
        return codes
