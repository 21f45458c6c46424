"""Job files: what one extraction reads and how, declared in `jobs/NAME.toml`.

In: a job's name. Out: a `Job` (where the texts come from, columns, splits, backbone, layers, pooling, length limit).
It reads no data set and knows no model.
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmembed.choices import Pooling
from llmembed.errors import DatasetError

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
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise DatasetError(f"{path}: key {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid TOML: {error}") from error


def find_job(name: str) -> Path | None:
    """Return the job file of `name`: `jobs/` of the working directory first, then the jobs that come with llmembed."""
    return next(iter(_job_files(name)), None)


def redefinition(name: str) -> list[str]:
    """Return a warning if a job file of the working directory stands in the place of another one of llmembed's own."""
    files = _job_files(name)
    if len(files) < 2 or files[0].samefile(files[1]) or files[0].read_bytes() == files[1].read_bytes():
        return []
    return [
        f"{files[0]} of the working directory is used for {name}, in the place of llmembed's own {files[1]}; "
        "give it another name if that is not meant."
    ]


def job_names() -> list[str]:
    """List the names of all jobs, sorted."""
    return sorted({path.stem for folder in _job_folders() for path in folder.glob("*.toml")})


def _job_files(name: str) -> list[Path]:
    files = [folder / f"{name}.toml" for folder in _job_folders()]
    return [file for file in files if _is_file(file)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # A name that is too long, or one with a NUL.
        return False


def _job_folders() -> list[Path]:
    package = Path(__file__).parents[1]
    # A wheel carries jobs/ inside the package; a checkout has it beside the package.
    return [Path("jobs"), package / "jobs", package.parent / "jobs"]
