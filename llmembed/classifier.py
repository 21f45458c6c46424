"""A classifier: what training leaves behind, and all that is needed to label raw text with it.

In: texts, or embeddings [rows, layers, dim] of each of its backbones. Out: class probabilities [rows, classes]. On
disk: a folder of JSON, safetensors and LightGBM's text, no pickle. Knows no cache.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from llmembed.backbones import Backbone, BackboneSpec, load_backbone
from llmembed.backbones.precision import stored
from llmembed.backbones.weights import find_model
from llmembed.errors import ClassifierError
from llmembed.files import check_folder_writable
from llmembed.folders import Kind, finish_exchange, replacing_folder
from llmembed.fusion import Fusion, fuse
from llmembed.heads import Head, load_head
from llmembed.scaling import Scaler, load_scalers, save_scalers

FORMAT = 2
RECORD = "classifier.json"
FILES = {RECORD, "scaler.safetensors", "head.json", "head.safetensors", "head.txt", "metrics.json", "report.json"}
KIND = Kind(frozenset(FILES), mark=RECORD)
# What every format of the record has had.
RECORD_KEYS = {"format", "fusion", "head", "labels"}
# Texts that are in memory at once while predicting.
BLOCK_ROWS = 2048


class RecordedBackbone(BaseModel):
    """A backbone that a classifier reads.

    Attributes:
        name: short name, as in the cache.
        found_at: where it was found in extraction: a name, a hub id or a folder.
        spec: what its embeddings must come from.
        layers: the layers that are fused, of those in the spec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    found_at: str
    spec: BackboneSpec
    layers: tuple[int, ...]

    def load(self, found_at: str | None = None, *, device: str | None = None) -> Backbone:
        """Load the backbone, limited to the layers that are read.

        Raises:
            ClassifierError: the model found has other weights or another tokenizer.
        """
        spec, files = self.spec, find_model(found_at or self.found_at)
        found = files.weights_digest(), files.tokenizer_digest()
        if found != (spec.weights, spec.tokenizer):
            raise ClassifierError(
                f"The classifier was trained on {spec.model} with weights {spec.weights[:12]} and tokenizer "
                f"{spec.tokenizer[:12]}; {files.folder} has {found[0][:12]} and {found[1][:12]}. "
                "Name the right one with --backbone."
            )
        # vLLM takes a minute to start, which most predictions do not.
        read = spec.model_copy(update={"layers": self.layers})
        return load_backbone(read, files, engine="transformers", device=device)


