"""Parameters that no fit can work with are refused in one line, before anything is read or allocated."""

import subprocess
import sys

import numpy as np
import pytest
from test_heads import each_head

from llmembed.errors import InputError, UsageError
from llmembed.heads import make_head
from llmembed.training import train

PROGRAM = "from llmembed.cli import main; main()"


@each_head
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, None, "0"])
def test_a_seed_that_not_every_generator_takes_is_refused(name, seed, digits):
    with pytest.raises(UsageError, match=r"seed is .*; expected a whole number from 0 to 4294967295"):
        make_head(name, seed=seed)
    with pytest.raises(InputError, match="seed is"):
        make_head(name).set_params(seed=seed).fit(digits[0], digits[2])


@each_head
def test_the_largest_seed_and_one_of_numpy_are_taken(name, digits):
    X, _, y, _ = digits
    for seed in (2**32 - 1, np.int64(3)):
        make_head(name, seed=seed).fit(X[:100], y[:100])


@pytest.mark.parametrize("device", ["xyz", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_is_not_here_is_refused_before_the_fit(device, digits):
    with pytest.raises(UsageError, match=rf"--device {device} cannot be used here"):
        make_head("mlp", device=device)
    with pytest.raises(UsageError, match="use cpu"):
        make_head("mlp").set_params(device=device).fit(digits[0], digits[2])


@pytest.mark.parametrize("hidden", [(99_999_999_999,), (10**18,), (10**30,), (2**20, 2**20), (8, 10**12, 8)])
def test_a_network_larger_than_the_machine_is_refused_before_it_is_made(hidden, digits):
    with pytest.raises(InputError, match=r"on 64 features makes [\d,]+ weights, [\d,]+ GB while they"):
        make_head("mlp", hidden=hidden).fit(digits[0], digits[2])
    layout = ((2, 32),)
    with pytest.raises(InputError, match="Choose narrower layers"):
        make_head("mlp", fusion="cooccurrence", layout=layout, compressed=10**12).fit(digits[0], digits[2])


@pytest.mark.parametrize("options", [{"hidden": (0,)}, {"hidden": (8, -1)}, {"hidden": ("8",)}, {"ensemble_size": 0}])
def test_numbers_of_units_and_networks_are_whole_and_positive(options):
    with pytest.raises(UsageError, match="expected a whole number from 1"):
        make_head("mlp", **options)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--seed", "-1"], 2),
        (["--seed", str(2**40), "--head", "lda"], 2),
        (["--device", "xyz"], 2),
        (["--hidden", "99999999999"], 2),
        (["--hidden", "1000000"], 6),
    ],
)
def test_the_command_line_says_it_in_one_line(words, code, pydocs_cache, tmp_path):
    command = [sys.executable, "-c", PROGRAM, "train", "pydocs", "--limit", "700", "--cache", str(pydocs_cache)]
    done = subprocess.run([*command, *words, "--out", str(tmp_path / "m")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
    assert not (tmp_path / "m").exists()


def test_train_refuses_a_device_before_it_reads_a_row(pydocs, pydocs_cache, tmp_path):
    with pytest.raises(UsageError, match="--device xyz"):
        train(pydocs, root=pydocs_cache, head_options={"device": "xyz"}, out=tmp_path / "m")
