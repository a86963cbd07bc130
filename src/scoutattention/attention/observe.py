"""Looking on: how good scouts are, layer by layer, without changing what is computed."""

from typing import Protocol

from torch import Tensor

from .choose import Choice, Chooser


class Observer(Protocol):
    """Told by each layer of each decode step what a scout chose, and with which query the layer then attended.

    All tensors are of the whole batch and the observer's to keep.
    """

    def chose(self, layer: int, scout: Tensor | None, choice: Choice, resident: Tensor) -> None:
        """Blocks were chosen for a layer.

        scout: the predicted query that chose, [B, H, G, D]; None where it was the true one.
        choice: `valid` is false in rows that needed none.   resident: bool [B, H, NB], blocks that had a slot then.
        """
        ...

    def attended(self, layer: int, q: Tensor, chooser: Chooser, weight: Tensor) -> None:
        """A layer has attended with its true query q [B, H, G, D].

        chooser: to be asked what q would have chosen.   weight: float32 [B, H, G], the far partial's in the merge.
        """
        ...
