import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_llama
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny_models import copy_of, relative_error
from transformers import AutoModel

from llmembed.backbones import describe_backbone, load_backbone, resolve_layers
from llmembed.backbones.pooling import pool
from llmembed.backbones.precision import stored
from llmembed.backbones.vllm.plugin import unsuitable
from llmembed.backbones.weights import find_model
from llmembed.errors import BackboneError

TOLERANCE = 1e-5


def embed(name: str | Path, texts: list[str], layers: tuple[int, ...], **options: object) -> np.ndarray:
    spec, files = describe_backbone(str(name), **{"layers": layers, "pooling": "mean", "max_length": None, **options})
    backbone = load_backbone(spec, files, device="cpu")
    return next(backbone.embed([backbone.tokenize(texts)]))


def reference(name: str | Path, texts: list[str], max_length: int) -> list[list[torch.Tensor]]:
    """Return all hidden states [tokens, dim] of each text, one text at a time and without padding."""
    spec, files = describe_backbone(str(name), layers=(0,), pooling="mean", max_length=max_length)
    ids = load_backbone(spec, files, device="cpu").tokenize(texts).ids
    model = AutoModel.from_pretrained(files.folder).eval()
    with torch.inference_mode():
        outputs = [model(input_ids=torch.tensor([row]), output_hidden_states=True) for row in ids]
    return [[state[0] for state in output.hidden_states] for output in outputs]


