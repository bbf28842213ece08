"""All commands and flags. Imports nothing heavy: this is what ``--help`` costs."""

import argparse
import difflib
import os
from collections.abc import Sequence

from spurbench import __version__

__all__ = ["parse"]

_ATTRIBUTIONS = ("gradcam", "xgradcam", "input_x_gradient", "integrated_gradients", "uniform")
_COMPARED = ("worst_group_accuracy", "accuracy", "group_mean_accuracy", "epg")
_TRACKERS = ("tensorboard", "wandb", "mlflow")
_RULES = ("val_wga", "val_worst_class", "val_accuracy", "last", "oracle_test_wga")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 on wrong usage, offering the closest flag or command."""
    parser = _build()
    names = (
        "run",
        "sweep",
        "leaderboard",
        "compare",
        "show",
        "explain",
        "eval",
        "audit",
        "report",
        "cost",
        "list",
        "data",
        "prefetch",
        "clean",
        "new",
        "check-method",
    )
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        close = difflib.get_close_matches(arguments[0], names, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ";"
        parser.error(f"unknown command '{arguments[0]}'{hint} available: {', '.join(names)}")
    options, unknown = parser.parse_known_args([_dashes(argument) for argument in arguments])
    if getattr(options, "module", None) is None:
        parser.print_help()
        raise SystemExit(0 if not arguments else 2)
    if unknown:
        flags = [flag for flag in options.parser._option_string_actions if flag.startswith("--")]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        options.parser.error(f"unknown argument {unknown[0]}{hint}")
    return options


def _dashes(argument: str) -> str:
    """``--data_root`` is ``--data-root``; values are left alone."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def _build() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spurbench",
        description="Benchmarks of spurious-correlation methods in image classification.",
        epilog="example:\n  spurbench run --method 'aim[1,25%]' --dataset minibirds100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"spurbench {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    _run(commands)
    _sweep(commands)
    _leaderboard(commands)
    _compare(commands)
    _show(commands)
    _explain(commands)
    _eval(commands)
    _audit(commands)
    _report(commands)
    _cost(commands)
    _list(commands)
    _data(commands)
    _prefetch(commands)
    _clean(commands)
    _new(commands)
    _check_method(commands)
    return parser


def _run(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands,
        "run",
        "train and measure one method on one dataset",
        "spurbench run --method erm --dataset minibirds100",
    )
    _what(parser)
    _where(parser)
    parser.add_argument(
        "--force", action="store_true", help="start over; the old record stays until the new one is done"
    )
    _log(parser)
    _json(parser)


def _sweep(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "sweep", "bring every run of a grid file to completion", "spurbench sweep cluster/demo.yaml --dry-run"
    )
    parser.add_argument("file", help="YAML file with datasets, methods and seeds")
    parser.add_argument(
        "--launcher", choices=("local", "ray", "slurm"), default="local", help="where runs are executed"
    )
    parser.add_argument(
        "--jobs", type=_jobs_or_auto, default=1, metavar="N",
        help="runs at once; auto: as many as cores and GPU memory allow; on SLURM, jobs at once (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--address", help="ray: a running cluster, such as auto or ray://host:10001")
    parser.add_argument(
        "--gpus-per-run",
        type=_fraction,
        metavar="X",
        help="GPUs of each run, for example 0.25 (default: one if there is)",
    )
    parser.add_argument(
        "--stop-early", choices=("val_wga", "val_worst_class", "val_accuracy"),
        help="ray: let ASHA end runs early by this metric; recorded in every row (default: no run is ended early)",
    )  # fmt: skip
    parser.add_argument("--profile", metavar="FILE", help="slurm: what to ask for; see cluster/slurm.yaml")
    parser.add_argument("--runs-per-job", type=_jobs, metavar="N", help="slurm: runs that one job does in turn")
    parser.add_argument("--wait", action="store_true", help="slurm: stay until everything is done")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would run, and what is done")
    what.add_argument("--status", action="store_true", help="print where every run stands, and how long the rest takes")
    parser.add_argument(
        "--estimate", action="store_true", help="with --dry-run: train each setting briefly here, to reckon the time"
    )
    parser.add_argument("--retry-failed", action="store_true", help="also run what failed before")
    parser.add_argument(
        "--redo-stale", action="store_true", help="make again what was made with other data or under another schema"
    )
    _plugin(parser)
    _where(parser)
    _log(parser)
    _json(parser)


def _leaderboard(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands,
        "leaderboard",
        "fold finished runs into a table",
        "spurbench leaderboard --select val_wga --format markdown",
    )
    parser.add_argument("results", nargs="*", help="result folders or Parquet tables (default: --results)")
    parser.add_argument(
        "--select", action="append", type=_rules, metavar="RULE,...",
        help=f"rule that chooses the epoch of each run, or several side by side: {', '.join(_RULES)} "
        "(default: val_wga)",
    )  # fmt: skip
    parser.add_argument(
        "--draws", default="all", choices=("all", "best"),
        help="best: of settings with one label, only the one with the best mean validation score over seeds",
    )  # fmt: skip
    parser.add_argument(
        "--mixed",
        action="store_true",
        help="rank together what does not compare: other data, method versions, epochs, image sizes, tuning budgets",
    )
    parser.add_argument(
        "--intervals", default="seeds", choices=("seeds", "images"),
        help="what the 95 %% interval is over: seeds, or seeds and test images (needs the runs' folders)",
    )  # fmt: skip
    parser.add_argument("--seeds", action="store_true", help="also print the WGA of every seed")
    parser.add_argument(
        "--format", default="table", choices=("table", "markdown", "latex", "csv", "json"), help="how to print"
    )
    parser.add_argument("--output", help="also write all rows to this Parquet file")
    parser.add_argument(
        "--against",
        metavar="paper|CSV",
        help="measured minus published numbers instead of the table; paper: those shipped",
    )
    _results(parser)


def _compare(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "compare", "tell whether one side is better than the other, and how sure that is",
        "spurbench compare 'aim[1,25%]' erm\n  spurbench compare new_results old_results --fail-if-worse 2.0",
    )  # fmt: skip
    parser.description = (
        "The difference A - B over runs paired by data, backbone, weights, seed and test image.\n\n"
        "A and B are result sets if both paths exist: result folders or Parquet tables, whose equal configurations\n"
        "are paired whatever code made them; then labels that either side has once at a dataset and backbone,\n"
        "whose options may differ, which is told. Otherwise they are methods of the folder --results: a label such as\n"
        "'aim[1,25%]', a method's name for all its settings, or '*' for all methods. --methods always means methods."
    )
    parser.add_argument("sides", nargs="*", metavar="SIDE", help="A and B; with --methods, result folders and tables")
    parser.add_argument("--methods", nargs=2, metavar=("A", "B"), help="two methods, also where such folders exist")
    parser.add_argument("--select", default="val_wga", choices=_RULES, help="rule that chooses the epoch of each run")
    parser.add_argument(
        "--metric", default="worst_group_accuracy", choices=_COMPARED, help="what is compared (default: %(default)s)"
    )
    parser.add_argument(
        "--fail-if-worse", type=_points, metavar="X",
        help="exit with 1 if A (the new side) is worse than B by more than X percent points in any comparison whose "
        "95%% interval leaves 0 out; with 2 if too few seeds cannot judge such a drop, or runs of the result set B "
        "have no partner in A",
    )  # fmt: skip
    parser.add_argument("--format", default="table", choices=("table", "markdown", "json"), help="how to print")
    _results(parser)


def _show(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "show", "print the resolved configuration and id of a run, run nothing",
        "spurbench show --method 'aim[2,35%]' --dataset minibirds95",
    )  # fmt: skip
    _what(parser)
    _where(parser)
    _json(parser)


def _explain(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "explain", "draw what finished runs look at", "spurbench explain --results demo -o masks.png"
    )
    parser.add_argument(
        "run", nargs="*", help="run ids (their first digits are enough) or folders of runs; all below --results if none"
    )
    parser.add_argument("--dataset", help="only runs on this dataset, where none is named")
    parser.add_argument("-o", "--output", default="masks.png", help="picture to write (default: %(default)s)")
    parser.add_argument("--count", type=_pixels, default=12, metavar="N", help="images (default: %(default)s)")
    parser.add_argument("--select", choices=_RULES, help="rule whose weights are used (default: the run's first)")
    parser.add_argument(
        "--attribution", choices=_ATTRIBUTIONS,
        help="map of the predicted class, drawn below the run's own mask (default: gradcam, where it works)",
    )  # fmt: skip
    _plugin(parser)
    _where(parser)


def _eval(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "eval", "measure a finished run on other data with the same classes",
        "spurbench eval 3f2a --dataset minibirds50",
    )  # fmt: skip
    parser.add_argument("run", help="a run's id, the first digits of it, or its folder")
    parser.add_argument("--dataset", help="name, or a folder with a metadata.csv (default: the run's own)")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument(
        "--select", choices=_RULES, help="print only this rule's row (default: all whose weights are kept)"
    )
    parser.add_argument("--force", action="store_true", help="measure again what was measured before")
    _plugin(parser)
    _where(parser)
    _json(parser)


def _audit(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "audit", "tell what a trained classifier decides by; nothing is trained",
        "spurbench audit model.pth --backbone resnet50 --dataset waterbirds95 --data-root data",
    )  # fmt: skip
    parser.add_argument(
        "model", help="file with a classifier's weights, or the name of a pretrained one: timm's, or torchvision:NAME"
    )
    parser.add_argument(
        "--backbone", metavar="NAME", help="what the file's weights belong to: a timm model, or torchvision:NAME"
    )
    parser.add_argument("--dataset", required=True, help="name, or a folder with a metadata.csv")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument(
        "--classes", metavar="FILE",
        help="JSON file that gives the model's outputs for each class of the dataset: {\"landbird\": [0, 1], ...}",
    )  # fmt: skip
    parser.add_argument(
        "--attribution", choices=_ATTRIBUTIONS, action="append",
        help="what EPG is measured of; may be repeated (default: gradcam)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size",
        type=_pixels,
        metavar="N",
        help="side of the model's input (default: what the model was made for)",
    )
    parser.add_argument(
        "--resize", type=_pixels, metavar="N",
        help="side that images are squashed to before the centre is cut (default: what the model was made for)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=_pixels, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="how to print")
    _plugin(parser)
    _where(parser)


def _report(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "report", "write one page for the browser: leaderboard, plots, masks; it opens without a network",
        "spurbench report results -o report.html",
    )  # fmt: skip
    parser.add_argument("results", nargs="*", help="result folders or Parquet tables (default: --results)")
    parser.add_argument("-o", "--output", default="report.html", help="page to write (default: %(default)s)")
    parser.add_argument(
        "--intervals", default="seeds", choices=("seeds", "images"),
        help="what the 95 %% interval is over: seeds, or seeds and test images (needs the runs' folders)",
    )  # fmt: skip
    parser.add_argument(
        "--gallery", type=_count, default=4, metavar="N",
        help="pictures of masks on failures of the worst group, one per setting whose weights are there, 0 for none "
        "(default: %(default)s)",
    )  # fmt: skip
    _plugin(parser)
    _where(parser)


def _cost(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "cost", "multiply-adds and parameters of a method and of its plain backbone",
        "spurbench cost --method 'aim[2,35%]' --backbone convnext_tiny",
    )  # fmt: skip
    parser.add_argument("--method", "--algorithm", required=True, help="name, or the notation aim[2,35%%]")
    parser.add_argument("--backbone", default="convnext_tiny", help="timm model (default: %(default)s)")
    parser.add_argument("--image-size", type=int, metavar="N", help="side in pixels (default: the preset's)")
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example method.width=96")
    _plugin(parser)
    _json(parser)


def _list(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "list", "what there is: methods, datasets, transforms, backbones, presets", "spurbench list methods",
        module="listing",
    )  # fmt: skip
    parser.add_argument("what", choices=("methods", "datasets", "transforms", "backbones", "presets"))
    parser.add_argument("filter", nargs="?", default="", help="only names that contain this")
    _plugin(parser)
    _json(parser)


def _data(commands) -> None:  # type: ignore[no-untyped-def]
    from spurbench.cli.data_generate_waterbirds import add_arguments

    parser = commands.add_parser("data", help="datasets on disk", description="Datasets on disk.")
    actions = parser.add_subparsers(metavar="ACTION", title="actions", required=True)
    _data_list(actions)
    _data_check(actions)
    _data_prepare(actions)
    _data_import(actions)
    _data_export(actions)
    generate = _command(
        actions, "generate", "write a procedural dataset in an official layout, or WaterBirds from CUB and Places",
        "spurbench data generate minibirds95 --to data\n"
        "  spurbench data generate waterbirds --cub CUB --places PLACES --correlation 0.9 --to data/waterbirds_0.9",
        module="data_generate",
    )  # fmt: skip
    generate.add_argument("dataset", help="name of a procedural dataset, or waterbirds")
    generate.add_argument("--to", required=True, metavar="DIR", help="folder to write to")
    add_arguments(generate)
    _plugin(generate)


def _data_list(actions) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        actions, "list", "tell which datasets are here and which are missing; opens no image",
        "spurbench data list --data-root data",
        module="data_list",
    )  # fmt: skip
    parser.add_argument("filter", nargs="?", default="", help="only names that contain this, and where to get them")
    _data_root(parser)
    _plugin(parser)
    _json(parser)


def _data_check(actions) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        actions, "check", "compare a dataset with the published one, and open every file of it",
        "spurbench data check waterbirds95 --data-root data",
        module="data_check",
    )  # fmt: skip
    parser.epilog = (
        f"{parser.epilog}\n\nexit: 0 as it should be (maybe with warnings), 1 anything wrong, 2 nothing there"
    )
    parser.add_argument("dataset", help="name, or a folder of your own")
    parser.add_argument(
        "--fast", action="store_true", help="read only headers of images and sizes of archives, not all of their bytes"
    )
    _data_root(parser)
    _plugin(parser)
    _json(parser)


