"""All commands speak one dialect: the same option means the same everywhere, and help states the defaults that are used."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsiseg.cli import options as cli_options
from wsiseg.cli.main import main
from wsiseg.config import RunConfig

ARCHAIC = re.compile(r"\b(anew|go(es)? on|lays? out|mended|foretold|so many|least)\b|without a word|speaks? of", re.IGNORECASE)


def walk(command: click.Command = main, path: str = "wsiseg") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}")


COMMANDS = dict(walk())
OPTIONS = [
    (path, p)
    for path, command in COMMANDS.items()
    for p in command.params
    if isinstance(p, click.Option) and not p.hidden and "--help" not in p.opts
]


def option(path: str, name: str) -> click.Option:
    return next(p for p in COMMANDS[path].params if isinstance(p, click.Option) and name in p.opts)


def default_value(p: click.Option) -> Any:
    """Return the default of an option, ``None`` where it has none (click marks that in its own way)."""
    return p.default if isinstance(p.default, int | float | str) else None


def shown_names(path: str, p: click.Option) -> list[str]:
    record = p.get_help_record(click.Context(COMMANDS[path], info_name=path))
    assert record is not None
    return re.findall(r"--?[a-z][a-z0-9-]*", record[0])


@pytest.mark.parametrize("path", COMMANDS)
def test_out_is_an_option_with_a_short_name(path: str) -> None:
    for p in COMMANDS[path].params:
        if isinstance(p, click.Option) and "--out" in p.opts:
            assert "-o" in p.opts
        assert not (isinstance(p, click.Argument) and p.name == "out")


def test_every_option_states_what_it_does() -> None:
    assert not [f"{path} {p.opts[0]}" for path, p in OPTIONS if not p.help]


@pytest.mark.parametrize(("name", "values"), [("--device", ["auto", "cpu", "cuda"]), ("--stain", None), ("--precision", None)])
def test_an_option_takes_the_same_values_everywhere(name: str, values: list[str] | None) -> None:
    found = {path: p.type for path, p in OPTIONS if name in shown_names(path, p)}
    assert found
    for path, kind in found.items():
        assert isinstance(kind, click.Choice), path
        assert list(kind.choices) == (values or list(next(iter(found.values())).choices)), path  # type: ignore[attr-defined]


def test_slide_is_the_id_of_a_slide_and_tile_is_in_working_pixels() -> None:
    for path, p in OPTIONS:
        if "--slide" in shown_names(path, p):
            assert (p.metavar, p.multiple) == ("SLIDE_ID", True), path
        if "--tile" in shown_names(path, p):
            assert "pixels at the model's resolution" in str(p.help), path
        assert "--origin" not in shown_names(path, p), path


CONFIG_FIELDS = {f"{stage}.{field}" for stage, field in cli_options._FIELDS.values()}


@pytest.mark.parametrize("path", ["wsiseg segment", "wsiseg plan", "wsiseg evaluate model"])
def test_help_shows_the_defaults_of_the_config(path: str) -> None:
    """A default in brackets that is a value (no explanation in words) is the config's; ``None`` and 0 mean: chosen."""
    shown = 0
    for p in COMMANDS[path].params:
        if p.name not in cli_options._FIELDS or not isinstance(p, click.Option):
            continue
        stage, field = cli_options._FIELDS[p.name]
        default = getattr(getattr(RunConfig(), stage), field)
        assert default_value(p) in (None, "") or p.multiple or p.is_flag, "the command line would win over the file's value"
        stated = re.search(r"\[([^]]*)\]$", str(p.help))
        if default in (None, "", 0, (), False) or stated is None:
            continue
        assert re.split(r"[:,;]", stated[1])[0] == (f"{default:g}" if isinstance(default, float) else str(default)), p.opts
        shown += 1
    assert shown >= 3


