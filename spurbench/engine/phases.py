"""All phases of a run, with everything that a restart needs on disk at every moment."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spurbench.backbone import Backbone, build_backbone
from spurbench.checkpoint import load_tensors, save_tensors
from spurbench.config import RunConfig
from spurbench.data.view import View
from spurbench.dataset import DatasetInfo
from spurbench.engine.artifacts import FolderStore
from spurbench.engine.distributed import ALONE, Team, TeamStore
from spurbench.engine.evaluation import Scorer, SplitArrays
from spurbench.engine.observer import Observer
from spurbench.engine.restore import weights_file
from spurbench.engine.selection import best_epochs, default_rule, rules_for
from spurbench.engine.sharing import Outcome, PhaseHeld, link_file, load_outcome, phase_key, publish_outcome
from spurbench.engine.stop import StopFlag
from spurbench.engine.training import Meter, PhaseState, make_optimizer, set_trainable, train_phase
from spurbench.errors import ResultConflict
from spurbench.io import write_json
from spurbench.lease import Lease
from spurbench.method import BaseMethod, Phase, TaskInfo, Views
from spurbench.metrics.group import accuracy, worst_group
from spurbench.rng import seed_for
from spurbench.types import Access

__all__ = ["Candidate", "Trainer"]

_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """The weights that a rule chose."""

    epoch: int
    score: float | None
    path: Path


@dataclass(kw_only=True)
class Trainer:
    """Drives a method's phases; its attributes are what evaluation needs afterwards."""

    config: RunConfig
    weights_path: Path | None
    folder: Path
    shared: Path
    """Folder of phases that several runs have in common."""
    reuse: bool
    """Whether a phase that another run trained may be taken over."""
    patient: bool
    """Whether to wait for a phase that another run is training."""
    method: BaseMethod[Any]
    info: DatasetInfo
    fingerprint: str
    splits: Mapping[str, SplitArrays]
    device: torch.device
    observer: Observer
    stop: StopFlag
    team: Team = ALONE
    """The processes that train this run together, each with a trainer; the first one's keeps the folder."""
    seconds: float = 0.0
    images: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per epoch of every phase."""

    def __post_init__(self) -> None:
        self.inner_rules = rules_for(self.info, oracle=False, only_last=False)
        self.phases = tuple(self.method.phases(self.config.train))
        fitted_on_val = bool(self.method.access & (Access.VAL_LABELS | Access.VAL_GROUPS))
        self.rules = rules_for(
            self.info,
            oracle=self.config.evaluation.oracle,
            only_last=self.method.only_last or fitted_on_val or not self.phases[-1].epochs,
        )
        self.task = self._describe_task()
        self.model, backbone = self._build()
        self.scorer = Scorer(
            config=self.config,
            method=self.method,
            info=self.info,
            mean=backbone.mean,
            std=backbone.std,
            device=self.device,
        )
        self.state_path = self.folder / "checkpoint" / "state.pt"
        self._phase_key: str | None = None
        self._held: Path | None = None  # file of the weights that the model has

    def run(self, views: Views) -> None:
        """Every phase from where the checkpoint stands to the end."""
        saved = self._load()
        if saved is None:
            self.scorer.probe(self.model, self.splits["test"])
        first = 0 if saved is None else int(saved["phase"])
        optimizer_state = None if saved is None else saved["optimizer"]
        inside = saved if saved is not None and saved["begun"] else None
        for position in range(first, len(self.phases)):
            phase = self.phases[position]
            store = self._store(position)
            # What the call draws from the global stream must not depend on what ran before it.
            torch.manual_seed(seed_for(self.config.seed, "global", position))
            view = self.method.start_phase(phase, self.model, views, store)
            if inside is None:
                state = self._enter(phase, optimizer_state)
                self._phase_key = self._key_of(phase, position, view)
            else:
                state = self._resume(phase, inside)
            self._train_or_take_over(phase, position, view, state)
            self.seconds, self.images = self.seconds + state.seconds, self.images + state.images
            state.seconds, state.images = 0.0, 0
            self._save(position + 1, state, begun=False)
            optimizer_state, inside = state.optimizer.state_dict(), None

    def candidates(self) -> dict[str, Candidate]:
        """For every rule that this run offers, the chosen epoch of the last phase and its weights."""
        position = len(self.phases) - 1
        chosen = best_epochs(self._rows_of(position), self.rules)
        return {
            rule: Candidate(epoch, score, self._weights_path(position, epoch))
            for rule, (epoch, score) in chosen.items()
        }

    def validation(self, candidate: Candidate) -> dict[str, float | None]:
        """What the chosen epoch scored on validation, whichever rule chose it."""
        (row,) = (row for row in self._rows_of(len(self.phases) - 1) if row["epoch"] == candidate.epoch)
        return {name: row[name] for name in ("val_accuracy", "val_wga", "val_worst_class")}

    def load_candidate(self, candidate: Candidate) -> nn.Module:
        """The model with those weights; those of the last epoch it has already."""
        if self._held != candidate.path:
            state = load_tensors(candidate.path)
            assert state is not None, candidate.path
            self.model.load_state_dict(state)
            self._held = candidate.path
        return self.model

    def tidy(self) -> None:
        """After the record is written: drop the checkpoint, keep weights of the default rule and of the last epoch."""
        chosen = self.candidates()
        keep = {chosen[rule].path for rule in (default_rule(list(chosen)), "last")}
        for path in (self.folder / "weights").glob("*.pt"):
            if path not in keep:
                path.unlink()
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    # --- one phase -------------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, optimizer_state: dict[str, Any] | None) -> PhaseState:
        """What a phase starts from."""
        if phase.init == "scratch":
            initial, _ = self._build()
            self.model.load_state_dict(initial.state_dict())
        state = self._fresh(phase)
        if phase.init == "continue_with_optimizer" and optimizer_state is not None:
            state.optimizer.load_state_dict(_with_rates_of(state.optimizer, optimizer_state))
        return state

    def _resume(self, phase: Phase, saved: dict[str, Any]) -> PhaseState:
        """Where the checkpoint left the phase, whatever ``start_phase`` has just done to the model or the method."""
        self.model.load_state_dict(saved["model"])
        self.method.load_state_dict(saved["method"])
        state = self._fresh(phase)
        state.optimizer.load_state_dict(_with_rates_of(state.optimizer, saved["optimizer"]))
        state.meter.load_state_dict(saved["meter"])
        state.epoch, state.step = saved["epoch"], saved["step"]
        state.seconds, state.images = saved["phase_seconds"], saved["phase_images"]
        self.seconds, self.images = self.seconds - state.seconds, self.images - state.images
        # What two versions of torch trained together equals nobody's phase.
        self._phase_key = saved["phase_key"] if saved["torch"] == str(torch.__version__) else None
        return state

    def _fresh(self, phase: Phase) -> PhaseState:
        set_trainable(self.method, self.model, phase)
        optimizer = make_optimizer(phase.optimizer, self.model) if phase.epochs else _no_optimizer()
        return PhaseState(model=self.model, optimizer=optimizer, meter=Meter(self.device))

    def _key_of(self, phase: Phase, position: int, view: View) -> str | None:
        """Under which key a phase that starts now can be shared."""
        if self.team.size > 1:  # its sums round differently, and equal keys mean equal bits
            return None
        return phase_key(
            self.config, self.method, phase, position, view, self.model,
            fingerprint=self.fingerprint, device=self.device,
        )  # fmt: skip

    def _train_or_take_over(self, phase: Phase, position: int, view: View, state: PhaseState) -> None:
        """Train a phase from where it stands, unless a run with an equal one has left its outcome."""
        self._held = None
        if self._phase_key is None or self.team.size > 1:
            self._train(phase, position, view, state)
            return
        folder = self.shared / self._phase_key
        while True:
            if self._taken_over(folder, phase, position, state):
                return
            lease = Lease.try_take(folder)
            if lease is not None:
                break
            if not self.patient:
                raise PhaseHeld(self._phase_key)
            self.observer.progress(f"waiting for phase {phase.name} of another run", 0, 1, {})
            self.stop.check()
            time.sleep(_POLL_SECONDS)
        with lease:
            # It may have been finished between the look and the lease.
            if self._taken_over(folder, phase, position, state):
                return
            self._train(phase, position, view, state)
            self._publish(position, state, folder)

    def _publish(self, position: int, state: PhaseState, folder: Path) -> None:
        """Offer the phase that has just ended to other runs."""
        rows = self._rows_of(position)
        chosen = best_epochs(rows, self._rules_at(position))
        publish_outcome(
            folder,
            Outcome(
                model=self.model.state_dict(),
                optimizer=state.optimizer.state_dict(),
                rows=rows,
                seconds=state.seconds,
                images=state.images,
                weights={epoch: self._weights_path(position, epoch) for epoch, _ in chosen.values()},
            ),
        )

    def _taken_over(self, folder: Path, phase: Phase, position: int, state: PhaseState) -> bool:
        """Stand where training would have ended, if another run has left that here."""
        outcome = load_outcome(folder) if self.reuse else None
        if outcome is None:
            return False
        self.model.load_state_dict(outcome.model)
        state.optimizer.load_state_dict(outcome.optimizer)
        state.seconds, state.images = outcome.seconds, outcome.images
        state.epoch = phase.epochs
        for epoch, path in outcome.weights.items():
            link_file(path, self._weights_path(position, epoch))
        self.rows = [row for row in self.rows if row["position"] != position]  # of epochs before an interruption
        for row in outcome.rows:
            self._remember({**row, "phase": phase.name, "shared": True})
        self.observer.note(f"phase {phase.name}: taken from a run with an equal one")
        return True

    def _train(self, phase: Phase, position: int, view: View, state: PhaseState) -> None:
        if phase.epochs == 0:
            if not self.team.leads:
                return
            self._remember(
                {"phase": phase.name, "epoch": -1, "position": position, "eligible": True, **self._validate("val")}
            )
            self._keep_weights(position, -1)
            return
        train_phase(
            self.config,
            self.method,
            phase,
            position,
            view,
            state,
            save=lambda state: self._save(position, state, begun=True),
            end_epoch=lambda state, row: self._end_epoch(position, state, row),
            observer=self.observer,
            stop=self.stop,
            team=self.team,
        )

    def _end_epoch(self, position: int, state: PhaseState, row: dict[str, Any]) -> None:
        if not self.team.leads:
            return
        eligible = row["epoch"] >= self.phases[position].select_from
        row |= {"position": position, "eligible": eligible, **self._validate("val")}
        if self.config.evaluation.oracle:
            test = self._validate("test")
            score = test["val_worst_class"] if self.info.attributes is None else test["val_wga"]
            row |= {"test_n": test["val_n"], "test_correct": test["val_correct"], "oracle_test_wga": score}
        self.rows.append(row)
        chosen = best_epochs(self._rows_of(position), self._rules_at(position))
        kept = {epoch for epoch, _ in chosen.values()}
        # Order matters for a kill at any moment: weights first, then the state that refers to them, then cleaning.
        if row["epoch"] in kept:
            self._keep_weights(position, row["epoch"])
        self._save(position, state, begun=True)
        for path in (self.folder / "weights").glob(f"phase{position}_epoch*.pt"):
            if path not in {self._weights_path(position, epoch) for epoch in kept}:
                path.unlink(missing_ok=True)
        self._log(row)
        self.observer.epoch(row)

    def _keep_weights(self, position: int, epoch: int) -> None:
        self._held = self._weights_path(position, epoch)
        save_tensors(self._held, self.model.state_dict())

    def _remember(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._log(row)

    def _log(self, row: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    def _validate(self, split: str) -> dict[str, Any]:
        groups, classes, density, by_group = self.scorer.count(self.model, self.splits[split])
        worst, worst_class = worst_group(groups), worst_group(classes)
        return {
            "val_n": groups.n.tolist(),
            "val_correct": groups.correct.tolist(),
            "val_accuracy": accuracy(groups),
            # Without an attribute groups are the classes, which have a score of their own.
            "val_wga": None if worst is None or self.info.attributes is None else worst[0],
            "val_worst_class": None if worst_class is None else worst_class[0],
            "val_density": density,
            "val_density_by_group": by_group,
        }

    # --- building and remembering ----------------------------------------------------------------------------------

    def _build(self) -> tuple[nn.Module, Backbone]:
        """The initial model: a function of configuration and seed alone, whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.config.seed, "init"))
            backbone = build_backbone(self.config.backbone, self.weights_path)
            model = self.method.build(backbone, self.task)
        if self.config.train.compile:
            for module in model.modules():
                if isinstance(module, Backbone):
                    module.compile_trunk()
        memory_format = torch.channels_last if self.config.train.channels_last else torch.contiguous_format
        return model.to(self.device, memory_format=memory_format), backbone  # type: ignore[call-overload]

    def _describe_task(self) -> TaskInfo:
        """What the method may know, also left in the run's folder for whoever restores the model."""
        train = self.splits["train"]
        facts: dict[str, Any] = {
            "num_classes": len(self.info.classes),
            "num_groups": self.info.num_groups,
            "num_train": len(train.y),
            "class_counts": torch.bincount(train.y, minlength=len(self.info.classes)).tolist(),
            "image_size": self.config.input.image_size,
        }
        if self.team.leads:
            write_json(self.folder / "task.json", facts)
        return TaskInfo(train=self.config.train, **facts)

    def _save(self, position: int, state: PhaseState, *, begun: bool) -> None:
        if self.team.leads:
            save_tensors(self.state_path, self._snapshot(position, state, begun=begun))

    def _snapshot(self, position: int, state: PhaseState, *, begun: bool) -> dict[str, Any]:
        """Everything that a restart needs; ``begun`` tells the inside of a phase from its door."""
        return {
            "phase": position,
            "begun": begun,
            "epoch": state.epoch if begun else 0,
            "step": state.step if begun else 0,
            "model": self.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "meter": state.meter.state_dict(),
            "method": self.method.state_dict(),
            "rows": json.dumps(self.rows),
            "seconds": self.seconds + state.seconds,
            "images": self.images + state.images,
            "phase_seconds": state.seconds if begun else 0.0,
            "phase_images": state.images if begun else 0,
            "phase_key": self._phase_key if begun else None,
            "fingerprint": self.fingerprint,
            "device": self.device.type,
            "torch": str(torch.__version__),
        }

    def _load(self) -> dict[str, Any] | None:
        saved = self.team.first(lambda: load_tensors(self.state_path))
        if saved is None and self.team.leads:
            shutil.rmtree(self.folder / "artifacts", ignore_errors=True)  # nothing tells which data they are from
        if saved is None:
            return None
        for what, here in (("fingerprint", self.fingerprint), ("device", self.device.type)):
            if saved[what] != here:
                raise ResultConflict(
                    f"run {self.config.run_id()} was begun with {what} {saved[what][:16]}, here it is {here[:16]}; "
                    "go on where it began, or use --force to start over"
                )
        self.model.load_state_dict(saved["model"])
        self.method.load_state_dict(saved["method"])
        self.rows = json.loads(saved["rows"])
        self.seconds, self.images = saved["seconds"], saved["images"]
        self.observer.note(f"resuming run {self.config.run_id()} after {len(self.rows)} epochs")
        return saved

    def _rows_of(self, position: int) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["position"] == position]

    def _weights_path(self, position: int, epoch: int) -> Path:
        return weights_file(self.folder, position, epoch)

    def _rules_at(self, position: int) -> tuple[str, ...]:
        """Whose weights a phase keeps: the last one's make the run's rows, earlier ones serve the next phase."""
        return self.rules if position == len(self.phases) - 1 else self.inner_rules

    def _store(self, position: int) -> FolderStore | TeamStore:
        rows = self._rows_of(position - 1)
        chosen = best_epochs(rows, self.inner_rules) if rows else {}
        store = FolderStore(
            folder=self.folder / "artifacts",
            weights={rule: self._weights_path(position - 1, epoch) for rule, (epoch, _) in chosen.items()},
            access=self.method.access,
            seed=self.config.seed,
            position=position,
        )
        return store if self.team.size == 1 else TeamStore(self.team, store)


def _no_optimizer() -> torch.optim.Optimizer:
    """For phases that only refit in closed form."""
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def _with_rates_of(fresh: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved optimizer state under the learning rates of the phase that it now serves."""
    groups = [
        {**saved, "base_lr": new["base_lr"], "lr": new["lr"], "weight_decay": new["weight_decay"]}
        for saved, new in zip(state["param_groups"], fresh.param_groups, strict=True)
    ]
    return {"state": state["state"], "param_groups": groups}
