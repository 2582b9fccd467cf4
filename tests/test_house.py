"""Structure of the code: which package may import which, where third parties are imported, limits on size."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wsiseg"
MODULES = sorted(PACKAGE.rglob("*.py"))

FOUNDATION = {"atomic", "config", "decode", "types", "errors", "log"}
LOWER = {"backend", "coordinates", "labels", "libraries", "tables", "rows", "schema"} | FOUNDATION
DATA = {"metrics", "datasets"}
STEPS = {"fetch", "read", "normalize", "predict", "separate", "vectorize", "write", "summarize"}
SHARED = {"results", "cluster", "pipeline"}
TASKS = {"run", "qc", "export", "evaluation", "questions", "train"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "atomic": {"errors"},
    "config": {"decode", "errors"},
    "decode": {"errors"},
    "types": {"errors"},
    "libraries": {"errors"},
    "log": {"errors"},
    "rows": {"schema"},
    "schema": {"config", "types", "errors"},
    "coordinates": {"types", "errors"},
    "labels": {"atomic", "config", "types", "errors"},
    "tables": {"atomic", "decode", "schema", "labels", "config", "types", "errors"},
    "backend": {"config", "types", "errors"},
    "metrics": {"labels", "errors"},
    "datasets": {"tables", "labels", "errors"},
    **dict.fromkeys(STEPS, LOWER),  # a step never imports another step
    "pipeline": STEPS | LOWER,
    "cluster": LOWER,
    "results": STEPS | LOWER,
    **dict.fromkeys(TASKS, SHARED | STEPS | DATA | LOWER),  # a task never imports another task
    "papers": TASKS | SHARED | STEPS | DATA | LOWER,
    "cli": {"papers", "results", "cluster", "datasets", "coordinates", "config", "decode", "errors", "log", "rows"} | TASKS,
    "library": TASKS | SHARED | STEPS | DATA | LOWER,
    "__init__": {"library"},  # the functions for Python, loaded when asked for
    "__main__": {"cli"},
}
THIRD_PARTIES: dict[str, tuple[str, ...]] = {
    "cupy": ("backend/cuda.py",),
    "cupyx": (),
    "cucim": ("read/cuslide.py",),
    "torch": ("predict/", "train/", "backend/dlpack.py"),
    "openslide": ("read/openslide.py",),
    "highdicom": ("export/",),
    "pydicom": ("read/dicom.py", "export/"),
    "urllib3": ("fetch/web.py",),
    "fsspec": ("fetch/stores.py",),
    "dask": ("cluster/",),
    "distributed": ("run/", "cluster/"),
    "zarr": ("write/maps.py", "read/array.py", "labels/stores.py", "export/", "datasets/"),
}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def package_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


@functools.cache
def imports_of(path: Path) -> tuple[tuple[str, int], ...]:
    return tuple(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def test_every_package_is_known() -> None:
    assert {package_of(p) for p in MODULES} <= set(MAY_IMPORT)


def test_layers() -> None:
    wrong = set()
    for path in MODULES:
        package = package_of(path)
        for name, line in imports_of(path):
            if not name.startswith("wsiseg."):
                continue
            target = name.split(".")[1]
            if target in MAY_IMPORT and target not in {package, "__init__"} and target not in MAY_IMPORT[package]:
                wrong.add(f"{path.relative_to(ROOT)}:{line} imports wsiseg.{target}")
    assert not wrong, "\n".join(sorted(wrong))


def test_third_parties_are_imported_in_their_modules_only() -> None:
    wrong = []
    for path in MODULES:
        where = path.relative_to(PACKAGE).as_posix()
        for name, line in imports_of(path):
            allowed = THIRD_PARTIES.get(name.split(".")[0])
            if allowed is not None and not any(where == d or (d.endswith("/") and where.startswith(d)) for d in allowed):
                wrong.append(f"{where}:{line} imports {name}")
            if name.split(".")[0] == "numba" and not path.name.startswith("_cpu"):
                wrong.append(f"{where}:{line} imports numba outside a _cpu module")
            if name.split(".")[0] in {"numba", "llvmlite"} and where != "backend/_cpu_jit.py":
                wrong.append(f"{where}:{line} imports {name}: kernels are compiled by backend._cpu_jit.jit alone")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_no_import_cycle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    for module, path in names.items():
        graph[module] = {t for t, _ in imports_of(path) if t in names and t != module}
    state: dict[str, int] = {}

    def visit(module: str, trail: list[str]) -> None:
        state[module] = 1
        for target in sorted(graph[module]):
            # a package's __init__ imports its own modules; they may name the package only for its submodules
            if state.get(target) == 1 and not module.startswith(f"{target}."):
                pytest.fail(" -> ".join([*trail, module, target]))
            if target not in state:
                visit(target, [*trail, module])
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            visit(module, [])


def test_modules_and_functions_stay_short() -> None:
    wrong = []
    for path in MODULES:
        n_lines = path.read_text(encoding="utf-8").count("\n")
        if n_lines > 400:
            wrong.append(f"{path.relative_to(ROOT)}: {n_lines} lines (400 at most)")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                doc = (
                    isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
                )
                start = (first.end_lineno or node.lineno) if doc else node.lineno
                length = (node.end_lineno or start) - start
                if length > 60:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines of body (60 at most)")
    assert not wrong, "\n".join(wrong)


MAX_PARAMETERS = 7
MORE_PARAMETERS = {
    # keyword-only options of a function for users
    "evaluation/paths.py evaluate_paths", "export/query.py read_nuclei",
    # compiled kernels take arrays, not objects
    "normalize/_cpu_stain.py transfer_log_lms", "separate/_cpu_flood.py empty_frame", "separate/_cpu_flood.py fill_frame",
    "separate/_cpu_flood.py flood_all", "separate/_cpu_flood.py flood_frame", "vectorize/_cpu.py trace_ring",
    "summarize/_cpu_features.py add_ring_densities", "summarize/_cpu_features.py count_near",
}  # fmt: skip


def test_functions_have_few_parameters() -> None:
    found = set()
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([a for a in args if a.arg not in {"self", "cls"}]) > MAX_PARAMETERS:
                    found.add(f"{path.relative_to(PACKAGE).as_posix()} {node.name}")
    assert found <= MORE_PARAMETERS, f"more than {MAX_PARAMETERS} parameters: {sorted(found - MORE_PARAMETERS)}"
    assert found >= MORE_PARAMETERS, f"no longer exceptions: {sorted(MORE_PARAMETERS - found)}"


OWN_SCHEMAS = {
    "tables/arrow.py": "makes them of wsiseg.schema",
    "export/query.py": "keys in the names of a cohort's folders",
    "export/spatial.py": "polygons as SpatialData reads them",
}


def test_columns_are_in_the_schema() -> None:
    """A table that a user can read has its columns in ``wsiseg.schema``, and so in docs/tables.md."""
    schemas, columns = set(), set()
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"pa.schema", "pyarrow.schema"}:
                schemas.add(path.relative_to(PACKAGE).as_posix())
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Column", "schema.Column"}:
                columns.add(package_of(path))
    assert schemas == set(OWN_SCHEMAS)
    assert columns == {"schema"}


OPAQUE_DICTS = {
    "options, as TOML, the command line and the run's record have them": {
        "cli/options.py", "config.py", "train/config.py", "train/presets.py",
    },
    "between records and JSON": {"decode.py", "rows.py", "fetch/staged.py", "fetch/download.py", "run/worker.py", "run/job.py"},
    "messages to another process or page": {"qc/review/session.py", "run/readers.py"},
    "keyword arguments of another library": {
        "cluster/spread.py", "export/closed.py", "run/worker_pool.py",
        "questions/regions.py", "write/nuclei.py",
    },
    "cards of networks and quality models": {
        "predict/engine.py", "predict/weights.py", "qc/prediction.py", "qc/report_run.py", "train/training.py",
    },
    "JSON in the metadata of tables": {
        "questions/neighbors.py", "run/feature_table.py", "run/features.py", "run/finish.py", "tables/arrow.py",
        "tables/geo.py", "tables/source.py", "write/parts.py",
    },
    "files of other programs": {
        "datasets/patches.py", "datasets/samples.py", "datasets/formats/layout.py", "export/cellvit.py", "export/geojson.py",
        "export/pyramid.py", "export/qupath_project.py", "export/quip.py", "export/spatial.py", "export/tissuumaps.py",
        "export/xenium.py", "fetch/stores.py", "labels/arrays.py", "questions/transforms.py",
        "results/manifest_file.py", "tables/cells.py", "tables/jsonstream.py", "tables/outlines.py", "write/ome.py",
    },
    "JSON that is written for people": {
        "cli/commands_watch.py", "evaluation/compare/run.py", "evaluation/paths.py", "evaluation/reports.py", "qc/report.py",
        "run/inspect.py", "train/synthesis.py",
    },
}  # fmt: skip
"""Where a ``dict[str, Any]`` goes from function to function or is kept in a record; all other records are frozen values."""


def test_records_are_typed() -> None:
    found = set()
    for path in MODULES:
        tree = tree_of(path)
        hints: list[ast.expr | None] = [n.value for n in tree.body if isinstance(n, ast.Assign)]
        for node in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]:
            if isinstance(node, ast.ClassDef):
                hints += [n.annotation for n in node.body if isinstance(n, ast.AnnAssign)]
            else:
                hints += [a.annotation for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
                hints.append(node.returns)
        texts = {ast.unparse(n) for h in hints if h is not None for n in ast.walk(h) if isinstance(n, ast.Subscript)}
        if texts & {"dict[str, Any]", "dict[str, object]"}:
            found.add(path.relative_to(PACKAGE).as_posix())
    named = set().union(*OPAQUE_DICTS.values())
    assert found <= named, f"a dict where a record is wanted: {sorted(found - named)}"
    assert found >= named, f"no longer exceptions: {sorted(named - found)}"


REPLACES_FILES = {"atomic.py", "log.py", "results/staging.py", "fetch/download.py"}
"""Who may call os.replace: the atomic writer, a log that is rotated, and slides on a worker's own disk, copied or fetched."""


