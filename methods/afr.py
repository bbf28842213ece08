"""AFR: automatic feature reweighting (Qiu et al., ICML 2023, arXiv 2306.11074).

    1. erm    ERM on a random 80 % of the training set; its last weights give features x, probabilities p, head (W0, b0)
    2. refit  the head alone, on the other 20 % and without augmentation, by full-batch gradient descent from (W0, b0):
              L(W, b) = sum_i w_i CE(W x_i + b, y_i) + lambda (||W - W0||^2 + ||b - b0||^2)
              w_i ~ exp(-gamma p_i(y_i)) / n_{y_i},  sum_i w_i = 1,  p fixed to step 1

gamma, lambda and the step to stop at are those with the highest worst-group accuracy on validation, as in the authors'
notebook: hence validation labels and groups are read, though no group of a training sample is.

Where the authors' codes differ, the notebook that made the paper's table is followed, except for the start:
* The notebook learns a correction of (W0, b0) that begins at random, the script begins at (W0, b0); here (W0, b0).
* lr 0.01 and gradients clipped to norm 1 in the notebook; 0.02 and no clipping in the README's command.
* One view of every image in evaluation geometry in the notebook; ten augmented ones in the README's command.
Stage 1 there: SGD, constant rate 3e-3, batch 32, 50 epochs on Waterbirds; here the recipe's.
All (gamma, lambda) descend together as one batch; shape letters: K of them, N samples, D features, C classes.
"""

from collections.abc import Sequence
from logging import getLogger
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from spurbench.config import TrainConfig
from spurbench.data.view import View
from spurbench.errors import ConfigError
from spurbench.inference import extract
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Views
from spurbench.types import Access

__all__ = ["METHOD"]

_log = getLogger(__name__)
NonNegative = Annotated[float, Field(ge=0)]


class AFRConfig(MethodConfig):
    """Options of AFR; the defaults are the authors' for Waterbirds."""

    gammas: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = tuple(4 + 0.5 * i for i in range(33))
    """How fast weights fall with the probability of the true class; a single one is not tuned. linspace(4, 20, 33) for
    Waterbirds, linspace(1, 3, 10) for CelebA."""
    lambdas: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (0.0, 0.1, 0.2, 0.3)
    """Strength of the pull to the first head; 0.001, 0.01, 0.1 for CelebA."""
    erm_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of the training set for stage 1, rounded down; the rest reweights."""
    lr: PositiveFloat = 0.01
    """Rate of gradient descent; 0.02 for CelebA."""
    steps: PositiveInt = 500
    """Steps of gradient descent; 1000 for CelebA."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of a gradient."""
    early_stop: bool = True
    """Whether the step with the best worst group on validation is taken, or the last one."""


