"""The extraction that brings what a cache lacks, or makes again what is damaged in it.

In: the store of a cache, and what is known of how it was extracted. Out: a request. Reads records only as far as they
are whole, so that an error can always name one.
"""

import os
from pathlib import Path

from llmembed.backbones import BackboneSpec
from llmembed.backbones.weights import KNOWN
from llmembed.cache.place import place_of
from llmembed.cache.records import ExtractionRecord, list_extractions, read_extraction, salvage_request
from llmembed.errors import CacheError
from llmembed.requests import ExtractionRequest, Reading
from llmembed.storage import Store


def newest_record(store: Store) -> ExtractionRecord | None:
    """Return the record of the newest extraction that is whole, None if there is none."""
    for name in reversed(list_extractions(store)):
        try:
            return read_extraction(store, name)
        except (OSError, ValueError, CacheError):
            continue
    return None


def request_again(
    store: Store, spec: BackboneSpec | None = None, otherwise: Reading | None = None
) -> ExtractionRequest:
    """Return the request that extracts again what was last extracted.

    Without a record of that it is for the data set `otherwise`, or that of the folder's name, with what gives the
    spec, as far as it is known.
    """
    place, newest = place_of(store), newest_record(store)
    # What is left of a damaged record is good for a command to propose, no more.
    salvaged = (salvage_request(store, name) for name in reversed(list_extractions(store)))
    last = newest.request if newest else next(filter(None, salvaged), None)
    if last is not None:
        return last.model_copy(update={"root": place.root})
    reading = otherwise or Reading(argument=place.dataset)
    if spec is None:
        return ExtractionRequest(reading=reading, root=place.root, backbone=place.backbone)
    return ExtractionRequest(
        reading=reading,
        root=place.root,
        backbone=_name(place.backbone, spec.model),
        layers=spec.layers,
        pooling=spec.pooling,
        max_length=spec.max_length,
        template=spec.template,
        dtype=spec.dtype,
    )


def _name(backbone: str, model: str) -> str:
    named = backbone if backbone in KNOWN else model
    if "/" in named or named in KNOWN or (Path(os.environ.get("LLMEMBED_MODELS", "")) / named).is_dir():
        return named
    # A local folder, whose place is in no spec.
    return f"PATH/TO/{named}"