def _data_prepare(actions) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        actions, "prepare", "unpack the archives of a dataset and decode its images, once for all runs",
        "spurbench data prepare cub200 --data-root data --archives ~/Downloads",
        module="data_prepare",
    )  # fmt: skip
    parser.add_argument("dataset", help="name")
    parser.add_argument("--archives", metavar="DIR", help="folder where archives lie, besides --data-root")
    parser.add_argument(
        "--download", action="store_true", help="fetch archives that have a stable address; nothing is fetched without"
    )
    parser.add_argument(
        "--resize", type=_pixels, metavar="N", help="side of decoded images (default: that of the dataset's preset)"
    )
    parser.add_argument("--no-cache", action="store_true", help="do not decode, only unpack")
    _data_root(parser)
    _plugin(parser)


def _data_import(actions) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        actions, "import", "make a folder for --dataset DIR from a table or from folders of classes",
        "spurbench data import splits.csv --images photos --to my_photos\n"
        "  spurbench data import photos --to my_photos",
        module="data_import",
    )  # fmt: skip
    parser.description = (
        "Write DIR/metadata.csv; images stay where they are.\n\n"
        "SOURCE is a table with img_filename,y,split,place or filename,split,y,a (with or without id; splits may be\n"
        "named, and more than three; masks and boxes), or a folder split/class/attribute/*.jpg or split/class/*.jpg."
    )
    parser.add_argument("source", metavar="SOURCE", help="CSV file, or folder of folders")
    parser.add_argument(
        "--images", metavar="DIR", help="what a table's file names are relative to (default: the table's folder)"
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="folder for the new metadata.csv")


