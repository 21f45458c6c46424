"""The command that brings what a cache lacks or mends what is damaged in it.

In: the store of a cache, and what is known of how it was extracted. Out: a command line. Reads records only as far as
they are whole, so that an error can always name a command.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmembed.backbones import BackboneSpec
from llmembed.backbones.weights import KNOWN
from llmembed.cache.place import place_of
from llmembed.cache.records import list_extractions, read_extraction, salvage_extraction
from llmembed.errors import CacheError
from llmembed.storage import Store


def recorded(store: Store) -> dict[str, Any]:
    """Return the newest report of an extraction that is whole, or what is left of a damaged one, or nothing."""
    names = list(reversed(list_extractions(store)))
    for name in names:
        try:
            return read_extraction(store, name)
        except (OSError, ValueError, CacheError):
            continue
    return next(filter(None, (salvage_extraction(store, name) for name in names)), {})


def mend_command(
    store: Store,
    spec: BackboneSpec | None = None,
    dataset: Sequence[str] | None = None,
    otherwise: Sequence[str] = (),
) -> str:
    """Return the command that extracts again, of the data set last extracted or of another.

    Its options are those of the last extraction, or else those that give the spec, as far as it is known. `otherwise`
    are the words of the data set where no extraction tells them.
    """
    last, place = recorded(store), place_of(store)
    options = ["--backbone", place.backbone] if spec is None else _spec_words(place.backbone, spec)
    words = dataset or last.get("dataset") or otherwise or [place.dataset]
    return extract_command(place.root, words, last.get("options", options))


def extract_command(root: str, dataset: Sequence[str], options: Sequence[str]) -> str:
    """Return the command that extracts a data set, given by its words, to the caches under a root."""
    where = [] if root == "cache" else ["--cache", root]
    return f"`{shlex.join(['llmembed', 'extract', *dataset, *options, *where])}`"


def _spec_words(backbone: str, spec: BackboneSpec) -> list[str]:
    named = backbone if backbone in KNOWN else spec.model
    if "/" not in named and named not in KNOWN and not (Path(os.environ.get("LLMEMBED_MODELS", "")) / named).is_dir():
        # A local folder, whose place is in no spec.
        named = f"PATH/TO/{named}"
    return [
        *("--backbone", named),
        *("--layers", ",".join(map(str, spec.layers))),
        *("--pooling", spec.pooling),
        *("--max-length", str(spec.max_length)),
        *("--template", spec.template),
        *("--dtype", spec.dtype),
    ]
