"""Which model fits here: bytes by hand, LABKIT_MODEL's forms, and errors that say what to do."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from labkit.errors import ModelError
from labkit.hardware import Cpu, Gpu, Machine
from labkit.models import find_model, list_models, load_model, loading
from labkit.models.description import estimate_model

GIB = 1024**3
TINY = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 128,
        "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "vocab_size": 4096, "tie_word_embeddings": True, "max_position_embeddings": 1024}  # fmt: skip


def make_machine(*gpus, memory_free_bytes=8 * GIB, flags=()):
    cpu = Cpu(name="test", num_cores=2, num_threads_default=2, flags=flags)
    return Machine(cpu=cpu, gpus=gpus, memory_bytes=16 * GIB, memory_free_bytes=memory_free_bytes, disk_free_bytes=GIB,
                   os="test", python="3.11", load_average=None, governor=None)  # fmt: skip


def make_gpu(memory_gib, capability, index=0):
    return Gpu(index=index, name="test", memory_bytes=int(memory_gib * GIB), capability=capability, driver="580.1")


T4, A10, H100 = make_gpu(15, (7, 5)), make_gpu(22.5, (8, 6)), make_gpu(80, (9, 0))


def write_safetensors(path, shapes, *, dtype="BF16", itemsize=2):
    """Write zeros in the published layout: 8 bytes of length, a JSON header, then the data."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


@pytest.fixture
def folder(tmp_path):
    """A local model: a configuration and two shards with 1,000 + 24 values."""
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TINY))
    write_safetensors(path / "model-1.safetensors", {"a": (10, 100)})
    write_safetensors(path / "model-2.safetensors", {"b": (4, 6)})
    return path


def test_the_cpu_tier_uses_the_two_shipped_models():
    for role, name, num in (("target", "python-11m", 11_015_040), ("draft", "python-2m", 1_835_776)):
        model = find_model(role, machine=make_machine())
        assert (model.name, model.source, model.dtype) == (name, "shipped", "float32")
        assert model.num_parameters == num  # counted by hand from the shapes in data/models/train.py
        assert model.weight_bytes == 4 * num


def test_a_cpu_with_bf16_instructions_halves_the_bytes():
    slow, fast = (find_model("draft", machine=make_machine(flags=flags)) for flags in ((), ("avx512_bf16",)))
    assert (slow.dtype, fast.dtype) == ("float32", "bfloat16")
    assert slow.weight_bytes == 2 * fast.weight_bytes
    assert fast.kv_bytes_per_token == 2 * 1 * 2 * 64 * 2  # keys and values, 1 layer, 2 heads, 64, 2 bytes
    assert slow.kv_bytes_per_token == 2 * fast.kv_bytes_per_token


@pytest.mark.parametrize(
    ("gpu", "target", "draft", "dtype"),
    [
        (T4, "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", "float16"),
        (A10, "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", "bfloat16"),
        (H100, "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", "bfloat16"),
    ],
)
def test_a_gpu_tier_has_a_target_and_a_draft_with_one_tokenizer_that_fit_together(gpu, target, draft, dtype):
    machine = make_machine(gpu)
    models = [find_model(role, machine=machine) for role in ("target", "draft")]
    assert [model.path_or_id for model in models] == [target, draft]
    assert {model.dtype for model in models} == {dtype}
    assert {model.source for model in models} == {"hub"}
    assert models[0].config["vocab_size"] == models[1].config["vocab_size"]
    needed = sum(model.weight_bytes + 4096 * model.kv_bytes_per_token for model in models)
    assert needed <= 0.8 * gpu.memory_bytes


def test_the_tier_can_be_asked_for_without_its_hardware(monkeypatch):
    monkeypatch.setenv("LABKIT_TIER", "hopper")
    assert find_model("target", machine=make_machine()).path_or_id == "Qwen/Qwen3-8B"


