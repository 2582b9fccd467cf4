"""Two processes with gloo equal one process with the double batch; only the first writes; a resumed training continues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wsiseg.errors import ConfigError
from wsiseg.predict import build_net
from wsiseg.train import Batch, LoopConfig, TrainingRun, fit
from wsiseg.train.distributed import process_group

STEPS = 6
REPORT_EVERY = 2


def config(patches: int) -> LoopConfig:
    return LoopConfig(
        steps=STEPS,
        batch=patches,
        learning_rate=1e-2,
        warmup_steps=3,
        report_every=REPORT_EVERY,
        precision="fp32",
        ema_decay=0.9,
    )


def batch(step: int) -> Batch:
    """Four patches whose statistics differ, so that normalization over two of them is not that over all."""
    rng = torch.Generator().manual_seed(step)
    blob = (torch.rand(4, 1, 8, 8, generator=rng) > 0.6).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    stain = torch.tensor([0.2, 0.5, 1.0, 2.0]).view(4, 1, 1, 1)
    rgb = ((1 - 2 * blob) * stain).expand(4, 3, 32, 32) + 0.1 * torch.randn(4, 3, 32, 32, generator=rng)
    return Batch(rgb, torch.cat([blob * 0.5, blob], 1), torch.ones(4, 1, 32, 32))


def train(folder: Path, rank: int = 0, size: int = 1, *, stop_after: int | None = None, resume: bool = False) -> None:
    """Train on this process's share of every batch."""

    def mine(step: int) -> Batch:
        whole = batch(step)
        part = slice(rank * 4 // size, (rank + 1) * 4 // size)
        return Batch(whole.rgb[part], whole.target[part], whole.weight[part])

    torch.manual_seed(rank)  # the processes start from the first one's weights, whatever their own
    fit(build_net("tiny"), mine, config(4 // size), TrainingRun(folder, resume, stop_after))


def two_processes(folder: Path, port: int, **options: object) -> None:
    """Start this file twice, as torchrun does, with the arguments of ``train``."""
    code = (
        "import sys, os, json; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from test_train_distributed import train, team_threads; "
        "train(Path(sys.argv[2]), int(os.environ['RANK']), 2, **json.loads(sys.argv[3])); "
        "assert not team_threads(), team_threads()"
    )
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder), json.dumps(options)]
    started = [
        subprocess.Popen(arguments, env={**os.environ, **address, "RANK": str(r)}, stderr=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)


def team_threads() -> list[str]:
    """Threads of the process group: one that outlives the training may abort Python's shutdown (seen one time in ten)."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []
    return [name for name in names if "gloo" in name or "tcpstore" in name]


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in (folder / "curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("group")
    train(root / "one")
    two_processes(root / "two", free_port())
    two_processes(root / "cut", free_port(), stop_after=4)
    two_processes(root / "cut", free_port(), resume=True)
    return {name: root / name for name in ("one", "two", "cut")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "ema.pt", weights_only=True)["ema"]


def test_two_processes_equal_one_with_the_double_batch(runs: dict[str, Path]) -> None:
    """Sums are taken in another order; six steps of AdamW at 1e-2 make of that less than 1e-3 of a weight of order one."""
    one, two = weights(runs["one"]), weights(runs["two"])
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-3, msg=name)
    for expected_line, line in zip(lines(runs["one"]), lines(runs["two"]), strict=True):
        assert line["loss"] == pytest.approx(expected_line["loss"], rel=1e-3)


def test_one_process_writes(runs: dict[str, Path]) -> None:
    assert [line["step"] for line in lines(runs["two"])] == [2, 4, 6], "each line once"
    assert not list(runs["two"].glob("*.partial"))


def test_a_resumed_team_ends_where_an_uninterrupted_one_does(runs: dict[str, Path]) -> None:
    whole, resumed = weights(runs["two"]), weights(runs["cut"])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    drop = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(runs["cut"])]
    assert drop == [{k: v for k, v in line.items() if k != "seconds"} for line in lines(runs["two"])]


def test_one_gpu_is_not_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cuda:1"), process_group("cuda:1"):
        pass
