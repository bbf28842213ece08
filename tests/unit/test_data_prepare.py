"""``spurbench data prepare``: archives are unpacked safely and whole or not at all, and fetched only when asked."""

import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from spurbench.cli import main
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec
from spurbench.datatools import archives as archives_module
from spurbench.datatools.archives import Unpacked, archive_fault, unpack
from spurbench.datatools.download import download
from spurbench.datatools.prepare import build_cache, cache_bytes, prepare_files
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import open_records
from spurbench.lease import Lease

FILES = {"set/a.txt": b"first", "set/deep/er/b.bin": bytes(range(256)) * 40, "loose.txt": b"beside", "set/empty": b""}
KINDS = ("x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.zip")


def quiet(task: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def make(path: Path, files: dict[str, bytes] = FILES) -> Path:
    """An archive of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            add(tar, name, data)
    return path


def extract(path: Path, into: Path) -> Unpacked:
    return unpack(path, into, into.parent / "work" / "content", Archive(filename=path.name), quiet)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- unpacking ---


@pytest.mark.parametrize("name", KINDS)
def test_unpacks_every_kind(tmp_path: Path, name: str) -> None:
    done = extract(make(tmp_path / name), tmp_path / "data" / "below")
    assert content(tmp_path / "data" / "below") == FILES
    assert done == Unpacked(new=("loose.txt", "set"), kept=())
    assert not (tmp_path / "work" / "content").exists()


@pytest.mark.parametrize("name", KINDS)
def test_leaves_what_is_there(tmp_path: Path, name: str) -> None:
    there = tmp_path / "data" / "set" / "a.txt"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"mine")
    done = extract(make(tmp_path / name), tmp_path / "data")
    assert done == Unpacked(new=("loose.txt",), kept=("set",))
    assert content(tmp_path / "data") == {"set/a.txt": b"mine", "loose.txt": b"beside"}


@pytest.mark.parametrize("bad", ["../out.txt", "a/../../out.txt", "/abs/out.txt", "C:\\out.txt", "..\\out.txt", ".."])
@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
def test_nothing_leaves_its_folder(tmp_path: Path, kind: str, bad: str) -> None:
    path = make(tmp_path / "arch" / kind, {"set/a.txt": b"1", bad: b"2"})
    with pytest.raises(DataError, match="leads out of its folder; nothing was unpacked"):
        extract(path, tmp_path / "in" / "data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [path]  # nor is anything left where it worked


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link to /etc/passwd, which is no file of"),
        ({"type": tarfile.SYMTYPE, "linkname": "../../secret"}, "is a link to"),
        ({"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "is a link to"),
        ({"type": tarfile.SYMTYPE, "linkname": "bad"}, "is a link to"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "is a device or a pipe"),
        ({"type": tarfile.FIFOTYPE}, "is a device or a pipe"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    (tmp_path / "secret").write_text("secret")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "set/a.txt", b"1")
        add(tar, "set/bad", **fields)
        add(tar, "set/bad/b.txt", b"through the link")
    with pytest.raises(DataError, match=told):
        extract(path, tmp_path / "in" / "data")
    assert not (tmp_path / "in" / "data").exists()


def test_links_inside_become_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "set/a.txt", b"1")
        add(tar, "set/soft", type=tarfile.SYMTYPE, linkname="a.txt")
        add(tar, "set/hard", type=tarfile.LNKTYPE, linkname="set/a.txt")
    extract(path, tmp_path / "data")
    assert content(tmp_path / "data") == {"set/a.txt": b"1", "set/soft": b"1", "set/hard": b"1"}
    assert not any(file.is_symlink() for file in (tmp_path / "data").rglob("*"))


def test_links_in_zip_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("set/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "../../secret")
    with pytest.raises(DataError, match="is a link or a device"):
        extract(path, tmp_path / "data")


def test_tar_of_tars(tmp_path: Path) -> None:
    """As ILSVRC's training set: a folder per inner file."""
    inner = {name: make(tmp_path / f"{name}.tar", {f"{name}_1.JPEG": name.encode()}) for name in ("n01", "n02")}
    path = make(tmp_path / "x.tar", {f"{name}.tar": file.read_bytes() for name, file in inner.items()})
    extract(path, tmp_path / "train")
    assert content(tmp_path / "train") == {"n01/n01_1.JPEG": b"n01", "n02/n02_1.JPEG": b"n02"}
    cut = make(tmp_path / "y.tar", {"n03.tar": inner["n01"].read_bytes()[:1024]})
    with pytest.raises(DataError, match="cut off"):
        extract(cut, tmp_path / "train")
    assert not (tmp_path / "train" / "n03").exists()


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a,b")
    (tmp_path / "digits-ubyte.gz").write_bytes(gzip.compress(b"digits"))
    extract(tmp_path / "labels.csv", tmp_path / "data")
    extract(tmp_path / "digits-ubyte.gz", tmp_path / "data")
    assert content(tmp_path / "data") == {"labels.csv": b"a,b", "digits-ubyte": b"digits"}
    assert extract(tmp_path / "data" / "labels.csv", tmp_path / "data").kept == ("labels.csv",)


def test_what_a_mac_adds_is_left_out(tmp_path: Path) -> None:
    files = {"set/a.jpg": b"1", "__MACOSX/set/._a.jpg": b"2", "set/._a.jpg": b"3", ".DS_Store": b"4"}
    extract(make(tmp_path / "x.zip", files), tmp_path / "data")
    assert content(tmp_path / "data") == {"set/a.jpg": b"1"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("page", ["<!DOCTYPE html><p>moved", "\n<HTML><p>moved", "\ufeff<?xml version='1.0'?>"])
def test_web_pages_are_no_archives(tmp_path: Path, name: str, page: str) -> None:
    (tmp_path / name).write_text(page)
    with pytest.raises(DataError, match="is a web page, not the archive; delete it and fetch it again by hand"):
        extract(tmp_path / name, tmp_path / "data")


@pytest.mark.parametrize("name", KINDS)
def test_other_bytes_are_no_archives(tmp_path: Path, name: str) -> None:
    for data in (b"", b"no archive", bytes(5000), b"\x1f\x8bno", b"PK\x03\x04"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="fetch it again"):
            extract(tmp_path / name, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", KINDS)
def test_every_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    whole = make(tmp_path / name, {f"set/{i}": rng.bytes(700) for i in range(6)}).read_bytes()
    cuts = {*range(0, len(whole), 512), *rng.integers(0, len(whole), 20).tolist(), len(whole) - 1}
    if name == "x.tar":  # its last block pads zeros with zeros: nothing is lost there
        cuts = {cut for cut in cuts if cut < 6 * (512 + 1024) + 512}
    for cut in sorted(cuts):
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut off|holds no files"):
            extract(tmp_path / name, tmp_path / "data")
        assert not (tmp_path / "data").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["x.tar", "x.tar.gz", "x.zip", "x.tar.xz"]), data=st.data())
def test_damaged_bytes_never_end_in_a_traceback(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    whole = bytearray(make(tmp_path / kind).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / kind).write_bytes(whole)
    folder = tmp_path / "fuzz" / "data"
    try:
        extract(tmp_path / kind, folder)
    except DataError:
        assert not folder.exists()
    else:
        import shutil

        shutil.rmtree(folder)
    assert {path.name for path in tmp_path.iterdir()} <= {*KINDS, "fuzz", "work"}


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, sink: Any, block: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives_module.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"cannot unpack .*x.zip to .*data: No space left on device; .* are free"):
        extract(make(tmp_path / "x.zip"), tmp_path / "data")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files = {f"set/{number}.bin": bytes([number]) * 1000 for number in range(6)}
    path = make(tmp_path / name, files)
    copy = archives_module.shutil.copyfileobj
    copies = []

    def count(source: Any, sink: Any, block: int) -> None:
        if len(copies) == 3:
            sink.write(b"half of it")
            raise KeyboardInterrupt
        copies.append(1)
        copy(source, sink, block)

    monkeypatch.setattr(archives_module.shutil, "copyfileobj", count)
    with pytest.raises(KeyboardInterrupt):
        extract(path, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    copies.append(1)
    extract(path, tmp_path / "data")
    assert len(copies) == 3 + 1 + 3  # three were done before
    assert content(tmp_path / "data") == files


def test_what_the_user_unpacked_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "x.zip", {"loose.txt": b"theirs", "set/a": b"theirs"})

    def stop(workspace: Path, into: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives_module, "_publish", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(path, tmp_path / "data")
    (tmp_path / "data" / "set").mkdir(parents=True)
    for name in ("loose.txt", "set/a"):
        (tmp_path / "data" / name).write_bytes(b"mine")
    assert extract(path, tmp_path / "data") == Unpacked(new=(), kept=("loose.txt", "set"))
    assert content(tmp_path / "data") == {"loose.txt": b"mine", "set/a": b"mine"}
    assert not (tmp_path / "work" / "content").exists()


# --- whole datasets ---


INFO = DatasetInfo(
    name="toys", version="1", classes=("a", "b"), attributes=None, has_masks=True, source="https://example.org/toys"
)


def png(value: int, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (20, 24), value if mode == "L" else (value, value, value)).save(stream, "png")
    return stream.getvalue()


IMAGES = {f"toys/{split}_{y}.png": png(10 * i + y) for i, split in enumerate(("train", "val", "test")) for y in (0, 1)}
MASKS = {name.replace("toys/", "masks/"): png(255, "L") for name in IMAGES}


def toys(*archives: Archive) -> DatasetSpec:
    def open_toys(root: Path | None) -> Dataset:
        if root is None or not (root / "toys").is_dir():
            raise DataMissing(f"toys not found below {root}.")
        records = [
            ImageRecord(
                where=str(root),
                path=root / name,
                key=name,
                split=name[5:].partition("_")[0],
                y=int(name[-5]),
                mask=mask if (mask := root / name.replace("toys/", "masks/")).is_file() else None,
            )
            for name in IMAGES
        ]
        if not all(record.path.is_file() for record in records):
            raise DataError(f"files are missing in {root}/toys")
        return open_records(INFO, root, records)

    return DatasetSpec(info=replace(INFO, archives=archives), open=open_toys)


def described(path: Path, **changes: Any) -> Archive:
    data = path.read_bytes()
    return replace(Archive(filename=path.name, size=len(data), md5=hashlib.md5(data).hexdigest()), **changes)


def prepare(spec: DatasetSpec, root: Path, archives: Path | None = None, fetch: bool = False) -> tuple[Dataset, str]:
    told: list[str] = []
    dataset = prepare_files(spec, root, archives, fetch=fetch, progress=quiet, tell=told.append)
    return dataset, "\n".join(told)


def test_prepares_a_set_of_two_archives(tmp_path: Path) -> None:
    shelf, root = tmp_path / "shelf", tmp_path / "data"
    paths = [make(shelf / "toys.tar.gz", IMAGES), make(shelf / "masks.zip", MASKS)]
    spec = toys(*map(described, paths))
    with pytest.raises(
        DataMissing, match=r"(?s)toys not found below .* toys.tar.gz, masks.zip in .*data/.* prepare toys --data-root"
    ):
        prepare(spec, root)
    assert not root.exists()
    dataset, told = prepare(spec, root, shelf)
    assert dataset.info.has_masks
    assert f"unpacked {paths[0]} to {root}: toys" in told
    assert content(root / "toys") == {name[5:]: data for name, data in IMAGES.items()}
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    for path in paths:
        path.unlink()
    assert prepare(spec, root, shelf)[1] == "toys is there already; nothing to unpack"
    assert times == {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}


def test_missing_masks_are_told_and_come_later(tmp_path: Path) -> None:
    shelf, root = tmp_path / "shelf", tmp_path / "data"
    first, second = make(shelf / "toys.tar.gz", IMAGES), make(tmp_path / "masks.zip", MASKS)
    spec = toys(described(first), described(second, url="https://example.org/masks.zip"))
    dataset, told = prepare(spec, root, shelf)
    assert not dataset.info.has_masks
    assert "toys opens, without masks; not found: masks.zip (--download fetches it) in " in told
    second.rename(root / "masks.zip")  # the data root is searched too
    dataset, told = prepare(spec, root)
    assert dataset.info.has_masks


def test_of_alternative_archives_one_is_enough(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one.zip", IMAGES | MASKS), make(tmp_path / "two.zip", {"other": b""})
    _, told = prepare(toys(described(one), described(two)), tmp_path)
    assert "two.zip" not in told
    assert not (tmp_path / "other").exists()


def test_a_wrong_checksum_stops_before_anything_is_unpacked(tmp_path: Path) -> None:
    path = make(tmp_path / "toys.zip", IMAGES)
    with pytest.raises(DataError, match=r"toys.zip: md5 is .*, published 0000.*; fetch it again by hand"):
        prepare(toys(described(path, md5="0" * 32)), tmp_path)
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(DataError, match=r"^[^ ]*/page.zip is a web page"):
        prepare(toys(Archive(filename="page.zip")), tmp_path)
    assert content(tmp_path).keys() == {"toys.zip", "page.zip"}


@pytest.mark.parametrize("name", ["toys.tar.gz", "toys.zip", "toys.tar"])
def test_a_whole_archive_with_other_bytes_is_not_called_cut_off(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, IMAGES)
    size = path.stat().st_size
    for changes in ({"size": size + 999}, {"size": size - 1}, {"md5": "0" * 32}):
        fault = archive_fault(path, described(path, **changes, into="cub"), hashed=True, progress=quiet)
        assert fault is not None
        assert "it is whole but not the published file, maybe repacked; fetch it again by hand" in fault
        assert "or unpack it by hand in cub/ below the data root" in fault
        assert "cut off" not in fault
    larger = described(path, size=size + 999)
    hurried = archive_fault(path, larger, hashed=False, progress=quiet)
    assert hurried is not None
    assert "not the published file (maybe cut off or damaged, maybe repacked)" in hurried
    path.write_bytes(path.read_bytes()[: size // 2])
    cut = archive_fault(path, larger, hashed=True, progress=quiet)
    assert cut is not None
    assert "it is cut off, damaged" in cut


def test_a_damaged_folder_of_the_users_is_left(tmp_path: Path) -> None:
    path = make(tmp_path / "toys.zip", IMAGES)
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "train_0.png").write_bytes(b"mine")
    with pytest.raises(DataError, match="files are missing in"):
        prepare(toys(described(path)), tmp_path)
    assert content(tmp_path / "toys") == {"train_0.png": b"mine"}


def test_two_processes_do_not_unpack_one_archive(tmp_path: Path) -> None:
    from spurbench.datatools.prepare import _workplace

    path = make(tmp_path / "toys.zip", IMAGES)
    lease = Lease.try_take(_workplace(tmp_path, path))
    assert lease is not None
    with lease, pytest.raises(DataError, match=f"process {os.getpid()} on .* is unpacking .*toys.zip; wait for it"):
        prepare(toys(described(path)), tmp_path)
    prepare(toys(described(path)), tmp_path)


def test_what_another_file_of_that_name_left_goes(tmp_path: Path) -> None:
    from spurbench.datatools.prepare import _workplace

    path = make(tmp_path / "toys.zip", IMAGES)
    left = _workplace(tmp_path, path) / "content"
    left.mkdir(parents=True)
    (left / "stray").touch()
    os.utime(path, (1, 1))
    prepare(toys(described(path)), tmp_path)
    assert not left.exists()
    assert not (tmp_path / "stray").exists()


def test_builds_the_cache_once(tmp_path: Path) -> None:
    make(tmp_path / "toys.zip", IMAGES | MASKS)
    dataset, _ = prepare(toys(Archive(filename="toys.zip")), tmp_path)
    cache = tmp_path / "cache"
    build_cache(dataset, 8, cache, quiet)
    stored = list(cache.rglob("*.u8"))
    assert sum(path.stat().st_size for path in stored) == cache_bytes(dataset, 8) == 6 * 8 * 8 * 4
    for path in (tmp_path / "toys").iterdir():
        path.write_bytes(b"x" * path.stat().st_size)  # not decoded again
    build_cache(dataset, 8, cache, quiet)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    plugin = tmp_path / "shelf.py"
    plugin.write_text(
        "from pathlib import Path\n"
        "from spurbench.dataset import Archive, DatasetInfo, DatasetSpec, find_dataset\n"
        "info = DatasetInfo(name='birds', version='1', classes=('a', 'b'), attributes=None, preset='minibirds',\n"
        "    archives=(Archive(filename='birds.zip'),))\n"
        "DATASETS = {'birds': DatasetSpec(info=info, open=lambda r: find_dataset('folder').open(r and r / 'birds'))}\n"
    )
    table = "".join(f"{name[5:]},{split},{name[-5]}\n" for name in IMAGES for split in (name[5:].partition("_")[0],))
    files = {f"birds/{name[5:]}": data for name, data in IMAGES.items()}
    make(tmp_path / "birds.zip", files | {"birds/metadata.csv": b"filename,split,y\n" + table.encode()})
    command = ["data", "prepare", "birds", "--plugin", str(plugin), "--archives", str(tmp_path)]
    assert main(command) == 2
    assert "needs a data root, in which it is unpacked" in capsys.readouterr().err
    root = ["--data-root", str(tmp_path / "data")]
    assert main([*command, *root, "--archives", str(tmp_path / "none")]) == 2
    assert main([*command, *root, "--resize", "16"]) == 0
    out, err = capsys.readouterr()
    assert "birds is ready: spurbench run --method erm --dataset birds --data-root" in out
    assert f"decoded images of 16 px take 4.61 kB in {tmp_path / 'cache'}" in err
    assert [path.stat().st_size for path in (tmp_path / "cache").rglob("images.u8")] == [2 * 16 * 16 * 3] * 3


# --- fetching ---


class Host(http.server.BaseHTTPRequestHandler):
    """Serves bytes, as well or as badly as the test says."""

    protocol_version = "HTTP/1.1"
    data: bytes
    status = 200
    ranges = True
    lies = 0
    """Bytes by which an answer begins before what was asked for."""
    breaks: list[int]
    """After how many bytes to hang up, one per request; then never."""
    seen: list[str]

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.seen.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) - self.lies if asked and self.ranges else 0
        if self.status != 200:
            self.send_error(self.status)
            return
        if start >= len(self.data) > 0 and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        self.end_headers()
        end = start + self.breaks.pop(0) if self.breaks else len(self.data)
        self.wfile.write(self.data[start:end])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[Callable[..., tuple[type[Host], str]]]:
    servers = []

    def serve(data: bytes, **fields: Any) -> tuple[type[Host], str]:
        handler = type("Handler", (Host,), {"data": data, "breaks": [], "seen": [], **fields})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return handler, f"http://127.0.0.1:{server.server_address[1]}/file"

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


DATA = bytes(range(256)) * 3000


def is_equal(one: bytes, two: bytes) -> bool:
    """Compared here: pytest would look for the difference for minutes."""
    return one == two


def fetched(url: str, folder: Path, **known: Any) -> Path:
    return download(Archive(filename="x.bin", url=url, **known), folder, quiet, pause=0.0)


def test_fetches_and_compares(tmp_path: Path, host: Any) -> None:
    handler, url = host(DATA)
    path = fetched(url, tmp_path / "new", sha256=hashlib.sha256(DATA).hexdigest(), size=len(DATA))
    assert path == tmp_path / "new" / "x.bin"
    assert is_equal(path.read_bytes(), DATA)
    assert handler.seen == [""]
    assert [p.name for p in path.parent.iterdir()] == ["x.bin"]


def test_goes_on_where_it_stopped(tmp_path: Path, host: Any) -> None:
    handler, url = host(DATA, breaks=[1000, 50_000])
    assert is_equal(fetched(url, tmp_path, md5=hashlib.md5(DATA).hexdigest()).read_bytes(), DATA)
    assert handler.seen == ["", "bytes=1000-", "bytes=51000-"]


def test_what_a_stopped_process_left_is_continued(tmp_path: Path, host: Any) -> None:
    handler, url = host(DATA)
    (tmp_path / "x.bin.part").write_bytes(DATA[:77_777])
    assert is_equal(fetched(url, tmp_path).read_bytes(), DATA)
    assert handler.seen == ["bytes=77777-"]


@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_that_is_whole_already(tmp_path: Path, host: Any, size: int | None) -> None:
    handler, url = host(DATA)
    (tmp_path / "x.bin.part").write_bytes(DATA)
    assert is_equal(fetched(url, tmp_path, size=size).read_bytes(), DATA)
    assert handler.seen == ([] if size else [f"bytes={len(DATA)}-", ""])


def test_a_host_without_ranges_starts_over(tmp_path: Path, host: Any) -> None:
    _, url = host(DATA, ranges=False)
    (tmp_path / "x.bin.part").write_bytes(b"something else")
    assert is_equal(fetched(url, tmp_path).read_bytes(), DATA)


def test_a_host_that_answers_with_another_part(tmp_path: Path, host: Any) -> None:
    handler, url = host(DATA, lies=10)
    (tmp_path / "x.bin.part").write_bytes(DATA[:1000])
    assert is_equal(fetched(url, tmp_path).read_bytes(), DATA)
    assert handler.seen == ["bytes=1000-", ""]


def test_a_connection_that_always_breaks(tmp_path: Path, host: Any) -> None:
    handler, url = host(DATA, breaks=[100] * 99)
    with pytest.raises(
        DataMissing, match=r"the same command goes on from there\n  get it:     fetch it by hand and put it to .*x.bin"
    ):
        fetched(url, tmp_path)
    assert len(handler.seen) == 5
    assert is_equal((tmp_path / "x.bin.part").read_bytes(), DATA[:500])


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_host_that_refuses(tmp_path: Path, host: Any, status: int) -> None:
    _, url = host(DATA, status=status)
    with pytest.raises(DataMissing, match=f"(?s)answers {status} .*fetch it by hand and put it to"):
        fetched(url, tmp_path)


def test_nobody_answers_and_no_address(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"cannot fetch http://127\.0\.0\.1:9/x"):
        fetched("http://127.0.0.1:9/x", tmp_path)
    for url in ("", "file:///etc/passwd", "ftp://example.org/x"):
        with pytest.raises(DataMissing, match="has no address to fetch it from"):
            fetched(url, tmp_path)


def test_a_page_instead_of_the_file(tmp_path: Path, host: Any) -> None:
    _, url = host(b"<!doctype html><p>sign in")
    with pytest.raises(DataError, match="is a web page, not the archive"):
        fetched(url, tmp_path)
    assert not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 5}])
def test_another_file_than_published(tmp_path: Path, host: Any, known: dict[str, Any]) -> None:
    _, url = host(DATA)
    with pytest.raises(DataError, match=r"published"):
        fetched(url, tmp_path, **known)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_fetched_unasked(tmp_path: Path, host: Any) -> None:
    archive = make(tmp_path / "shelf" / "toys.zip", IMAGES | MASKS)
    handler, url = host(archive.read_bytes())
    spec = toys(replace(described(archive), url=url))
    with pytest.raises(DataMissing, match=r"(?s)toys.zip \(--download fetches it\) in .* --download$"):
        prepare(spec, tmp_path / "data")
    assert handler.seen == []
    _, told = prepare(spec, tmp_path / "data", fetch=True)
    assert handler.seen == [""]
    assert f"fetched {tmp_path / 'data' / 'toys.zip'}" in told