def test_files_are_written_by_the_atomic_writer() -> None:
    found = set()
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.replace", "os.rename", "shutil.move"}:
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found == REPLACES_FILES


def test_exceptions_are_needed() -> None:
    """Every permission above is used: a stale one would let a new import in unseen."""
    imported: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        for name, _ in imports_of(path):
            imported[name.split(".")[0]].add(path.relative_to(PACKAGE).as_posix())
    for name, allowed in THIRD_PARTIES.items():
        for place in allowed:
            assert any(p == place or (place.endswith("/") and p.startswith(place)) for p in imported[name]), f"{name}: {place}"
    assert set(MAY_IMPORT) == {package_of(p) for p in MODULES}


def test_one_broad_except_and_no_print() -> None:
    broad, prints = [], []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler):
                names = [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)] if node.type else ["bare"]
                cleans_up = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if {"Exception", "BaseException", "bare"} & set(names) and not cleans_up:
                    broad.append(where)
                if len(node.body) == 1 and isinstance(node.body[0], ast.Pass) and {"Exception", "bare"} & set(names):
                    broad.append(f"{where} swallows everything")
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
                and package_of(path) != "cli"
            ):
                prints.append(where)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, where
    assert len(broad) <= 1, broad
    assert not prints, prints


def test_no_unsafe_loader() -> None:
    for path in MODULES:
        for name, line in imports_of(path):
            assert name.split(".")[0] not in {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, f"{path}:{line}"


def test_import_is_light() -> None:
    code = (
        "import sys, wsiseg; "
        "heavy = {'torch', 'cupy', 'openslide', 'dask', 'distributed', 'pyarrow', 'numba', 'zarr', 'shapely'}; "
        "heavy &= set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_packages_have_a_docstring_and_sorted_exports(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            exported = ast.literal_eval(node.value)
            assert exported == sorted(exported), f"{path}: __all__ is not sorted"


def test_readme_map_names_every_package() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [d.name for d in sorted(PACKAGE.iterdir()) if (d / "__init__.py").exists() and f"wsiseg/{d.name}/" not in readme]
    assert not missing, f"the README's map of packages lacks {missing}"
