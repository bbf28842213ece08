"""The complete description of a run, its canonical form, and its identity.

Everything that may change a number is a field here and part of ``run_id``; everything that must not (paths,
launcher, device index, log level) lives in ``RunPaths`` or in the command line and never enters the hash.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from spurbench.errors import ConfigError, did_you_mean

__all__ = [
    "IDENTITY_VERSION",
    "AttributionName",
    "BackboneConfig",
    "DatasetRef",
    "EvaluationConfig",
    "Frozen",
    "InputConfig",
    "MethodRef",
    "OptimizerConfig",
    "RunConfig",
    "RunPaths",
    "TrainConfig",
    "explain_validation",
]

IDENTITY_VERSION = 1
"""Raised when the meaning of an unchanged configuration changes; part of every run id."""


class Frozen(BaseModel):
    """Base of all configurations: immutable, unknown keys refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class OptimizerConfig(Frozen):
    """One optimizer with two learning rates: the backbone's, and the new modules'."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW (betas 0.9, 0.999) or SGD with momentum."""
    lr: PositiveFloat = 5e-5
    """Learning rate of the backbone."""
    head_lr: PositiveFloat | None = None
    """Learning rate of the head and of a method's new modules; the backbone's if not set."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled (AdamW) or L2 (SGD)."""
    decay_vectors: bool = False
    """Whether biases, norms and scales (parameters of at most one dimension) are decayed too."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Per step, from the full rate to zero for cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of all steps with linearly rising rate."""
    clip: PositiveFloat | None = None
    """Largest global gradient norm; no clipping if not set."""


class InputConfig(Frozen):
    """Geometry from stored image to model input."""

    resize: PositiveInt = 256
    """Images are squashed to resize x resize (the field's convention: aspect ratio not kept) and cached so."""
    image_size: PositiveInt = 224
    """Side of the model's input: a center crop of the cached frame in evaluation."""
    crop_scale: tuple[float, float] | None = (0.7, 1.0)
    """Area range of RandomResizedCrop in training; the center crop if not set."""
    flip: bool = True
    """Random horizontal flip in training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_size > self.resize:
            raise ValueError(f"image_size {self.image_size} is larger than the cached frame, resize {self.resize}")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError("crop_scale must satisfy 0 < low <= high <= 1")
        return self


class BackboneConfig(Frozen):
    """A timm model and its initial weights."""

    name: str = "convnext_tiny"
    """Name in timm, without a tag."""
    weights: str = "default"
    """``none``, ``tag:<timm tag>`` or ``sha256:<of the file>``; ``default`` and paths are resolved to these."""


class TrainConfig(Frozen):
    """How a phase is trained; a method may change it per phase."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 64
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 is autocast: parameters stay float32."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    compile: bool = False
    """Whether the model goes through ``torch.compile``."""
    num_threads: PositiveInt | None = None
    """CPU threads inside operations; part of the identity because sums depend on it. None: the machine's default."""


AttributionName = Literal["gradcam", "xgradcam", "input_x_gradient", "integrated_gradients", "uniform"]
"""What explains a prediction after training; ``uniform`` is a control."""


