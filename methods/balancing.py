"""RWG, RWY, SUBG, SUBY: Simple data balancing (Idrissi et al., CLeaR 2022, arXiv 2110.14503), plain cross-entropy.

    RW*   every epoch draws N samples with replacement, with probability 1 / (cells * size of the own cell)
    SUB*  one fixed random subset, drawn before training, has min_c n_c samples of every cell c

Cells are groups (*G) or classes (*Y). Only cells with a training sample are balanced; the log names groups that have
none. If every class has a single group, as under full correlation, RWG equals RWY and SUBG equals SUBY.
In the authors' code an epoch of SUB* is one pass over the small subset (224 of Waterbirds' 4795 images), so that it
makes far fewer steps than other methods in as many epochs; ``passes="steps"`` is not in their code and evens that out.
"""

from typing import Literal, TypeVar

from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.data.balance import balanced_subset, balanced_weights, warn_of_empty_groups
from spurbench.data.view import View
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, TaskInfo, Views
from spurbench.types import Access

__all__ = ["METHODS"]


class SubsampleConfig(MethodConfig):
    """Options of SUBG and SUBY."""

    passes: Literal["epochs", "steps"] = "epochs"
    """What is the same as for other methods: ``epochs`` (the authors' code), each one pass over the subset; or
    ``steps``, each as many whole passes as come nearest to the size of the full set."""


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class _Balancing(BaseMethod[ConfigT]):
    """What the four have in common: the cells."""

    paper = "Idrissi et al., CLeaR 2022, arXiv 2110.14503"
    data_parallel = True
    num_groups: int = 0

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        self.num_groups = task.num_groups
        return super().build(backbone, task)

    def cells(self, train: View) -> Tensor:
        """int64 [N]; by group if the method may read groups, else by class."""
        if Access.TRAIN_GROUPS not in self.access:
            return train.y
        warn_of_empty_groups(self.label, train.group, self.num_groups)
        return train.group


class RWY(_Balancing[MethodConfig]):
    """Draw every class equally often."""

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """The training set, drawn with weights 1 / size of the cell."""
        return views.train.resample(balanced_weights(self.cells(views.train)))


class RWG(RWY):
    """Draw every group equally often."""

    access = Access.TRAIN_GROUPS


class SUBY(_Balancing[SubsampleConfig]):
    """Throw samples away until all classes are equally large."""

    Config = SubsampleConfig

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """The balanced subset, the same in every epoch."""
        cells = self.cells(views.train)
        kept = store.once("balanced_subset", lambda: balanced_subset(cells))
        times = round(len(cells) / len(kept)) if self.config.passes == "steps" else 1
        return views.train.subset(kept.repeat(times))


class SUBG(SUBY):
    """Throw samples away until all groups are equally large."""

    access = Access.TRAIN_GROUPS


METHODS = {"rwg": RWG, "rwy": RWY, "subg": SUBG, "suby": SUBY}
