"""Where a cache lies and what that says of it: `<root>/<dataset>/<backbone>-<fingerprint>`.

In: a store, or what is stored. Out: the parts of the name. Reads nothing.
"""

from typing import NamedTuple

from llmembed.backbones import BackboneSpec
from llmembed.storage import Store


class Place(NamedTuple):
    """The parts of a cache's URL: that of the root, the name of the data set, and that of the folder."""

    root: str
    dataset: str
    name: str

    @property
    def backbone(self) -> str:
        """Return the short name of the backbone."""
        return self.name.rpartition("-")[0]

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint that the spec must have."""
        return self.name.rpartition("-")[2]


def place_of(store: Store) -> Place:
    """Return where a cache lies."""
    *root, dataset, name = [".", *store.url.split("/")]
    return Place("/".join(root[1:]) or ("/" if root[1:] else "."), dataset, name)


def folder_of(dataset: str, backbone: str, spec: BackboneSpec) -> str:
    """Return the folder below the root in which a spec's embeddings of a data set lie."""
    return f"{dataset}/{backbone}-{spec.fingerprint}"
