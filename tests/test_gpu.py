import pytest
import torch
from refusals import refused
from tiny_models import relative_error
from transformers import AutoModel

from llmembed.backbones import describe_backbone, load_backbone
from llmembed.backbones.weights import find_model
from llmembed.devices import Meter, energy, group_gpus, matrix_rate, visible_gpus
from llmembed.errors import UsageError


@pytest.mark.parametrize(
    ("chosen", "tensor_parallel", "groups"),
    [
        ("all", 1, ["4", "5", "6", "7"]),
        ("all", 2, ["4,5", "6,7"]),
        ("1,3", 1, ["5", "7"]),
        ("3,0", 2, ["7,4"]),
    ],
)
def test_gpus_are_counted_among_the_visible_ones(chosen, tensor_parallel, groups):
    assert group_gpus(chosen, ["4", "5", "6", "7"], tensor_parallel) == groups


@pytest.mark.parametrize(
    ("chosen", "tensor_parallel", "complaint"),
    [
        ("2", 1, "2 GPUs can be used here"),
        ("-1", 1, "from 0 on"),
        ("0,0", 1, "once"),
        ("one", 1, "expected all, or numbers"),
        ("0,", 1, "expected all, or numbers"),
        ("all", 3, "make no whole groups"),
    ],
)
def test_gpus_that_are_not_there_are_refused(chosen, tensor_parallel, complaint):
    with refused(UsageError, match=complaint):
        group_gpus(chosen, ["0", "1"], tensor_parallel)


def test_without_gpus_all_is_refused_too():
    with refused(UsageError, match="0 GPUs"):
        group_gpus("all", [])


@pytest.mark.parametrize("model", ["minilm", "tiny_llama"])
def test_operations_are_two_for_each_weight_of_the_layers_that_run(model, request):
    files = find_model(model if model == "minilm" else str(request.getfixturevalue(model)))
    loaded = AutoModel.from_pretrained(files.folder)
    layers = loaded.layers if model == "tiny_llama" else loaded.encoder.layer
    weights = [weight.numel() for layer in layers[:3] for weight in layer.parameters() if weight.ndim == 2]
    assert files.operations_per_token(3) == 2 * sum(weights)


@pytest.mark.gpu
def test_a_gpu_counts_its_energy_while_it_multiplies():
    gpus = visible_gpus()[:1]
    before = energy(gpus)
    rate = matrix_rate()
    assert rate > 1e12
    assert energy(gpus) > before


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_computes(texts):
    spec, files = describe_backbone("minilm", layers=(2, 6), pooling="mean", max_length=128)
    gpu, cpu = (load_backbone(spec, files, engine="transformers", device=device) for device in ("cuda", "cpu"))
    (given,), (wanted,) = (backbone.embed([backbone.tokenize(texts)]) for backbone in (gpu, cpu))
    assert gpu.engine.device == torch.cuda.get_device_name()
    assert relative_error(given, wanted) < 0.1


def test_what_a_driver_fails_to_say_is_none(monkeypatch):
    def broken(*_):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "not a name")

    monkeypatch.setattr("llmembed.devices.energy", broken)
    monkeypatch.setattr("llmembed.devices.matrix_rate", broken)
    meter = Meter(["0"])
    assert (meter.watt_hours(), meter.utilisation(1e12)) == (None, None)
    assert (Meter([]).watt_hours(), Meter([]).utilisation(1e12)) == (None, None)
