"""Is a network of twice the multiply-adds better on tissue that it has not seen? The gate for a second, larger network.

    python -m benchmarks.capacity widen OUT.safetensors DATA     # `research` as a `wide` network of the same function
    wsiseg train CONFIG.toml                                     # with net = "wide", init = "OUT.safetensors"
    python -m benchmarks.capacity score DATA NAME=WEIGHTS ...    # adds rows to results/capacity.json
    python -m benchmarks.capacity curves NAME=RUN ...            # adds the loss curve of a run folder of training to a row

A wide network that starts from random weights needs far more steps than two cores give. So it starts from the trained lean one:
further channels copy channels, whose outgoing weights are divided among the copies, and further convolutions are identities
(Net2Net, Chen et al. 2016); 2 % of noise on the weights makes the copies differ. ``score``: held-out patients of four sets, and
``cpm16``, which no weights have seen; each row holds PQ and AJI by set for several material thresholds (the other values are
``OPERATING_POINT``), since a threshold fitted for one network would favor it; and which nuclei are missed, by their area.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks._machine import save, saved
from wsiseg.config import PredictConfig
from wsiseg.datasets import list_samples, load_sample
from wsiseg.metrics import contingency
from wsiseg.predict import NETS, UNet, build_net, load_model, macs_per_px
from wsiseg.predict.weights import load_weights, save_weights
from wsiseg.train.validation import OPERATING_POINT, Judged, predict_samples, score_table, separated

SETS = ("monuseg", "consep", "tnbc", "dsb2018_he")
UNSEEN = "cpm16"
NOISE_FRAC = 0.02
MATERIAL = (0.30, 0.34, 0.36, 0.38, 0.42)
SURE = (0.56, 0.60, 0.64)


class Widening:
    """Copies a network into a larger one of the same function."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.identities: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def grown(self, n: int, m: int) -> torch.Tensor:
        """Return which of ``n`` channels each of ``m`` copies, int64 (m,)."""
        return torch.cat([torch.arange(n), torch.randperm(n, generator=self.rng)[: m - n]])

    def noisy(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + NOISE_FRAC * weight.std() * torch.randn(weight.shape, generator=self.rng)

    def block(self, small: nn.Module, large: nn.Module, copied: torch.Tensor) -> torch.Tensor:
        """Fill a block of convolutions and return ``copied`` of its output: which channel of the small one each channel is."""
        mine, theirs = ([m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)] for net in (large, small))
        for k in range(0, len(mine), 2):
            conv, norm = mine[k], mine[k + 1]
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            if k < len(theirs):
                source, statistics = theirs[k], theirs[k + 1]
                assert isinstance(source, nn.Conv2d)
                out = self.grown(source.out_channels, conv.out_channels) if k == 0 else copied
                conv.weight.data.copy_(self.noisy(shared(source.weight, copied, 1)[out]))
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(norm, name).data.copy_(getattr(statistics, name).data[out])
                copied = out
            else:
                weight = torch.zeros_like(conv.weight)
                weight[range(len(weight)), range(len(weight)), 1, 1] = 1
                conv.weight.data.copy_(weight + NOISE_FRAC / 20 * torch.randn(weight.shape, generator=self.rng))
                self.identities.append((conv, norm))
        return copied

    def network(self, small: UNet, large: UNet) -> UNet:
        copied = torch.arange(3 * small.spec.stem**2)
        levels = []
        for mine, theirs in zip(large.down, small.down, strict=True):
            copied = self.block(theirs, mine, copied)
            levels.append(copied)
        for k, (mine, theirs) in enumerate(zip(large.merge, small.merge, strict=True)):
            up, source = large.up[k], small.up[k]
            assert isinstance(up, nn.ConvTranspose2d)
            assert isinstance(source, nn.ConvTranspose2d)
            out = self.grown(source.out_channels, up.out_channels)
            up.weight.data.copy_(self.noisy(shared(source.weight, copied, 0)[:, out]))
            assert up.bias is not None
            assert source.bias is not None
            up.bias.data.copy_(source.bias.data[out])
            copied = self.block(theirs, mine, torch.cat([out, source.out_channels + levels[-2 - k]]))
        large.head.weight.data.copy_(self.noisy(shared(small.head.weight, copied, 1)))
        assert large.head.bias is not None
        assert small.head.bias is not None
        large.head.bias.data.copy_(small.head.bias.data)
        return large


def shared(weight: torch.Tensor, copied: torch.Tensor, axis: int) -> torch.Tensor:
    """Return a kernel for inputs that are copies: each copy has its part of the weight of its channel."""
    copies = torch.bincount(copied, minlength=weight.shape[axis]).float()[copied]
    kept = weight.data.index_select(axis, copied)
    return kept / copies.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])


