"""What matrices are multiplied by, read off torch's own calls while a module runs, however it is written.

Experts that lie in one tensor give no module a hook could stand at: what one of them is given is seen only where its
slice of the tensor meets its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Product(NamedTuple):
    """Inputs (n, d_in) that met a matrix, of one `expert` where the tensor holds many."""

    inputs: Tensor
    expert: int | None


@contextmanager
def products(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, list[Product]]]:
    """Within the block every product of inputs with one of these tensors (out, in), (in, out), (experts, ...), or with
    an expert's slice of one, is noted under its name."""
    import torch
    from torch.overrides import TorchFunctionMode

    found: dict[str, list[Product]] = {name: [] for name in tensors}
    by_storage: dict[tuple[int, Any], list[str]] = {}
    for name, tensor in tensors.items():
        by_storage.setdefault((tensor.untyped_storage().data_ptr(), tensor.device), []).append(name)
    multiplying = {
        torch.nn.functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm,
        torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm, torch.Tensor.__matmul__,
    }  # fmt: skip

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in multiplying:
                tensors_given = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, torch.Tensor)]
                inputs, matrix = tensors_given[1:3] if func is torch.addmm else tensors_given[:2]
                for name in by_storage.get((matrix.untyped_storage().data_ptr(), matrix.device), []):
                    whole = tensors[name]
                    if 0 <= matrix.storage_offset() - whole.storage_offset() < whole.numel():
                        found[name].extend(_split(whole, inputs, matrix))
            return func(*args, **(kwargs or {}))

    with Watch():
        yield found


def _split(whole: Tensor, inputs: Tensor, matrix: Tensor) -> list[Product]:
    if whole.ndim == 2:
        return [Product(inputs.flatten(0, -2), None)]
    first = int(matrix.storage_offset() - whole.storage_offset()) // int(whole.stride(0))
    if matrix.ndim == 2:
        return [Product(inputs.flatten(0, -2), first)]
    return [Product(some.flatten(0, -2), first + at) for at, some in enumerate(inputs)]