class AFR(BaseMethod[AFRConfig]):
    """Refit the head with more weight on held-out samples that ERM is unsure of."""

    Config = AFRConfig
    access = Access.VAL_LABELS | Access.VAL_GROUPS
    paper = "Qiu et al., ICML 2023, arXiv 2306.11074"
    only_last = True

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """ERM, then the descent on features."""
        return (
            Phase(name="erm", epochs=train.epochs, optimizer=train.optimizer),
            Phase(name="refit", epochs=0, optimizer=train.optimizer, trainable="none"),
        )

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """Stage 1's share of the training set; the second stage is done here."""
        n = len(views.train)
        num_first = int(self.config.erm_fraction * n)
        if num_first == 0:
            raise ConfigError(f"AFR cannot split {n} training samples: none is left for the first stage")
        order = store.once("order", lambda: torch.randperm(n))
        first, second = (views.train.subset(part.sort().values) for part in (order[:num_first], order[num_first:]))
        if phase.name == "refit":
            head = self.head(model)
            refitted = store.once("refit", lambda: self.refit(model, second, views.val))
            with torch.no_grad():
                head.weight.copy_(refitted[:, :-1])
                head.bias.copy_(refitted[:, -1])
        return first

    def refit(self, model: nn.Module, held_out: View, val: View) -> Tensor:
        """float32 [C, D + 1]: weights and, in the last column, biases of the head, tuned on ``val``."""
        head = self.head(model)
        device = head.weight.device
        seen, judged = extract(self, model, held_out), extract(self, model, val)
        x_ND, val_x = seen.features.to(device), judged.features.to(device)
        y_N, val_y, val_group = held_out.y.to(device), val.y.to(device), val.group.to(device)
        probabilities_N = seen.probabilities().to(device).gather(1, y_N[:, None])[:, 0]
        grid = [(gamma, lambda_) for gamma in self.config.gammas for lambda_ in self.config.lambdas]
        gammas_K, lambdas_K = torch.tensor(grid, device=device).unbind(1)
        weights_KN = sample_weights(probabilities_N, y_N, gammas_K)
        head_K = with_bias(head.weight, head.bias).expand(len(grid), -1, -1).clone()
        first_K, best_K = head_K.clone(), head_K.clone()
        best_score_K = torch.full((len(grid),), -1.0, dtype=torch.float64, device=device)
        for step in range(self.config.steps):
            head_K.requires_grad_(True)
            loss_K = objective(head_K, first_K, x_ND, y_N, weights_KN, lambdas_K)
            (gradient_K,) = torch.autograd.grad(loss_K.sum(), head_K)
            head_K = head_K.detach() - self.config.lr * clipped(gradient_K, self.config.clip)
            if self.config.early_stop or step == self.config.steps - 1:
                score_K = worst_accuracies(logits(head_K, val_x).argmax(2) == val_y, val_group)
                better_K = score_K > best_score_K  # The first of equals, among steps as among the grid.
                best_K = torch.where(better_K[:, None, None], head_K, best_K)
                best_score_K = torch.maximum(score_K, best_score_K)
        chosen = int(best_score_K.argmax())
        _log.info("AFR: gamma %g, lambda %g, worst group %.3f", *grid[chosen], float(best_score_K[chosen]))
        return best_K[chosen].cpu()


def with_bias(weight_CD: Tensor, bias_C: Tensor) -> Tensor:
    """[C, D + 1]: a head as one matrix, which reads features with a one behind them."""
    return torch.cat([weight_CD, bias_C[:, None]], 1).detach()


def logits(head_K: Tensor, x_ND: Tensor) -> Tensor:
    """[K, N, C] of heads [K, C, D + 1]."""
    return torch.einsum("nd,kcd->knc", x_ND, head_K[..., :-1]) + head_K[:, None, :, -1]


def sample_weights(probability_N: Tensor, y_N: Tensor, gammas_K: Tensor) -> Tensor:
    """Rows w [K, N] of sum 1, from the first stage's probability of the true class."""
    class_size_N = torch.bincount(y_N)[y_N]
    w_KN = torch.exp(-gammas_K[:, None] * probability_N) / class_size_N
    return w_KN / w_KN.sum(1, keepdim=True)


def objective(
    head_K: Tensor, first_K: Tensor, x_ND: Tensor, y_N: Tensor, weights_KN: Tensor, lambdas_K: Tensor
) -> Tensor:
    """L [K] of heads [K, C, D + 1] that started at ``first_K``."""
    logits_KNC = logits(head_K, x_ND)
    losses_KN = F.cross_entropy(logits_KNC.transpose(1, 2), y_N.expand(len(head_K), -1), reduction="none")
    return (weights_KN * losses_KN).sum(1) + lambdas_K * (head_K - first_K).square().sum((1, 2))


def clipped(gradient_K: Tensor, norm: float | None) -> Tensor:
    """Gradients [K, C, D + 1], each scaled down to at most ``norm``."""
    if norm is None:
        return gradient_K
    norms_K = gradient_K.square().sum((1, 2), keepdim=True).sqrt()
    return gradient_K * (norm / (norms_K + 1e-6)).clamp(max=1.0)


def worst_accuracies(correct_KN: Tensor, group_N: Tensor) -> Tensor:
    """float64 [K], the lowest accuracy among groups that have a sample."""
    membership_NG = F.one_hot(group_N).double()
    membership_NG = membership_NG[:, membership_NG.any(0)]
    return (correct_KN.double() @ membership_NG / membership_NG.sum(0)).amin(1)


METHOD = AFR
