"""Progress where the output is no terminal: a line when something changes, and a sign of life when nothing does."""

from __future__ import annotations

import pytest

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
