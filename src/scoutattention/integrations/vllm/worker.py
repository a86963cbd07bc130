"""vLLM's CPU worker with a session of scout: it tells the session of requests, and vLLM of its one block for each."""

from typing import Any

from typing_extensions import override
from vllm import envs
from vllm.distributed import get_tp_group
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.worker.cpu_worker import CPUWorker

from ...hardware.host import usable_cores
from ...runtime.ranks import ALONE, Joined, Ranks
from ...runtime.workers import Workers
from .backend import ScoutBackend
from .memory import settings_of
from .metrics import Totals
from .model import read_model
from .session import Session
from .settings import Settings, worker_threads
from .spec import one_block


class ScoutWorker(CPUWorker):
    """Runs a model of vLLM whose keys and values are in a store of scout."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # vLLM's
        super().__init__(vllm_config, *args, **kwargs)
        self.scout_settings: Settings = settings_of(vllm_config)
        bound = envs.VLLM_CPU_OMP_THREADS_BIND != "nobind"
        self.scout_workers = Workers(worker_threads(self.scout_settings.engine, usable_cores(), bound=bound))
        self.scout_session: Session | None = None
        self.scout_totals: Totals | None = None

    @override
    def load_model(self, *args: Any, **kwargs: Any) -> None:
        path = f"{ScoutBackend.__module__}.{ScoutBackend.__qualname__}"
        register_backend(AttentionBackendEnum.CPU_ATTN, path)
        try:
            super().load_model(*args, **kwargs)
        finally:
            AttentionBackendEnum.CPU_ATTN.clear_override()
        group = get_tp_group()
        ranks: Ranks = (
            ALONE if group.world_size == 1 else Joined(group.cpu_group, group.rank_in_group, group.world_size)
        )
        served = read_model(self.model_runner.get_model(), self.vllm_config, ranks)
        session = Session(served, self.scout_settings, self.scout_workers, ranks)
        session.names = lambda: self.model_runner.input_batch.req_ids
        for number, layer in enumerate(served.layers):
            impl: Any = layer.attend.impl
            impl.session, impl.number = session, number
        self.scout_session, self.scout_totals = session, Totals(self.vllm_config.instance_id, self._labels())

    def _labels(self) -> dict[str, str]:
        """As vLLM's own metrics have them; and the rank, because ranks attend to different heads."""
        config = self.vllm_config
        return {
            "model_name": config.model_config.served_model_name,
            "engine": str(config.parallel_config.data_parallel_index),
            "rank": str(get_tp_group().rank_in_group),
        }

    @override
    def get_kv_cache_spec(self) -> dict[str, Any]:
        return {name: one_block(spec) for name, spec in super().get_kv_cache_spec().items()}

    @override
    def execute_model(self, scheduler_output: Any) -> Any:
        """Tell the session which requests come and go, and run the batch."""
        new, cached = scheduler_output.scheduled_new_reqs, scheduler_output.scheduled_cached_reqs
        prompts = {request.req_id: request.prompt_len for request in new}
        known = self.model_runner.requests
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if name in cached.resumed_req_ids:  # all its tokens are read again
                assert computed == 0
                prompts[name] = known[name].num_tokens
        assert self.scout_session is not None
        assert self.scout_totals is not None
        gone = scheduler_output.finished_req_ids | (scheduler_output.preempted_req_ids or set())
        self.scout_session.come_and_go(sorted(gone), prompts)
        output = super().execute_model(scheduler_output)
        self.scout_totals.write(self.scout_session.stats)
        return output
