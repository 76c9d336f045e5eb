"""What lies between a pooled vector and the common space: its scale, and the head on top of the linear map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_FEATURE = 1e-6  # the slope of a root is infinite at zero


class PooledFeatures(nn.Module):
    """Prepares pooled vectors (batch, hidden) for the projection: signed power, scale, dropout."""

    def __init__(self, norm: str, power: float, dropout: float):
        super().__init__()
        self.norm = norm
        self.power = power
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        if self.power != 1:
            pooled = pooled.sign() * pooled.abs().clamp(min=SMALLEST_FEATURE).pow(self.power)
        if self.norm != "none":
            pooled = F.normalize(pooled, dim=-1)
        if self.norm == "rms":
            pooled = pooled * pooled.shape[-1] ** 0.5
        return self.dropout(pooled)


class ZeroLinear(nn.Linear):
    """A linear map that starts as zero."""


class IdentityLinear(nn.Linear):
    """A square linear map that starts as the identity."""

    def __init__(self, dim: int):
        super().__init__(dim, dim, bias=False)

    def starting_weight(self) -> Tensor:
        return torch.eye(self.in_features)


class MirroredLinear(nn.Linear):
    """A linear map, d -> 2d or 2d -> d, that starts as the identity next to its mirror image.

    Two of them with a ReLU between start as the identity: relu(x) - relu(-x) = x (Balduzzi et al., arXiv 1702.08591).
    """

    def starting_weight(self) -> Tensor:
        identity = torch.eye(min(self.weight.shape))
        return torch.cat([identity, -identity], dim=int(self.in_features > self.out_features))


class ProjectionHead(nn.Module):
    """The paper's head g: Linear(d, 2d) - ReLU - Linear(2d, d), without biases in the first layer.

    With `residual` the head adds its input to its output. With this or `starts_as_identity`, training starts from the
    linear map before the head.
    """

    def __init__(self, dim: int, dropout: float = 0.0, residual: bool = False, starts_as_identity: bool = False):
        super().__init__()
        outer = MirroredLinear if starts_as_identity and not residual else nn.Linear
        self.expand = outer(dim, 2 * dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.contract = (ZeroLinear if residual else outer)(2 * dim, dim)
        self.residual = residual

    def forward(self, embeds: Tensor) -> Tensor:
        given = self.contract(self.dropout(F.relu(self.expand(embeds))))
        return embeds + given if self.residual else given
