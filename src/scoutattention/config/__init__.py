"""Every setting, in three frozen classes: the method, the engine, and a request's sampling."""

from .engine import (
    DeviceName,
    DTypeName,
    EngineConfig,
    KernelsName,
    KVDTypeName,
    Memory,
    MemoryName,
    RopeScaling,
    WeightsName,
)
from .fields import Setting, parse_size, setting_of
from .method import Ablation, DigestName, FarQuery, OnMiss, Pooling, PredictorName, ScoutConfig
from .sampling import SamplingParams

__all__ = [
    "Ablation",
    "DTypeName",
    "DeviceName",
    "DigestName",
    "EngineConfig",
    "FarQuery",
    "KVDTypeName",
    "KernelsName",
    "Memory",
    "MemoryName",
    "OnMiss",
    "Pooling",
    "PredictorName",
    "RopeScaling",
    "SamplingParams",
    "ScoutConfig",
    "Setting",
    "WeightsName",
    "parse_size",
    "setting_of",
]
