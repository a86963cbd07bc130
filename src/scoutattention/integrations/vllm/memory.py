"""Room for the sequences that vLLM runs: known before its model is loaded, and again behind that."""

from dataclasses import replace
from typing import Any

from ...cache.memory_plan import MemoryPlan, plan_memory
from ...cache.pool import TORCH_DTYPES
from ...errors import CapacityError, ConfigError
from ...hardware.host import available_memory
from ...shape import ModelShape
from .settings import Settings, read_settings


def settings_of(config: Any) -> Settings:  # noqa: ANN401  # vLLM's `VllmConfig`
    """The settings of scout, with what vLLM decides."""
    settings = read_settings(config.additional_config)
    assert settings is not None
    engine = replace(
        settings.engine,
        device="cpu",
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_model_len=config.model_config.max_model_len,
        tensor_parallel_size=config.parallel_config.tensor_parallel_size,
    )
    return settings._replace(engine=engine)


def shape_of(config: Any, layers: int, heads: tuple[int, int], head_dim: int) -> ModelShape:  # noqa: ANN401
    """The shape of a model in vLLM.   heads: of queries and of keys, those of one rank, or all.

    Raises ConfigError for a format that the cache does not know.
    """
    model, hf = config.model_config, config.model_config.hf_text_config
    dtypes = {dtype: known for known, dtype in TORCH_DTYPES.items()}
    if model.dtype not in dtypes:
        raise ConfigError(f"{model.architecture} is in {model.dtype}, and scout knows {', '.join(TORCH_DTYPES)}")
    return ModelShape(
        num_layers=layers,
        num_query_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        hidden_size=hf.hidden_size,
        intermediate_size=getattr(hf, "intermediate_size", None) or hf.hidden_size,
        vocab_size=hf.vocab_size,
        max_positions=model.max_model_len,
        dtype=dtypes[model.dtype],
    )


def check_memory(config: Any) -> None:  # noqa: ANN401
    """Before a model is loaded: raises CapacityError where memory is too small even without its weights."""
    model, ranks = config.model_config, config.parallel_config
    heads = (model.get_num_attention_heads(ranks), model.get_num_kv_heads(ranks))
    parts: int = ranks.tensor_parallel_size
    shape = shape_of(config, model.get_num_layers(ranks), (heads[0] * parts, heads[1] * parts), model.get_head_size())
    plan_for_all(shape, settings_of(config), available_memory())


def plan_for_all(shape: ModelShape, settings: Settings, free: int) -> MemoryPlan:
    """The plan for all sequences.   shape: of all ranks' parts.   free: bytes that the host can still give.

    Raises CapacityError unless every sequence may become as long as any: vLLM admits requests by its own blocks, and
    none may fail for want of pages or slots afterwards.
    """
    plan = plan_memory(shape, settings.scout, settings.engine, free)
    needed = plan.rows * plan.blocks(plan.max_len)
    if plan.pages < needed:
        raise CapacityError(
            f"scout's host pool has {plan.pages} of the {needed} blocks of {plan.block_size} tokens that {plan.rows} "
            f"sequences of {plan.max_len} tokens take: lower --max-num-seqs or --max-model-len, or raise scout's "
            "host_memory"
        )
    running = plan.max_running(plan.rows)
    if running < plan.rows:
        raise CapacityError(
            f"scout's device_memory has slots for {running} sequences, and --max-num-seqs is {plan.rows}: lower it, or "
            "raise device_memory"
        )
    return plan
