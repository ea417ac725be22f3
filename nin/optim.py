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
            if group.get("orthogonal"):
                if thin := [tuple(p.shape) for p in group["params"] if p.ndim < 2]:
                    raise SettingError("params", thin[0], "a parameter of this shape cannot be orthogonalised")
                # its momentum comes before the orthogonalisation, here; SGD's own has nothing left to do
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
                if not group.get("orthogonal"):
                    continue
                for weight in group["params"]:
                    if weight.grad is None:
                        continue
                    momentum = group["muon_momentum"]
                    if "mean_gradient" not in self.state[weight]:
                        self.state[weight]["mean_gradient"] = torch.zeros_like(weight)
                    mean = self.state[weight]["mean_gradient"]
                    mean.lerp_(weight.grad, 1 - momentum)
                    update = weight.grad.lerp(mean, momentum).flatten(1)
                    scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                    weight.grad = (orthogonalise(update) * scale).view_as(weight)
        super().step()
        return loss


def orthogonalise(matrix: Tensor) -> Tensor:
    """A matrix near U Vᵀ, where `matrix` = U S Vᵀ: five Newton-Schulz steps bring every singular value to between 0.7
    and 1.2. bfloat16 is precise enough for them. The coefficients are Jordan's, chosen for speed at small singular
    values."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if computes_bfloat16(matrix.device.type) else matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b g + c g²) x
    return (x.T if tall else x).to(matrix.dtype)


def computes_bfloat16(device: str) -> bool:
    """Whether the hardware of a device of this type multiplies bfloat16. CUDA and x86 are asked; other devices count as
    without. Emulated bfloat16 is slower than fp32: on an AMD EPYC that has AVX2 only, the Newton-Schulz steps of the
    paper's net take 27 times as long."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device == "cpu" and native and torch.backends.mkldnn.is_available()
