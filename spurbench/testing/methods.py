"""What every method must do."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spurbench.backbone import Backbone
from spurbench.errors import AccessDenied, RunFailed, SpurbenchError
from spurbench.method import BaseMethod, MethodConfig
from spurbench.rng import generator
from spurbench.testing.requirements import found, require, requirement_of
from spurbench.testing.workbench import NUM_CLASSES, SAMPLES, Workbench, copy_state
from spurbench.types import Access, Batch, Prediction

__all__ = ["METHOD_CHECKS", "check_method", "method_outcomes"]


def check_method(
    cls: type[BaseMethod[Any]], *, backbones: tuple[str, ...] = ("minibirds_resnet", "test_convnext"), **options: Any
) -> list[str]:
    """Run every check on every backbone; returns the names of the checks that passed.

    Args:
        options: the method's options, its defaults if none are given.

    Raises:
        AssertionError: a requirement that does not hold, by name.
    """
    passed = []
    for outcome in method_outcomes(cls, cls.Config(**options), backbones):
        if outcome["error"] is not None:
            raise AssertionError(
                f"{cls.__name__} on {outcome['backbone']}: {outcome['requirement']}\n{outcome['error']}"
            ) from outcome["cause"]
        passed.append(f"{outcome['backbone']}: {outcome['check']}")
    return passed


def method_outcomes(
    cls: type[BaseMethod[Any]], config: MethodConfig, backbones: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Run the checks one by one, whether or not those before hold.

    Yields:
        ``{backbone, check, requirement, error, cause}``; ``error`` is None where the requirement holds, and ``cause``
        the exception behind it.
    """
    for backbone in backbones:
        for check in METHOD_CHECKS:
            outcome: dict[str, Any] = {
                "backbone": backbone,
                "check": check.__name__.lstrip("_"),
                "requirement": requirement_of(check),
                "error": None,
                "cause": None,
            }
            with torch.random.fork_rng(devices=[]):
                try:
                    check(Workbench.make(cls(config), backbone))
                except Exception as error:
                    outcome |= {"error": found(error), "cause": error}
            yield outcome


def _declares_itself(bench: Workbench) -> None:
    """Version, label, options and phases are well-formed, and the options survive JSON."""
    method = bench.method
    require(isinstance(method.version, int) and method.version >= 1, f"version is {method.version!r}")
    require(isinstance(method.access, Access), f"access is {method.access!r}")
    require(isinstance(method.label, str) and method.label.strip(), f"label is {method.label!r}")
    unknown = set(method.Config.positional) - set(method.Config.model_fields)
    require(not unknown, f"positional names no option: {sorted(unknown)}")
    again = method.Config.model_validate_json(method.config.model_dump_json())
    require(again == method.config, f"options {method.config!r} come back as {again!r}")
    names = [phase.name for phase in method.phases(bench.config.train)]
    require(names and len(set(names)) == len(names), f"phases need names of their own, got {names}")


def _classifies(bench: Workbench) -> None:
    """Evaluate gives finite logits [B, C], and masks [B, h, w] in [0, 1]."""
    prediction = bench.predict(bench.images)
    shape = tuple(prediction.logits.shape)
    require(shape == (SAMPLES, NUM_CLASSES), f"logits have shape {shape}, expected {(SAMPLES, NUM_CLASSES)}")
    require(prediction.logits.isfinite().all(), "logits are not finite")
    for mask in _masks(prediction):
        require(mask.ndim == 3 and len(mask) == SAMPLES, f"a mask has shape {tuple(mask.shape)}, expected [B, h, w]")
        require(((mask >= 0) & (mask <= 1)).all(), "a mask leaves [0, 1]")


