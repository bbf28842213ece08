"""One run on several devices: every process takes its part of each batch, and the first one keeps the run.

Processes that torchrun started together find each other by the variables and the key-value store that it gives them.
The first process does all that a single one does: it takes the lease, writes, validates, measures and prints. The
others wait for its call, train along, and leave when training ends.

Gradients are added up in one exchange after the backward pass. ``DistributedDataParallel`` would overlap the two, but
it sees only what goes through its own ``forward``, while methods call whatever members of a model they like. The
processes' losses are weighted by their share of the batch, so what is summed is the gradient of the mean over the
whole batch, also where parts differ in size. What is not a mean over samples goes through ``Progress.batch_mean``, and
batch norm through ``WholeBatchNorm``.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spurbench.engine.artifacts import FolderStore
from spurbench.engine.device import choose_device
from spurbench.engine.stop import StopFlag
from spurbench.engine.whole_batch import WholeBatchNorm, add_up_in_place, expect_peers
from spurbench.errors import ConfigError, RunFailed, SpurbenchError
from spurbench.rng import seed_for
from spurbench.types import Part, StepOutput

__all__ = ["ALONE", "Elsewhere", "Team", "TeamStore", "find_team", "is_first_process"]

_TIME_LIMIT = timedelta(minutes=30)
"""Longest wait for the others, which may be validating or decoding; a process that dies is noticed at once."""
_POLL_SECONDS = 0.2
_LAST_WORDS_SECONDS = 10.0
"""How long a process that fails waits for the first one to say that it has failed too."""
_DRIFT = 1e-5
"""Relative difference between two processes' sums of absolute weights from which they do not train one model."""

T = TypeVar("T")


