"""Modes that raise where a tensor is read on the host or has float64: on a CPU both work, so nothing else would tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VALUE_READ = {"_local_scalar_dense", "item", "is_nonzero", "equal"}
SHAPE_FROM_VALUES = {"nonzero", "bincount", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}


class NoSynchronisation(TorchDispatchMode):
    """Raises at operators for which the host would wait on a GPU, unless `allowed` is set."""

    allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of the operator."""
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if not self.allowed and name in VALUE_READ | SHAPE_FROM_VALUES:
            raise AssertionError(f"{name} makes the host wait for the device")
        indexing = name in ("index", "index_put", "index_put_", "_index_put_impl_") and not self.allowed
        if indexing and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise AssertionError(f"{name} with a mask makes the host wait for the device")
        return func(*args, **(kwargs or {}))


class NoFloat64(TorchDispatchMode):
    """Raises where an operator makes a float64 tensor, which Apple's MPS does not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of the operator."""
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor) and item.dtype == torch.float64:
                raise AssertionError(f"{func} makes a float64 tensor")
        return result
