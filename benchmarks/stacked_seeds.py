"""Training steps of several seeds of one setting: one after the other, side by side, or stacked into one model.

    in turn      one process with all threads trains the seeds one after the other (`spurbench sweep --jobs 1`)
    parallel     a process with one thread per core, which share the seeds (`--jobs auto`)
    vmap         the seeds' weights stacked: torch.func.stack_module_state, vmap(grad(loss)), one batch per seed
    grouped      the seeds side by side in the channels of one network, whose convolutions have a group per seed
    vmap, grouped parallel: the same in a process with one thread per core, each with its share of the seeds

A step is forward, cross-entropy, backward and the preset's AdamW, of the engine's own classifier, in channels_last, on
a batch of its own per seed that lies in memory. All sides of a case run within each repeat, in an order that rotates.
CPU seconds of all processes are counted besides time on the clock: those of sides with one thread per process hardly
move when other work has the cores. Threads wait for each other asleep (OMP_WAIT_POLICY=passive, unless it is set): on
cores that other work shares, spinning would take most of the time of the sides with several threads.

Then the weights: after some steps from equal weights on equal batches, how far each side is from seeds trained alone.

    python benchmarks/stacked_seeds.py
    python benchmarks/stacked_seeds.py --json > benchmarks/results/stacked_seeds_cpu.json
    python benchmarks/stacked_seeds.py --case resnet18:96:32:bf16 --seeds 2
"""

import argparse
import copy
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from machine import machine
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from spurbench.backbone import build_backbone, resolve_weights
from spurbench.config import BackboneConfig, OptimizerConfig
from spurbench.engine.training import make_optimizer
from spurbench.nn.classifier import Classifier

FORKS = multiprocessing.get_context("forkserver")
"""Processes that begin with everything imported: only one side is in memory at a time."""
CLASSES = 2
OPTIMIZER = OptimizerConfig(name="adamw", lr=5e-5, head_lr=5e-4, weight_decay=0.05)
"""The minibirds preset's; the schedule is left out."""
CASES = ("minibirds_resnet:64:32:float32", "resnet18:64:32:float32")


class Case(NamedTuple):
    """What is trained."""

    backbone: str
    image_size: int
    batch_size: int
    precision: str

    @classmethod
    def parse(cls, text: str) -> "Case":
        """From BACKBONE:SIZE:BATCH:PRECISION."""
        name, size, batch, precision = text.split(":")
        return cls(name, int(size), int(batch), precision)


class Side(NamedTuple):
    """A way to train all seeds."""

    kind: str
    processes: int
    threads: int


