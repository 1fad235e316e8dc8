# Copyright 2026
"""What a selective scan is given, as one value for all that compute it, and whether its shapes fit together."""

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """The arguments of `selective_scan` that every backend takes; see there for shapes and meaning.

    `mask` is a factor on every token's Δ: of bool or, with a time scale, of floats that are 0 where a token is absent.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = True
    mask: Tensor | None = None
    initial_state: Tensor | None = None

    def sizes(self, dy: Tensor | None = None, dfinal_state: Tensor | None = None) -> tuple[int, int, int, int]:
        """Return b, l, c and n, after refusing tensors whose shapes do not fit together, which kernels cannot.

        Raises:
            ValueError: a shape that does not fit; it names the tensor.
        """
        (b, l, c), n = self.u.shape, self.A.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            "A": (c, n), "B": (b, l, n), "C": (b, l, n), "D": (c,), "delta_bias": (c,), "mask": (b, l),
            "initial_state": (b, c, n), "dfinal_state": (b, c, n),
        }  # fmt: skip
        for name, tensor in self.tensors(dy, dfinal_state).items():
            shape = shapes.get(name, (b, l, c))
            if tensor.shape != shape:
                has = f"{name} has shape {tuple(tensor.shape)}"
                raise ValueError(f"{has}, but u of shape {tuple(self.u.shape)} needs {shape}.")
        return b, l, c, n

    def tensors(self, dy: Tensor | None = None, dfinal_state: Tensor | None = None) -> dict[str, Tensor]:
        """Return the tensors that are there, by name; also the gradients of results, where they are given."""
        every = {**self._asdict(), "dy": dy, "dfinal_state": dfinal_state}
        return {name: tensor for name, tensor in every.items() if isinstance(tensor, Tensor)}
