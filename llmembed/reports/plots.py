"""Pictures of results. In: a leaderboard. Out: a file."""

from pathlib import Path

from matplotlib.figure import Figure

from llmembed.experiments.comparison import Leaderboard, Line
from llmembed.files import replacing


def draw_depths(leaderboard: Leaderboard, path: Path) -> None:
    """Draw the validation accuracy of every layer alone, a line for each head, and of its best fusion, dashed.

    Each backbone has axes of its own.
    """
    count = len(leaderboard.backbones)
    figure = Figure(figsize=(7 * count, 4.5), layout="constrained")
    every_axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for number, (axes, backbone) in enumerate(zip(every_axes, leaderboard.backbones, strict=True)):
        for head, lines in leaderboard.by_depth.items():
            alone = _best_by_layer(lines, number)
            depths = list(alone)
            drawn = axes.errorbar(
                depths,
                [100 * alone[depth].accuracy for depth in depths],
                yerr=[100 * alone[depth].standard_deviation for depth in depths],
                marker="o",
                capsize=3,
                label=head,
            )
            fused = [line for line in leaderboard.lines if line.configuration.head == head]
            fused = [line for line in fused if not line.configuration.alone]
            if fused:
                color, best = drawn.lines[0].get_color(), fused[0]
                label = f"{head}, {best.configuration.fusion} of all"
                axes.axhline(100 * best.accuracy, color=color, linestyle="--", linewidth=1, label=label)
            axes.set_xticks(depths)
        axes.set_xlabel(f"layer of {backbone}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    every_axes[0].set_ylabel(f"validation accuracy, % (mean of {leaderboard.folds} folds)")
    figure.suptitle(f"{leaderboard.winner.settings.dataset}: one layer alone, and all fused")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)


def _best_by_layer(lines: tuple[Line, ...], backbone: int) -> dict[int, Line]:
    best: dict[int, Line] = {}
    for line in sorted(lines, key=lambda line: line.accuracy):
        for layer in line.configuration.layers[backbone]:
            best[layer] = line
    return dict(sorted(best.items()))