class EvaluationConfig(Frozen):
    """How a trained model is measured."""

    batch_size: PositiveInt = 256
    attributions: tuple[AttributionName, ...] = ("gradcam",)
    """What EPG is measured of besides the method's own mask; the first one makes the headline where there is no mask.
    ``[]`` for none."""
    erasure: bool = True
    """Whether methods with a mask are predicted again on images that were erased outside and inside of it."""
    oracle: bool = False
    """Whether test counts of every epoch are kept, which allows the ``oracle_test_wga`` rule. Marked in every row."""

    @field_validator("attributions", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("attributions")
    @classmethod
    def _no_name_twice(cls, value: tuple[AttributionName, ...]) -> tuple[AttributionName, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names an attribution twice")
        return value


class MethodRef(Frozen):
    """A method by name with all its options written out."""

    name: str
    version: int
    """The method's own version, raised when equal options give other numbers."""
    source: str | None = None
    """``sha256:...`` of a plugin's file; None for built-in and installed methods."""
    config: dict[str, Any] = {}
    """The method's options with defaults written out."""


class DatasetRef(Frozen):
    """A dataset by name and version; where it lies is not part of it."""

    name: str
    version: str


class RunConfig(Frozen):
    """One run: method, data, backbone, recipe, seed."""

    method: MethodRef
    dataset: DatasetRef
    backbone: BackboneConfig
    input: InputConfig
    train: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Annotated[int, Field(ge=0)] = 0

    def canonical(self) -> str:
        """Sorted JSON with defaults written out: equal runs give equal text in every process."""
        document = {"identity_version": IDENTITY_VERSION, **self.model_dump(mode="json")}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def run_id(self) -> str:
        """The first 16 hex digits of the canonical form's sha256."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]


class RunPaths(Frozen):
    """Where a run finds and leaves its files; never part of its identity."""

    results: Path = Path("results")
    """Folder that holds ``runs/<run_id>/``."""
    data_root: Path | None = None
    """Folder below which datasets lie."""
    cache: Path | None
    """Folder of decoded images, shared by all runs on a machine; None: decode whenever an image is needed."""
    dataset_path: Path | None = None
    """The folder itself, for a dataset given as a path."""
    weights_path: Path | None = None
    """The file itself, for weights given as a path."""

    def run(self, run_id: str) -> Path:
        """The directory that is the whole state of one run."""
        return self.results / "runs" / run_id


def explain_validation(error: ValidationError, section: str, known: Mapping[str, Any] | None = None) -> ConfigError:
    """One readable line per problem, with the path of the field and the closest valid key.

    Args:
        section: what the fields belong to, the start of every path.
        known: the model's fields by name.
    """
    lines: list[str] = []
    told: dict[tuple[str, str], list[str]] = {}
    for problem in error.errors():
        location = _without_branches(problem["loc"], known or {})
        path = ".".join([section, *(str(part) for part in location)]).strip(".")
        if problem["type"] == "extra_forbidden":
            key = str(problem["loc"][-1])
            names = sorted(_fields_at(problem["loc"][:-1], known or {}))
            allowed = f"{did_you_mean(key, names)} available: {', '.join(names)}" if names else "; there are no options"
            lines.append(f"unknown option '{path}'{allowed}")
        else:
            # A rule between fields has their whole section as its input.
            value = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
            told.setdefault((path, value), []).append(
                _in_words(problem["type"], problem["msg"], problem.get("ctx", {}))
            )
    lines += [f"{path}: {'; or: '.join(messages)}{value}" for (path, value), messages in told.items()]
    return ConfigError("\n".join(lines))


_WORDS = {
    "missing": "is missing",
    "list_type": "must be a list, such as [a, b]",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must hold options, such as {{name: value}}",
    "model_type": "must hold options, such as {{name: value}}",
    "model_attributes_type": "must hold options, such as {{name: value}}",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "too_short": "needs at least {min_length}",
}
"""What is said of a problem, by pydantic's name for it; the rest is told in pydantic's words."""


def _in_words(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in _WORDS:
        return _WORDS[kind].format(**context)
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _without_branches(location: tuple[int | str, ...], known: Mapping[str, Any]) -> tuple[int | str, ...]:
    """The path of the field itself: below a field that takes several types pydantic adds the name of each type."""
    location = tuple(part for part in location if not (isinstance(part, str) and "[" in part))
    for end in range(len(location)):
        if (
            not _fields_at(location[: end + 1], known)
            and isinstance(location[end], str)
            and location[end] in (_fields_at(location[:end], known))
        ):
            keys = 1 if get_origin(_fields_at(location[:end], known)[str(location[end])].annotation) is dict else 0
            kept = end + 1 + keys
            return (*location[:kept], *(part for part in location[kept:] if isinstance(part, int)))
    return location


def _fields_at(location: tuple[int | str, ...], fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the model that lies at a location below a model with ``fields``."""
    for part in location:
        if isinstance(part, str):
            annotation = fields[part].annotation if part in fields else None
            inside = [annotation, *get_args(annotation)]
            fields = next((model.model_fields for model in inside if hasattr(model, "model_fields")), {})
    return fields
