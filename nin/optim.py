"""Muon for convolutions: SGD whose steps on weights are orthogonal matrices.

torch.optim.Muon accepts matrices only, and one optimiser has to hold all parameters of a net. This one is torch's SGD
plus what Muon adds. On a matrix it takes the same steps as torch.optim.Muon.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nin.checks import boolean, fraction
from nin.errors import SettingError

A, B, C = 3.4445, -4.7750, 2.0315  # Jordan's coefficients of a Newton-Schulz step: fast at small singular values
STEPS = 5  # of Newton-Schulz
PADDED = 1.5  # the most operations of a padded batch, as a multiple of those of its matrices


class Muon(torch.optim.SGD):
    """SGD with momentum, and Muon (Jordan et al., 2024) in groups with `orthogonal=True`.

    Muon reads the mean gradient with Nesterov momentum as a matrix (out, in·k·k). It replaces the matrix by the nearest
    one with orthonormal rows or columns, times √max(1, rows / columns): all directions of the weights move equally far.
    The learning rate is the size of a step, whatever the size of the gradient; 0.02 is usual.

    Args:
        params: groups as in torch.optim.SGD, each with `orthogonal=True` or without. Without such a group this is SGD.
            Weight decay in an orthogonal group acts on the weights, not through the orthogonalisation.
        momentum: of both kinds of group.
        nesterov: whether the momentum of SGD's groups is Nesterov's.

    Raises:
        SettingError: a value outside its bounds, or a vector or number in an orthogonal group.
    """

    def __init__(self, params: list[dict], momentum: float = 0.0, nesterov: bool = False) -> None:
        fraction(momentum=momentum)
        boolean(nesterov=nesterov)
        if nesterov and not momentum:
            raise SettingError("nesterov", nesterov, f"requires a momentum above 0, got momentum={momentum}")
        groups = []
        for group in params:
            own = group["params"]
            group = {**group, "params": [own] if isinstance(own, Tensor) else list(own)}  # a generator is read once
            if group.get("orthogonal"):
                if thin := [tuple(p.shape) for p in group["params"] if p.ndim < 2]:
                    raise SettingError("params", thin[0], "orthogonal=True requires at least two dimensions")
                # `step` takes the momentum before it orthogonalises, so SGD's own is switched off
                group = {"muon_momentum": momentum, **group, "momentum": 0.0, "nesterov": False}
            groups.append(group)
        super().__init__(groups, momentum=momentum, nesterov=nesterov)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                weights = [weight for weight in group["params"] if weight.grad is not None]
                if not weights or not group.get("orthogonal"):
                    continue
                for weight in weights:
                    if "mean_gradient" not in self.state[weight]:
                        self.state[weight]["mean_gradient"] = torch.zeros_like(weight)
                if weights[0].device.type == "cuda":
                    self._orthogonalise_together(weights, group["muon_momentum"])
                else:
                    self._orthogonalise_each(weights, group["muon_momentum"])
            for group in self.param_groups:
                if group.get("fused"):
                    _match_strides(group["params"])
        super().step()
        return loss

    def _orthogonalise_each(self, weights: list[Tensor], momentum: float) -> None:
        """Replaces each gradient by its step; the faster way on a CPU, where a launch costs nothing."""
        for weight in weights:
            mean = self.state[weight]["mean_gradient"]
            mean.lerp_(weight.grad, 1 - momentum)
            update = weight.grad.lerp(mean, momentum).flatten(1)
            weight.grad = (orthogonalise(update) * _scale(update)).view_as(weight)

    def _orthogonalise_together(self, weights: list[Tensor], momentum: float) -> None:
        """As `_orthogonalise_each`, in a quarter of the launches: each operation takes the list of all tensors. Every
        gradient gets the strides of its weight, which fused optimisers require."""
        means = [self.state[weight]["mean_gradient"] for weight in weights]
        gradients = [weight.grad for weight in weights]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, means, momentum)
        updates = [as_matrix(update, weight) for update, weight in zip(updates, weights, strict=True)]
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        steps = [as_matrix(weight.grad, weight) for weight in weights]  # views: writing them writes the gradients
        torch._foreach_copy_(steps, orthogonalise_together(updates))
        torch._foreach_mul_(steps, [_scale(update) for update in updates])


def _match_strides(weights: list[Tensor]) -> None:
    """Gives each gradient the strides of its weight. Fused SGD reads both in the order of their memory, and autograd
    does not guarantee that the orders agree."""
    for weight in weights:
        if weight.grad is not None and weight.grad.stride() != weight.stride():
            weight.grad = torch.empty_like(weight).copy_(weight.grad)


def _scale(matrix: Tensor) -> float:
    """√max(1, rows / columns), the factor of an orthogonalised step."""
    return max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


def as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """Values of a weight as a matrix (out, in·k·k), with its columns in the order of the weight's memory: a view where
    the values have the weight's layout. Orthogonalisation does not depend on the order."""
    if weight.ndim == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.flatten(1)


