"""Progress where the output is no terminal, and the last line of a command that is stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsiseg.cli import main
from wsiseg.cli.commands_segment import _PlainProgress
from wsiseg.run.drive import Progress


def test_a_line_in_ten_seconds_if_anything_changed_and_one_a_minute_if_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock_s)
    show, progress = _PlainProgress(), Progress(slides=2)
    printed_at: list[tuple[float, str]] = []
    for second in range(301):
        clock_s = 1000.0 + second
        if second == 100:
            progress.slides_done = 1
        if 100 <= second < 140:
            progress.tiles_done += 1
        if second == 210:
            progress.message = "a message is printed at once"
        show(progress)
        printed_at += [(second, line) for line in capsys.readouterr().err.splitlines()]
    seconds = [second for second, _ in printed_at]
    assert seconds == [0, 61, 100, 111, 122, 133, 144, 205, 210, 266]
    assert printed_at[2][1].startswith("slides 1/2, tiles 1/0")
    assert printed_at[8][1] == "a message is printed at once"


@pytest.mark.parametrize(
    ("command", "interrupted", "message"),
    [
        (
            ("segment", "x.png", "--out", "run"),
            "wsiseg.results.manifest.find_slides",
            "Finished tiles are kept; the same command resumes.",
        ),
        (("export", ".", "--to", "csv", "-o", "x.csv"), "wsiseg.export.convert.export_tables", "No file is left incomplete."),
    ],
    ids=["segment", "export"],
)
def test_a_stopped_command_says_what_is_kept(
    command: tuple[str, ...], interrupted: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interrupted, stop)
    handler = signal.getsignal(signal.SIGINT)
    try:
        done = CliRunner().invoke(main, command)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert done.exit_code == 130, done.output
    assert done.stderr.endswith(f"wsiseg: stopped. {message}\n")
