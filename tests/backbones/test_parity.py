"""`check-parity` with both real engines; needs vLLM (`make test-vllm`)."""

import json

import pytest
from typer.testing import CliRunner

from llmembed.cli import app

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("vllm_on_cpu")]


def check_parity(*options: str) -> tuple[int, dict]:
    result = CliRunner().invoke(app, ["check-parity", "pydocs", "--rows", "40", "--json", *options])
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.parametrize("model", ["minilm", "tiny_llama"])
def test_the_engines_agree_on_every_layer(model, request):
    folder = model if model == "minilm" else str(request.getfixturevalue(model))
    code, parity = check_parity("--backbone", folder, "--layers", "0,1,2,3,4", "--max-length", "128")
    assert code == 0
    assert [layer["layer"] for layer in parity["layers"]] == [0, 1, 2, 3, 4]
    assert max(layer["relative_error"] for layer in parity["layers"]) < 1e-5
    assert min(layer["cosine"] for layer in parity["layers"]) > 0.99999
    assert [engine["engine"] for engine in parity["engines"]] == ["transformers", "vllm"]
    assert parity["rows"] == 40


def test_beyond_the_tolerance_the_exit_code_is_1(tiny_llama):
    code, parity = check_parity("--backbone", str(tiny_llama), "--tolerance", "1e-12")
    assert code == 1
    assert not parity["passed"]
