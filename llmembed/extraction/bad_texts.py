"""Texts without embeddings: collected while others are embedded, quarantined, listed at the end.

In: keys and reasons. Out: records in the cache, sentences, and an error unless the user wants to go on without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

from llmembed.backbones import BadText, EngineInfo
from llmembed.backbones.precision import remedy
from llmembed.cache import Cache
from llmembed.choices import OnBadValue
from llmembed.errors import BackboneError

# A model that gives no good vector for so many texts before the first good one gives none at all.
HOPELESS = 64
# Texts that are listed, and characters of each.
LISTED = 10
CHARACTERS = 80


class BadTexts:
    """The texts of one extraction that have no embeddings, which the cache keeps apart."""

    def __init__(self, cache: Cache, on_bad_value: OnBadValue) -> None:
        self._cache, self._skip = cache, on_bad_value == "skip"
        self.known = cache.quarantine.keys()
        self._found: dict[bytes, BadText] = {}
        # What is left over in a cache that has most of its texts may well be bad, all of it.
        self._begins = not cache.commits

    def add(self, bad: Mapping[bytes, BadText], texts: Mapping[bytes, str], embedded: int) -> None:
        """Take texts that were found bad; so many were embedded, and stored, in this run.

        Raises:
            BackboneError: the model gives no good vector for any text.
        """
        self._found.update(bad)
        fresh = self._found.keys() - self.known
        if self._begins and not embedded and len(fresh) >= HOPELESS:
            key, first = next(iter(self._found.items()))
            remedies = remedy(self._found.values())
            way = f"; {remedies}" if remedies else ""
            raise BackboneError(
                f"{self._cache.spec.model} gave nothing that can be stored for the first {len(fresh):,} texts: "
                f"{first.reason}, for the text {texts[key][:CHARACTERS]!r}{way}. Nothing was kept."
            )

    def settle(
        self,
        texts: Mapping[bytes, str],
        engine: EngineInfo | None,
        on_warning: Callable[[str], None],
    ) -> set[bytes]:
        """Write down those that are missing in the end, forget what has embeddings now; return the keys of the former.

        Raises:
            BackboneError: there are some, and the user did not say to go on without them.
        """
        quarantine, known = self._cache.quarantine, sorted(self.known)
        present = self._cache.locate([*known, *self._found]).shard >= 0
        quarantine.release(key for key, is_present in zip(known, present.tolist(), strict=False) if is_present)
        pairs = zip(self._found.items(), present[len(known) :].tolist(), strict=True)
        bad = {key: text for (key, text), is_present in pairs if not is_present}
        quarantine.put(bad, {} if engine is None else asdict(engine), skip=self._skip)
        if bad and not self._skip:
            raise _refusal(bad, texts, self._cache, "" if engine is None else engine.dtype)
        for line in _listed(bad, texts):
            on_warning(f"without embeddings: {line}")
        return set(bad)


def _listed(bad: Mapping[bytes, BadText], texts: Mapping[bytes, str]) -> list[str]:
    listed = [f"{texts[key][:CHARACTERS]!r} ({text.reason})" for key, text in list(bad.items())[:LISTED]]
    return listed + ([f"and {len(bad) - LISTED:,} more"] if len(bad) > LISTED else [])


def _refusal(bad: Mapping[bytes, BadText], texts: Mapping[bytes, str], cache: Cache, computed_in: str) -> BackboneError:
    way = remedy(bad.values(), computed_in)
    return BackboneError(
        f"{len(bad):,} {'text has no embedding' if len(bad) == 1 else 'texts have no embeddings'}; all others are in "
        f"{cache.url}. For these, {way + ', or ' if way else ''}go on without them with `on_bad_value='skip'`: "
        f"{'; '.join(_listed(bad, texts))}"
    )
