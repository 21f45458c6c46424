"""What was published of the paper's data sets: their sizes, and the accuracy of other systems, with the source.

Facts alone: nothing comes in, and nothing here was measured by llmembed.
"""

from typing import NamedTuple


class PublicSet(NamedTuple):
    """A data set of the paper as it is published: its name and its rows."""

    title: str
    train: int
    test: int


# MR, R8 and R52 are split as TextGCN split them.
PAPER = {
    "sst2": PublicSet("SST-2", 67_349, 872),
    "mr": PublicSet("MR", 7_108, 3_554),
    "agnews": PublicSet("AG News", 120_000, 7_600),
    "r8": PublicSet("R8", 5_485, 2_189),
    "r52": PublicSet("R52", 6_532, 2_568),
}
CARP = 'Sun et al. 2023, "Text Classification via Large Language Models", Findings of EMNLP 2023, arXiv:2305.08377'
# Name, what it is, where the figures are from, and the accuracy in % in the order of PAPER.
PUBLISHED = (
    (
        "RoBERTa-large, fine-tuned (published)",
        "another setting: the whole model is fine-tuned",
        f"a baseline in {CARP}; quoted at second hand, not compared with the table there",
        (95.99, 91.16, 95.55, 97.76, 96.42),
    ),
    (
        "GPT-3, prompted with CARP (published)",
        "another setting: a large model, prompted with examples that a fine-tuned one finds",
        f"the abstract of {CARP}",
        (97.39, 92.39, 96.40, 98.78, 96.95),
    ),
)