class ClassifierRecord(BaseModel):
    """The JSON part of a classifier.

    Attributes:
        format: number of this layout.
        backbones: what the embeddings must come from, in the order in which they are fused.
        fusion: how they are fused.
        head: name of the head.
        labels: class names; column i of the probabilities belongs to labels[i].
        training: the settings of the training, for people and for reproduction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    backbones: tuple[RecordedBackbone, ...]
    fusion: Fusion
    head: str
    labels: tuple[str, ...]
    training: dict[str, Any]


@dataclass(frozen=True)
class Classifier:
    """Scaling, fusion and head over the embeddings of one backbone or several."""

    record: ClassifierRecord
    scalers: tuple[Scaler, ...]
    head: Head

    def predict_proba(self, embeddings: Sequence[np.ndarray]) -> np.ndarray:
        """Classify embeddings [rows, layers, dim] of each of the record's backbones -> float32 [rows, classes]."""
        scaled = [scaler.apply(each) for scaler, each in zip(self.scalers, embeddings, strict=True)]
        return self.head.predict_proba(fuse(scaled, self.record.fusion))

    def load_backbones(self, found_at: Sequence[str] = (), *, device: str | None = None) -> list[Backbone]:
        """Load the backbones; `found_at` says where, if not where they were in extraction.

        Raises:
            ClassifierError: another number of them, or one with other weights or another tokenizer.
        """
        recorded = self.record.backbones
        if found_at and len(found_at) != len(recorded):
            names = " and ".join(each.spec.model for each in recorded)
            raise ClassifierError(
                f"The classifier reads {len(recorded)} backbones, {names}; --backbone was given {len(found_at)} times. "
                "Name all of them, in this order, or none."
            )
        places: Sequence[str | None] = found_at or [None] * len(recorded)
        return [each.load(place, device=device) for each, place in zip(recorded, places, strict=True)]

    def predict_texts(self, texts: Sequence[str], backbones: Sequence[Backbone]) -> Iterator[np.ndarray]:
        """Classify [rows] texts, a block of up to 2,048 at a time.

        Yields:
            float32 [block rows, classes], blocks in the order of the texts.
        """
        blocks = [texts[start : start + BLOCK_ROWS] for start in range(0, len(texts), BLOCK_ROWS)]
        embedded = [backbone.embed(map(backbone.tokenize, blocks)) for backbone in backbones]
        for block, *given in zip(blocks, *embedded, strict=True):
            # Rounded to the dtype on disk, as in training.
            parts = zip(given, backbones, strict=True)
            yield self.predict_proba([stored(each, backbone.spec, block) for each, backbone in parts])

    def save(self, folder: Path, reports: dict[str, dict[str, Any]] | None = None) -> None:
        """Write the classifier, and JSON reports beside it, as a folder that appears whole or not at all.

        A classifier that was there before is replaced when all of the new one is on the disk.

        Raises:
            ClassifierError, UsageError: as `check_destination`; or the disk is full.
        """
        check_destination(folder)
        with replacing_folder(folder.resolve(), KIND) as fresh:
            save_scalers(self.scalers, fresh)
            self.head.save(fresh)
            for name, report in (reports or {}).items():
                (fresh / name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            (fresh / RECORD).write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """Read a classifier.

        Raises:
            ClassifierError: no classifier there, damaged, or of another format.
        """
        try:
            finish_exchange(folder.resolve(), KIND)
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ClassifierError(
                    f"{folder} has format {content['format']}; this llmembed reads format {FORMAT}. Train it again."
                )
            return cls(ClassifierRecord.model_validate(content), load_scalers(folder), load_head(folder))
        except (FileNotFoundError, NotADirectoryError) as error:
            missing = Path(error.filename or RECORD).name
            raise ClassifierError(
                f"{folder} is not a classifier: no {missing} in it. Make one with `llmembed train`."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ClassifierError(f"{folder} is damaged ({reason}). Train it again with `llmembed train`.") from error


def check_destination(folder: Path) -> None:
    """Refuse a place where saving a classifier would fail, or replace anything but a classifier.

    Raises:
        ClassifierError: a file, a link or a mount point is there, or a folder that holds anything else.
        UsageError: nothing can be written there.
    """
    in_the_way = [place for place in (folder, *folder.resolve().parents) if _is_file(place)]
    if in_the_way:
        raise ClassifierError(f"{in_the_way[0]} is a file; name another folder with --out.")
    check_folder_writable(folder.resolve())
    if folder.is_symlink():
        raise ClassifierError(f"{folder} is a link to {folder.readlink()}; name the folder itself with --out.")
    if folder.is_mount():
        raise ClassifierError(f"{folder} is a mount point, which cannot be renamed; name a folder in it with --out.")
    try:
        finish_exchange(folder.resolve(), KIND)
        foreign = _foreign(folder) if folder.is_dir() else None
    except OSError as error:
        raise ClassifierError(f"{folder} cannot be read: {error.strerror}; name another folder with --out.") from error
    if foreign:
        raise ClassifierError(f"{folder} holds {foreign}; name another folder with --out.")


def _foreign(folder: Path) -> str | None:
    """Name something in a folder that is no part of a classifier of ours, of whatever format."""
    if foreign := KIND.foreign(folder):
        return f"{foreign}, which is no part of a classifier"
    entries = sorted(folder.iterdir())
    if entries and not KIND.is_whole(folder):
        return f"{entries[0].name} but no {RECORD}, so that it is no classifier"
    return None if not entries or _is_ours(folder / RECORD) else f"{RECORD}, which is no record of a classifier"


def _is_ours(record: Path) -> bool:
    try:
        content = json.loads(record.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("format"), int) and content.keys() >= RECORD_KEYS


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:
        # A name that is too long, or a place that may not be looked at: to be told by whoever tries to write there.
        return False
