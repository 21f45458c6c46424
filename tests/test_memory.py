"""The memory of this machine, as the files of a system would say it."""

import os

import pytest

from llmembed.memory import total_memory


def system(root, groups, **limits):
    """Write the files of a system: the groups of this process, and limits by the folder of the group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(groups) + "\n")
    for path, limit in limits.items():
        file = root / "sys/fs/cgroup" / path.replace("__", "/").replace("-", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    return root


INSTALLED = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        (["0::/"], {"memory-max": 5_000_000}, 5_000_000),
        (["0::/"], {"memory-max": "max"}, INSTALLED),
        (["0::/user/job"], {"user__memory-max": 7_000_000, "user__job__memory-max": "max"}, 7_000_000),
        (["4:memory:/docker/x", "1:cpu:/"], {"memory__memory-limit_in_bytes": 6_000_000}, 6_000_000),
        (["4:cpu,memory:/a"], {"memory__a__memory-limit_in_bytes": 2**63 - 4096}, INSTALLED),
        (["0::/gone"], {}, INSTALLED),
    ],
)
def test_the_least_limit_around_this_process_counts(groups, limits, expected, tmp_path):
    assert total_memory(system(tmp_path, groups, **limits)) == expected


def test_a_system_without_control_groups_has_what_is_installed(tmp_path):
    assert total_memory(tmp_path) == INSTALLED
    assert 2**28 < total_memory() <= INSTALLED
