"""Products of matrices in float32."""

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, or of two batches of them, in float32.

    A GPU's matrix units multiply numbers of 16 bits exactly, and add the products in float32.
    """
    if a.dtype.itemsize == 2 and a.dtype == b.dtype and not a.is_cpu and torch.version.hip is None:
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        exact: Tensor = multiply(a, b, out_dtype=torch.float32)
        return exact
    return a.float() @ b.float()
