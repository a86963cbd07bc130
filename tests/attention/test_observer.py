"""Several observers as one."""

import time

import torch

from scoutattention.attention.observer import Attended, Chosen, Observers


class Slow:
    """Notes what it is told, and takes a hundredth of a second."""

    def __init__(self):
        self.told = []

    def chose(self, layer, scout, chosen):
        self.told.append((layer, scout, chosen))
        time.sleep(0.01)

    def attended(self, layer, q, choose, attended):
        self.told.append((layer, q, choose, attended))
        time.sleep(0.01)


def test_all_are_told_and_the_time_is_counted():
    first, second = Slow(), Slow()
    both = Observers(first, second)
    calls = [(3, None, Chosen(*torch.zeros(3, 1))), (3, torch.ones(1), None, Attended(torch.zeros(1)))]
    both.chose(*calls[0])
    assert both.seconds >= 0.02
    both.attended(*calls[1])
    assert both.seconds >= 0.04
    assert first.told == second.told == calls
