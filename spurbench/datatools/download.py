"""Fetching a file over HTTP: resumed where it stopped, compared with its checksum, never half under its name."""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import spurbench
from spurbench.data.cache import readable_size
from spurbench.dataset import Archive
from spurbench.datatools.archives import archive_fault, refuse_web_page
from spurbench.errors import DataError, DataMissing, data_missing

__all__ = ["download"]

Progress = Callable[[str, int, int], None]

BLOCK = 1 << 18
TRIES = 5
TIMEOUT_SECONDS = 60.0
PAUSE_SECONDS = 1.0
"""Before the second try; doubled for each further one."""


def download(archive: Archive, folder: Path, progress: Progress, *, pause: float = PAUSE_SECONDS) -> Path:
    """Fetch ``archive`` to ``folder``; what a stopped download has left there is continued.

    Raises:
        DataMissing: the server does not give it, or the connection breaks again and again.
        DataError: what came is a web page or not the published file.
    """
    if urllib.parse.urlsplit(archive.url).scheme not in ("http", "https"):
        raise _not_fetched(archive, folder, f"{archive.filename} has no address to fetch it from")
    target = folder / archive.filename
    part = folder / f"{archive.filename}.part"
    folder.mkdir(parents=True, exist_ok=True)
    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(pause * 2 ** (number - 1))
        before = _size(part)
        try:
            if _fetch(archive, part, progress):
                break
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                part.unlink()  # not a beginning of what is there now
                continue
            raise _not_fetched(archive, folder, f"{archive.url} answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
    else:
        kept = f"; {readable_size(_size(part))} are kept in {part}, and the same command goes on from there"
        what = f"cannot fetch {archive.url}: {problem}{kept if _size(part) else ''}"
        raise _not_fetched(archive, folder, what)
    fault = archive_fault(part, archive, hashed=True, progress=progress)
    if fault is not None:
        part.unlink()  # continuing it would not help
        raise DataError(f"{archive.url}: {fault}")
    part.replace(target)
    return target


def _fetch(archive: Archive, part: Path, progress: Progress) -> bool:
    """One try; whether the file is complete now."""
    done = _size(part)
    if done and done == archive.size:
        return True
    request = urllib.request.Request(archive.url, headers={"User-Agent": f"spurbench/{spurbench.__version__}"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if not _continues(response.headers, done):
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                part.unlink()  # another part than was asked for
                return False
            done = 0  # the server sends all of it again
        length = response.headers.get("Content-Length")
        total = done + int(length) if length and length.isdigit() else archive.size
        with part.open("ab" if done else "wb") as sink:
            while block := response.read(BLOCK):
                sink.write(block)
                done += len(block)
                progress(f"fetching {archive.filename}", done, max(total or done, done))
    refuse_web_page(part, archive)
    return total is None or done >= total


def _continues(headers: http.client.HTTPMessage, start: int) -> bool:
    return bool(start) and str(headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _not_fetched(archive: Archive, folder: Path, what: str) -> DataMissing:
    return data_missing(what, get=f"fetch it by hand and put it to {folder / archive.filename}")
