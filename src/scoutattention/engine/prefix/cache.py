"""Prompts that were read, to be found again by those that begin alike."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from weakref import WeakKeyDictionary

from ...attention.build import Cache
from ...attention.prompt.prefill import VOTERS
from ...cache.memory_plan import MemoryPlan
from ...cache.prefix import NOTHING, Lineage, Prefix, chain_names
from ...cache.store import KVStore
from ...config import EngineConfig, ScoutConfig
from ...errors import ConfigError
from ...models.decoder import Decoder
from ..scheduler import Sequence as Request
from .files import PrefixFiles

FORMAT = 1
"""Version of what is stored."""
LONGER = 1.5
"""A prompt may be so many times as long as the one whose bases it uses. Queries and keys turn with their positions, and
bases fit the positions that they were made from, in any text; docs/lab/2026-11-26-prefix-bases.md has the figures."""
LEAST_PART = 0.25
"""Of a prompt, what must be kept of it, or reading it whole costs little, and makes its own bases and corrections."""


class PrefixCache:
    """Names the blocks of prompts, keeps those that were read, and says what is kept of those that come."""

    def __init__(
        self,
        store: KVStore,
        plan: MemoryPlan,
        budget_blocks: int | None,
        frequencies: Callable[[int], int],
        files: PrefixFiles | None = None,
    ) -> None:
        """`budget_blocks`: of which all are chosen; None is any number.   frequencies: see `Decoder.frequencies_of`.

        files: where prompts are stored.
        """
        self._store = store
        self._store.pages.forget()
        self._plan = plan
        self._budget_blocks = budget_blocks
        self._frequencies = frequencies
        self._files = files
        self._named: WeakKeyDictionary[Request, list[bytes]] = WeakKeyDictionary()

    def find(self, sequence: Request) -> Prefix:
        """What is kept of a sequence's beginning: whole blocks, without its last VOTERS tokens.

        These choose the first blocks of slots. So a prompt that comes again is answered as it was the first time.

        Bases and corrections of a lineage are its first prompt's; see LONGER and LEAST_PART. They do not matter to a
        sequence that is so short that all its blocks are chosen.

        A prompt whose log-probabilities are asked for is read whole, since what is kept does not tell them, and is not
        kept: texts that are scored seldom come again.
        """
        if not self._plan.lineages or sequence.params.prompt_logprobs is not None:
            return NOTHING
        names, blocks = self._names(sequence, sequence.num_tokens), self._plan.blocks(sequence.limit)
        may_be_found = names[: max(0, sequence.num_tokens - VOTERS) // self._plan.block_size]
        least, first = ceil(LEAST_PART * len(names)), ceil(len(names) / LONGER)
        if self._budget_blocks is None or blocks <= self._budget_blocks:
            least = first = 0
        if self._files is not None:
            self._read_files(may_be_found, least, first)
        found = self._store.pages.prefixes.find(may_be_found, least, first)
        return found._replace(tokens=len(found.pages) * self._plan.block_size)

    def keep(self, row: int, sequence: Request, count: int) -> None:
        """Keep a sequence's first `count` tokens, which were just read into a row, for those that begin alike."""
        if sequence.params.prompt_logprobs is not None:
            return
        names, lineage = self._names(sequence, count), sequence.prefix.lineage
        sequence.prefix = sequence.prefix.length()
        if lineage is None:
            if not self._plan.lineages or len(names) < self._plan.least_kept:
                return
            lineage = Lineage(self._store.state_of(row), len(names))
            if self._files is not None:
                self._files.keep(
                    names, [self._store.pages.page(row, block) for block in range(len(names))], lineage.state
                )
        self._store.pages.keep(row, lineage, names)

    def close(self) -> None:
        """Let other processes have the files."""
        if self._files is not None:
            self._files.close()

    def _read_files(self, names: list[bytes], least: int, first: int) -> None:
        """Where more of a prompt is stored than pages have, read it to pages."""
        assert self._files is not None
        stored, count = self._files.find(names, least, first)
        pages, files = self._store.pages, self._files
        if stored is None or count <= len(pages.prefixes.find(names, least, first).pages) or count > pages.available():
            return

        def read(there: Sequence[int]) -> Lineage | None:
            state = files.read(stored, count, there)
            return None if state is None else Lineage(state, len(stored.names))

        pages.adopt(names[:count], read)

    def _names(self, sequence: Request, count: int) -> list[bytes]:
        """Of the full blocks of a sequence's first tokens."""
        size, names = self._plan.block_size, self._named.get(sequence)
        if names is None or len(names) != count // size:
            seed = f"{self._frequencies(count)} {sequence.params.cache_salt}".encode(errors="surrogatepass")
            names = chain_names((sequence.prompt_ids + sequence.output_ids)[:count], size, seed)
            self._named[sequence] = names
        return names


def make_prefix_cache(
    cache: Cache, plan: MemoryPlan, decoder: Decoder, scout: ScoutConfig, engine_config: EngineConfig, calibration: str
) -> PrefixCache:
    """What an engine's settings ask for.   calibration: what corrects all prompts' scouts, see `Engine`.

    Raises ConfigError where other settings rule out `prefix_cache_dir`, CacheFolderError where it cannot be used.
    """
    files, directory, ranks = None, engine_config.prefix_cache_dir, engine_config.tensor_parallel_size
    if directory is not None and (ranks > 1 or not engine_config.prefix_cache):
        other = f"tensor_parallel_size={ranks}" if ranks > 1 else "prefix_cache=False"
        raise ConfigError(f"{other} stores no prompts, and prefix_cache_dir={directory!r} asks for it: leave one out")
    if directory is not None and plan.lineages:
        content = [*cache.store.pages.pool.content, *cache.digests.content()]
        kept = [(part.dtype, tuple(part.shape[2:])) for part in content]
        model = (decoder.fingerprint, decoder.weights.rounded, decoder.config, calibration)
        method = (scout.lookahead, scout.ablation, cache.store.resident)
        key = repr((FORMAT, model, method, kept))
        files = PrefixFiles(Path(directory).expanduser(), engine_config.prefix_cache_size, key, content)
    return PrefixCache(cache.store, plan, scout.budget_blocks, decoder.frequencies_of, files)
