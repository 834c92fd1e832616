"""What operations PyTorch carries out, and how large a tensor they return."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Counts matrix products and multiplications in them, and remembers the largest tensor any operation returned."""

    factors = {  # noqa: RUF012 - a table: where an operation's two factors are among its arguments
        torch.ops.aten.mm.default: 0,
        torch.ops.aten.addmm.default: 1,
        torch.ops.aten.bmm.default: 0,
        torch.ops.aten.bmm.out: 0,
        torch.ops.aten.baddbmm_.default: 1,
        torch.ops.aten.addmm_.default: 1,
    }

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.products = 0
        self.multiplications = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        if func in self.factors:
            left, right = args[self.factors[func] :][:2]
            self.products += 1
            self.multiplications += left.numel() * right.shape[-1]
        return result
