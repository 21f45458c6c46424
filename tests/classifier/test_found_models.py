"""What a classifier's record names as a place is looked for on this machine alone, and is never run or trusted."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub.constants
import pytest
from documents import ROOT
from refusals import printed
from small_classifier import SPEC

from llmembed.backbones import describe_backbone
from llmembed.backbones.weights import file_digest, find_model
from llmembed.classifier import RecordedBackbone
from llmembed.errors import LLMEmbedError


def recorded(found_at: str, **changes) -> RecordedBackbone:
    """Make what a record says of a backbone."""
    return RecordedBackbone(name="digits", found_at=found_at, spec=SPEC.model_copy(update=changes), layers=(2, 4))


@pytest.fixture
def hub():
    """Return the address of a hub that has nothing, and the list of what it was asked for."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


LOAD = """
import sys
sys.path[:0] = ["tests", "tests/classifier"]
from refusals import printed
from test_found_models import recorded
from llmembed.errors import LLMEmbedError
for named in (None, "somebody/something"):
    try:
        recorded("somebody/something").load(named)
    except LLMEmbedError as error:
        print(printed(error))
    print("asked", flush=True) or sys.stdin.readline()
"""


def test_a_classifier_asks_the_hub_only_for_what_is_named_with_backbone(hub, tmp_path):
    address, asked = hub
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", LOAD]
    root = ROOT
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert "somebody/something is not on this machine" in (line := process.stdout.readline())
        assert "name in --backbone where it is, or a hub id" in line
        assert process.stdout.readline() == "asked\n"
        assert asked == []
        process.stdin.write("\n")
        process.stdin.flush()
        assert "could not be downloaded" in process.stdout.readline()
        assert asked
        process.stdin.close()


PLACES = ["/no/such/folder", "./none", "~root/none", "none", "a/b/c", "org/name@../../x", "org/na\0me", "x" * 5000]
PLACES += ["../" * 3000 + "x", "https://example.org/model", "org/\x1b[2J", "-rf/x", "org/..", "@", "/"]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_not_there_gives_one_line(place, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMEMBED_MODELS", str(tmp_path))
    with pytest.raises(LLMEmbedError) as raised:
        recorded(place).load(device="cpu")
    assert "\n" not in str(raised.value) and "--backbone" in printed(raised.value)


def test_no_place_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="place"):
        recorded("")


def test_code_beside_a_model_is_never_run(tiny_llama, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for auto_map in ({"AutoModel": "code.Model", "AutoConfig": "code.Config"}, {"AutoTokenizer": ["code.T", None]}):
        (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
        spec, _ = describe_backbone(str(folder), layers=(2, 4), pooling="mean", max_length=64)
        backbone = RecordedBackbone(name="m", found_at=str(folder), spec=spec, layers=(2, 4)).load(device="cpu")
        list(backbone.embed([backbone.tokenize(["a text"])]))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [{"dim": 32}, {"depth": 40}, {"max_length": 10**6}])
def test_a_record_that_does_not_fit_its_own_model_is_refused(change, tiny_llama):
    spec, _ = describe_backbone(str(tiny_llama), layers=(2, 4), pooling="mean", max_length=64)
    changed = spec.model_copy(update=change)
    backbone = RecordedBackbone(name="m", found_at=str(tiny_llama), spec=changed, layers=(2, 4))
    with pytest.raises(LLMEmbedError, match="the record of the classifier says"):
        backbone.load(device="cpu")


def test_only_the_hubs_own_cache_is_believed_what_a_file_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    name, content = "a" * 64, b"other weights"
    for folder in ("hub/models--org--name/blobs", "mine/blobs", "hub/blobs", "mine/models--org--name/blobs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_bytes(content)
        believed = folder == "hub/models--org--name/blobs"
        assert file_digest(tmp_path / folder / name) == (name if believed else sha256(content).hexdigest())
    (tmp_path / "hub/models--org--name/blobs" / ("g" * 64)).write_bytes(content)
    assert file_digest(tmp_path / "hub/models--org--name/blobs" / ("g" * 64)) == sha256(content).hexdigest()


def test_the_minilm_of_the_package_is_found_without_the_hub():
    assert find_model("minilm", download=False).model == "sentence-transformers/all-MiniLM-L6-v2"