def orthogonalise(matrix: Tensor) -> Tensor:
    """A matrix near U Vᵀ, where `matrix` = U S Vᵀ: five Newton-Schulz steps bring every singular value to between 0.7
    and 1.2. bfloat16 is precise enough for them."""
    x = matrix.to(_working_dtype(matrix))
    x = x / x.norm().clamp(min=1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)  # a x + (b g + c g²) x
    return (x.T if tall else x).to(matrix.dtype)


def orthogonalise_together(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonalise` of each matrix, in a few batches of matrices that are padded with zeros to one shape. The padding
    is exact: rows and columns of zeros stay zero, and add nothing to the others. The results have the working dtype."""
    results: dict[int, Tensor] = {}
    for members, rows, columns in batches([tuple(matrix.shape) for matrix in matrices]):
        x = matrices[0].new_zeros((len(members), rows, columns), dtype=_working_dtype(matrices[0]))
        own = [matrices[n] for n in members]
        torch._foreach_copy_([_filled(padded, matrix) for padded, matrix in zip(x, own, strict=True)], own)
        x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(STEPS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
        results |= {n: _filled(padded, matrices[n]) for n, padded in zip(members, x, strict=True)}
    return [results[n] for n in range(len(matrices))]


def _filled(padded: Tensor, matrix: Tensor) -> Tensor:
    """The part of a padded matrix that `matrix` fills, in the shape of `matrix`. A tall one lies there transposed."""
    rows, columns = matrix.shape
    return (padded if rows <= columns else padded.T)[:rows, :columns]


def batches(shapes: list[tuple[int, int]]) -> list[tuple[list[int], int, int]]:
    """Which matrices share a padded batch: for each batch the numbers of its matrices, its rows and its columns.

    The matrices are taken from the widest to the narrowest. Each joins the latest batch if the operations stay within
    PADDED times those of the batch's matrices; else it begins a new batch.
    """
    wide = [(max(shape), min(shape), n) for n, shape in enumerate(shapes)]
    made: list[tuple[list[int], int, int]] = []
    for columns, rows, n in sorted(wide, reverse=True):
        if made:
            members, most_rows, most_columns = made[-1]
            members, most_rows = [*members, n], max(most_rows, rows)
            own = sum(min(shapes[m]) ** 2 * max(shapes[m]) for m in members)
            if len(members) * most_rows**2 * most_columns <= PADDED * own:
                made[-1] = (members, most_rows, most_columns)
                continue
        made.append(([n], rows, columns))
    return made


def _working_dtype(matrix: Tensor) -> torch.dtype:
    return torch.bfloat16 if computes_bfloat16(matrix.device.type) else torch.float32


def computes_bfloat16(device: str) -> bool:
    """Whether the hardware of a device of this type multiplies bfloat16. CUDA and x86 are asked; other devices count as
    without. Emulated bfloat16 is slower than fp32: on an AMD EPYC that has AVX2 only, the Newton-Schulz steps of the
    paper's net take 27 times as long."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device == "cpu" and native and torch.backends.mkldnn.is_available()
