"""Unpacking archives that somebody fetched somewhere: nothing lands outside of its folder, nothing is overwritten.

An archive is unpacked to a temporary folder beside its destination and moved there when it is complete. A run that was
stopped goes on with the files that it finished.
"""

import contextlib
import errno
import gzip
import hashlib
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Literal

from spurbench.data.cache import readable_size
from spurbench.dataset import Archive
from spurbench.errors import DataError

__all__ = ["Unpacked", "archive_fault", "find_archive", "refuse_web_page", "unpack"]

Progress = Callable[[str, int, int], None]

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
JUNK = ("__MACOSX", ".DS_Store")
"""What a Mac leaves in archives, besides files that begin with ``._``, which would be taken for images."""
BLOCK = 1 << 20
TAR_BLOCK = 512
MARKUP = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")

_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,
    UnicodeError,
    ValueError,
    OverflowError,
)
"""What the readers of the standard library raise on damaged bytes, besides ``OSError`` without a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What came of an archive."""

    new: tuple[str, ...]
    """Files and folders that were put into its destination."""
    kept: tuple[str, ...]
    """Those that were there before and were left as they are."""


def find_archive(archive: Archive, places: Sequence[Path]) -> Path | None:
    """Where an archive lies: in the first of these folders that has it."""
    return next((path for path in (place / archive.filename for place in places) if path.is_file()), None)


def archive_fault(path: Path, archive: Archive, *, hashed: bool, progress: Progress) -> str | None:
    """Why a file cannot be the published archive; None when nothing speaks against it.

    Args:
        path: the file.
        archive: what is published about it.
        hashed: also compare the checksum, which reads the whole file.
        progress: called with (task, bytes done, all bytes).
    """
    try:
        refuse_web_page(path, archive)
    except DataError as error:
        return str(error)
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"{size:,} bytes, published {archive.size:,}: {_difference(path, archive, hashed, progress)}"
    name, published = ("sha256", archive.sha256) if archive.sha256 else ("md5", archive.md5)
    if published is None or not hashed:
        return None
    digest = hashlib.new(name, usedforsecurity=False)
    done = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            done += len(block)
            progress(f"checksum of {path.name}", done, size)
    if digest.hexdigest() != published:
        difference = _difference(path, archive, hashed, progress)
        return f"{name} is {digest.hexdigest()}, published {published}: {difference}"
    return None


def refuse_web_page(path: Path, archive: Archive) -> None:
    """Raise ``DataError`` for a page that a host sent instead of the file, as many do for large or moved ones."""
    if path.suffix.lower() in (".html", ".htm", ".xml"):
        return
    with path.open("rb") as stream:
        head = stream.read(512).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if head.startswith(MARKUP):
        raise DataError(f"{path} is a web page, not the archive; delete it and {_again(archive)}")


def unpack(path: Path, into: Path, workspace: Path, archive: Archive, progress: Progress) -> Unpacked:
    """Put the content of an archive into the folder ``into``; a file that is none is copied, ``x.gz`` becomes ``x``.

    A tar file that consists of tar files, as ILSVRC's does, is unpacked to one folder for each.

    Args:
        path: the archive.
        into: its destination, created if needed. What is there already is kept.
        workspace: a folder on the same disk, for unfinished work; equal for equal archives.
        archive: its declaration, for messages.
        progress: called with (task, bytes read, all bytes).

    Raises:
        DataError: a web page, a damaged or unsafe archive, a full disk. ``into`` is then as it was.
    """
    refuse_web_page(path, archive)
    there = {entry.name for entry in into.iterdir()} if into.is_dir() else set()
    kept: set[str] = set()
    try:
        with _damage_explained(path, archive), contextlib.ExitStack() as stack:
            number = 0
            for member in _members(path, stack, progress):
                number += 1
                top = member.name.parts[0]
                if top in there:
                    kept.add(top)
                else:
                    _write(member, workspace)
            if number == 0:
                raise DataError(f"{path} holds no files; {_again(archive)}")
        new = _publish(workspace, into)
    except DataError:
        shutil.rmtree(workspace, ignore_errors=True)  # what was refused is not gone on with
        raise
    except OSError as error:
        full = error.errno == errno.ENOSPC
        hint = f"; {readable_size(shutil.disk_usage(workspace.parent).free)} are free" if full else ""
        raise DataError(f"cannot unpack {path} to {into}: {error.strerror or error}{hint}") from error
    return Unpacked(new=tuple(sorted(new)), kept=tuple(sorted(kept)))