@pytest.fixture(params=["minilm", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> str:
    return "minilm" if request.param == "minilm" else str(request.getfixturevalue("tiny_llama"))


@pytest.mark.parametrize(
    ("pooling", "pooled"),
    [
        ("mean", lambda states: states.mean(0)),
        ("max", lambda states: states.amax(0)),
        ("first", lambda states: states[0]),
        ("last", lambda states: states[-1]),
    ],
)
def test_every_layer_equals_one_text_at_a_time(model, texts, pooling, pooled):
    layers = tuple(range(find_model(model).config.depth + 1))
    given = embed(model, texts, layers, pooling=pooling, max_length=128)
    wanted = np.stack([torch.stack([pooled(s) for s in states]).numpy() for states in reference(model, texts, 128)])
    assert given.dtype == np.float32
    assert relative_error(given, wanted) < TOLERANCE


def test_the_company_of_a_text_changes_nothing(model, texts):
    together = embed(model, texts, (-2, -1))
    alone = np.concatenate([embed(model, [text], (-2, -1)) for text in texts[:5]])
    backwards = embed(model, texts[::-1], (-2, -1))[::-1]
    assert relative_error(together[:5], alone) < TOLERANCE
    assert relative_error(together, backwards) < TOLERANCE


def test_layers_above_the_highest_chosen_one_do_not_run(tiny_llama, texts):
    spec, files = describe_backbone(str(tiny_llama), layers=(1, 2), pooling="mean", max_length=None)
    backbone = load_backbone(spec, files, device="cpu")
    assert len(backbone._model.layers) == 2
    whole = embed(tiny_llama, texts, (0, 1, 2, 3, 4))
    given = next(backbone.embed([backbone.tokenize(texts)]))
    assert relative_error(given, whole[:, 1:3]) < TOLERANCE


def test_long_texts_are_cut_at_the_limit_and_counted(texts):
    spec, files = describe_backbone("minilm", layers=(-1,), pooling="mean", max_length=16)
    backbone = load_backbone(spec, files, device="cpu")
    tokens = backbone.tokenize(texts)
    assert max(tokens.lengths) == 16
    assert {ids[-1] for ids in tokens.ids} == {102}, "a truncated text still ends with [SEP]"
    unlimited = load_backbone(*describe_backbone("minilm", layers=(-1,), pooling="mean", max_length=512), device="cpu")
    assert tokens.truncated.tolist() == (unlimited.tokenize(texts).lengths > 16).tolist()


def test_the_template_is_what_the_model_reads():
    written_out = embed("minilm", ["topic: steel prices"], (-1,))
    assert np.array_equal(embed("minilm", ["steel prices"], (-1,), template="topic: {text}"), written_out)


def test_max_pooling_never_sees_padding():
    states = torch.tensor([[[-3.0], [-2.0], [9.0]]])
    assert pool(states, torch.tensor([2]), "max").item() == -2.0


@pytest.mark.parametrize(
    ("layers", "resolved"), [((-1,), (6,)), ((-7, 0 + 3, -2), (0, 3, 5)), ((6, 2), (2, 6)), ((0,), (0,))]
)
def test_layers_count_from_both_ends(layers, resolved):
    assert resolve_layers(layers, 6, "minilm") == resolved


@pytest.mark.parametrize("layers", [(7,), (-8,), (), (6, -1)])
def test_layers_that_are_not_there_or_named_twice_are_refused(layers):
    with refused(BackboneError, match="layer"):
        resolve_layers(layers, 6, "minilm")


def test_the_digest_follows_the_weights_and_not_the_folder(tiny_llama, tmp_path):
    def spec(folder):
        return describe_backbone(str(folder), layers=(-1,), pooling="mean", max_length=None)[0]

    moved = tmp_path / "elsewhere" / tiny_llama.name
    moved.parent.mkdir()
    moved.symlink_to(tiny_llama)
    assert spec(moved).fingerprint == spec(tiny_llama).fingerprint
    changed = copy_of(tiny_llama, tmp_path)
    save_llama(changed, **{"layers.0.mlp.up_proj.weight": 0.01})
    assert spec(changed).weights != spec(tiny_llama).weights


def test_a_value_that_cannot_be_stored_names_layer_and_remedy(tiny_llama):
    spec, _ = describe_backbone(str(tiny_llama), layers=(2, 4), pooling="mean", max_length=None)
    embeddings = np.zeros((3, 2, spec.dim), np.float32)
    embeddings[1, 1, 5] = 70_000
    with refused(
        BackboneError, match=r"70000 in layer 4, which float16 cannot hold, for the text 'b'; .*--dtype float32"
    ):
        stored(embeddings, spec, ["a", "b", "c"])
    embeddings[1, 1, 5] = np.nan
    with refused(BackboneError, match="nan in layer 4"):
        stored(embeddings, spec, ["a", "b", "c"])


def test_a_weight_that_the_files_lack_is_refused(tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["layers.3.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with refused(BackboneError, match=r"lack 1 weights .* layers\.3\.mlp\.up_proj\.weight"):
        embed(folder, ["a text"], (-1,))


def test_weights_that_are_not_safetensors_are_refused(tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with refused(BackboneError, match="no safetensors"):
        find_model(str(folder))


def test_unknown_names_and_unreachable_hub_ids_say_what_to_do(monkeypatch, tmp_path):
    with refused(BackboneError, match="nor one of minilm, bert-large"):
        find_model("no-such-model")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with refused(BackboneError, match=r"LLMEMBED_MODELS/nobody/nothing"):
        find_model("nobody/nothing")


def test_a_mirror_folder_comes_before_the_package(monkeypatch, tiny_llama, tmp_path):
    (tmp_path / "minilm").symlink_to(tiny_llama)
    monkeypatch.setenv("LLMEMBED_MODELS", str(tmp_path))
    assert find_model("minilm").folder == tmp_path / "minilm"


def test_a_length_beyond_the_model_is_refused_and_a_jobs_is_cut():
    with refused(BackboneError, match=r"MiniLM.* 512 positions"):
        describe_backbone("minilm", layers=(-1,), pooling="mean", max_length=1024)
    spec, _ = describe_backbone("minilm", layers=(-1,), pooling="mean", max_length=None, at_most=1024)
    assert spec.max_length == 512


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "phi"}, "is of the type phi; the vllm engine runs bert, .*, roberta"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "turns the direction of attention"),
        ({"model_type": "bert", "is_decoder": True}, "turns the direction of attention"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2}, "window in some of its layers"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": False}, "^$"),
        ({"model_type": "llama", "is_decoder": True}, "^$"),
    ],
)
def test_the_vllm_engine_is_not_for_what_it_would_compute_otherwise(config, reason, tiny_llama, tmp_path):
    folder = copy_of(tiny_llama, tmp_path)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    assert re.search(reason, unsuitable(find_model(str(folder))))
