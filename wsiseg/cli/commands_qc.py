"""``wsiseg qc``: outliers, patches, predict, review, grade, report."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

__all__ = ["COMMANDS"]

RUN = click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
PATH_MAP = click.option(
    "--path-map", multiple=True, metavar="FROM=TO", help="Slides whose paths began with FROM are now under TO; repeatable."
)


@click.group()
def qc() -> None:
    """Grade a finished run: flag outlier slides, judge random patches, write grades and a report.

    \b
    wsiseg qc outliers RUN        flag slides that are unusual in their cohort
    wsiseg qc patches RUN         draw 15 random patches per slide
    wsiseg qc predict RUN         predict which of them a reviewer would find bad
    wsiseg qc review RUN          judge them in the browser, with the keyboard
    wsiseg qc grade RUN           compute grades from all marks
    wsiseg qc report RUN          write one HTML file with all results
    """


@qc.command()
@RUN
@click.option("--tail", "tail_frac", type=float, default=0.02, show_default=True, help="Outer share of a cohort on each side.")
@click.option(
    "--second-tail", "second_tail_frac", type=float, default=0.04, show_default=True, help="Outer share in the second round."
)
@click.option(
    "--second-round-share",
    type=float,
    default=1 / 3,
    show_default="1/3",
    help="A cohort gets a second round if this share or more of its flagged slides is judged unacceptable.",
)
@click.option(
    "--rounding",
    type=click.Choice(["ceil", "floor", "nearest"]),
    default="ceil",
    show_default=True,
    help="How a share of a small cohort is rounded to a number of slides: 2 % of 20 are 1 on each side by ceil, 0 by floor.",
)
@click.option("--min-slides", type=int, default=5, show_default=True, help="Smaller cohorts are not ranked.")
@click.option(
    "--method",
    "methods",
    type=click.Choice(["auto", "tails", "mad", "mahalanobis"]),
    multiple=True,
    help="tails: the outer share of each statistic, the published rule. mad: values too many robust standard deviations from "
    "the median. mahalanobis: all statistics together. Repeatable.  [auto: tails from 100 slides on, mad in a "
    "smaller cohort or with --reference]",
)
@click.option(
    "--reference",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A finished run of good slides with the same settings, to compare with; useful for few slides, or if many may be bad.",
)
def outliers(run: Path, methods: tuple[str, ...], reference: Path | None, **limits: Any) -> None:
    """Flag slides of RUN that are unusual in their cohort, with reasons, so that a person can check them.

    Slides are ranked within each cohort by nucleus count, density and mean nuclear area (both sides) and by the spread of
    nuclear area (upper side). In cohorts of 100 slides or more, the outer 2 % of each are flagged; in smaller ones, slides with
    extreme robust z-scores. Slides that failed, have nuclei outside the tissue mask, or are unlike the training images of the
    network are always flagged.
    Run it again after the review: the tails of a cohort are widened if many of its flagged slides were unacceptable.

    \b
    wsiseg qc outliers my-run
    wsiseg qc outliers twelve-slides --reference last-years-run
    """
    from wsiseg.qc.runs import TailRule, find_run_outliers, load_run

    rule = TailRule(method=methods or ("auto",), **limits)  # type: ignore[arg-type]
    loaded = load_run(run)
    found = find_run_outliers(loaded, rule, load_run(reference) if reference is not None else None)
    table = Table("cohort", "slides", "flagged", "second round", "not ranked")
    for cohort in sorted({o.cohort for o in found}):
        members = [o for o in found if o.cohort == cohort]
        table.add_row(
            cohort or "(none)",
            str(len(members)),
            str(sum(o.flagged for o in members)),
            str(sum(o.round == 2 for o in members)),
            str(sum(bool(o.note) for o in members)),
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for o in [o for o in found if o.flagged][:20]:
        console.print(f"{o.slide_id}: {'; '.join(o.reasons)}", markup=False)
    if sum(o.flagged for o in found) > 20:
        console.print("...")
    notes = Counter(o.note for o in found if o.note)
    for note, n in notes.most_common(5):
        console.print(f"{n} slides {note}", markup=False)
    console.print(f"{loaded.qc / 'outliers.csv'}  (and outliers.parquet)", markup=False)


@qc.command()
@RUN
@click.option("--per-slide", type=click.IntRange(1, 1000), default=15, show_default=True, help="Patches per slide.")
@click.option("--more", type=click.IntRange(0, 1000), default=0, help="Patches to add to those that each slide has.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random sample.")
@PATH_MAP
def patches(run: Path, per_slide: int, more: int, seed: int, path_map: tuple[str, ...]) -> None:
    """Draw random patches of 64 µm from the segmented tissue of every slide of RUN and store their pictures.

    The same run and seed give the same patches; existing ones are kept. Their quality is predicted too (see
    `wsiseg qc predict`).

    Example:  wsiseg qc patches my-run --per-slide 15
    """
    from rich.progress import Progress

    from wsiseg.qc.patch_pictures import make_patches
    from wsiseg.qc.prediction import predict_run
    from wsiseg.qc.runs import load_run

    loaded = load_run(run, path_map)
    with Progress(transient=True) as bar:
        task = bar.add_task("patches", total=None)
        summary = make_patches(
            loaded, per_slide, more=more, seed=seed, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    for slide_id, reason in summary.failed[:20]:
        click.echo(f"{slide_id}: {reason}", err=True)
    if any(loaded.qc.glob("patches/*.zip")):
        predict_run(loaded)
    click.echo(
        f"{summary.patches} patches of {summary.slides} slides, {summary.made} made now, {len(summary.failed)} slides with "
        f"a problem: {loaded.qc / 'patches.parquet'}"
    )
    sys.exit(1 if summary.failed else 0)


@qc.command()
@RUN
@click.option("--worst", type=click.IntRange(0, 1000), default=10, show_default=True, help="Slides to list, worst first.")
def predict(run: Path, worst: int) -> None:
    """Predict which patches of RUN a reviewer would find not adequate, and the share of bad patches of every slide.

    The prediction uses the network's probabilities, the shapes of nuclei, blur, how well outlines fit the picture, and whether
    the network finds the same nuclei in the rotated and mirrored picture (0.1 s of one core per patch). Slide files are not
    needed. Judged patches count as judged; once 30 are judged, the probabilities are calibrated to the reviewers. Run it
    again after a review. `review --order predicted` shows probably bad patches first; `report` shows the calibration.

    \b
    wsiseg qc predict my-run --worst 20
    """
    from rich.progress import Progress

    from wsiseg.qc.prediction import predict_run
    from wsiseg.qc.runs import load_run

    loaded = load_run(run)
    with Progress(transient=True) as bar:
        task = bar.add_task("features", total=None)
        found = predict_run(loaded, progress=lambda done, total: bar.update(task, completed=done, total=total))
    for note in found.facts["notes"]:
        click.echo(note, err=True)
    for patch, reason in found.failed[:20]:
        click.echo(f"patch {patch}: {reason}", err=True)
    table = Table("slide", "patches", "judged", "bad %, estimated", "95 %")
    for slide_id, e in sorted(found.slides.items(), key=lambda kv: (-kv[1].share, kv[0]))[:worst]:
        interval = f"{100 * e.low:.0f} to {100 * e.high:.0f}"
        table.add_row(slide_id, str(e.n_patches), str(e.n_judged), f"{100 * e.share:.1f}", interval)
    console = Console(highlight=False, soft_wrap=True)
    if worst:
        console.print(table)
    for cohort, e in found.cohorts.items():
        console.print(
            f"{cohort}: {100 * e.share:.1f} % bad (95 % {100 * e.low:.1f} to {100 * e.high:.1f}), corrected for the order of "
            f"review, {e.n_judged} of {e.n_patches} judged",
            markup=False,
        )
    console.print(f"{loaded.qc / 'predicted.parquet'}  (and predicted_slides.parquet, .csv)", markup=False)
    sys.exit(1 if found.failed else 0)


@qc.command()
@RUN
@click.option("--reviewer", required=True, metavar="NAME", help="Name of the reviewer, who has an own file of marks.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on this machine.  [the port to which the run's report links, else any free one]",
)
@click.option(
    "--share", default="1/1", show_default=True, metavar="K/N", help="This reviewer's part of the patches: the K-th of N."
)
@click.option(
    "--second-opinion",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Judge this fraction of the patches that others have judged, to measure agreement.",
)
@click.option(
    "--order",
    type=click.Choice(["random", "predicted"]),
    default="random",
    show_default=True,
    help="predicted: probably bad patches tend to come first. random: any part of the review is a random sample, from which "
    "slides can be graded.",
)
@click.option(
    "--slide",
    "slides",
    multiple=True,
    metavar="SLIDE_ID",
    help="Only this slide in the slide queue; repeatable. Other slides can still be selected.  [flagged slides]",
)
@click.option("--open/--no-open", "browser", default=False, help="Open the page in the browser.")
@PATH_MAP
def review(
    run: Path,
    share: str,
    second_opinion: float,
    slides: tuple[str, ...],
    browser: bool,
    path_map: tuple[str, ...],
    **options: Any,
) -> None:
    """Serve the review page of RUN on this machine and print its address. Stop it with Ctrl-C; each mark is saved at once.

    The queue has the flagged slides; any other slide of the run can be selected by name (key J), and the list filtered by
    cohort and reason. "Review" on a card of the report opens its slide on this page. The page starts where this reviewer
    stopped; ? shows the keys. From another machine: ssh -L PORT:127.0.0.1:PORT host.

    \b
    wsiseg qc review my-run --reviewer ann --open
    wsiseg qc review my-run --reviewer bob --second-opinion 0.1
    """
    from wsiseg.qc.review_run import open_review, parse_share
    from wsiseg.qc.runs import load_run

    server, slide_cache = open_review(
        load_run(run, path_map),
        share=parse_share(share),
        second_opinion_frac=second_opinion,
        slides=slides or None,
        **options,
    )
    with server:
        click.echo(f"review page: {server.url}")
        if browser:
            click.launch(server.url)
        try:
            server.run()
        finally:
            slide_cache.close()


@qc.command()
@RUN
def grade(run: Path) -> None:
    """Grade the slides of RUN from all reviewers' marks.

    \b
    Grade by the share of judged patches that are not adequate:
      Best 0 %   Good to 6.67 %   Adequate to 13.3 %   Problematic to 20 %   Unacceptable above, or the slide failed

    Example:  wsiseg qc grade my-run
    """
    from wsiseg.qc.runs import cohort_summary, grade_run, load_run

    summary = grade_run(load_run(run))
    _, groups = cohort_summary(summary.grades)
    table = Table(*[f.name for f in dataclasses.fields(groups[0])])
    for row in groups:
        table.add_row(*["" if v is None else str(v) for v in dataclasses.astuple(row)])
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for a in summary.agreement:
        console.print(
            f"{a.first} and {a.second}: {a.n} patches in common, {100 * a.agree_frac:.1f} % equal, Cohen's kappa {a.kappa:.3f} "
            f"(95 % {a.kappa_low:.3f} to {a.kappa_high:.3f})"
        )
    for path in summary.files:
        console.print(str(path), markup=False)


@qc.command()
@RUN
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="HTML file to write.  [RUN/qc/report.html]")
@click.option(
    "--thumbnails",
    type=click.IntRange(0, 5000),
    default=200,
    show_default=True,
    help="Maximum number of slides with a picture.",
)
@click.option(
    "--patches",
    "n_patches",
    type=click.IntRange(0, 2000),
    default=60,
    show_default=True,
    help="Maximum number of patches shown.",
)
@PATH_MAP
def report(run: Path, out: Path | None, thumbnails: int, n_patches: int, path_map: tuple[str, ...]) -> None:
    """Write a report of RUN as one HTML file that opens in any browser, offline, and all decisions as one CSV file.

    Each slide that needs checking has a card with its tissue mask, its nuclear density, why it was flagged, and the nuclei
    outside the mask. Six cards fit on a printed page. Both files can be shared: they have file names instead of paths.

    \b
    wsiseg qc report my-run -o my-report.html      also writes my-report.decisions.csv
    """
    from wsiseg.qc.report_run import write_report
    from wsiseg.qc.runs import load_run

    path = write_report(load_run(run, path_map), out, max_thumbnails=thumbnails, max_patches=n_patches)
    click.echo(f"{path}  ({path.stat().st_size / 1e6:.1f} MB)")
    click.echo(f"{path.with_suffix('.decisions.csv')}  (grades, flags, reasons, predictions, marks of each reviewer)")


COMMANDS = (qc,)