@torch.no_grad()
def widen(data: Path, out: Path) -> dict[str, float]:
    """Write ``research`` as a wide network; return the mean absolute difference of their maps on training images."""
    small, card = load_weights("research")
    large = build_net("wide").eval()
    step = Widening()
    step.network(small, large)
    seen = [s for s in list_samples(data, SETS) if not s.validation]
    crops = [load_sample(seen[int(k)])[0][:256, :256] for k in np.random.default_rng(0).permutation(len(seen))[:32]]
    rgb = np.stack([c for c in crops if c.shape == (256, 256, 3)])
    x = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1
    for conv, norm in step.identities:  # normalization with the statistics of its own input changes nothing
        found: list[torch.Tensor] = []
        hook = conv.register_forward_hook(lambda module, inputs, output, found=found: found.append(output))
        large(x)
        hook.remove()
        mean, var = found[0].mean((0, 2, 3)), found[0].var((0, 2, 3), unbiased=False)
        for name, value in (("running_mean", mean), ("running_var", var), ("weight", (var + norm.eps).sqrt()), ("bias", mean)):
            getattr(norm, name).data.copy_(value)
    difference = (small(x).sigmoid() - large(x).sigmoid()).abs().mean((0, 2, 3))
    save_weights(large, "wide", {k: v for k, v in card.items() if k not in ("net", "sha256")}, out)
    return dict(zip(("center", "material"), difference.tolist(), strict=True))


def missed_by_area(judged: list[Judged], thresholds: Mapping[str, float]) -> dict[str, list[float]]:
    """Return by set the share of true nuclei without a match (IoU > 0.5), by fifth of area, smallest first."""
    out = {}
    for dataset in sorted({j.sample.dataset for j in judged}):
        areas, missed = [], []
        for j in (j for j in judged if j.sample.dataset == dataset):
            table = contingency(separated(j.maps, thresholds), j.truth)
            areas.append(table.truth_px)
            missed.append(~np.isin(np.arange(len(table.truth_px)), table.pair_truth[table.iou > 0.5]))
        area, lost = np.concatenate(areas), np.concatenate(missed)
        fifth = np.searchsorted(np.quantile(area, (0.2, 0.4, 0.6, 0.8)), area)
        out[dataset] = [round(float(lost[fifth == k].mean()), 3) for k in range(5)]
    return out


def curve_of(run: Path) -> dict[str, list[float]]:
    """Return steps, learning rates and mean losses of a training run's reports."""
    lines = [json.loads(line) for line in (run / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: [round(float(line[name]), 6) for line in lines] for name in ("step", "lr", "loss")}


def score(data: Path, name: str, weights: str) -> dict[str, Any]:
    """Return PQ and AJI by set and thresholds of one network."""
    card = load_weights(weights)[1]
    net = card["net"]
    training = {
        k: v
        for k, v in card.get("training", {}).items()
        if k in ("sets", "loop", "augment", "patch_px", "border_weight", "small_weight")
    }
    model = load_model(PredictConfig(weights=weights))
    held_out = [s for s in list_samples(data, SETS) if s.validation]
    judged = predict_samples(model, [*held_out, *list_samples(data, (UNSEEN,))])
    rows = []
    for material, sure in product(MATERIAL, SURE):
        by_set = score_table(judged, {**OPERATING_POINT, "material_threshold_frac": material, "min_material_frac": sure})
        pq = {k: round(v["pq"], 4) for k, v in sorted(by_set.items())}
        mean = {m: round(float(np.mean([v[m] for v in by_set.values()])), 4) for m in ("pq", "aji")}
        rows.append({"material": material, "min_material": sure, "pq": pq, "mean_pq": mean["pq"], "mean_aji": mean["aji"]})
    best = max(rows, key=lambda row: float(row["mean_pq"]))
    print(name, best, flush=True)
    at = {"material_threshold_frac": best["material"], "min_material_frac": best["min_material"]}
    return {
        "name": name,
        "net": net,
        "macs_per_px": round(macs_per_px(NETS[net])),
        "training": training,
        "best": best,
        "missed_by_fifth_of_area": missed_by_area(judged, {**OPERATING_POINT, **at}),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    widening = commands.add_parser("widen")
    widening.add_argument("out", type=Path)
    widening.add_argument("data", type=Path)
    scoring = commands.add_parser("score")
    scoring.add_argument("data", type=Path)
    scoring.add_argument("runs", nargs="+", metavar="NAME=WEIGHTS")
    drawing = commands.add_parser("curves")
    drawing.add_argument("runs", nargs="+", metavar="NAME=RUN")
    args = parser.parse_args()
    if args.command == "widen":
        print(widen(args.data, args.out))
        return
    networks = {row["name"]: row for row in saved("capacity").get("networks", [])}
    for run in args.runs:
        name, _, place = run.partition("=")
        if args.command == "curves":
            networks[name]["curve"] = curve_of(Path(place))
        else:
            networks[name] = score(args.data, name, place)
    print(save("capacity", {"networks": list(networks.values())}))


if __name__ == "__main__":
    main()
