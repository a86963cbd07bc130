"""What the system and the libraries say where memory is short, as one error."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import CapacityError

NO_MEMORY = (
    "allocate memory",  # PyTorch's allocator, mmap, and the dynamic linker
    "bad_alloc",  # C++
    "not enough memory",
    "failed to map segment",  # the dynamic linker
    "start new thread",  # Python has no room for a thread's stack
    "Resource temporarily unavailable",  # C++ has none
)
"""Parts of messages of errors whose type does not say that memory is short."""


def memory_error(error: Exception, doing: str = "") -> CapacityError | None:
    """The error to raise instead, if this one says that memory is short.   doing: what the memory was for."""
    lines = str(error).splitlines() or [type(error).__name__]
    telling = [line for line in lines if any(text in line for text in NO_MEMORY)]
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not (no_memory or telling):
        return None
    return CapacityError(
        f"the system refused memory{doing and f' for {doing}'} ({(telling or lines)[0].strip()}): free some, raise the "
        "limit of this shell (ulimit -v), or lower --max-model-len, --host-memory or the size of the model"
    )


@contextmanager
def named_memory(doing: str = "") -> Iterator[None]:
    """Raises CapacityError where memory is short, which comes from outside, at any allocation, file or thread."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if short := memory_error(error, doing):
            raise short from error
        raise
