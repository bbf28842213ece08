"""``spurbench data prepare``: unpack what is there, fetch what may be fetched, build the cache."""

import argparse
import shutil
from pathlib import Path

from spurbench.cli.common import cache_folder, data_root_of, geometry_of, plugins_of
from spurbench.cli.live import live_observer
from spurbench.cli.render import size


def execute(options: argparse.Namespace) -> int:
    """Unpack, fetch, decode."""
    from spurbench.dataset import find_dataset
    from spurbench.datatools.prepare import build_cache, cache_bytes, prepare_files
    from spurbench.errors import ConfigError, data_missing

    spec = find_dataset(options.dataset, plugins_of(options))
    root = data_root_of(options)
    archives = None if options.archives is None else Path(options.archives).expanduser()
    if archives is not None and not (archives.is_dir() or options.download):
        raise ConfigError(f"--archives {archives} is not a folder")
    if root is None and spec.info.archives:
        raise data_missing(
            f"{spec.info.name} needs a data root, in which it is unpacked",
            get=spec.info.source,
            then=f"spurbench data prepare {options.dataset} --data-root DIR",
        )
    with live_observer(f"preparing {spec.info.name}") as observer:

        def progress(task: str, done: int, total: int) -> None:
            observer.progress(task, done, total, {})

        dataset = (
            spec.open(None)
            if root is None
            else prepare_files(spec, root, archives, fetch=options.download, progress=progress, tell=observer.note)
        )
        if not options.no_cache:
            resize = geometry_of(spec.info.preset, options.resize).resize
            cache = cache_folder()
            needed = cache_bytes(dataset, resize)
            observer.note(
                f"decoded images of {resize} px take {size(needed)} in {cache} ($SPURBENCH_CACHE); "
                f"{size(shutil.disk_usage(_existing(cache)).free)} are free there"
            )
            build_cache(dataset, resize, cache, progress)
    print(f"{spec.info.name} is ready: spurbench run --method erm --dataset {options.dataset}{_root(options)}")
    return 0


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _root(options: argparse.Namespace) -> str:
    return "" if options.data_root is None else f" --data-root {options.data_root}"