def _data_export(actions) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        actions, "export", "write a dataset of image files as a table that SubpopBench and others read",
        "spurbench data export waterbirds95 --data-root data --to waterbirds95.csv",
        module="data_export",
    )  # fmt: skip
    parser.add_argument("dataset", help="name, or a folder of your own")
    parser.add_argument("--to", required=True, metavar="FILE", help="CSV file to write")
    _data_root(parser)
    _plugin(parser)


def _prefetch(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "prefetch", "fetch pretrained weights where there is a network, for nodes without",
        "spurbench prefetch cluster/minibirds.yaml convnext_tiny",
    )  # fmt: skip
    parser.add_argument("backbones", nargs="+", help="sweep files, and timm models with or without a tag")
    _plugin(parser)


def _clean(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "clean", "give disk space back: leftovers and checkpoints of finished runs, and what flags name",
        "spurbench clean --phases --dry-run",
    )  # fmt: skip
    parser.add_argument("--weights", action="store_true", help="also weights of finished runs; explain needs them")
    parser.add_argument("--phases", action="store_true", help="also trainings that runs share")
    parser.add_argument("--failed", action="store_true", help="also failed runs, records included")
    parser.add_argument("--cache", action="store_true", help="also decoded images ($SPURBENCH_CACHE)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    _results(parser)


def _new(commands) -> None:  # type: ignore[no-untyped-def]
    parser = commands.add_parser("new", help="start a method of your own", description="Start something of your own.")
    kinds = parser.add_subparsers(metavar="KIND", title="kinds", required=True)
    method = _command(
        kinds, "method", "write a method that conforms, and its test, to change into yours",
        "spurbench new method my_method",
        module="new",
    )  # fmt: skip
    method.add_argument("name", help="as on the command line")
    method.add_argument("--to", default=".", metavar="DIR", help="folder to write to (default: this one)")


def _check_method(commands) -> None:  # type: ignore[no-untyped-def]
    parser = _command(
        commands, "check-method", "run the conformance suite on a method",
        "spurbench check-method my_method.py",
        module="check_method",
    )  # fmt: skip
    parser.add_argument("method", help="a Python file with METHOD or METHODS, or the name of a registered method")
    parser.add_argument(
        "--backbone", nargs="+", default=["minibirds_resnet", "test_convnext"], metavar="NAME",
        help="timm models that take 64 px (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example method.tau=0.35")
    _json(parser)


def _what(parser: argparse.ArgumentParser) -> None:
    """Flags that say which run."""
    parser.add_argument("--method", "--algorithm", required=True, help="name, or the notation aim[2,35%%]")
    parser.add_argument("--dataset", required=True, help="name, or a folder with a metadata.csv")
    parser.add_argument("--backbone", help="any timm model (default: the preset's)")
    parser.add_argument("--weights", help="none, default, a timm tag, or a file (default: the preset's)")
    parser.add_argument("--seed", type=_seed, default=0, help="default: %(default)s")
    parser.add_argument("--preset", help="recipe by name or file (default: the dataset's)")
    parser.add_argument("--epochs", type=int, metavar="N", help="short for --set train.epochs=N")
    parser.add_argument("--batch-size", type=int, metavar="N", help="short for --set train.batch_size=N")
    parser.add_argument("--lr", type=float, help="short for --set train.optimizer.lr=...")
    parser.add_argument("--oracle", action="store_true", help="keep test counts per epoch; marked in every row")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any option, for example method.tau=0.35"
    )
    _plugin(parser)


