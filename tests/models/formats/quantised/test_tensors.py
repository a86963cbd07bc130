import re

import pytest
import torch

from scoutattention.errors import ScoutError
from scoutattention.models.loader import load
from scoutattention.runtime.ranks import Alone
from scoutattention.runtime.stored import StoredMatrix

from .checkpoints import edit_tensors, gptq, write, write_expanded

MODULE = "model.layers.1.mlp.down_proj"


def test_modules_may_stay_in_16_bits(tmp_path):
    write(tmp_path, "awq", kept=["layers.1"], modules_to_not_convert=["model.layers.1"])
    layers = load(str(tmp_path)).decoder.weights.layers
    assert [isinstance(layer.down, StoredMatrix) for layer in layers] == [True, False, True]


def test_a_head_may_be_quantised(tmp_path):
    numbers = write(tmp_path, "gptq")

    def quantise_head(tensors):
        parts, _ = gptq(tensors.pop("lm_head.weight"))
        tensors |= {f"lm_head.{part}": tensor.contiguous() for part, tensor in parts.items()}

    edit_tensors(tmp_path, quantise_head)
    assert "lm_head.weight" in numbers
    assert isinstance(load(str(tmp_path)).decoder.weights.head, StoredMatrix)


def drop(part):
    return lambda tensors: tensors.pop(f"{MODULE}.{part}")


def put(part, change):
    def edit(tensors):
        tensors[f"{MODULE}.{part}"] = change(tensors[f"{MODULE}.{part}"]).contiguous()

    return edit


def filled(value):
    def change(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("gptq", drop("scales"), "has no tensor {}.scales, which config.json implies"),
        ("gptq", drop("qzeros"), "has no tensor {}.qzeros"),
        ("awq", drop("qzeros"), "has no tensor {}.qzeros"),
        ("packed", drop("weight_scale"), "has no tensor {}.weight_scale"),
        ("packed-zeros", drop("weight_zero_point"), "has no tensor {}.weight_zero_point"),
        ("packed", drop("weight_shape"), "has no tensor {}.weight_shape"),
        ("int8", drop("weight_scale"), "has no tensor {}.weight_scale"),
        ("fp8-blocks", drop("weight_scale_inv"), "has no tensor {}.weight_scale"),
        ("gptq", put("scales", filled(float("nan"))), "{}.scales has the scale nan, .* up to 65504"),
        ("awq", put("scales", filled(float("inf"))), "{}.scales has the scale inf"),
        ("packed", put("weight_scale", lambda t: t.float() + 7e4), "{}.weight_scale has the scale 70000"),
        ("fp8-blocks", put("weight_scale_inv", filled(float("nan"))), "{}.weight_scale_inv has the scale nan"),
        ("float8", put("weight", lambda t: filled(0x7F)(t.view(torch.uint8)).view(t.dtype)), "{}.weight .*not finite"),
        ("gptq", put("qweight", lambda t: t[:-1]), r"{}.qweight has shape \[11, 64\], .* implies \[12, 64\]"),
        ("awq", put("scales", lambda t: t[:-1]), r"{}.scales has shape \[2, 64\], .* implies \[3, 64\]"),
        ("packed", put("weight_shape", lambda t: t + 1), r"{}.weight_shape says \[65, 97\], .* implies \[64, 96\]"),
        ("gptq", put("scales", lambda t: t.int()), "{}.scales holds I32"),
        ("gptq", put("g_idx", lambda t: t * 0), "{}.g_idx does not put 32 columns into each group"),
        ("gptq-8", put("qzeros", lambda t: t + 1), "{}.qzeros has zero points in 8 bits"),
        ("packed", lambda t: t.update({f"{MODULE}.more": torch.zeros(1)}), "has 1 tensors .* the first is {}.more"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(name, edit, message, tmp_path):
    write(tmp_path, name)
    edit_tensors(tmp_path, edit)
    with pytest.raises(ScoutError, match=message.format(re.escape(MODULE))) as error:
        load(str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert str(error.value).isprintable()


def test_what_activations_are_rounded_by_is_not_needed(tmp_path):
    write(tmp_path, "fp8-tensor")
    edit_tensors(tmp_path, lambda t: t.update({f"{MODULE}.input_scale": torch.ones(())}))
    assert load(str(tmp_path))


def test_a_module_that_is_listed_as_kept_must_be(tmp_path):
    write(tmp_path, "packed", ignore=["re:.*down_proj"])
    with pytest.raises(ScoutError, match=r"down_proj\.weight_packed is quantised, although .* 're:\.\*down_proj'"):
        load(str(tmp_path))


def test_a_checkpoint_without_a_quantised_matrix_is_named(tmp_path):
    write(tmp_path, "gptq", kept=["proj"])
    with pytest.raises(ScoutError, match=r"no tensor of the name MODULE\.qweight that holds I32, .* with gptq"):
        load(str(tmp_path))


def test_an_order_of_columns_cannot_be_shared_by_ranks(tmp_path):
    write(tmp_path, "gptq-order")
    with pytest.raises(ScoutError, match=r"2 ranks cannot share .*o_proj.* in another order: set tensor_parallel_size"):
        load(str(tmp_path), ranks=Alone(1, 2))


def test_matrices_that_are_multiplied_together_have_one_order(tmp_path):
    write(tmp_path, "gptq-order")
    name = "model.layers.0.self_attn.k_proj.g_idx"
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name].flip(0)}))
    with pytest.raises(ScoutError, match=r"k_proj\.weight, .* in different orders cannot be stacked"):
        load(str(tmp_path))


def test_a_fingerprint_does_not_depend_on_the_order(tmp_path):
    numbers = write(tmp_path / "a", "gptq-order")
    expanded = write_expanded(tmp_path / "b", numbers)
    assert load(str(tmp_path / "a"), "float32").decoder.fingerprint == load(str(expanded)).decoder.fingerprint
