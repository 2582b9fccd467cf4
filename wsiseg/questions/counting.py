"""Count points per nucleus and gene, batch by batch, as a sparse matrix, and write it as AnnData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.libraries import optional
from wsiseg.questions.nucleus_index import NucleusIndex
from wsiseg.tables import atomic_file
from wsiseg.tables.source import NucleiFile
from wsiseg.write.elements import growing, put_dict, put_frame, put_number, put_order, put_texts, tell

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Counts", "add_matrix", "write_counts"]

GENE_BITS = 20
MERGE_AT = 1 << 23
BLOCK_VALUES = 1 << 22

Int = npt.NDArray[np.int64]


class Counts:
    """Sums by (nucleus, gene); only pairs that occur are stored, 16 bytes each, plus those since the last merge."""

    def __init__(self) -> None:
        self.genes: dict[str, int] = {}
        self._keys: list[Int] = []
        self._sums: list[Int] = []
        self._pending = 0

    def add(self, rows: npt.NDArray[np.int32], genes: pa.ChunkedArray | None) -> None:
        """Count points.

        Parameters
        ----------
        rows
            Row of each point's nucleus in the table; negative: none.
        genes
            Gene of each point; None: all points count as one gene, ``points``.
        """
        inside = np.flatnonzero(rows >= 0)
        if genes is None:
            code = np.full(len(inside), self.code("points"), np.int64)
        else:
            code = self._codes(genes)[inside]
        key = np.sort((rows[inside].astype(np.int64) << GENE_BITS) | code)
        if len(key):
            first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
            self._put(key[first], np.diff(np.r_[first, len(key)]))

    def add_values(self, rows: Int, codes: Int, values: Int) -> None:
        """Add values to pairs of row and gene code; a pair may occur several times."""
        key = (rows << GENE_BITS) | codes
        order = np.argsort(key, kind="stable")
        self._put(*_summed(key[order], values[order]))

    def code(self, name: str) -> int:
        """Return the code of a gene; codes are given in order of first appearance, from 0."""
        found = self.genes.setdefault(name, len(self.genes))
        if found >= 1 << GENE_BITS:
            raise InputError(f"Expected at most {1 << GENE_BITS} different genes, got more. Check the column of --gene.")
        return found

    def pairs(self) -> tuple[Int, Int, Int]:
        """Return rows, gene codes and sums of the pairs that occur, sorted by row and then gene."""
        self._merge()
        if not self._keys:
            return (np.empty(0, np.int64),) * 3
        key = self._keys[0]
        return key >> GENE_BITS, key & ((1 << GENE_BITS) - 1), self._sums[0]

    def _codes(self, genes: pa.ChunkedArray) -> Int:
        import pyarrow as pa

        if pa.types.is_dictionary(genes.type):
            genes = genes.cast(genes.type.value_type)
        column = genes.cast(pa.string()).combine_chunks().fill_null("").dictionary_encode()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        known = np.array([self.code(name) for name in column.dictionary.to_pylist()], np.int64)
        return known[column.indices.to_numpy()] if len(known) else np.empty(0, np.int64)

    def _put(self, keys: Int, sums: Int) -> None:
        self._keys.append(keys)
        self._sums.append(sums)
        self._pending += len(keys)
        if self._pending > max(MERGE_AT, len(self._keys[0])):
            self._merge()

    def _merge(self) -> None:
        if len(self._keys) > 1:
            key, value = np.concatenate(self._keys), np.concatenate(self._sums)
            order = np.argsort(key, kind="stable")  # stable sort merges the two sorted runs
            keys, sums = _summed(key[order], value[order])
            self._keys, self._sums = [keys], [sums]
        self._pending = 0


def _summed(keys: Int, values: Int) -> tuple[Int, Int]:
    """Return the distinct keys of sorted keys, with the sum of the values of each."""
    if not len(keys):
        return keys, values
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    return keys[first], np.add.reduceat(values, first)


def add_matrix(counts: Counts, path: Path, barcodes: pa.ChunkedArray, rows: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Add the counts of a 10x matrix (``filtered_feature_bc_matrix.h5``) to the nuclei of its bins.

    Returns
    -------
    int, int
        Number of barcodes in the matrix, and of those without a position.

    Raises
    ------
    FormatError
        The file is not a 10x matrix, or none of its barcodes has a position.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    h5py = optional("h5py", "spatial")
    try:
        with h5py.File(str(path)) as file:
            matrix = file["matrix"]
            own = pa.array(matrix["barcodes"][:].astype(str))
            names = matrix["features/name"][:].astype(str).tolist()
            ids = matrix["features/id"][:].astype(str).tolist()
            at = pc.index_in(own, value_set=barcodes.combine_chunks().cast(pa.string())).fill_null(-1).to_numpy()
            if len(at) and (at < 0).all():
                raise FormatError(f"{path}: none of its {len(at):,} barcodes has a position, such as {own[0].as_py()!r}.")
            row_of = np.where(at >= 0, rows[at], -1).astype(np.int64)
            unique = {n for n in names if names.count(n) == 1} if len(names) < 1000 else _once(names)
            code = np.array([counts.code(n if n in unique else f"{n}_{i}") for n, i in zip(names, ids, strict=True)], np.int64)
            ends = matrix["indptr"][:].astype(np.int64)
            first = 0
            while first < len(own):
                last = max(first + 1, int(np.searchsorted(ends, ends[first] + BLOCK_VALUES, "right")) - 1)
                part = slice(int(ends[first]), int(ends[last]))
                owner = np.repeat(row_of[first:last], np.diff(ends[first : last + 1]))
                kept = owner >= 0
                gene, value = matrix["indices"][part].astype(np.int64), matrix["data"][part].astype(np.int64)
                counts.add_values(owner[kept], code[gene[kept]], value[kept])
                first = last
    except (OSError, KeyError, ValueError, IndexError) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: expected a 10x matrix (HDF5 with the group 'matrix'): {err!r}") from err
    return len(at), int((at < 0).sum())


def _once(names: list[str]) -> set[str]:
    values, count = np.unique(np.array(names), return_counts=True)
    return set(values[count == 1].tolist())


def write_counts(out: Path, nuclei: NucleusIndex, source: NucleiFile, counts: Counts) -> tuple[int, int]:
    """Write an ``.h5ad`` file with the counts as X (CSR, int32): one observation per nucleus, one variable per gene.

    Observations are in the order of the slide's table. ``obs`` has area and sum of counts, ``obsm["spatial"]`` the centroids in
    level-0 px.

    Returns
    -------
    int, int
        Number of genes, and of pairs of nucleus and gene that occur.

    Raises
    ------
    BackendUnavailableError
        h5py is not installed (extra ``spatial``).
    """
    h5py = optional("h5py", "spatial")
    rows, genes, sums = counts.pairs()
    n = len(nuclei.nucleus_id)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]).astype(np.int64)
    with atomic_file(out) as partial, h5py.File(str(partial), "w") as root:
        tell(root, "anndata", "0.1.0")
        matrix = tell(root.create_group("X"), "csr_matrix", "0.1.0")
        matrix.attrs["shape"] = np.array([n, len(counts.genes)], np.int64)
        for name, values in (("data", sums.astype(np.int32)), ("indices", genes.astype(np.int32)), ("indptr", starts)):
            packing = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if len(values) else {}
            matrix.create_dataset(name, data=values, **packing)
        obs = put_frame(root, "obs")
        put_texts(obs, "_index", nuclei.nucleus_id.astype(str).tolist())
        columns: dict[str, npt.NDArray[Any]] = {
            "area_um2": nuclei.area_um2.astype(np.float32),
            "n_counts": np.bincount(rows, sums, n).astype(np.int64),
        }
        for name, values in columns.items():
            growing(obs, name, values.dtype).append(values)
        put_order(obs, list(columns))
        var = put_frame(root, "var")
        put_texts(var, "_index", list(counts.genes))
        put_order(var, [])
        growing(put_dict(root, "obsm"), "spatial", "float64", 2).append(np.stack([nuclei.cx, nuclei.cy], axis=1))
        spatial = put_dict(put_dict(put_dict(root, "uns"), "spatial"), source.slide_id)
        put_number(put_dict(spatial, "metadata"), "mpp", source.mpp)
        scales = put_dict(spatial, "scalefactors")
        put_number(
            scales, "spot_diameter_fullres", float(np.sqrt(4 * nuclei.area_um2.mean() / np.pi) / source.mpp) if n else 0.0
        )
        put_number(scales, "tissue_hires_scalef", 1.0)
        put_dict(spatial, "images")
        for empty in ("layers", "obsp", "varm", "varp"):
            put_dict(root, empty)
    return len(counts.genes), len(sums)
