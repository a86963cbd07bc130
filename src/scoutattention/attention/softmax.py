"""How scores become weights: a softmax over keys, and in some models over a learned logit beside them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.ops import Ops
from ..types import Partial

MULTIPLE = 8
"""Channels of a head come in multiples of this number where more are needed than it has: kernels are fastest there."""


@dataclass(frozen=True)
class Softmax:
    """The softmax of a model's attention.

    scale: multiplies the products of queries and keys.
    sink_logits: float32 [L, H, G], or None. Each query head has a learned score that is one more term of its softmax
        denominator; its value is zero. gpt-oss calls these scores "attention sinks", after StreamingLLM, arXiv
        2309.17453.
    """

    ops: Ops
    scale: float
    sink_logits: Tensor | None = None

    def beside_sink(self, layer: int, keys: Partial) -> Tensor:
        """Attention over all keys of a layer and its sink logit, [B, H, G, D]; the model has sink logits.

        It is the merge of the keys' partial with one whose `out` is zero, which only takes weight from the keys.
        """
        assert self.sink_logits is not None
        weight = torch.sigmoid(keys.lse - self.sink_logits[layer])
        return (keys.out * weight[..., None]).to(keys.out.dtype)

    def causal(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A prompt's attention in a layer; see `Ops.causal`.

        A sink logit is the score of one more key, before all others, in one more channel: there it has 1, and a query
        the logit; the key's value is zero.
        """
        if self.sink_logits is None:
            return self.ops.causal(q, k, v, self.scale)
        width = k.shape[-1]
        more = MULTIPLE - width % MULTIPLE
        q, k, v = pad(q, (0, more)), pad(k, (0, more, 0, 0, 1, 0)), pad(v, (0, more, 0, 0, 1, 0))
        q[..., width] = self.sink_logits[layer] / self.scale
        k[0, :, width] = 1
        return self.ops.causal(q, k, v, self.scale)[..., :width].contiguous()
