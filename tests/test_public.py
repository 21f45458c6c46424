"""What `import llmembed` gives: a list that is held, names that load on first use, and the README's lines."""

import subprocess
import sys

import polars as pl
import pytest
from documents import ROOT, blocks

import llmembed

PUBLIC = ["extract", "load_classifier", "load_dataset", "make_head", "open_cache", "predict", "train"]


def test_the_public_names_are_these():
    assert llmembed.__all__ == PUBLIC and set(PUBLIC) < set(dir(llmembed))
    assert all(getattr(llmembed, name).__name__ == name for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llmembed.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_of_weight():
    program = "import sys, llmembed; print({'numpy', 'polars', 'pydantic', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_three_lines_of_the_readme_give_a_classifier(pydocs, tmp_path, monkeypatch, capsys):
    table = pydocs.table.group_by("label", maintain_order=True).head(12)
    pl.DataFrame({"body": table["text"], "stars": table["label"]}).write_csv(tmp_path / "reviews.csv")
    monkeypatch.chdir(tmp_path)
    (program,) = (block for block in blocks(ROOT / "README.md", "python") if block.startswith("from llmembed import"))
    exec(program, {})
    assert 0 <= float(capsys.readouterr().out) <= 1
    (folder,) = (tmp_path / "models").iterdir()
    reviews = llmembed.load_dataset(tmp_path / "reviews.csv", text_column="body", label_column="stars")
    assert llmembed.train(reviews, head="lda", out="models/named").out == "models/named"
    (found,) = llmembed.predict(llmembed.load_classifier(folder), ["Return the eigenvalues of a square array."])
    assert found.probability == max(found.probabilities.values()) and found.label in set(table["label"])
    assert llmembed.open_cache("cache", "reviews").spec.model