def _evaluates_deterministically(bench: Workbench) -> None:
    """Evaluate changes nothing, and does not depend on the batch, its order, or how often it is called."""
    before = copy_state(bench.model.state_dict())
    whole, again = bench.predict(bench.images), bench.predict(bench.images)
    require(not bench.model.training, "evaluate leaves the model in training mode")
    _require_equal(before, bench.model.state_dict(), "evaluate changes the model")
    order = torch.randperm(SAMPLES, generator=generator(0, "order"))
    shuffled = bench.predict(bench.images[order])
    singles = [bench.predict(image[None]) for image in bench.images]
    require(torch.equal(whole.logits, again.logits), "two calls differ")
    same_masks = all(torch.equal(one, other) for one, other in zip(_masks(whole), _masks(again), strict=True))
    require(same_masks, "the masks of two calls differ")
    _require_close(shuffled.logits, whole.logits[order], "another order gives other logits")
    _require_close(torch.cat([single.logits for single in singles]), whole.logits, "another batch gives other logits")


def _reads_what_it_declared(bench: Workbench) -> None:
    """Groups, masks and validation labels are read only as far as ``access`` declares them."""
    access = bench.method.access
    batch = next(bench.views.train.loader(shuffle=True, augment=True))
    require(hasattr(batch, "mask") == (Access.REGIONS in access), "masks in the batch and access differ")
    has_group = getattr(batch, "group", None) is not None
    require(has_group == (Access.TRAIN_GROUPS in access), "groups in the batch and access differ")
    if Access.VAL_LABELS not in access:
        hidden = next(bench.views.val.loader(shuffle=False, augment=False)).y
        require((hidden == -1).all(), "validation labels are in the batch")
    try:
        for _ in bench.first_steps():
            pass
    except AccessDenied as error:
        raise AssertionError(str(error)) from error
    except AttributeError as error:
        if isinstance(error.obj, Batch):
            raise AssertionError(f"batches have no {error.name} without declaring it in access") from error
        raise


def _steps_with_gradients(bench: Workbench) -> None:
    """Every phase's step has a finite 0-d loss, 0-d tensors as scalars, and gradients for what it trains."""
    of_backbone = {
        id(p) for module in bench.model.modules() if isinstance(module, Backbone) for p in module.parameters()
    }
    for phase, loss, scalars in bench.first_steps():
        require(loss.ndim == 0 and loss.isfinite(), f"{phase.name}: the loss is {loss}")
        for name, value in scalars.items():
            require(isinstance(value, Tensor) and value.ndim == 0, f"{phase.name}: scalar '{name}' is no 0-d tensor")
        trained = {name: p for name, p in bench.model.named_parameters() if p.requires_grad}
        require(trained, f"{phase.name}: nothing is trainable")
        bench.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        bad = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
        require(not bad, f"{phase.name}: gradients are not finite: {bad}")
        # Parts of a trunk may be left out, such as the norm after its last stage; a method's own parts may not.
        idle = [name for name, p in trained.items() if p.grad is None and id(p) not in of_backbone]
        require(not idle, f"{phase.name}: parameters outside the backbone without a gradient: {idle}")
        require(any(p.grad is not None and p.grad.any() for p in trained.values()), f"{phase.name}: no gradient")


def _trains_reproducibly(bench: Workbench) -> None:
    """Training twice from equal seeds gives equal bits, whatever was drawn from torch's global stream before."""
    torch.manual_seed(1)
    bench.train(2)
    torch.manual_seed(2)
    twin = bench.twin()
    twin.train(2)
    _require_equal(bench.model.state_dict(), twin.model.state_dict(), "two runs differ")


def _resumes_exactly(bench: Workbench) -> None:
    """A run that stops inside every phase and goes on in a new process ends with equal weights and method state."""
    bench.train(3)
    twin = bench.twin()
    twin.train(3, interrupt=True)
    _require_equal(bench.model.state_dict(), twin.model.state_dict(), "the resumed run differs")
    _require_equal(bench.method.state_dict(), twin.method.state_dict(), "the resumed method's state differs")