# --------------------------------------------------------------------------------------------------------- members


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A file of an archive."""

    name: PurePosixPath
    """Relative, without ``..``, at least one part."""
    size: int | None
    """Bytes; None where only reading tells."""
    open: Callable[[], IO[bytes] | gzip.GzipFile]


def _kind(path: Path) -> Literal["tar", "zip", "gzip", "file"]:
    name = path.name.lower()
    if name.endswith(TAR_SUFFIXES):
        return "tar"
    return "zip" if name.endswith(".zip") else "gzip" if name.endswith(".gz") else "file"


def _members(path: Path, stack: contextlib.ExitStack, progress: Progress) -> Iterator[_Member]:
    kind = _kind(path)
    stream = stack.enter_context(path.open("rb"))
    size = path.stat().st_size
    task = f"unpacking {path.name}"
    if kind == "tar":
        members = _tar_members(path, stream)
    elif kind == "zip":
        members = _zip_members(path, stack.enter_context(zipfile.ZipFile(stream)))
    elif kind == "gzip":
        members = iter([_Member(name=PurePosixPath(path.name[:-3]), size=None, open=lambda: gzip.GzipFile(path))])
    else:
        members = iter([_Member(name=PurePosixPath(path.name), size=size, open=lambda: path.open("rb"))])
    for member in members:
        if member.name.parts[0] in JUNK or member.name.name in JUNK or member.name.name.startswith("._"):
            continue
        yield member
        progress(task, min(stream.tell(), size), size)
    progress(task, size, size)


def _tar_members(path: Path, stream: BinaryIO) -> Iterator[_Member]:
    with tarfile.open(fileobj=stream, mode="r:*") as tar:
        yield from _members_of(path, tar, PurePosixPath())
        _require_end(tar)


def _members_of(path: Path, tar: tarfile.TarFile, inside: PurePosixPath) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        name = _safe_name(path, info.name)
        if info.issym() or info.islnk():
            yield _Member(name=inside / name, size=None, open=partial(_linked, path, tar, info))
        elif not info.isreg():
            raise _unsafe(path, info.name, "is a device or a pipe")
        elif not inside.parts and len(name.parts) == 1 and name.suffix.lower() == ".tar":
            inner = tar.extractfile(info)
            assert inner is not None
            with tarfile.open(fileobj=inner, mode="r:") as nested:
                yield from _members_of(path, nested, PurePosixPath(name.stem))
                _require_end(nested)
        else:
            yield _Member(name=inside / name, size=info.size, open=partial(_content, tar, info))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None
    return stream


def _linked(path: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    """The file that a link leads to, which must be in the archive: links are never made, their files are copied."""
    try:
        stream = tar.extractfile(info)
    except (KeyError, RecursionError):  # no such member; links that lead to each other
        stream = None
    if stream is None:
        raise _unsafe(path, info.name, f"is a link to {info.linkname}, which is no file of the archive")
    return stream


def _require_end(tar: tarfile.TarFile) -> None:
    """A tar file ends in zeros; without them it was cut off between two members, which its reader takes for the end."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        raise tarfile.ReadError("the mark at its end is missing")
    while stream.read(BLOCK):  # a compressed file has its checksum at the very end
        pass


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        if info.is_dir():
            continue
        name = _safe_name(path, info.filename)
        mode = info.external_attr >> 16
        if mode and (mode & 0o170000) not in (0, 0o100000):
            raise _unsafe(path, info.filename, "is a link or a device")
        if info.flag_bits & 1:
            raise DataError(f"{path} is encrypted; unpack it by hand with its password")
        yield _Member(name=name, size=info.file_size, open=partial(archive.open, info))


def _safe_name(path: Path, text: str) -> PurePosixPath:
    name = PurePosixPath(text.replace("\\", "/"))
    if name.is_absolute() or re.match(r"[A-Za-z]:", text) or ".." in name.parts or not name.parts or "\0" in text:
        raise _unsafe(path, text, "leads out of its folder")
    return name


def _unsafe(path: Path, member: str, why: str) -> DataError:
    return DataError(
        f"{path}: member {member!r} {why}; nothing was unpacked, for that is not the published archive: fetch it again"
    )


# --------------------------------------------------------------------------------------------------------- writing


def _write(member: _Member, workspace: Path) -> None:
    """Write a file whole or not at all; one that a stopped run has finished is left."""
    target = workspace / member.name
    if member.size is not None and target.is_file() and target.stat().st_size == member.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with member.open() as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink, BLOCK)
    written = part.stat().st_size
    if member.size is not None and written != member.size:
        raise tarfile.ReadError(f"{member.name} has {written:,} bytes instead of {member.size:,}")
    part.replace(target)


def _publish(workspace: Path, into: Path) -> list[str]:
    """Move finished files and folders to their destination; what is there by now is left."""
    into.mkdir(parents=True, exist_ok=True)
    if not workspace.is_dir():
        return []
    moved = []
    for entry in sorted(workspace.iterdir()):
        target = into / entry.name
        if not target.exists():
            entry.rename(target)
            moved.append(entry.name)
    shutil.rmtree(workspace, ignore_errors=True)
    return moved


@contextlib.contextmanager
def _damage_explained(path: Path, archive: Archive) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(error, gzip.BadGzipFile):
            raise
        raise _damaged(path, archive, error) from error  # bz2 says so
    except (*_DAMAGE, RuntimeError) as error:
        raise _damaged(path, archive, error) from error


def _damaged(path: Path, archive: Archive, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be unpacked: {error or type(error).__name__}; it is cut off, damaged or no such archive. "
        f"Delete it and {_again(archive)}"
    )


def _difference(path: Path, archive: Archive, read: bool, progress: Progress) -> str:
    """What a file is that differs from the published one, as far as reading it tells, and how to go on."""
    if not read or _kind(path) == "file":
        return f"it is not the published file (maybe cut off or damaged, maybe repacked); {_again(archive)}"
    if not _reads_to_its_end(path, archive, progress):
        return f"it is cut off, damaged or no such archive; {_again(archive)}"
    where = "the data root" if archive.into == "." else f"{archive.into}/ below the data root"
    return (
        f"it is whole but not the published file, maybe repacked; {_again(archive)}, or unpack it by hand in {where} "
        "if you trust it"
    )


def _reads_to_its_end(path: Path, archive: Archive, progress: Progress) -> bool:
    number = 0
    try:
        with _damage_explained(path, archive), contextlib.ExitStack() as stack:
            for member in _members(path, stack, lambda _, done, size: progress(f"reading {path.name}", done, size)):
                number += 1
                with member.open() as content:
                    while content.read(BLOCK):
                        pass
    except (DataError, OSError):
        return False
    return number > 0


def _again(archive: Archive) -> str:
    return f"fetch it again from {archive.url}" if archive.url else "fetch it again by hand"
