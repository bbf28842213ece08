"""One phase of training: steps, schedule, epochs, checkpoints. Nothing in a step waits for the device."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.config import OptimizerConfig, RunConfig
from spurbench.data.view import View
from spurbench.engine.distributed import ALONE, Team
from spurbench.engine.observer import Observer
from spurbench.engine.stop import Interrupted, StopFlag
from spurbench.engine.whole_batch import add_up
from spurbench.errors import RunFailed
from spurbench.method import BaseMethod, Phase, Progress
from spurbench.rng import seed_for

__all__ = ["Meter", "PhaseState", "make_optimizer", "rate_at", "set_trainable", "train_phase"]

_LOOK_EVERY = 50
"""Steps between two looks at the losses for non-finite values."""
_LOW_RATE = 1e-7
"""At most this, a learning rate is hardly the reason for a loss that is not finite."""
_HIGH_RATE = 1e-3
"""The most that is advised."""
_SHOW_SECONDS = 0.5
_SAVE_SECONDS = 600.0
"""Longest training time that an abrupt end can cost within an epoch."""


class Meter:
    """Sums of losses and scalars on the device, and the first step whose loss was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, loss: Tensor, scalars: dict[str, Tensor], step: int) -> None:
        """Add one step without reading anything back."""
        for name, value in {"loss": loss, **scalars}.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        bad = ~torch.isfinite(loss.detach()) & (self.bad_step < 0)
        self.bad_step = torch.where(bad, step, self.bad_step)
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Means over the steps so far; waits for the device."""
        return {name: float(value) / self.steps for name, value in self.sums.items()} if self.steps else {}

    def state_dict(self) -> dict[str, Any]:
        """Everything, on the CPU."""
        return {"sums": {k: v.cpu() for k, v in self.sums.items()}, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.steps = state["steps"]


@dataclass(slots=True)
class PhaseState:
    """Where a phase stands; ``epoch`` and ``step`` are the next to do."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    meter: Meter
    epoch: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    images: int = 0