def _survives_empty_groups(bench: Workbench) -> None:
    """Fully correlated training data, where groups are empty, are trained on or refused by name; never NaN."""
    bench = bench.twin(correlated=True)
    try:
        bench.train(2)
    except RunFailed as error:  # that is no refusal: training had begun
        raise AssertionError(str(error)) from error
    except SpurbenchError:
        return
    bad = [name for name, value in bench.model.state_dict().items() if not value.isfinite().all()]
    require(not bad, f"after training on data with empty groups these are not finite: {bad}")
    require(bench.predict(bench.images).logits.isfinite().all(), "logits are not finite")


def _pickles(bench: Workbench) -> None:
    """The method and its options survive pickling, as launchers need."""
    copy = pickle.loads(pickle.dumps(bench.method))
    require(type(copy) is type(bench.method), f"a {type(copy).__name__} comes back")
    require(copy.config == bench.method.config, f"options {copy.config!r} come back")


def _exposes_head_and_features(bench: Workbench) -> None:
    """The head on features [B, D] gives evaluate's logits, and logits depend on cam_layer's output [B, K, h, w]."""
    bench.model.eval()
    with torch.no_grad():
        features = bench.method.features(bench.model, bench.images)
        head = bench.method.head(bench.model)
        shape, expected = tuple(features.shape), (SAMPLES, head.in_features)
        require(shape == expected, f"features have shape {shape}, the head takes {expected}")
        logits = bench.method.evaluate(bench.model, bench.images).logits
        _require_close(head(features), logits, "head(features) is not what evaluate says")
    layer = bench.method.cam_layer(bench.model)
    require(any(module is layer for module in bench.model.modules()), "cam_layer is not a part of the model")
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        score = bench.method.evaluate(bench.model, bench.images).logits.sum()
    finally:
        handle.remove()
    require(len(outputs) == 1, f"cam_layer is called {len(outputs)} times per pass, not once")
    require(outputs[0].ndim == 4, f"cam_layer's output has shape {tuple(outputs[0].shape)}, expected [B, K, h, w]")
    (gradient,) = torch.autograd.grad(score, outputs[0], allow_unused=True)
    require(gradient is not None, "logits do not depend on cam_layer")


def _overfits(bench: Workbench) -> None:
    """Sixteen images of squares in two colours are learned."""
    right = 0
    for epochs in (12, 40):  # the first is enough for most
        bench = bench.twin()
        bench.train(epochs)
        predicted = bench.predict(bench.images).logits.argmax(1)
        right = int((predicted == torch.arange(SAMPLES) % NUM_CLASSES).sum())
        if right >= SAMPLES - 1:
            return
    raise AssertionError(f"only {right} of {SAMPLES} training images are right")


METHOD_CHECKS: tuple[Callable[[Workbench], None], ...] = (
    _declares_itself,
    _classifies,
    _evaluates_deterministically,
    _reads_what_it_declared,
    _steps_with_gradients,
    _trains_reproducibly,
    _resumes_exactly,
    _survives_empty_groups,
    _pickles,
    _exposes_head_and_features,
    _overfits,
)


def _masks(prediction: Prediction) -> list[Tensor]:
    return [mask for mask in (prediction.mask, *prediction.stage_masks) if mask is not None]


def _require_equal(ours: Any, theirs: Any, message: str, path: str = "") -> None:
    """Equal structure and equal bits."""
    if isinstance(ours, dict):
        same = isinstance(theirs, dict) and ours.keys() == theirs.keys()
        require(same, f"{message}: keys at '{path}'")
        for key, value in ours.items():
            _require_equal(value, theirs[key], message, f"{path}.{key}".lstrip("."))
    elif isinstance(ours, Tensor):
        require(isinstance(theirs, Tensor) and torch.equal(ours, theirs), f"{message}: '{path}'")
    else:
        require(ours == theirs, f"{message}: '{path}'")


def _require_close(ours: Tensor, theirs: Tensor, message: str) -> None:
    require(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4), f"{message}, by up to {(ours - theirs).abs().max()}")
