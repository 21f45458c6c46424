"""What people see: tables on stdout, progress on stderr. In: the reports of the stages. Out: text on a terminal."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmembed.printable import print_line, print_note, printable, write

if TYPE_CHECKING:
    from llmembed.backbones.parity import Parity
    from llmembed.cache.records import ExtractionRecord
    from llmembed.classifier import SourceRecord
    from llmembed.datasets import Dataset
    from llmembed.evaluation import Report
    from llmembed.experiments.comparison import Leaderboard
    from llmembed.experiments.paper_table import Reproduction
    from llmembed.extraction.estimation import Estimate
    from llmembed.extraction.progress import Progress as Done
    from llmembed.training import Training

# Without a terminal a progress line is printed this often, in seconds.
LINE_EVERY = 10.0
# With more classes than this a table shows the worst ones, and the confusion matrix becomes its largest entries.
MANY_CLASSES = 12

# A label may look like markup: [spam] must not vanish.
stdout = Console(highlight=False, markup=False, emoji=False)


class ProgressLine:
    """Progress of a stage: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, waiting: str) -> None:
        console = Console(stderr=True)
        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(waiting, total=None)
        self._last = time.monotonic()
        # When something was first done, and how much: loading a model says nothing of the rest.
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, line: str) -> None:
        """Show that so many of all are done, in words."""
        self._bar.update(self._task, completed=done, total=total, description=line)
        self._first = self._first or (time.monotonic(), done)
        since, before = self._first
        if self._bar.disable and done > before and time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            left = (self._last - since) / (done - before) * (total - done)
            print_note(f"{line}, {_duration(left)} left")


def extraction_line(done: "Done") -> str:
    """Return where an extraction stands."""
    rates = f"{done.done / done.seconds:,.0f} texts/s, {done.tokens / done.seconds:,.0f} tokens/s, {_bytes(done.bytes)}"
    return f"{done.done:,} of {done.total:,} texts, {rates}"


def show_extraction(record: "ExtractionRecord", dataset: "Dataset") -> None:
    """Print what an extraction did."""
    skipped = f", {dataset.skipped:,} empty rows skipped" if dataset.skipped else ""
    print_line(
        f"{record.rows:,} rows: {record.embedded:,} texts embedded, {record.reused:,} reused, "
        f"{record.truncated:,} truncated{skipped}"
    )
    if record.quarantined:
        left = (
            "1 text has no embedding" if record.quarantined == 1 else f"{record.quarantined:,} texts have no embeddings"
        )
        print_line(f"{left} and will be tried again by the next extraction; training leaves them out")
    if record.repaired:
        print_line(f"{record.repaired:,} damaged shards were made again")
    if record.embedded:
        rates = f"{record.texts_per_second:,.0f} texts/s, {record.tokens_per_second:,.0f} tokens/s"
        print_line(f"{record.tokens:,} tokens in {_duration(record.seconds)}, {rates}")
        print_line(f"{_engine(record.engine)}{_gpu_use(record)}")
    print_line(f"{_bytes(record.bytes)} in {record.cache}")


def show_estimate(estimate: "Estimate") -> None:
    """Print what an extraction would do."""
    share = estimate.truncated / max(estimate.missing, 1)
    print_line(
        f"{estimate.rows:,} rows, {estimate.missing:,} distinct texts to embed: {estimate.tokens:,} tokens, "
        f"{share:.1%} truncated"
    )
    print_line(f"{_bytes(estimate.bytes)} more in {estimate.cache}, in about {_duration(estimate.expected_seconds)}")


def show_parity(parity: "Parity") -> None:
    """Print how two engines agree."""
    print_line(f"{parity.rows:,} texts, {parity.tokens:,} tokens")
    print_line(f"{_engine(asdict(parity.engines[1]))} against {_engine(asdict(parity.engines[0]))}")
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "lowest cosine", "largest relative error"):
        table.add_column(heading, justify="right")
    for layer in parity.layers:
        table.add_row(str(layer.layer), f"{layer.cosine:.7f}", f"{layer.relative_error:.1e}")
    _print_table(table)
    verdict = "the same" if parity.passed else "NOT the same: do not mix shards of these engines in one cache"
    print_line(f"{verdict} (tolerance {parity.tolerance:g})")


def show_training(training: "Training") -> None:
    """Print the report of a training."""
    report, settings = training.report, training.settings
    print_line(
        f"{settings.dataset}, {' + '.join(map(_source, settings.backbones))}: "
        f"{settings.fusion} ({training.features:,} features) -> {settings.head}, seed {settings.seed}"
    )
    print_line(
        f"{training.rows:,} training rows ({training.validation_rows:,} of them validation), "
        f"{report.rows:,} test rows, {training.classes} classes"
    )
    where = "in memory" if training.in_memory else "on disk"
    print_line(
        f"read {training.read_seconds:.1f} s, fit {training.fit_seconds:.1f} s ({where}, threads: {training.threads}), "
        f"test {training.test_seconds:.1f} s"
    )
    for each, weights in zip(settings.backbones, training.fit_info.get("layer_weights", []), strict=False):
        shares = ", ".join(f"{layer}: {weight:.0%}" for layer, weight in zip(each.layers, weights, strict=True))
        print_line(f"learned weights of the layers of {each.name}: {shares}")
    print_line()
    show_report(report, "test")
    print_line()
    print_line(f"classifier: {training.out}")


