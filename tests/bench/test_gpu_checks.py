"""The checks of the device kernels, in Triton's interpreter without a GPU: right ones pass, wrong ones do not."""

import pytest
import torch

from scoutattention.bench.gpu import checks as gpu_checks
from scoutattention.bench.gpu.checks import check_choice, check_merge, check_partial, check_passes
from scoutattention.kernels.triton import choice as triton_rank
from scoutattention.kernels.triton import merge as triton_merge
from scoutattention.kernels.triton import score_digests as triton_digest
from scoutattention.kernels.triton.base import INTERPRETED

CHECKS = {
    "partial": lambda: check_partial((2, 2, 4, 16, 8, 3), torch.float32, None),
    "merge": lambda: check_merge(torch.float32),
    "choice": lambda: check_choice(torch.float32, 2, 5),
    "passes": lambda: check_passes(7),
}
WRONG = {
    "choice": [
        (triton_digest, "score_digests", lambda scores: scores + 1),
        (triton_digest, "score_key_codes", lambda scores: scores * 1.01),
        (triton_rank, "rank_blocks", lambda ranked: (ranked[0], ranked[1] * 1.01)),
    ],
    "merge": [
        (triton_merge, "doubt", lambda doubt: doubt * 1.01),
        (triton_merge, "corrected", lambda far: far._replace(lse=far.lse + 0.1)),
    ],
    "passes": [
        (triton_rank, "sift", lambda sifted: (sifted[0], ~sifted[1])),
        (triton_rank, "find_late", lambda late: (~late[0], late[1])),
        (triton_rank, "blend", lambda nothing: nothing),
    ],
}


@pytest.fixture(autouse=True)
def _on_any_device(monkeypatch):
    monkeypatch.setattr(gpu_checks, "DEVICE", "cpu" if INTERPRETED else "cuda")
    torch.manual_seed(0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", CHECKS)
def test_right_kernels_pass(name):
    row = CHECKS[name]()
    assert row.right
    assert all(value <= 1e-3 for value in row.more.values())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "module", "function", "wrong"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_wrong_kernels_do_not(monkeypatch, name, module, function, wrong):
    right = getattr(module, function)

    def call(*args, **options):
        return wrong(right(*args, **options) if function != "blend" else None)

    monkeypatch.setattr(module, function, call)
    assert not CHECKS[name]().right
