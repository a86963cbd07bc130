"""GGUF files of tiny random models, written the way llama.cpp's converter lays them out."""

import gguf
import numpy as np
import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789Ġ"
TOKENS = [*LETTERS, "ab", *(f"<{number}>" for number in range(256 - len(LETTERS) - 1))]


def write(path, model, *, kinds=(), only=lambda name: True, names=(), tensors=(), **fields):
    """Save a model of transformers.

    kinds: of GGUF tensors by name, other than F32.   only: which GGUF tensors to store.
    names: of tokens by id, other than the usual ones.   tensors: to store besides, by GGUF name.
    fields: override metadata.
    """
    config = model.config
    name = config.model_type
    writer = gguf.GGUFWriter(path, name)
    writer.add_uint32(f"{name}.block_count", config.num_hidden_layers)
    writer.add_uint32(f"{name}.context_length", config.max_position_embeddings)
    writer.add_uint32(f"{name}.embedding_length", config.hidden_size)
    writer.add_uint32(f"{name}.feed_forward_length", config.intermediate_size)
    writer.add_uint32(f"{name}.attention.head_count", config.num_attention_heads)
    writer.add_uint32(f"{name}.attention.head_count_kv", config.num_key_value_heads)
    writer.add_uint32(f"{name}.attention.key_length", model.model.layers[0].self_attn.head_dim)
    writer.add_float32(f"{name}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{name}.rope.freq_base", config.rope_parameters["rope_theta"])
    add_tokenizer(writer, fields, dict(names))
    for key, value in fields.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key.replace("ARCH", name), value)
    for key, values in dict(tensors).items():
        writer.add_tensor(key, np.array(values, dtype=np.float32))
    add_tensors(writer, model, dict(kinds), only)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, fields, names):
    fields.setdefault("tokenizer.ggml.model", "gpt2")
    fields.setdefault("tokenizer.ggml.pre", "smollm")
    fields.setdefault("tokenizer.ggml.eos_token_id", 255)
    tokens = [names.get(number, token) for number, token in enumerate(TOKENS)]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") else 1 for token in tokens])
    writer.add_token_merges(["a b"])


def add_tensors(writer, model, kinds, only):
    config = model.config
    names = names_of(model)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = 1.0 / 10_000.0 ** (np.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = value.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        if heads and config.model_type == "llama":
            weight = weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
        name = names[key]
        if not only(name):
            continue
        if name in kinds:
            kind = gguf.GGMLQuantizationType[kinds[name]]
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(weight))


def names_of(model):
    """The GGUF name of each tensor of a model."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    return {key: names.get_name(key, try_suffixes=(".weight", ".bias")) for key in model.state_dict()}


def rounded(model, kinds):
    """The same model, with the numbers that its matrices are when they are stored in these kinds."""
    names = names_of(model)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if names[key] in kinds:
                kind = gguf.GGMLQuantizationType[kinds[names[key]]]
                blocks = gguf.quants.quantize(value.numpy(), kind)
                value.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    return model


def write_parts(folder, model, first, **fields):
    """Save a model in two parts, of which the first has the tensors that `first` says, and return its path."""
    about = {"split.count": 2, "split.tensors.count": len(model.state_dict())} | fields
    parts = [folder / f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]
    write(parts[0], model, only=first, **{"split.no": 0, **about})
    write(parts[1], model, only=lambda name: not first(name), **{"split.no": 1, **about})
    return parts


def mixed(model):
    """A kind for every matrix: others within one layer, and within the matrices that are multiplied together."""
    turn = ("Q8_0", "Q4_0", "F16", "Q5_1", "Q4_1", "BF16", "Q5_0")
    matrices = [name for name in names_of(model).values() if name.endswith("weight") and "norm" not in name]
    return {name: turn[number % len(turn)] for number, name in enumerate(matrices)}