def train_phase(
    config: RunConfig,
    method: BaseMethod[Any],
    phase: Phase,
    position: int,
    view: View,
    state: PhaseState,
    *,
    save: Callable[[PhaseState], None],
    end_epoch: Callable[[PhaseState, dict[str, Any]], None],
    observer: Observer,
    stop: StopFlag,
    team: Team = ALONE,
) -> None:
    """Train from where ``state`` stands to the end of the phase.

    Args:
        save: writes a checkpoint of the state.
        end_epoch: measures validation, completes the epoch's row and saves.
        team: the processes that train this phase together; each calls this function.

    Raises:
        RunFailed: a loss that is not finite; no checkpoint holds it.
        Interrupted: a signal; the state was saved.
    """
    device = state.meter.device
    last_save = last_show = time.monotonic()
    while state.epoch < phase.epochs:
        epoch_view = view.at(position=position, epoch=state.epoch, batch_size=phase.batch_size)
        num_steps = epoch_view.num_batches()
        set_training_mode(method, state.model, phase)
        batches = epoch_view.parts(shuffle=True, augment=phase.augment, start=state.step, cut=team.cut)
        started = time.monotonic()
        for batch, part in batches:
            progress = Progress(
                phase=phase.name,
                epoch=state.epoch,
                num_epochs=phase.epochs,
                step=state.step,
                num_steps=num_steps,
                seed=config.seed,
                position=position,
                device=device,
                part=part,
                add_up=None if part is None else add_up,
            )
            total_steps = phase.epochs * num_steps
            factor = rate_at(phase.optimizer, state.epoch * num_steps + state.step, total_steps)
            for group in state.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            # Layers such as dropout draw from the global stream: seeding it per step makes them resumable too.
            seed = seed_for(config.seed, "global", position, state.epoch, state.step)
            torch.manual_seed(seed)
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")
            with autocast, team.whole_batch(part):
                out = method.training_step(state.model, batch, progress)
            state.optimizer.zero_grad(set_to_none=True)
            loss, scalars = out.loss, dict(out.scalars)
            if part is None:
                loss.backward()  # type: ignore[no-untyped-call]
            else:
                team.refuse_draws(seed, device)
                loss, scalars = team.backward(out, part, _parameters(state.optimizer))
            if phase.optimizer.clip is not None:
                nn.utils.clip_grad_norm_(_parameters(state.optimizer), phase.optimizer.clip)
            state.optimizer.step()
            state.meter.add(loss, scalars, state.step)
            state.step += 1
            state.images += len(batch.index) if part is None else part.size
            now = time.monotonic()
            if state.step % _LOOK_EVERY == 0:
                _refuse_bad_loss(state, phase)
            if now - last_show > _SHOW_SECONDS:
                last_show = now
                observer.progress(
                    f"{phase.name} epoch {state.epoch + 1}/{phase.epochs}",
                    state.epoch * num_steps + state.step,
                    total_steps,
                    state.meter.means(),
                )
            signal_number, save_is_due = team.agree(stop.signal_number, now - last_save > _SAVE_SECONDS)
            if signal_number is not None or save_is_due:
                _refuse_bad_loss(state, phase)
                _refuse_bad_weights(state, phase)
                state.seconds += now - started
                started = last_save = now
                save(state)
                team.agree(None)  # nobody leaves before it is saved
                if signal_number is not None:
                    raise Interrupted(signal_number)
        _refuse_bad_loss(state, phase)
        _refuse_bad_weights(state, phase)
        team.require_same(state.model)
        state.seconds += time.monotonic() - started
        row = {"phase": phase.name, "epoch": state.epoch, **{f"train_{k}": v for k, v in state.meter.means().items()}}
        state.meter = Meter(device)
        state.epoch, state.step = state.epoch + 1, 0
        end_epoch(state, row)
        last_save = time.monotonic()
        signal_number, _ = team.agree(stop.signal_number)
        if signal_number is not None:
            raise Interrupted(signal_number)


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Groups by role: the backbone at ``lr``, everything else at ``head_lr``; vectors undecayed unless asked."""
    of_backbone = {
        id(parameter) for module in model.modules() if isinstance(module, Backbone) for parameter in module.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        rate = config.lr if id(parameter) in of_backbone or config.head_lr is None else config.head_lr
        decay = config.weight_decay if parameter.ndim > 1 or config.decay_vectors else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    parameters = [
        {"params": group, "lr": rate, "base_lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(parameters, fused=True)


def rate_at(config: OptimizerConfig, step: int, total: int) -> float:
    """Factor on the learning rate at an optimizer step, 0..1: linear warm-up, then constant or half a cosine."""
    warm = int(config.warmup * total)
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def set_trainable(method: BaseMethod[Any], model: nn.Module, phase: Phase) -> None:
    """Which parameters receive gradients in a phase."""
    model.requires_grad_(phase.trainable == "all")
    if phase.trainable == "head":
        method.head(model).requires_grad_(True)


def set_training_mode(method: BaseMethod[Any], model: nn.Module, phase: Phase) -> None:
    """Training mode for what is trained: a frozen trunk keeps its batch statistics."""
    model.train(phase.trainable == "all")
    if phase.trainable == "head":
        method.head(model).train()


def _refuse_bad_loss(state: PhaseState, phase: Phase) -> None:
    step = int(state.meter.bad_step)
    if step >= 0:
        raise _not_finite(f"the loss is not finite at step {step + 1}", state, phase)


def _refuse_bad_weights(state: PhaseState, phase: Phase) -> None:
    """A finite loss can have gradients that are not; a checkpoint of such weights could never be resumed."""
    parameters = list(_parameters(state.optimizer))
    if not bool(torch.stack([torch.isfinite(parameter).all() for parameter in parameters]).all()):
        raise _not_finite(f"weights are not finite after step {state.step}", state, phase)


def _not_finite(what: str, state: PhaseState, phase: Phase) -> RunFailed:
    return RunFailed(
        f"{what} of epoch {state.epoch + 1} (phase {phase.name}); training stopped and the last good checkpoint is "
        f"kept; {_advice(phase.optimizer)}"
    )


def _advice(optimizer: OptimizerConfig) -> str:
    """What to try after a loss that was not finite: the larger one of the two rates is lowered, within reason."""
    name, rate = max((("lr", optimizer.lr), ("head_lr", optimizer.head_lr or 0.0)), key=lambda pair: pair[1])
    if rate <= _LOW_RATE:
        return f"its learning rate, {rate:g}, is low already: look at the data and at the method's options"
    lower = min(rate / 10, _HIGH_RATE)
    return (
        f"try a lower learning rate; with spurbench run: --set train.optimizer.{name}={lower:g}; "
        f"in a sweep file: train: {{optimizer: {{{name}: {lower:g}}}}}"
    )


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
