"""The compiled graph is the eager one, whatever the window sizes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from wsiseg.config import PredictConfig
from wsiseg.errors import BackendUnavailableError
from wsiseg.predict import build_net, machine, model_from_net, predict, resolve_engine
from wsiseg.types import Box

CARD = {"name": "t", "sha256": "", "mpp": 0.25, "stain_method": "none", "licence": "", "separate_defaults": {}}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++")
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_windows_equal_eager_ones() -> None:
    out = Box(5, -3, 700, 430)  # cut into windows of several sizes
    maps = []
    for engine in ("eager", "inductor"):
        torch.manual_seed(0)
        model = model_from_net(build_net("tiny"), dict(CARD), PredictConfig(precision="fp32", engine=engine, window_wpx=256))
        assert model.engine == engine
        box = model.input_box(out)
        rgb = np.random.default_rng(0).integers(0, 256, (box.h, box.w, 3), dtype=np.uint8)
        maps.append(predict(model, rgb, box, out).astype(np.int16))
    assert maps[0].std() > 1
    assert np.abs(maps[0] - maps[1]).max() <= 1  # rounding of the last fp32 bits at a level's edge


def test_auto_compiles_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, compiler, precision, expected in (
        (True, "/usr/bin/g++", "bf16", "inductor"),
        (False, "/usr/bin/g++", "bf16", "eager"),
        (True, None, "bf16", "eager"),
        (True, "/usr/bin/g++", "fp32", "eager"),
    ):
        monkeypatch.setattr(machine, "cpu_has", lambda feature, amx=amx: amx)
        monkeypatch.setattr(shutil, "which", lambda name, compiler=compiler: compiler)
        assert resolve_engine("auto", precision, "cpu") == expected  # type: ignore[arg-type]
    assert [resolve_engine("auto", p, "cuda:1") for p in ("bf16", "fp32")] == ["graph", "graph"]  # type: ignore[arg-type]
    assert resolve_engine("eager", "bf16", "cuda") == "eager"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="C\\+\\+ compiler"):
        resolve_engine("inductor", "bf16", "cpu")
