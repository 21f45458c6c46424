"""The files of a head: `head.json` and `head.safetensors`, what every head has in them and how it is checked.

In: a fitted head and the arrays that are its own. Out: the same, or a ClassifierError that names the file. Knows no
features.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from llmembed.errors import ClassifierError
from llmembed.saved import Arrays, SavedFiles, checked_arguments, checked_labels
from llmembed.uncertainty.calibration import Calibration

JSON_FILE = "head.json"
ARRAYS_FILE = "head.safetensors"
TREES_FILE = "head.txt"
# Arrays that every head has in it.
OFFSET, CLASS_WEIGHTS = "class_offset", "class_weights"
HEAD_FORMAT = 3
# Of those that a fit can choose, the lowest is 1e-2 and the highest 1e2; some room for rounding.
MIN_TEMPERATURE = 1e-3


def write_head(folder: Path, name: str, head: Any, arrays: Arrays) -> None:
    """Write `head.json` (parameters, classes, fit info, what was fitted) and `head.safetensors` (arrays).

    What every head has, such as its calibration, is written with them.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    params = head.get_params()
    if isinstance(params["class_weight"], dict):
        # The keys of JSON are strings, labels may be numbers.
        params["class_weight"] = list(params["class_weight"].items())
    content = {
        "format": HEAD_FORMAT,
        "head": name,
        "params": params,
        "classes": head.classes_.tolist(),
        "fit_info": head.fit_info_,
        "fitted": {"features": head.n_features_in_, "temperature": head.calibration_.temperature},
    }
    arrays = {**arrays, OFFSET: head.calibration_.offset, CLASS_WEIGHTS: head.class_weights_}
    # Not save_file: on a full disk its error is none of the operating system's.
    content_of_arrays = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    (folder / ARRAYS_FILE).write_bytes(content_of_arrays)
    # Parameters from a search over an array are NumPy's scalars.
    text = json.dumps(content, indent=2, default=np.generic.item)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")


def read_head(files: SavedFiles, head_class: type) -> tuple[Any, Arrays]:
    """Read what `write_head` wrote: a head with all that every head has set, and the arrays that are its own.

    Raises:
        ClassifierError: a file is missing or damaged.
    """
    content = files.read_json(JSON_FILE)
    if content.get("format") != HEAD_FORMAT:
        raise ClassifierError(
            f"{files.folder / JSON_FILE} has format {content.get('format')}; this llmembed reads format {HEAD_FORMAT}. "
            "Train it again.",
            folder=str(files.folder),
        )
    try:
        params = content["params"]
        if isinstance(params, dict) and isinstance(params.get("class_weight"), list):
            params = {**params, "class_weight": dict(params["class_weight"])}
        head = head_class(**checked_arguments(head_class.__init__, params))  # type: ignore[misc]
        head.classes_ = np.asarray(checked_labels(content["classes"]))
        head.fit_info_, fitted = dict(content["fit_info"]), dict(content["fitted"])
        if fitted.keys() != {"features", "temperature"} or not all(0 < value < math.inf for value in fitted.values()):
            raise ValueError("the fitted numbers are not features and temperature, both positive and finite")
        if not MIN_TEMPERATURE <= fitted["temperature"] <= 1 / MIN_TEMPERATURE:
            raise ValueError("no fit gives such a temperature")
        head.n_features_in_ = fitted["features"]
        if type(head.n_features_in_) is not int:
            raise TypeError("the number of features is no whole number")
    except (KeyError, TypeError, ValueError) as error:
        raise files.damaged(JSON_FILE, f"{type(error).__name__}: {error}") from error
    arrays = files.read_arrays(ARRAYS_FILE)
    shared = {name: arrays.pop(name) for name in (OFFSET, CLASS_WEIGHTS) if name in arrays}
    files.expect_arrays(ARRAYS_FILE, shared, dict.fromkeys((OFFSET, CLASS_WEIGHTS), head.classes_.shape))
    head.calibration_ = Calibration(fitted["temperature"], shared[OFFSET])
    head.class_weights_ = shared[CLASS_WEIGHTS]
    if not (head.class_weights_ > 0).all():
        raise files.damaged(ARRAYS_FILE, f"{CLASS_WEIGHTS!r} holds weights that are not positive")
    return head, arrays
