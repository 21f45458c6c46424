"""The built-in data set: its size, its masked names, its split, and that it is neither noise nor a giveaway."""

import os
import re
import subprocess
import sys

import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llmembed.datasets import load_dataset
from llmembed.datasets.pydocs import build_pydocs, pydocs_version

NAMES = "numpy|scipy|sklearn|scikit|torch|hugging ?face|polars|pyarrow|networkx|sympy|pydantic|lightgbm|pandas"


@pytest.fixture(scope="module")
def pydocs() -> pl.DataFrame:
    return build_pydocs()


def test_there_are_enough_texts_of_comparable_classes(pydocs: pl.DataFrame) -> None:
    assert pydocs.schema == {"text": pl.String, "label": pl.String, "split": pl.String}
    assert 5_000 <= pydocs.height <= 12_000
    rows_per_label = pydocs["label"].value_counts()["count"]
    assert len(rows_per_label) >= 4
    assert rows_per_label.min() >= 0.5 * rows_per_label.max()  # type: ignore[operator]
    assert pydocs["text"].str.len_chars().is_between(40, 2000).all()


def test_no_text_names_a_package(pydocs: pl.DataFrame) -> None:
    named = re.compile(rf"{NAMES}|\b(transformers|hf)\b|\b(np|pl|pa|nx|pd)\.[a-z]|>>>", re.IGNORECASE)
    assert [text for text in pydocs["text"] if named.search(text)] == []


def test_another_process_builds_the_same_table(pydocs: pl.DataFrame) -> None:
    code = "import llmembed.datasets.pydocs as p; print(p.pydocs_version(), p.build_pydocs().write_csv(), end='')"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert run.stdout == f"{pydocs_version()} {pydocs.write_csv()}"


def test_the_split_is_stratified_and_no_text_is_on_both_sides(pydocs: pl.DataFrame) -> None:
    assert pydocs["text"].n_unique() == pydocs.height
    shares = pydocs.group_by("label").agg(test=(pl.col("split") == "test").mean())["test"]
    assert shares.is_between(0.199, 0.201).all()


def test_words_predict_the_package_but_do_not_give_it_away(pydocs: pl.DataFrame) -> None:
    train, test = pydocs.filter(split="train"), pydocs.filter(split="test")
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    head = LogisticRegression(max_iter=200).fit(vectorizer.fit_transform(train["text"]), train["label"].to_list())
    accuracy = head.score(vectorizer.transform(test["text"]), test["label"].to_list())
    assert 0.6 < accuracy < 0.99


def test_an_empty_cache_variable_does_not_put_the_table_into_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    load_dataset("pydocs")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert list((tmp_path / "home" / ".cache" / "llmembed").glob("pydocs-*.parquet"))