class Elsewhere(SpurbenchError):
    """The run has ended, and its first process tells why: nothing is left to be said here."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__("the first process of this run tells why it ended")


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that share a run; by default there is one, and nothing here does anything."""

    rank: int = 0
    size: int = 1
    _store: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    # --- before and after training: through the launcher's store, where nobody has to answer in time ---

    def device(self, name: str) -> torch.device:
        """The device of this process: with several processes each has the GPU of its own number.

        Raises:
            ConfigError: a device that the processes would have to share.
        """
        device = choose_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or ":" in name:
            raise ConfigError(
                f"{self.size} processes cannot share {name}: each takes a GPU of its own; use --device cuda, or cpu"
            )
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), torch.cuda.device_count()
        if here > gpus:
            raise ConfigError(
                f"{here} processes were started here, and there are {gpus} GPUs; use --nproc-per-node {gpus}"
            )
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)))

    def call(self) -> None:
        """Said by the first process: there is something to train."""
        if self.size > 1:
            self._store.set("call", "train")

    def await_call(self, stop: StopFlag) -> bool:
        """Heard by the others: whether there is something to train.

        Raises:
            Elsewhere: the first process has failed.
            Interrupted: a signal.
        """
        while not self._store.check(["call"]):
            if (code := self._end()) is not None:
                if code:
                    raise Elsewhere(code)
                return False
            stop.check()
            time.sleep(_POLL_SECONDS)
        return True

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The time of one run: the first process leaves word how it ended, the others are silent about what it tells.

        Raises:
            Elsewhere: in all but the first process, for whatever has stopped the first one as well.
        """
        if self.size == 1:
            yield
            return
        code = 1
        try:
            yield
            code = 0
        except Exception as error:
            code = getattr(error, "exit_code", 1)
            if not self.leads and not isinstance(error, Elsewhere) and (ended := self._await_end()):
                raise Elsewhere(ended) from error
            raise
        finally:
            if self.leads:
                with contextlib.suppress(RuntimeError):  # the launcher may have ended before us
                    self._store.set("end", str(code))
            self.leave()

    def _end(self) -> int | None:
        """The exit code of the first process, once it has ended."""
        return int(self._store.get("end")) if self._store.check(["end"]) else None

    def _await_end(self) -> int | None:
        until = time.monotonic() + _LAST_WORDS_SECONDS
        with contextlib.suppress(RuntimeError):
            while (code := self._end()) is None and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
            return code
        return None

    # --- the group: from the first phase to the last ---

    def join(self, device: torch.device, stop: StopFlag) -> None:
        """Connect the processes when all have come so far; each has to call this, and what follows, in the same order.

        Raises:
            Elsewhere: the first process has failed meanwhile.
            Interrupted: a signal.
        """
        if self.size == 1:
            return
        self._store.add("arrived", 1)
        while self._store.add("arrived", 0) < self.size:
            if (code := self._end()) is not None:
                raise Elsewhere(code)
            stop.check()
            time.sleep(_POLL_SECONDS)
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
        store = dist.PrefixStore("group", self._store)  # type: ignore[attr-defined]
        with expect_peers():
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=_TIME_LIMIT)

    def leave(self) -> None:
        """Disconnect, if connected."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; tensors arrive on the CPU."""
        if self.size == 1:
            return make()
        box = [make() if self.leads else None]
        with expect_peers():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def agree(self, signal_number: int | None, due: bool = False) -> tuple[int | None, bool]:
        """A signal that has come to any of the processes, and whether something is due in any; waits for the others.

        It passes between the hosts, so that no device has to be waited for.
        """
        if self.size == 1:
            return signal_number, due
        flags = torch.tensor([signal_number or 0, int(due)])
        with expect_peers():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return int(flags[0]) or None, bool(flags[1])

    # --- one step ---

    def cut(self, size: int) -> Part | None:
        """What this process has of a batch; None: all. One with too few samples is given whole to every process."""
        if self.size == 1:
            return None
        if size < self.size:
            return Part(slice(0, size), size, 1 / self.size)
        start, stop = (size * rank // self.size for rank in (self.rank, self.rank + 1))
        return Part(slice(start, stop), size, (stop - start) / size)

    def whole_batch(self, part: Part | None) -> contextlib.AbstractContextManager[Any]:
        """Where modules see the statistics of the whole batch."""
        return contextlib.nullcontext() if part is None else WholeBatchNorm(part, self.rank, self.size)

    def backward(self, out: StepOutput, part: Part, parameters: Iterable[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the loss over the whole batch in all processes; returns that loss and the scalars."""
        (out.loss * part.share).backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        told = torch.stack([value.detach().float() for value in (out.loss, *out.scalars.values())]) * part.share
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), told])
        add_up_in_place(flat)
        *sums, told = torch.split(flat, [*(gradient.numel() for gradient in gradients), len(told)])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view(gradient.shape))
        loss, *scalars = told.unbind()
        return loss, dict(zip(out.scalars, scalars, strict=True))

    def refuse_draws(self, seed: int, device: torch.device) -> None:
        """Refuse a step that drew from torch's global stream: every process would draw the same for other samples.

        Args:
            seed: of the global stream before the step.
        """
        stream = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
        if not torch.equal(stream.get_state(), torch.Generator(device).manual_seed(seed).get_state()):
            raise ConfigError(
                "the model or the method draws random numbers of its own in training (dropout, for example), which "
                "differ when a batch is split; start this run with one process"
            )

    def require_same(self, model: nn.Module) -> None:
        """Check that all processes hold the same model.

        Raises:
            RunFailed: they have drifted apart.
        """
        if self.size == 1:
            return
        sums = torch.stack([value.double().abs().sum() for value in model.state_dict().values()]).cpu()
        ends = torch.stack([sums, -sums])
        with expect_peers():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        if bool((ends[0] + ends[1] > _DRIFT * ends[0]).any()):
            raise RunFailed("the processes of this run no longer hold the same weights; start it with one process")


ALONE = Team()


@dataclass(frozen=True, slots=True)
class TeamStore:
    """``ArtifactStore`` of several processes: the first computes, reads and writes; the others get its values."""

    team: Team
    folder: FolderStore

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor called ``name``; ``make`` is called in the first process only."""
        value = self.team.first(lambda: self.folder.once(name, make))
        torch.manual_seed(seed_for(self.folder.seed, "global", self.folder.position, name))  # as the folder's store
        return value

    def candidate(self, rule: str) -> dict[str, Tensor]:
        """Weights that a rule kept in the previous phase."""
        return self.team.first(lambda: self.folder.candidate(rule))


def is_first_process() -> bool:
    """Whether this process is alone or the first of several: the one that prints."""
    return _place()[0] == 0


def find_team() -> Team:
    """The processes that were started together for one run; every one of them has to call this, once per run."""
    rank, size = _place()
    if size == 1:
        return ALONE
    store = dist.PrefixStore(f"run{next(_runs)}", _launcher_store())  # type: ignore[attr-defined]
    return Team(rank, size, store)


_runs = itertools.count()


def _place() -> tuple[int, int]:
    """(rank, size) as torchrun set them."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@cache
def _launcher_store() -> Any:
    """The key-value store that torchrun keeps; a restart by torchrun has keys of its own."""
    store, _, _ = next(dist.rendezvous("env://", timeout=_TIME_LIMIT))  # type: ignore[attr-defined]
    return store