def _where(parser: argparse.ArgumentParser) -> None:
    """Flags that say where files lie and what computes; no part of a run's identity."""
    _results(parser)
    _data_root(parser)
    parser.add_argument(
        "--no-cache", action="store_true",
        help="decode images whenever they are needed, for sets too large to be stored decoded; equal numbers",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")


def _data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root", "--data-dir", "--root-dir", default=os.environ.get("SPURBENCH_DATA"), metavar="DIR",
        help="folder below which datasets lie (default: $SPURBENCH_DATA)",
    )  # fmt: skip


def _results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", "--output-dir", dest="results_root", default=os.environ.get("SPURBENCH_RESULTS", "results"),
        metavar="DIR", help="folder of results (default: $SPURBENCH_RESULTS or results)",
    )  # fmt: skip


def _plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="Python file with a METHOD or DATASET of your own"
    )


def _log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log", action="append", default=[], choices=_TRACKERS, help="also tell this tracker; may be repeated"
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _command(commands, name: str, summary: str, example: str, module: str | None = None) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(module=module or name, parser=parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _rules(text: str) -> list[str]:
    """``val_wga,last`` to a list."""
    rules = [rule.strip() for rule in text.split(",")]
    for rule in rules:
        if rule not in _RULES:
            close = difflib.get_close_matches(rule, _RULES, n=1)
            hint = f" did you mean {close[0]}?" if close else ""
            raise argparse.ArgumentTypeError(f"unknown rule '{rule}';{hint} available: {', '.join(_RULES)}")
    return rules


def _jobs_or_auto(text: str) -> int:
    """0 stands for ``auto``."""
    return 0 if text == "auto" else _jobs(text)


def _jobs(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of runs from 1, got '{text}'")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0, got '{text}'")
    return int(text)


def _pixels(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, got '{text}'")
    return int(text)


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"percent points from 0 to 100, got '{text}'")
    return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of GPUs from 0, fractions allowed, got '{text}'")
    return value


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0, got '{text}'")
    return value