class InTurn:
    """Every seed by itself."""

    def __init__(self, models: list[nn.Module], case: Case) -> None:
        self.models, self.case = models, case
        self.optimizers = [make_optimizer(OPTIMIZER, model) for model in models]

    def train(self, images_KBCHW: list[Tensor], y_KB: Tensor, steps: int) -> None:
        """All steps of the first seed, then all of the next."""
        for model, optimizer, images, y in zip(self.models, self.optimizers, images_KBCHW, y_KB, strict=True):
            for _ in range(steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=self.case.precision == "bf16"):
                    logits = model(images)
                loss = F.cross_entropy(at_least_float32(logits), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def weights(self) -> list[dict[str, Tensor]]:
        """Of each seed, by name."""
        return [dict(model.state_dict()) for model in self.models]


class Vmapped:
    """torch.func: one traced step for all seeds. Running statistics are updated in place in their stacked buffers."""

    def __init__(self, models: list[nn.Module], case: Case) -> None:
        self.parameters, self.buffers = stack_module_state(models)
        skeleton = copy.deepcopy(models[0]).to("meta")

        def loss(parameters: Any, buffers: Any, images_BCHW: Tensor, y_B: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
                logits = functional_call(skeleton, (parameters, buffers), (images_BCHW,))
            return F.cross_entropy(at_least_float32(logits), y_B)

        self.gradients = vmap(grad(loss), randomness="different")
        # The groups of one seed: a stacked vector has two axes and would be decayed.
        self.optimizer = make_optimizer(OPTIMIZER, models[0])
        names = {id(parameter): name for name, parameter in models[0].named_parameters()}
        for group in self.optimizer.param_groups:
            group["params"] = [self.parameters[names[id(parameter)]] for parameter in group["params"]]

    def train(self, images_KBCHW: list[Tensor], y_KB: Tensor, steps: int) -> None:
        """Steps of all seeds at once."""
        images = torch.stack(images_KBCHW)
        for _ in range(steps):
            found = self.gradients(self.parameters, self.buffers, images, y_KB)
            for name, parameter in self.parameters.items():
                parameter.grad = found[name]
            self.optimizer.step()

    def weights(self) -> list[dict[str, Tensor]]:
        """Of each seed, by name."""
        both = {**self.parameters, **self.buffers}
        return [{name: value[seed] for name, value in both.items()} for seed in range(len(both["head.weight"]))]


class Grouped:
    """One network whose channels are those of all seeds, seed after seed.

    Every parameter and statistic is the seeds' own, concatenated along the first axis. A convolution with a group per
    seed and a batch normalization keep the channels of seeds apart; a linear layer is written out. Layers that mix
    channels in another way (attention, LayerNorm) cannot be put side by side like this.
    """

    def __init__(self, models: list[nn.Module], case: Case) -> None:
        self.seeds, self.case = len(models), case
        self.model = copy.deepcopy(models[0])
        for name, module in list(self.model.named_modules()):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for key, value in own:
                if value.ndim:
                    together = torch.cat([getattr(model.get_submodule(name), key).detach() for model in models])
                    setattr(module, key, nn.Parameter(together) if isinstance(value, nn.Parameter) else together)
            if isinstance(module, nn.Conv2d):
                module.groups *= self.seeds
            elif isinstance(module, nn.Linear):
                self.model.set_submodule(name, SideBySide(module, self.seeds))
            elif own and not isinstance(module, nn.BatchNorm2d):
                raise SystemExit(f"{case.backbone}: no grouped form of {type(module).__name__}")
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(OPTIMIZER, self.model)

    def train(self, images_KBCHW: list[Tensor], y_KB: Tensor, steps: int) -> None:
        """Steps of all seeds at once; their losses are added, so each gets its own gradient."""
        images = torch.cat(images_KBCHW, dim=1).contiguous(memory_format=torch.channels_last)
        y_BK = y_KB.T
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.case.precision == "bf16"):
                logits_BKC = self.model(images).unflatten(1, (self.seeds, -1))
            losses = F.cross_entropy(at_least_float32(logits_BKC).movedim(2, 1), y_BK, reduction="none")
            self.optimizer.zero_grad(set_to_none=True)
            losses.mean(0).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def weights(self) -> list[dict[str, Tensor]]:
        """Of each seed, by name."""
        state = self.model.state_dict()
        return [
            {name: value.chunk(self.seeds)[seed] if value.ndim else value for name, value in state.items()}
            for seed in range(self.seeds)
        ]


class SideBySide(nn.Module):
    """Linear layers of all seeds: [B, K * F] to [B, K * C]."""

    def __init__(self, linear: nn.Linear, seeds: int) -> None:
        super().__init__()
        self.weight, self.bias, self.seeds = linear.weight, linear.bias, seeds

    def forward(self, features: Tensor) -> Tensor:
        """Each seed's features meet its own weights only."""
        features_BKF = features.unflatten(1, (self.seeds, -1))  # type: ignore[no-untyped-call]
        weight_KCF = self.weight.unflatten(0, (self.seeds, -1))  # type: ignore[no-untyped-call]
        return torch.einsum("bkf,kcf->bkc", features_BKF, weight_KCF).flatten(1) + self.bias


KINDS: dict[str, Any] = {"in turn": InTurn, "vmap": Vmapped, "grouped": Grouped}


def at_least_float32(logits: Tensor) -> Tensor:
    """As the engine's loss takes them; float64 stays for the comparison of weights."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def make(case: Case, seeds: range, dtype: torch.dtype = torch.float32) -> tuple[list[nn.Module], list[Tensor], Tensor]:
    """The models of these seeds, and a batch of each: images [B, 3, H, W] and labels [K, B]."""
    shipped = case.backbone.startswith("minibirds")
    weights, path = resolve_weights(case.backbone, "default" if shipped else "none")
    models, images, labels = [], [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model: nn.Module = Classifier(
            build_backbone(BackboneConfig(name=case.backbone, weights=weights), path), CLASSES
        )
        models.append(model.to(dtype=dtype, memory_format=torch.channels_last))  # type: ignore[call-overload]
        size = (case.batch_size, 3, case.image_size, case.image_size)
        drawn = torch.randn(size, generator=generator, dtype=dtype)
        images.append(drawn.contiguous(memory_format=torch.channels_last))
        labels.append(torch.randint(CLASSES, (case.batch_size,), generator=generator))
    return models, images, torch.stack(labels)


def work(pipe: Connection, kind: str, case: Case, seeds: range, threads: int, steps: int) -> None:
    """A process of a side: trains when it is told and answers with its CPU seconds and the memory it took at most."""
    torch.set_num_threads(threads)
    models, images, labels = make(case, seeds)
    trainer = KINDS[kind](models, case)
    trainer.train(images, labels, 1)
    pipe.send(None)
    pipe.recv()
    before = time.process_time()
    trainer.train(images, labels, steps)
    pipe.send((time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """Measure and print."""
    options = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by the processes that are started below
    FORKS.set_forkserver_preload(["spurbench.nn.classifier", "spurbench.engine.training", "spurbench.zoo"])
    cores = os.cpu_count() or 1
    sides = {"in turn": Side("in turn", 1, cores)}
    for kind in KINDS:
        if kind != "in turn":
            sides[kind] = Side(kind, 1, cores)
        sides["parallel" if kind == "in turn" else f"{kind} parallel"] = Side(kind, min(cores, options.seeds), 1)
    cases = {}
    for text in options.case:
        case = Case.parse(text)
        measured = measure(case, sides, options)
        with ProcessPoolExecutor(1, mp_context=FORKS) as pool:  # its memory goes with it
            cases[text] = {**measured, "weights": pool.submit(differences, case, options).result()}
    document = {
        "cases": cases,
        "sides": {name: side._asdict() for name, side in sides.items()},
        "settings": {**vars(options), "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]},
        **machine(),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for text, found in cases.items():
        print(f"{text}: images/s, ratio to `parallel` on the clock and in CPU seconds per image (median, range)")
        for name in sides:
            clock, cpu = (found[key][name] for key in ("speed_median_min_max", "cpu_median_min_max"))
            print(f"  {name:16} {found['images_per_second'][name]:6.0f}  {shown(clock)}  {shown(cpu)}")
        for name, values in found["weights"].items():
            print(f"  {name:38} {values['entry']:.1e} of a tensor's largest, {values['change']:.1e} of the change")


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=CASES, help="BACKBONE:SIZE:BATCH:PRECISION ...")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--images", type=int, default=64, help="images per seed that a side trains on in a repeat")
    parser.add_argument("--repeats", type=int, default=4, help="interleaved repeats, at least 3")
    parser.add_argument("--compare-steps", type=int, default=4, help="steps before weights are compared")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def shown(values: list[float]) -> str:
    """Median and range."""
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def measure(case: Case, sides: dict[str, Side], options: argparse.Namespace) -> dict[str, Any]:
    """Images per second and CPU seconds per image of every side, and their ratios to `parallel` within a repeat."""
    steps = max(1, round(options.images / case.batch_size))
    trained = steps * case.batch_size * options.seeds
    clock: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    memory = dict.fromkeys(sides, 0.0)
    load = []
    names = list(sides)
    for repeat in range(options.repeats):
        load.append(os.getloadavg()[0])
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            seconds, spent, peak = trained_once(sides[name], case, options.seeds, steps)
            clock[name].append(trained / seconds)
            cpu[name].append(spent / trained)
            memory[name] = max(memory[name], peak)
            print(
                f"{case.backbone} repeat {repeat + 1}/{options.repeats} {name}: {clock[name][-1]:.0f} images/s, "
                f"{1000 * cpu[name][-1]:.1f} ms CPU per image, {peak:,.0f} MB",
                file=sys.stderr,
                flush=True,
            )
    return {
        "images_per_second": {name: statistics.median(values) for name, values in clock.items()},
        "speed_median_min_max": {name: ratio(clock[name], clock["parallel"]) for name in sides},
        "speed_to_in_turn_median_min_max": {name: ratio(clock[name], clock["in turn"]) for name in sides},
        "cpu_median_min_max": {name: ratio(cpu[name], cpu["parallel"]) for name in sides},
        "images_per_second_each": clock,
        "cpu_seconds_per_image_each": cpu,
        "peak_mb": memory,
        "load_average": load,
    }


def trained_once(side: Side, case: Case, seeds: int, steps: int) -> tuple[float, float, float]:
    """Seconds on the clock, CPU seconds and peak MB of all processes of a side, which start for this and end."""
    team = []
    for number in range(side.processes):
        ours, theirs = FORKS.Pipe()
        own = range(number, seeds, side.processes)
        process = FORKS.Process(target=work, args=(theirs, side.kind, case, own, side.threads, steps))
        process.start()
        team.append((process, ours))
    for _, pipe in team:
        pipe.recv()
    started = time.perf_counter()
    for _, pipe in team:
        pipe.send(None)
    found = [pipe.recv() for _, pipe in team]
    seconds = time.perf_counter() - started
    for process, _ in team:
        process.join()
    return seconds, sum(spent for spent, _ in found), sum(peak for _, peak in found)


def ratio(above: list[float], below: list[float]) -> list[float]:
    """Median, least and largest of the ratios within repeats."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return [statistics.median(values), min(values), max(values)]


def differences(case: Case, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """How far every side is from seeds trained alone with one thread, parameters and running statistics.

    Returns:
        By side, ``entry``, the largest difference of an entry relative to the largest entry of its tensor, and
        ``change``, the norm of the difference relative to that of what training changed; over seeds, the larger one.
        A seed alone with all threads is the yardstick: the same run, sums in another order.
    """
    found = {}
    cores = os.cpu_count() or 1
    others = [("in turn", cores, torch.float32), ("vmap", 1, torch.float32), ("grouped", 1, torch.float32)]
    if case.precision == "float32":
        others += [("vmap", 1, torch.float64), ("grouped", 1, torch.float64)]
    for dtype in dict.fromkeys(dtype for _, _, dtype in others):
        begun = InTurn(make(case, range(options.seeds), dtype)[0], case).weights()
        alone = trained_weights("in turn", case, options, dtype, 1)
        for kind, threads in [(kind, threads) for kind, threads, of in others if of == dtype]:
            other = trained_weights(kind, case, options, dtype, threads)
            name = f"{kind}, {threads} thread{'s' * (threads > 1)}, {str(dtype).removeprefix('torch.')}"
            found[name] = {
                "entry": max(
                    float((one[key] - two[key]).abs().max() / one[key].abs().max())
                    for one, two in zip(alone, other, strict=True)
                    for key in one
                ),
                "change": max(
                    distance(one, two) / distance(one, start)
                    for one, two, start in zip(alone, other, begun, strict=True)
                ),
            }
    return found


def trained_weights(
    kind: str, case: Case, options: argparse.Namespace, dtype: torch.dtype, threads: int
) -> list[dict[str, Tensor]]:
    """Each seed's weights after the steps, from equal weights and batches."""
    torch.set_num_threads(threads)
    models, images, labels = make(case, range(options.seeds), dtype)
    trainer = KINDS[kind](models, case)
    trainer.train(images, labels, options.compare_steps)
    found: list[dict[str, Tensor]] = trainer.weights()
    return [{name: value.detach().double() for name, value in weights.items()} for weights in found]


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Euclidean, over what is trained."""
    trained = [key for key in one if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    return float(torch.stack([(one[key].double() - two[key].double()).square().sum() for key in trained]).sum().sqrt())


if __name__ == "__main__":
    main()
