"""A classifier: what training leaves behind, and all that is needed to label raw text with it.

In: texts, or embeddings [rows, layers, dim] of each of its backbones. Out: class probabilities [rows, classes]. On
disk: a folder of JSON, safetensors and LightGBM's text, no pickle. Knows no cache.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from llmembed.backbones import Backbone, BackboneSpec, load_backbone
from llmembed.backbones.precision import stored
from llmembed.backbones.weights import ModelFiles, find_model
from llmembed.choices import Fusion
from llmembed.classifier.files import CLASSIFIER_FORMAT, KIND, RECORD, check_destination, read_classifier, seal_folder
from llmembed.errors import BackboneError, ClassifierError
from llmembed.features import FeatureMap
from llmembed.features.fusion import LEARNED, Layout
from llmembed.folders import replacing_folder
from llmembed.heads import Head, head_name, load_head
from llmembed.heads.classes import decide
from llmembed.requests import TrainingSpec
from llmembed.saved import checked_labels

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

    @model_validator(mode="after")
    def _check(self) -> Self:
        spec, layers = self.spec, self.layers
        if not layers or list(layers) != sorted(set(layers)) or not set(layers) <= set(spec.layers):
            raise ValueError("the layers are not some of those in the spec, ascending")
        if list(spec.layers) != sorted(set(spec.layers)) or not 0 <= spec.layers[0] <= spec.layers[-1] <= spec.depth:
            raise ValueError("the layers of the spec are not layers of the model, ascending")
        if spec.dim < 1 or spec.max_length < 1 or "{text}" not in spec.template:
            raise ValueError("the spec has no dim, no length or no place for the text")
        # It becomes part of a path in the cache.
        if not self.name or self.name in (".", "..") or set(self.name) & {"/", "\0"}:
            raise ValueError("the name of the backbone is no name of a folder")
        if not self.found_at:
            raise ValueError("it names no place of the backbone")
        return self

    def load(self, found_at: str | None = None, *, device: str | None = None) -> Backbone:
        """Load the backbone, limited to the layers that are read.

        Where `found_at` does not say where it is, it is looked for where the record says, on this machine alone.

        Raises:
            ClassifierError: the model found has other weights, another tokenizer or another shape.
            BackboneError: there is no model.
        """
        spec, files = self.spec, find_model(found_at) if found_at else self._find_recorded()
        found = files.weights_digest(), files.tokenizer_digest()
        if found != (spec.weights, spec.tokenizer):
            raise ClassifierError(
                f"The classifier was trained on {spec.model} with weights {spec.weights[:12]} and tokenizer "
                f"{spec.tokenizer[:12]}; {files.folder} has {found[0][:12]} and {found[1][:12]}. "
                "Name the right one in `backbones`."
            )
        config = files.config
        if (spec.depth, spec.dim) != (config.depth, config.dim) or spec.max_length > config.positions:
            raise ClassifierError(
                f"{files.folder} has {config.depth} layers of {config.dim} and {config.positions} positions, but the "
                f"record of the classifier says {spec.depth} of {spec.dim} and {spec.max_length}. Train it again."
            )
        # vLLM takes a minute to start, which most predictions do not.
        read = spec.model_copy(update={"layers": self.layers})
        return load_backbone(read, files, engine="transformers", device=device)

    def _find_recorded(self) -> ModelFiles:
        try:
            return find_model(self.found_at, download=False)
        except BackboneError as error:
            raise BackboneError(
                f"{error} The classifier's record names it; name in `backbones` where it is, or a hub id to download.",
                requirement=error.requirement,
                reinstall=error.reinstall,
            ) from error


@dataclass(frozen=True)
class SourceRecord:
    """What identifies the numbers that were read of a cache: short name of the backbone, fingerprint, layers."""

    name: str
    fingerprint: str
    layers: tuple[int, ...]


class TrainingSettings(TrainingSpec):
    """All that, with the embeddings, determines a classifier.

    Attributes:
        dataset: name of the data set.
        dataset_digest: of its texts, labels and splits in their order.
        backbones: what was read of each of them.
    """

    dataset: str
    dataset_digest: str
    backbones: tuple[SourceRecord, ...]


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

    format: int = CLASSIFIER_FORMAT
    backbones: tuple[RecordedBackbone, ...]
    fusion: Fusion
    head: str
    labels: tuple[str, ...]
    training: TrainingSettings

    @model_validator(mode="after")
    def _check(self) -> Self:
        checked_labels(list(self.labels))
        if not self.backbones:
            raise ValueError("it reads no backbone")
        return self

    @property
    def layout(self) -> Layout:
        """Return the number of layers and the dim of each backbone."""
        return tuple((len(each.layers), each.spec.dim) for each in self.backbones)


@dataclass(frozen=True)
class Classifier:
    """A feature map and a head over the embeddings of one backbone or several."""

    record: ClassifierRecord
    feature_map: FeatureMap
    head: Head

    def predict_proba(self, embeddings: Sequence[np.ndarray]) -> np.ndarray:
        """Classify embeddings [rows, layers, dim] of each of the record's backbones -> float32 [rows, classes].

        Raises:
            ClassifierError: values or weights so large that probabilities are no numbers.
        """
        probabilities = self.head.predict_proba(self.feature_map.apply(embeddings))
        if not np.isfinite(probabilities).all():
            raise ClassifierError("The classifier gives probabilities that are no numbers. Train it again.")
        return probabilities

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Decide on a label for each row of probabilities [rows, classes] -> its index in the labels, int64 [rows].

        It is the most probable one, unless the head was fitted with class weights, which favour some.
        """
        return decide(probabilities, self.head.class_weights_)

    def load_backbones(self, found_at: Sequence[str] = (), *, device: str | None = None) -> list[Backbone]:
        """Load the backbones; `found_at` says where, if not where they were in extraction.

        Raises:
            ClassifierError: another number of them, or one with other weights or another tokenizer.
        """
        recorded = self.record.backbones
        if found_at and len(found_at) != len(recorded):
            names = " and ".join(each.spec.model for each in recorded)
            raise ClassifierError(
                f"The classifier reads {len(recorded)} backbones, {names}; `backbones` has {len(found_at)}. "
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
            self.feature_map.save(fresh)
            self.head.save(fresh)
            for name, report in (reports or {}).items():
                (fresh / name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            seal_folder(fresh, self.record.model_dump(mode="json"))
            try:
                # What cannot be loaded, such as weights that are not finite, must not replace what can.
                self.load(fresh)
            except ClassifierError as error:
                raise ClassifierError(f"{folder} was not written, for it could not be loaded: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """Load a classifier, after a check of all its files.

        Raises:
            ClassifierError: no classifier there, or one of another format; a file is missing, was changed since it was
                saved, or does not fit the others.
        """
        content, files = read_classifier(folder)
        try:
            record = ClassifierRecord.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise files.damaged(RECORD, f"{str(first['loc'])[:100]}: {first['msg']}") from error
        feature_map = FeatureMap.load(files, record.fusion, record.layout)
        head = load_head(files)
        learned = record.fusion if record.fusion in LEARNED else None
        params = {"fusion": None, "layout": (), **head.get_params()}
        agreements = {
            "head": head_name(head) == record.head,
            "labels": head.classes_.tolist() == list(range(len(record.labels))),
            "features": head.n_features_in_ == feature_map.width,
            "fusion": params["fusion"] == learned and (learned is None or params["layout"] == record.layout),
        }
        for what, agree in agreements.items():
            if not agree:
                raise files.damaged("head.json", f"its {what} is not that of {RECORD}")
        return cls(record, feature_map, head)


def load_classifier(folder: str | Path) -> Classifier:
    """Load a trained classifier; errors as those of `Classifier.load`."""
    return Classifier.load(Path(folder))
