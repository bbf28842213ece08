"""Sums over the processes that share a batch, with gradient, and batch norm whose statistics are the whole batch's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spurbench.errors import RunFailed
from spurbench.types import Part

__all__ = ["WholeBatchNorm", "add_up", "add_up_in_place", "expect_peers"]


@contextmanager
def expect_peers() -> Iterator[None]:
    """Say in one line what a broken connection means.

    Raises:
        RunFailed: another process of the run has ended, or has not answered for the time limit of the group.
    """
    try:
        yield
    except RuntimeError as error:
        why, _, _ = str(error).partition(". ")
        raise RunFailed(
            "another process of this run has ended or does not answer; start the same command again to resume from "
            f"the last checkpoint ({why})"
        ) from error


def add_up_in_place(tensor: Tensor) -> None:
    """Replace a contiguous tensor by its sum over the processes; all of them get the same bits."""
    with expect_peers():
        dist.all_reduce(tensor)


def add_up(tensor: Tensor) -> Tensor:
    """The sum over the processes. Its gradient is that of the sum of their losses, so it is added up as well."""
    total: Tensor = _Sum.apply(tensor)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        add_up_in_place(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.clone(memory_format=torch.contiguous_format)
        add_up_in_place(total)
        return total


class WholeBatchNorm(TorchFunctionMode):
    """Within this context batch norm in training uses mean and variance of the whole batch, whichever module calls it.

    ``nn.SyncBatchNorm`` has no CPU kernel, and converting modules would drop what subclasses add, such as timm's
    activation after the norm. Here only the function that all of them call is replaced.
    """

    def __init__(self, part: Part, rank: int, size: int) -> None:
        super().__init__()
        self.part, self.rank, self.size = part, rank, size

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call of a torch function within the context; what is called from here is outside of it."""
        return (self._norm if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def _norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        mean_C, var_C = self._statistics(x)
        if running_mean is not None and running_var is not None:
            rows = self.part.rows.stop - self.part.rows.start
            n = x.numel() // x.shape[1] // rows * self.part.size
            with torch.no_grad():
                running_mean.lerp_(mean_C, momentum)
                running_var.lerp_(var_C * (n / max(1, n - 1)), momentum)
        scale_C = (var_C + eps).rsqrt()
        scale_C = scale_C if weight is None else scale_C * weight
        shift_C = -mean_C * scale_C if bias is None else bias - mean_C * scale_C
        shape = (1, -1, *[1] * (x.ndim - 2))
        return torch.addcmul(shift_C.view(shape), x.float(), scale_C.view(shape)).to(x.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance by channel, float32; one exchange, and no difference of large squares."""
        var_C, mean_C = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
        own_13C = torch.stack([torch.full_like(mean_C, self.part.share), mean_C, var_C])[None]
        before, after = self.rank, self.size - self.rank - 1
        share_RC, mean_RC, var_RC = add_up(F.pad(own_13C, (0, 0, 0, 0, before, after))).unbind(1)
        whole_mean_C = (share_RC * mean_RC).sum(0)
        whole_var_C = (share_RC * (var_RC + (mean_RC - whole_mean_C).square())).sum(0)
        return whole_mean_C, whole_var_C