def test_bytes_of_the_known_models_are_those_of_their_published_files():
    models = {fit.model.name: fit.model for fit in list_models(make_machine())}
    # Sizes of the safetensors on the Hub, in GB; parameters from the model cards.
    published = {"qwen2.5-1.5b": (1.54, 3.09), "qwen2.5-0.5b": (0.494, 0.988), "qwen2.5-7b-awq": (7.61, 5.57),
                 "qwen3-8b": (8.19, 16.38), "qwen3-0.6b": (0.596, 1.19)}  # fmt: skip
    assert set(models) - set(published) <= {"python-11m", "python-2m"}
    for name, (billions, gigabytes) in published.items():
        assert models[name].num_parameters / 1e9 == pytest.approx(billions, rel=0.005), name
        assert models[name].weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.005), name
    assert models["qwen3-0.6b"].kv_bytes_per_token == 114_688  # case 23 of measurement.md
    assert models["qwen3-8b"].kv_bytes_per_token == 2 * 36 * 8 * 128 * 2
    assert models["qwen2.5-7b-awq"].kv_bytes_per_token == 2 * 28 * 4 * 128 * 2  # the cache stays in 16 bits


def test_the_table_of_models_says_its_sources_and_that_none_is_gated(root):
    rows = json.loads((root / "data" / "reference" / "models.json").read_text())["models"]
    from labkit.roofline import estimate_num_parameters

    for row in rows:
        assert row["licence"] == "Apache-2.0"
        assert row["is_gated"] is False
        assert row["source"].startswith(f"https://huggingface.co/{row['hub_id']}/")
        assert estimate_num_parameters(row["config"]) == row["num_parameters"]


def test_a_16_gb_gpu_fits_4_bits_of_7b_and_not_16_bits_of_8b():
    fits = {fit.model.name: fit for fit in list_models(make_machine(T4))}
    assert fits["qwen2.5-7b-awq"].has_room
    assert fits["qwen2.5-1.5b"].has_room
    assert not fits["qwen3-8b"].has_room
    assert {name for name, fit in fits.items() if fit.is_of_tier} == {"qwen2.5-1.5b", "qwen2.5-0.5b", "qwen2.5-7b-awq"}


def test_a_model_that_is_asked_for_comes_first_and_is_what_the_labs_take(monkeypatch, folder):
    monkeypatch.setenv("LABKIT_MODEL", "random:llama-140m")
    fits = list_models(make_machine(T4))
    assert [(fit.model.name, fit.role, fit.tier) for fit in fits if fit.is_of_tier] == [
        ("random:llama-140m", "target", "asked for"), ("random:llama-140m-draft", "draft", "asked for")
    ]  # fmt: skip
    assert fits[0].model == find_model("target", machine=make_machine(T4))
    monkeypatch.setenv("LABKIT_MODEL", str(folder))  # no draft is named: only some labs need one
    assert [fit.model.name for fit in list_models(make_machine()) if fit.is_of_tier] == ["my-model"]
    monkeypatch.setenv("LABKIT_MODEL", "random:/nowhere.json")
    with pytest.raises(ModelError, match="/nowhere.json"):
        list_models(make_machine())


def test_the_sentence_names_the_model_both_sizes_and_the_way_out():
    fit = next(fit for fit in list_models(make_machine(T4)) if fit.model.name == "qwen3-8b")
    for part in ("qwen3-8b in bfloat16", "15.3 GiB for weights", "576 MiB for the cache of 4,096 tokens", "15.0 GiB",
                 "cuda:0", "labkit models --fits", "4-bit"):  # fmt: skip
        assert part in fit.reason
    assert fit.needed_bytes == fit.model.weight_bytes + 4096 * 147_456
    assert str(fit).startswith("  no ")


