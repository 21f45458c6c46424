"""Parameters that no fit can work with are refused in one line, before anything is read or allocated."""

import json
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from every_head import each_head
from refusals import refused

from llmembed.cli.options import parse_parameters
from llmembed.errors import InputError, UsageError
from llmembed.heads import HEADS, make_head
from llmembed.training import train

PROGRAM = "from llmembed.cli import main; main()"


@each_head
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, None, "0"])
def test_a_seed_that_not_every_generator_takes_is_refused(name, seed, digits):
    with refused(UsageError, match=r"seed is .*; expected a whole number from 0 to 4294967295"):
        make_head(name, seed=seed)
    with refused(InputError, match="seed is"):
        make_head(name).set_params(seed=seed).fit(digits[0], digits[2])


@each_head
def test_the_largest_seed_and_one_of_numpy_are_taken(name, digits):
    X, _, y, _ = digits
    for seed in (2**32 - 1, np.int64(3)):
        make_head(name, seed=seed).fit(X[:100], y[:100])


@pytest.mark.parametrize("device", ["xyz", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_is_not_here_is_refused_before_the_fit(device, digits):
    with refused(UsageError, match=rf"--device {device} cannot be used here"):
        make_head("mlp", device=device)
    with refused(UsageError, match="use cpu"):
        make_head("mlp").set_params(device=device).fit(digits[0], digits[2])


@pytest.mark.parametrize("hidden", [(99_999_999_999,), (10**18,), (10**30,), (2**20, 2**20), (8, 10**12, 8)])
def test_a_network_larger_than_the_machine_is_refused_before_it_is_made(hidden, digits):
    with refused(InputError, match=r"on 64 features makes [\d,]+ weights, [\d,]+ GB while they"):
        make_head("mlp", hidden=hidden).fit(digits[0], digits[2])
    layout = ((2, 32),)
    with refused(InputError, match="Choose narrower layers"):
        make_head("mlp", fusion="cooccurrence", layout=layout, compressed=10**12).fit(digits[0], digits[2])


@pytest.mark.parametrize("options", [{"hidden": (0,)}, {"hidden": (8, -1)}, {"hidden": ("8",)}, {"ensemble_size": 0}])
def test_numbers_of_units_and_networks_are_whole_and_positive(options):
    with refused(UsageError, match="expected a whole number from 1"):
        make_head("mlp", **options)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--seed", "-1"], 2),
        (["--seed", str(2**40), "--head", "lda"], 2),
        (["--device", "xyz"], 2),
        (["--hidden", "99999999999"], 2),
        (["--hidden", "1000000"], 6),
        (["-P", "epochs"], 2),
        (["-P", "nothing=1"], 2),
        (["-P", "seed=3"], 2),
        (["-P", "epochs=3", "-P", "epochs=4"], 2),
        (["-P", "dropout=0.1", "--dropout", "0.1"], 2),
        (["-P", "epochs=many"], 2),
    ],
)
def test_the_command_line_says_it_in_one_line(words, code, pydocs_cache, tmp_path):
    command = [sys.executable, "-c", PROGRAM, "train", "pydocs", "--limit", "700", "--cache", str(pydocs_cache)]
    done = subprocess.run([*command, *words, "--out", str(tmp_path / "m")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
    assert not (tmp_path / "m").exists()


def test_any_parameter_of_a_head_is_reached_from_the_command_line(pydocs_cache, tmp_path):
    command = [sys.executable, "-c", PROGRAM, "train", "pydocs", "--limit", "700", "--cache", str(pydocs_cache)]
    words = ["--json", "--head", "logistic", "-P", "inverse_penalties=0.001,0.01", "-P", "class_weight=balanced"]
    done = subprocess.run([*command, *words, "--out", str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["head_options"] == {"inverse_penalties": [0.001, 0.01], "class_weight": "balanced"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("epochs=20", 20),
        ("rate=1e-3", 0.001),
        ("hidden=512,256", (512, 256)),
        ("hidden=[64]", (64,)),
        ("calibrate=false", False),
        ("class_weight=null", None),
        ('class_weight={"spam": 5.0}', {"spam": 5.0}),
        ("class_weight=balanced", "balanced"),
        ("name=a=b", "a=b"),
    ],
)
def test_values_of_parameters_are_json_or_words(given, read):
    (value,) = parse_parameters([given]).values()
    assert value == read and type(value) is type(read)


RANGED = [
    (name, parameter, value)
    for name, entry in HEADS.items()
    for parameter in getattr(import_module(entry.module), entry.class_name).ranges
    for value in ("many", float("nan"), -1, (), True, [None])
    if (parameter, value) != ("hidden", ())
]


@pytest.mark.parametrize(("name", "parameter", "value"), RANGED)
def test_a_parameter_out_of_its_range_is_refused_before_the_fit(name, parameter, value):
    with refused(UsageError, match=rf"^{parameter} is .*; expected a (whole )?number from "):
        make_head(name, **{parameter: value})


@each_head
def test_every_number_among_the_parameters_has_a_range(name):
    head = make_head(name)
    numbers = {key for key, value in head.get_params().items() if isinstance(value, int | float) and value is not True}
    assert numbers - {"seed"} <= head.ranges.keys()


def test_train_refuses_a_device_before_it_reads_a_row(pydocs, pydocs_cache, tmp_path):
    with refused(UsageError, match="--device xyz"):
        train(pydocs, root=pydocs_cache, head_options={"device": "xyz"}, out=tmp_path / "m")
