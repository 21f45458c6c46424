"""Job files: what one extraction reads and how, declared in `jobs/NAME.toml`.

In: a job's name. Out: a `Job` (where the texts come from, columns, splits, backbone, layers, pooling, length limit).
It reads no data set and knows no model.
"""

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmembed.errors import DatasetError

Pooling = Literal["mean", "max", "first", "last"]

# The paper fuses the last five hidden states (LLMEmbed, ACL 2024, section 3).
LAST_FIVE = (-5, -4, -3, -2, -1)


class Hub(BaseModel):
    """Parquet files of a public hub repository at a pinned revision, one per split.

    `label_names[i]` is the class name of the label id i, for repositories that store ids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    revision: str
    train: str
    test: str
    text_column: str = "text"
    label_column: str = "label"
    label_names: tuple[str, ...] = ()


class Job(BaseModel):
    """One extraction job; every key has a default, so a bare file or folder has a job too.

    `max_length` is in tokens, special tokens included; a backbone with fewer positions uses all it has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    builtin: bool = False
    hub: Hub | None = None
    backbone: str = "minilm"
    layers: tuple[int, ...] = LAST_FIVE
    pooling: Pooling = "mean"
    max_length: int = Field(default=256, ge=1)


def load_job(path: Path) -> Job:
    """Read a job file.

    Raises:
        DatasetError: not TOML, or an unknown key or a wrong value in it.
    """
    try:
        return Job.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DatasetError(f"{path}: key {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from error


def find_job(name: str) -> Path | None:
    """Give the job file of `name`: `jobs/` of the working directory first, then the jobs that come with llmembed."""
    for folder in _job_folders():
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    return None


def job_names() -> list[str]:
    """List the names of all jobs, sorted."""
    return sorted({path.stem for folder in _job_folders() for path in folder.glob("*.toml")})


def _job_folders() -> list[Path]:
    package = Path(__file__).parent
    # A wheel carries jobs/ inside the package; a checkout has it beside the package.
    return [Path("jobs"), package / "jobs", package.parent / "jobs"]
