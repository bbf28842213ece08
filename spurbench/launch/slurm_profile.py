"""What a SLURM job asks for: a small YAML file, one per cluster or partition. ``cluster/slurm.yaml`` is an example."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from spurbench.config import Frozen, explain_validation
from spurbench.errors import ConfigError

__all__ = ["SlurmProfile", "load_profile"]

_OURS = ("array", "error", "job-name", "open-mode", "output", "parsable", "signal", "test-only", "wait", "wrap")
"""sbatch options that the launcher sets or relies on."""


_SETUP = (
    'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',  # from SLURM 22.05 on srun does not take it over by itself
    "export PYTHONSAFEPATH=1",  # what happens to lie in the folder where the command was typed is not imported
)


class SlurmProfile(Frozen):
    """What one job asks for; everything left out is the cluster's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that a node must have, such as ``a100|h100``."""
    exclude: str | None = None
    """Nodes to stay away from."""
    time_minutes: PositiveInt = 60
    """Limit of a job; one that reaches it saves, queues again and resumes, as often as it takes."""
    cpus: PositiveInt = 1
    memory_gb: PositiveFloat | None = 2
    """Of the whole job. ``null`` leaves it to the cluster, where asking is not allowed."""
    gpus: NonNegativeInt = 0
    runs_per_job: PositiveInt = 1
    """Runs that a job does one after the other: several short ones wait in the queue, and import torch, once."""
    signal_delay_seconds: PositiveInt = 120
    """How long before the time limit a job begins to save."""
    setup: list[str] = Field(default=[])
    """Shell lines that a job starts with, such as ``module load cuda``."""
    additional: dict[str, str | int | float | bool | None] = Field(default={})
    """Any further options of sbatch without their dashes; ``true`` for those without a value."""

    @field_validator("setup", mode="before")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("additional")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        value = {key.replace("_", "-").removeprefix("--"): setting for key, setting in value.items()}
        taken = [key for key in value if key in _OURS]
        if taken:
            raise ValueError(f"{', '.join(taken)}: the launcher sets this itself")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.signal_delay_seconds >= 60 * self.time_minutes:
            raise ValueError(
                f"signal_delay_seconds {self.signal_delay_seconds} must be below the time limit, "
                f"{60 * self.time_minutes} seconds: a job would do nothing but save"
            )
        return self

    def sbatch(self, *, name: str, jobs: int) -> dict[str, Any]:
        """The profile in the words of submitit's ``SlurmExecutor.update_parameters``.

        Args:
            name: of the submission, by which its jobs are known again.
            jobs: of one array at once.
        """
        switches = {"requeue": True, **self.additional}  # some clusters do not requeue unless asked to
        return {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "exclude": self.exclude,
            "time": self.time_minutes,
            "cpus_per_task": self.cpus,
            "mem": None if self.memory_gb is None else f"{max(1, round(1024 * self.memory_gb))}M",
            "gpus_per_node": self.gpus or None,
            "signal_delay_s": self.signal_delay_seconds,
            "setup": [*_SETUP, *self.setup],
            "array_parallelism": jobs,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {key: value for key, value in switches.items() if value not in (None, False)},
        }

    def in_words(self) -> str:
        """What each job gets, for people."""
        memory = "the default memory" if self.memory_gb is None else f"{self.memory_gb:g} GB"
        gpus = "no GPU" if not self.gpus else f"{self.gpus} GPU{'s' * (self.gpus > 1)}"
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}"
        return f"{cpus}, {memory}, {gpus}, {self.time_minutes} minute{'s' * (self.time_minutes > 1)}"


def load_profile(path: Path | None) -> SlurmProfile:
    """Read and check a profile; without one a job asks for 1 CPU and 2 GB in the default partition.

    Raises:
        ConfigError: not there, not YAML, unknown keys, impossible values.
    """
    if path is None:
        return SlurmProfile()
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--profile {path}: {error.strerror or error}; cluster/slurm.yaml is an example") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--profile {path} is not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"--profile {path} must hold lines such as partition: gpu; cluster/slurm.yaml is an example")
    try:
        return SlurmProfile(**tree)
    except ValidationError as error:
        raise ConfigError(f"--profile {path}: {explain_validation(error, '', SlurmProfile.model_fields)}") from error