def _source(source: "SourceRecord") -> str:
    return f"{source.name}-{source.fingerprint}, layers {','.join(map(str, source.layers))}"


def show_leaderboard(leaderboard: "Leaderboard") -> None:
    """Print a comparison, and how the winner did on the test split."""
    print_line(
        f"{len(leaderboard.lines)} configurations x {len(leaderboard.seeds)} seeds x {leaderboard.folds} folds of "
        f"{leaderboard.rows:,} training rows: {leaderboard.computed:,} fits in {_duration(leaderboard.seconds)}, "
        f"{leaderboard.reused:,} known before"
    )
    if leaderboard.contained:
        print_line(f"{leaderboard.contained:,} of the texts are part of a longer one and are held out with it")
    print_line()
    table = Table(box=None, pad_edge=False)
    for heading in ("head", "fusion", "layers"):
        table.add_column(heading)
    for heading in ("accuracy", "std", "macro-F1", "fit s"):
        table.add_column(heading, justify="right")
    for line in leaderboard.lines:
        configuration = line.configuration
        options = " ".join(f"{name}={_option(value)}" for name, value in configuration.options.items())
        table.add_row(
            printable(f"{configuration.head} {options}".strip()),
            "" if configuration.alone else configuration.fusion,
            " + ".join(
                (f"{name.rpartition('-')[0]} " if len(leaderboard.backbones) > 1 else "") + ",".join(map(str, layers))
                for name, layers in zip(leaderboard.backbones, configuration.layers, strict=True)
                if layers
            ),
            f"{line.accuracy:.2%}",
            f"{line.standard_deviation:.2%}",
            f"{line.macro_f1:.2%}",
            f"{line.fit_seconds:.1f}",
        )
    _print_table(table)
    winner = leaderboard.winner
    print_line()
    print_line("The first line, chosen by these folds alone, was refitted on the whole training split and tested once:")
    print_line(f"test accuracy {winner.report.accuracy:.2%}, macro-F1 {winner.report.macro_f1:.2%}")
    print_line()
    print_line(f"classifier: {winner.out}")


def show_reproduction(reproduction: "Reproduction", out: Path) -> None:
    """Print the table of a reproduction, what it says of fused layers, and where the rest lies."""
    headings, *rows = reproduction.table("accuracy")
    table = Table(title="test accuracy in %", title_justify="left", box=None, pad_edge=False)
    for number, heading in enumerate(headings[:-1]):
        table.add_column(printable(heading), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(printable, row[:-1]))
    _print_table(table)
    for line in ["", *reproduction.verdicts(), "", *reproduction.notes(), ""]:
        print_line(line)
    print_line(f"{out / 'reproduction.md'} and .json: macro-F1, sources, what was read; classifiers beside them")


def _print_table(table: Table) -> None:
    # Not by the console itself: it would end the process where nobody reads stdout.
    with stdout.capture() as captured:
        stdout.print(table)
    write(captured.get())


def _option(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) else str(value)


def show_report(report: "Report", split: str) -> None:
    """Print how good a classifier is on a split."""
    print_line(
        f"{split} accuracy {report.accuracy:.2%}, macro-F1 {report.macro_f1:.2%}, "
        f"calibration error {report.calibration_error:.2%}, log loss {report.log_loss:.3f}"
    )
    _show_classes(report)
    _show_confusion(report)


def _show_classes(report: "Report") -> None:
    classes = report.per_class
    title = None
    if len(classes) > MANY_CLASSES:
        classes = tuple(sorted(classes, key=lambda each: each.f1)[:MANY_CLASSES])
        title = f"the {MANY_CLASSES} classes with the lowest F1 (all: metrics.json)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "rows"):
        table.add_column(heading, justify="right")
    for each in classes:
        table.add_row(
            printable(each.label), f"{each.precision:.1%}", f"{each.recall:.1%}", f"{each.f1:.1%}", f"{each.rows:,}"
        )
    _print_table(table)


def _show_confusion(report: "Report") -> None:
    labels = [each.label for each in report.per_class]
    if len(labels) > MANY_CLASSES:
        _show_frequent_errors(report.confusion, labels)
        return
    table = Table(title="true class (rows) and given class (columns)", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for label in labels:
        table.add_column(printable(label), justify="right")
    for label, row in zip(labels, report.confusion, strict=True):
        table.add_row(printable(label), *(f"{count:,}" if count else "·" for count in row))
    print_line()
    _print_table(table)


def _show_frequent_errors(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
    pairs = [
        (count, labels[true], labels[given])
        for true, row in enumerate(confusion)
        for given, count in enumerate(row)
        if true != given and count
    ]
    print_line()
    print_line("the most frequent errors (all: metrics.json)")
    for count, true, given in sorted(pairs, reverse=True)[:5]:
        print_line(f"  {count:>5,}  {true} taken for {given}")


def _engine(engine: dict[str, str]) -> str:
    return f"{engine['engine']} {engine['version']} on {engine['device']}, {engine['dtype']}"


def _gpu_use(record: "ExtractionRecord") -> str:
    utilisation = "" if record.mfu is None else f", {record.mfu:.0%} of its matrix rate (MFU)"
    return utilisation + ("" if record.watt_hours is None else f", {record.watt_hours:,.1f} Wh")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