def test_room_is_four_fifths_of_what_is_free_and_equality_fits():
    def fit_of(free):
        return next(f for f in list_models(make_machine(memory_free_bytes=free)) if f.model.name == "qwen3-8b")

    needed = fit_of(GIB).needed_bytes
    enough = -(-needed * 10 // 8)
    assert fit_of(enough).has_room
    assert not fit_of(enough - 2).has_room
    assert not fit_of(None).has_room  # unknown memory is not free memory
    assert "unknown" in fit_of(None).reason


def test_a_short_model_needs_the_cache_of_its_own_limit_only():
    fit = next(f for f in list_models(make_machine()) if f.model.name == "python-2m")
    assert fit.needed_bytes == fit.model.weight_bytes + 2048 * fit.model.kv_bytes_per_token


def test_a_local_folder_is_counted_from_its_headers(monkeypatch, folder):
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    model = find_model("target", machine=make_machine())
    assert (model.name, model.source, model.path_or_id) == ("my-model", "local", str(folder))
    assert (model.num_parameters, model.weight_bytes) == (1024, 4096)


def test_a_local_quantized_folder_has_the_bytes_of_its_files(monkeypatch, folder):
    config = TINY | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    model = find_model("target", machine=make_machine())
    assert (model.dtype, model.weight_bytes) == ("int4", 2048)
    assert model.num_parameters == 4096 * 128 + 2 * (3 * 128 * 256 + 2 * 128 * 128 + 2 * 128 * 64 + 2 * 128) + 128


QWEN3_8B = {"model_type": "qwen3", "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "tie_word_embeddings": False, "max_position_embeddings": 40960}  # fmt: skip
# Of its 8,190,735,360 parameters these stay in 16 bits: two tables of 151,936 x 4,096, and the norms.
QWEN3_8B_PLAIN = 2 * 151_936 * 4096 + 36 * (2 * 4096 + 2 * 128) + 4096
QWEN3_8B_PACKED = 8_190_735_360 - QWEN3_8B_PLAIN
# Output channels of one layer: Q, K, V, O, gate, up, down.
QWEN3_8B_CHANNELS = 36 * (4096 + 1024 + 1024 + 4096 + 12288 + 12288 + 4096)


def find_packed(quantization, **changes):
    config = QWEN3_8B | {"quantization_config": quantization} | changes
    return estimate_model("packed", "hub", "a/packed", config, machine=make_machine(H100))


@pytest.mark.parametrize(
    ("quantization", "dtype", "bits", "scale_bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "int4", 4, 20 * QWEN3_8B_CHANNELS),
        ({"quant_method": "gptq", "bits": 8, "group_size": 0}, "int8", 8, 24 * QWEN3_8B_CHANNELS),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4", 4, 20 * QWEN3_8B_PACKED // 128),
        ({"quant_method": "awq", "bits": 4}, "int4", 4, 20 * QWEN3_8B_PACKED // 128),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8, 16 * QWEN3_8B_CHANNELS),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", 8, 32 * QWEN3_8B_CHANNELS),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", 4, 32 * QWEN3_8B_PACKED // 64),
        ({"quant_method": "compressed-tensors", "ignore": ["lm_head"],
          "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}},
         "fp8", 8, 16 * QWEN3_8B_CHANNELS),
        ({"quant_method": "compressed-tensors", "ignore": ["lm_head"],
          "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}}},
         "int4", 4, 16 * QWEN3_8B_PACKED // 128),
    ],
)  # fmt: skip
def test_packed_bytes_are_those_of_the_bits_the_scales_and_what_stays_in_16(quantization, dtype, bits, scale_bits):
    model = find_packed(quantization)
    assert (model.dtype, model.num_parameters) == (dtype, 8_190_735_360)
    assert model.weight_bytes == 2 * QWEN3_8B_PLAIN + (bits * QWEN3_8B_PACKED + scale_bits) // 8
    assert model.kv_bytes_per_token == 147_456  # the cache stays in 16 bits


def test_a_head_is_packed_where_the_checkpoint_says_so_and_it_is_no_embedding():
    head = 151_936 * 4096
    packed = {"quant_method": "gptq", "bits": 4, "group_size": -1, "lm_head": True}
    saved = find_packed(packed | {"lm_head": False}).weight_bytes - find_packed(packed).weight_bytes
    assert saved == 2 * head - (4 * head + 20 * 151_936) // 8
    tied = [find_packed(packed | {"lm_head": has}, tie_word_embeddings=True).weight_bytes for has in (True, False)]
    assert tied[0] == tied[1]


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "mxfp4"}, "unknown quantization 'mxfp4'.*16 bits"),
        ({"quant_method": "gptq", "bits": "four"}, "bits = 'four'"),
        ({"quant_method": "gptq", "bits": 0}, "bits = 0"),
        ({"quant_method": "awq", "bits": 4, "group_size": "128"}, "group_size = '128'"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}, "config_groups"),
        ({"config_groups": {k: {"weights": {"num_bits": k}} for k in (4, 8)}}, "several formats .int4, int8."),
        ("gptq", "quantization_config = 'gptq'"),
        ([1], "quantization_config = "),
    ],
)
def test_a_quantization_that_is_not_known_is_refused_and_named(quantization, message):
    with pytest.raises(ModelError, match=message):
        find_packed(quantization)


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", True), ("num_hidden_layers", "2"), ("max_position_embeddings", "1024"), ("hidden_size", -128),
     ("head_dim", "64"), ("model_type", []), ("num_key_value_heads", 1.0)],
)  # fmt: skip
def test_a_configuration_of_the_wrong_types_is_refused_by_the_name_of_the_key(monkeypatch, tmp_path, key, value):
    (tmp_path / "odd.json").write_text(json.dumps(TINY | {key: value}))
    monkeypatch.setenv("LABKIT_MODEL", f"random:{tmp_path / 'odd.json'}")
    with pytest.raises(ModelError, match=key):
        find_model("target", machine=make_machine())