def other_defaults() -> list[tuple[str, Any, dict[str, str]]]:
    from wsiseg.export.convert import ExportOptions
    from wsiseg.export.imports import ImportOptions
    from wsiseg.papers.ranking import RankOptions
    from wsiseg.papers.unified import UnifyOptions
    from wsiseg.qc.outliers import TailRule
    from wsiseg.run.features import FeatureOptions
    from wsiseg.train.synthesis import RefineConfig, SynthConfig

    sets = UnifyOptions(())
    return [
        ("wsiseg export", ExportOptions(), {}),
        ("wsiseg import", ImportOptions(), {"--scale": ""}),  # None: the file's own
        ("wsiseg features", FeatureOptions(), {}),
        ("wsiseg qc outliers", TailRule(), {"--method": ""}),
        ("wsiseg synth make", SynthConfig(), {"--patch": "patch_px"}),
        ("wsiseg synth refine", RefineConfig(), {"--crop": "crop_px", "--device": ""}),
        ("wsiseg rank", RankOptions(), {"--patch": "patch_px", "--min-object-px": "least_px", "--device": ""}),
        ("wsiseg rank", sets, {"--tile-px": "side", "--sets": ""}),
    ]


def test_defaults_of_other_commands_are_those_of_their_options() -> None:
    for path, values, names in other_defaults():
        fields = {f.name: getattr(values, f.name) for f in dataclasses.fields(values)}
        compared = 0
        for p in COMMANDS[path].params:
            if not isinstance(p, click.Option) or p.required:
                continue
            field = next((names[name] for name in p.opts if name in names), p.name)
            if field in fields and not p.multiple and not p.is_flag and default_value(p) not in (None, ""):
                assert p.default == fields[field], f"{path} {p.opts[0]}"
                compared += 1
        assert compared, path


def test_help_is_in_plain_words() -> None:
    for path, command in COMMANDS.items():
        text = command.get_help(click.Context(command, info_name=path, max_content_width=200, terminal_width=200))
        assert not ARCHAIC.search(text), f"{path}: {ARCHAIC.search(text)}"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("wsiseg import", "--slide", "slide"), ("wsiseg import", "--origin", "frame"), ("wsiseg export", "--origin", "frame"),
        ("wsiseg export", "--tile", "tile_px"), ("wsiseg export", "--cell", "cell_px"), ("wsiseg features", "--stain", "stain"),
        ("wsiseg evaluate files", "--origin", "corner"), ("wsiseg rank", "--tile", "side"),
        ("wsiseg rank", "--least", "least_px"),
    ],
)  # fmt: skip
def test_names_of_earlier_versions_are_understood_and_not_shown(path: str, old: str, new: str) -> None:
    p = option(path, old)
    assert p.name == new
    assert old not in shown_names(path, p)


def squares(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    labels = np.zeros((40, 40), np.uint16)
    labels[4:14, 4:14], labels[20:34, 18:30] = 1, 2
    Image.fromarray(labels).save(path)
    return path


@pytest.mark.parametrize("name", ["model", "files", "observers"])
def test_evaluate_takes_a_folder_with_the_name_of_a_subcommand(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    squares(tmp_path / name / "a.png")
    squares(tmp_path / "truth" / "a.png")
    monkeypatch.chdir(tmp_path)
    for k, line in enumerate(([name, "truth"], ["--summary", name, "truth"], ["truth", name])):
        line += ["-o", f"scores{k}.json"]
        done = CliRunner().invoke(main, ["evaluate", *line])
        assert done.exit_code == 0, done.output
        assert Path(f"scores{k}.json").is_file()
    done = CliRunner().invoke(main, ["evaluate", "files", name, "truth"])
    assert done.exit_code == 0, done.output
    help_text = CliRunner().invoke(main, ["evaluate", name, "--help"]).output
    assert f"evaluate {name} [OPTIONS]" in help_text


def test_evaluate_keeps_its_subcommands_beside_such_folders(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("model", "observers", "a", "b"):
        squares(tmp_path / name / "Human_Liver_01.png")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["evaluate", "observers", "ann=a", "ben=b"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["evaluate", "model", "--data", "empty"])
    assert "--data" in done.output
    assert "empty" in done.output


def test_datasets_take_out_as_option_and_as_last_argument(tmp_path: Path) -> None:
    for line in (
        ["patches", tmp_path, tmp_path / "x.zarr", "-o", tmp_path / "y.zarr"],
        ["convert", tmp_path],
        ["patches", tmp_path],
    ):
        done = CliRunner().invoke(main, ["datasets", *map(str, line)])
        assert done.exit_code == 2
        assert "--out" in done.output
