"""The training loop: AdamW, warm-up and cosine schedule, averaged weights, and a run folder from which it can be resumed.

A run folder contains ``curve.jsonl`` (one JSON line per report), ``curve.png``, ``checkpoint.pt`` (everything that a resume
needs) and ``ema.pt`` (the averaged weights). Files are written atomically.

Under torchrun several processes train together (``wsiseg.train.distributed``); one of them writes.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsiseg.errors import ConfigError
from wsiseg.tables import atomic_path, atomic_write_bytes
from wsiseg.train.batches import Batch
from wsiseg.train.distributed import ProcessGroup, process_group
from wsiseg.train.losses import LossConfig, two_head_loss

__all__ = ["CurveLine", "LoopConfig", "TrainingRun", "fit", "learning_rate_factor"]

CurveLine = dict[str, float]
"""A line of ``curve.jsonl``: step, learning rate, loss and its terms, seconds; scores where the network was validated."""

Validate = Callable[[nn.Module, int], dict[str, float]]


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Options of the training loop.

    Attributes
    ----------
    steps, batch
        Optimizer steps, and patches per step and process.
    ema_decay
        Decay of the averaged weights per step (shorter at the start).
    device
        ``cpu`` or ``cuda``; several processes use one GPU each.
    precision
        ``bf16``: convolutions under autocast, fp32 weights.
    report_every, validate_every
        Steps between lines of the curve, and between validations; a checkpoint is written with every line.
    """

    steps: int = 20000
    batch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 500
    ema_decay: float = 0.999
    clip_norm: float = 5.0
    seed: int = 0
    device: str = "cpu"
    precision: str = "bf16"
    report_every: int = 100
    validate_every: int = 2000
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The folder of a training, and which part of it a call of ``fit`` does.

    Attributes
    ----------
    folder
        Receives curve and checkpoints.
    resume
        Continue from the folder's checkpoint, if there is one.
    stop_after
        End with a checkpoint after this many steps of this call (for tests and time limits).
    """

    folder: Path
    resume: bool = False
    stop_after: int | None = None


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, then half a cosine down to 1 %."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def fit(
    net: nn.Module,
    next_batch: Callable[[int], Batch],
    config: LoopConfig,
    run: TrainingRun,
    *,
    validate: Validate | None = None,
    on_line: Callable[[CurveLine], None] | None = None,
) -> nn.Module:
    """Train a network and return its averaged copy, in evaluation mode.

    Parameters
    ----------
    net
        A module from float (N, 3, H, W) to logits (N, 2, H, W). The caller must seed its initialization.
    next_batch
        Returns this process's part of the batch of a step. It must depend on the step only; otherwise a resumed training
        differs from an uninterrupted one.
    validate
        Called with the averaged network and the step; its numbers are added to the curve.
    run
        Where the run is kept, and whether it continues one.
    on_line
        Called with every line of the curve.

    Raises
    ------
    ConfigError
        The folder contains a training run that is not to be resumed, or the loss is no longer a number.
    """
    run_dir = run.folder
    run_dir.mkdir(parents=True, exist_ok=True)
    with process_group(config.device) as group:
        state = _LoopState(net, config, group)
        if (run_dir / "checkpoint.pt").exists():
            if not run.resume:
                raise ConfigError(f"{run_dir} already contains a training run. Resume it, or choose another folder.")
            state.load(run_dir / "checkpoint.pt")
        group.agree(state.step)
        if group.writes:
            _trim_curve(run_dir / "curve.jsonl", state.step)
        last = config.steps if run.stop_after is None else min(config.steps, state.step + run.stop_after)
        started, sums = time.perf_counter(), _Running()
        while state.step < last:
            sums.add(state.advance(next_batch(state.step), config))
            if state.step % config.report_every == 0 or state.step == config.steps:
                line = {"step": state.step, "lr": state.rate, **sums.means(group)}
                line["seconds"] = round(time.perf_counter() - started, 1)
                if not math.isfinite(line["loss"]):
                    raise ConfigError(
                        f"Training diverged before step {state.step}: loss {line['loss']}. Lower the learning rate."
                    )
                if group.writes:
                    _report(state, config, run_dir, line, validate, on_line)
                sums = _Running()
        if group.writes:
            state.save(run_dir)
        group.agree(state.step)
        state.release_wrapper()
        return state.ema.eval()


def _report(
    state: _LoopState,
    config: LoopConfig,
    run_dir: Path,
    line: CurveLine,
    validate: Validate | None,
    on_line: Callable[[CurveLine], None] | None,
) -> None:
    if validate is not None and (state.step % config.validate_every == 0 or state.step == config.steps):
        line |= validate(state.ema, state.step)
    state.save(run_dir)
    _append(run_dir / "curve.jsonl", line)
    if on_line is not None:
        on_line(line)


class _LoopState:
    """The contents of a checkpoint: weights, their average, the optimizer and the step."""

    def __init__(self, net: nn.Module, config: LoopConfig, group: ProcessGroup) -> None:
        net = net.to(group.device, memory_format=torch.channels_last)
        self.device = group.device
        self.ema = copy.deepcopy(net).eval().requires_grad_(requires_grad=False)
        self.forward: nn.Module = group.wrap(net.train())
        self.net: nn.Module = self.forward.module if isinstance(self.forward, DistributedDataParallel) else self.forward
        decay = [p for p in net.parameters() if p.ndim > 1]
        plain = [p for p in net.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.step = 0
        self.rate = 0.0

    def advance(self, batch: Batch, config: LoopConfig) -> dict[str, torch.Tensor]:
        """Take one step; return the loss and its terms on the device, because copying them would make the host wait."""
        self.rate = config.learning_rate * learning_rate_factor(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        device = self.device
        rgb = batch.rgb.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = self.forward(rgb)
        loss, terms = two_head_loss(logits.float(), batch.target.to(device), batch.weight.to(device), config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm)
        self.optimizer.step()
        self.step += 1
        self._average(config.ema_decay)
        return {"loss": loss.detach(), **terms}

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        share = 1 - min(decay, (1 + self.step) / (10 + self.step))
        theirs = self.net.state_dict()
        for name, mine in self.ema.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(theirs[name], share)
            else:
                mine.copy_(theirs[name])

    def release_wrapper(self) -> None:
        """Release the wrapper that communicates with the other processes, before the group ends (``process_group``)."""
        self.forward = self.net

    def save(self, run_dir: Path) -> None:
        """Write ``checkpoint.pt`` and ``ema.pt``, each atomically."""
        whole = {"net": self.net.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()}
        _save_whole({**whole, "step": self.step}, run_dir / "checkpoint.pt")
        _save_whole({"ema": self.ema.state_dict(), "step": self.step}, run_dir / "ema.pt")

    def load(self, path: Path) -> None:
        """Load a checkpoint."""
        held = torch.load(path, map_location="cpu", weights_only=True)
        self.net.load_state_dict(held["net"])
        self.ema.load_state_dict(held["ema"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.step = int(held["step"])


class _Running:
    """Means of the loss and its terms since the last report."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: torch.Tensor | None = None
        self.n = 0

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        values = torch.stack(list(terms.values())).double()
        self.names, self.n = list(terms), self.n + 1
        self.sums = values if self.sums is None else self.sums + values

    def means(self, group: ProcessGroup) -> CurveLine:
        if self.sums is None:
            return {}
        return dict(zip(self.names, (group.mean(self.sums) / self.n).tolist(), strict=True))


def _save_whole(content: Mapping[str, object], path: Path) -> None:
    with atomic_path(path) as partial, partial.open("wb") as stream:  # torch would write the name of a path into the file
        torch.save(content, stream)


def _append(path: Path, line: CurveLine) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _trim_curve(path: Path, step: int) -> None:
    """Drop lines of steps after the checkpoint, which will be repeated."""
    if path.exists():
        lines = [text for text in path.read_text(encoding="utf-8").splitlines() if json.loads(text)["step"] <= step]
        atomic_write_bytes(path, "".join(f"{text}\n" for text in lines).encode())