def test_only_the_files_that_the_index_names_are_counted(monkeypatch, folder):
    write_safetensors(folder / "consolidated.safetensors", {"c": (1024,)})
    write_safetensors(folder / "model-9.safetensors", {"old": (7,)})
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    assert find_model("target", machine=make_machine()).num_parameters == 1024
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of the 2 files that its index names: model-2\.safetensors"):
        find_model("target", machine=make_machine())
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 5}')
    with pytest.raises(ModelError, match="no readable weight_map"):
        find_model("target", machine=make_machine())


def test_without_an_index_one_whole_file_counts_and_a_consolidated_one_beside_shards_does_not(monkeypatch, folder):
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    write_safetensors(folder / "consolidated.safetensors", {"c": (1024,)})
    assert find_model("target", machine=make_machine()).num_parameters == 1024
    write_safetensors(folder / "model.safetensors", {"whole": (500,)})  # what Transformers takes before anything else
    assert find_model("target", machine=make_machine()).num_parameters == 500


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/no/such/blob"), lambda path: path.mkdir()])
def test_weights_that_are_a_link_to_nowhere_or_a_folder_are_named(monkeypatch, folder, make):
    (folder / "model-2.safetensors").unlink()
    make(folder / "model-2.safetensors")
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    with pytest.raises(ModelError, match=r"model-2\.safetensors cannot be read"):
        find_model("target", machine=make_machine())


@pytest.mark.parametrize(
    ("machine", "dtype"),
    [
        (make_machine(), "float32"),
        (make_machine(flags=("amx_bf16",)), "bfloat16"),
        (make_machine(T4), "float16"),
        (make_machine(H100), "bfloat16"),
    ],
)
@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "qwen2.5-0.5b"])
def test_a_model_of_the_table_that_is_asked_for_takes_the_dtype_of_the_machine(monkeypatch, machine, dtype, name):
    monkeypatch.setenv("LABKIT_MODEL", name)
    model = find_model("target", machine=machine)
    assert model.dtype == dtype
    assert model.weight_bytes == model.num_parameters * (4 if dtype == "float32" else 2)
    monkeypatch.setenv("LABKIT_MODEL", "qwen2.5-7b-awq")
    assert find_model("target", machine=machine).dtype == "int4"  # packed: as the checkpoint says


@pytest.mark.parametrize(
    ("gpus", "settings", "device", "free_gib"),
    [
        ((), {}, "the CPU", 8),
        ((H100,), {}, "cuda:0", 80),
        ((H100,), {"LABKIT_TIER": "cpu"}, "the CPU", 8),
        ((make_gpu(11, (6, 1)),), {}, "the CPU", 8),  # older than the builds of the lock support
        ((T4, make_gpu(80, (9, 0), index=1)), {}, "cuda:0", 80),  # CUDA counts the fastest GPU first,
        ((T4, make_gpu(80, (9, 0), index=1)), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "cuda:1", 80),  # unless told so
    ],
)
def test_a_fit_is_for_the_device_that_loading_uses(monkeypatch, gpus, settings, device, free_gib):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    machine = make_machine(*gpus)
    assert {(fit.device, fit.free_bytes) for fit in list_models(machine)} == {(device, free_gib * GIB)}
    used = []
    monkeypatch.setattr(loading, "probe_machine", lambda: machine)
    monkeypatch.setattr(loading, "_load", lambda model, device: used.append(device) or (FakeLoaded(), range(1)))
    load_model(find_model("draft", machine=make_machine()))
    assert used == ["cpu" if device == "the CPU" else device]


class FakeLoaded:
    def to(self, device):
        return self

    def eval(self):
        return self


def test_an_unknown_user_s_home_and_a_name_that_is_too_long_are_errors_with_a_sentence(monkeypatch):
    for name in ("~no-such-user/x", "random:~no-such-user/x", "a" * 300, "random:" + "a" * 300):
        monkeypatch.setenv("LABKIT_MODEL", name)
        with pytest.raises(ModelError, match="there is no"):
            find_model("target", machine=make_machine())


def test_a_folder_with_pickles_only_is_refused_by_name(monkeypatch, folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin.*safetensors.*save_pretrained"):
        find_model("target", machine=make_machine())


def test_a_safetensors_file_that_is_cut_short_or_a_pointer_is_named(monkeypatch, folder):
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    whole = (folder / "model-1.safetensors").read_bytes()
    for content in (whole[:-1], whole[:20], b"version https://git-lfs.github.com/spec/v1\noid sha256:1", b""):
        (folder / "model-1.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"model-1\.safetensors is not a complete safetensors file"):
            find_model("target", machine=make_machine())


def test_random_weights_have_a_name_of_their_own_and_no_path_in_it(monkeypatch, folder):
    monkeypatch.setenv("LABKIT_MODEL", f"random:{folder / 'config.json'}")
    model = find_model("target", machine=make_machine())
    assert (model.name, model.source) == ("random:my-model", "random")
    assert model.num_parameters == 4096 * 128 + 2 * (3 * 128 * 256 + 2 * 128 * 128 + 2 * 128 * 64 + 2 * 128) + 128


def test_random_llama_140m_has_about_140_million_parameters(monkeypatch):
    monkeypatch.setenv("LABKIT_MODEL", "random:llama-140m")
    model = find_model("target", machine=make_machine())
    assert 135e6 < model.num_parameters < 145e6
    draft = find_model("draft", machine=make_machine())
    assert draft.source == "random"
    assert draft.config["vocab_size"] == model.config["vocab_size"]
    assert draft.config["num_hidden_layers"] == 2


def test_a_random_model_on_a_gpu_tier_uses_the_machines_own_dtype(monkeypatch):
    """This is the dry run of a GPU lab: tier hopper, a random model, no GPU."""
    monkeypatch.setenv("LABKIT_MODEL", "random:llama-140m")
    monkeypatch.setenv("LABKIT_TIER", "hopper")
    assert find_model("target", machine=make_machine()).dtype == "float32"
    assert find_model("target", machine=make_machine(H100)).dtype == "bfloat16"


@pytest.mark.parametrize(("gpu", "dtype"), [(T4, "float16"), (A10, "bfloat16"), (H100, "bfloat16")])
def test_a_gpu_without_bf16_gets_fp16(monkeypatch, gpu, dtype):
    monkeypatch.setenv("LABKIT_MODEL", "python-2m")
    assert find_model("target", machine=make_machine(gpu)).dtype == dtype


def test_two_names_are_target_and_draft(monkeypatch, folder):
    monkeypatch.setenv("LABKIT_MODEL", f"Qwen/Qwen3-8B, {folder}")
    assert find_model("target", machine=make_machine()).path_or_id == "Qwen/Qwen3-8B"
    assert find_model("draft", machine=make_machine()).source == "local"


def test_a_draft_is_never_guessed_for_a_model_with_another_tokenizer(monkeypatch, folder):
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    with pytest.raises(ModelError, match="names a target and no draft.*after a comma"):
        find_model("draft", machine=make_machine())
    monkeypatch.setenv("LABKIT_MODEL", "python-11m")
    assert find_model("draft", machine=make_machine()).name == "python-2m"


@pytest.mark.parametrize("name", ["python-12m", "/no/such/folder", "random:gpt-9", "a/b/c", "x,y,z", ",", "random:"])
def test_a_name_that_means_nothing_lists_what_would(monkeypatch, name, tmp_path):
    monkeypatch.setenv("LABKIT_MODEL", name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        find_model("target", machine=make_machine())
    assert "random:" in caught.value.next_step


def test_a_role_that_does_not_exist_is_an_error():
    with pytest.raises(ModelError, match="role is 'judge'"):
        find_model("judge", machine=make_machine())


@pytest.mark.slow
def test_the_rooms_models_and_quality_come_without_torch(root):
    code = "import sys, labkit.models, labkit.quality; sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.slow
def test_the_shipped_draft_loads_on_one_thread_and_continues_text():
    torch = pytest.importorskip("torch")
    model, tokenizer = load_model(find_model("draft", machine=make_machine()), device="cpu")
    assert torch.get_num_threads() == 1
    assert not model.training
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 1_835_776
    ids = tokenizer("def main():\n", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, ids.shape[1] + 4)


@pytest.mark.slow
def test_random_weights_are_the_same_every_time(monkeypatch, folder):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("LABKIT_MODEL", f"random:{folder / 'config.json'}")
    model = find_model("target", machine=make_machine())
    (one, tokenizer), (two, _) = load_model(model, device="cpu"), load_model(model, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert sum(p.numel() for p in one.parameters()) == model.num_parameters
    assert tokenizer.vocab_size == 4096


@pytest.mark.slow
def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(monkeypatch, folder):
    pytest.importorskip("torch")
    (folder / "config.json").write_text(json.dumps(TINY | {"vocab_size": 1000}))
    monkeypatch.setenv("LABKIT_MODEL", f"random:{folder / 'config.json'}")
    with pytest.raises(ModelError, match="vocabulary of 1000, its tokenizer gives 4096"):
        load_model(find_model("target", machine=make_machine()), device="cpu")


@pytest.mark.slow
def test_without_network_a_hub_model_says_what_to_fetch_and_where_to_put_it(tmp_path):
    """A new process with an empty cache: the libraries read these settings when they are imported."""
    pytest.importorskip("torch")
    code = (
        "from labkit.errors import ModelError\n"
        "from labkit.models import find_model, load_model\n"
        "import os\n"
        "for name in ('Qwen/Qwen3-0.6B', 'some-body/unknown-model'):\n"
        "    os.environ['LABKIT_MODEL'] = name\n"
        "    try:\n"
        "        load_model(find_model('target'), device='cpu')\n"
        "    except ModelError as error:\n"
        "        print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "LABKIT_MODEL": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = run.stdout.strip().splitlines()
    assert len(lines) == 2, run.stdout + run.stderr
    assert "hf download Qwen/Qwen3-0.6B --local-dir FOLDER` (1.11 GiB)" in lines[0]
    assert "hf download some-body/unknown-model" in lines[1]
    assert all("LABKIT_MODEL" in line and "LABKIT_TIER=cpu" in line for line in lines)


@pytest.mark.slow
def test_code_that_comes_with_a_model_does_not_run(monkeypatch, folder, tmp_path):
    pytest.importorskip("torch")
    trap = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w')\n")
    config = TINY | {"auto_map": {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": "evil"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("LABKIT_MODEL", str(folder))
    with pytest.raises(ModelError, match="my-model brings code of its own.*Next: take a model whose class"):
        load_model(find_model("target", machine=make_machine()), device="cpu")
    assert not trap.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, r"lacks 27 of the tensors.*layers\.1\.input_layernorm\.weight.* and more\. Next:"),
        ({"hidden_size": 512}, r"has 11 tensors of another shape: model\.embed_tokens\.weight"),
        ({"tie_word_embeddings": False}, r"lacks 1 of the tensors.*: lm_head\.weight\. Next:"),
    ],
)
def test_a_checkpoint_that_does_not_fill_the_model_is_refused(monkeypatch, root, tmp_path, changes, message):
    """Transformers would draw random weights for the rest, and a lab would measure them."""
    pytest.importorskip("torch")
    path = tmp_path / "part"
    shutil.copytree(root / "data" / "models" / "python-2m", path)  # one layer, 256 wide, tied embeddings
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    monkeypatch.setenv("LABKIT_MODEL", str(path))
    with pytest.raises(ModelError, match=f"part {message}"):
        load_model(find_model("target", machine=make_machine()), device="cpu")


@pytest.mark.slow
def test_a_checkpoint_with_more_layers_than_its_configuration_is_refused(monkeypatch, root, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "deep"
    shutil.copytree(root / "data" / "models" / "python-11m", path)
    config = json.loads((path / "config.json").read_text())
    layers = config["num_hidden_layers"]
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers - 1}))
    monkeypatch.setenv("LABKIT_MODEL", str(path))
    with pytest.raises(ModelError, match=rf"has 9 tensors of layers.*model\.layers\.{layers - 1}\."):
        load_model(find_model("target", machine=make_machine()), device="cpu")
