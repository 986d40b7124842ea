"""Downloads against a server on this machine: broken lines, wrong checksums, full disks."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.cli import main
from plant_dist.data.fetching import download as download_module
from plant_dist.data.fetching.download import CHUNK_BYTES, Patience, checksum, download
from plant_dist.data.fetching.fetch import RECORD, REGISTRY, load_registry
from plant_dist.errors import DataError

CONTENT = bytes(range(256)) * 2000
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(timeout_seconds=5, attempts=3, pause_seconds=0.01)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path; `faults` are used up one a request."""

    content = CONTENT
    etag = '"one"'
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.faults: list[int | str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/corpus.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, str):
            self.send_error(int(fault))
            return
        start, total = 0, len(server.content)
        same = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        # A fault is the number of bytes after which the line goes dead.
        self.wfile.write(server.content[start:][:fault])
        self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def test_a_file_comes_whole_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "corpus.bin"
    download(server.url, path, SHA256, QUICK)
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["corpus.bin"]
    assert server.asked == [None]


def test_a_broken_line_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    # Of a piece that is cut short nothing is kept.
    server.faults = [6 * CHUNK_BYTES + 5, 3 * CHUNK_BYTES, 1]
    path = tmp_path / "corpus.bin"
    download(server.url, path, SHA256, QUICK)
    assert path.read_bytes() == CONTENT
    six, nine = f"bytes={6 * CHUNK_BYTES}-", f"bytes={9 * CHUNK_BYTES}-"
    assert server.asked == [None, six, nine, nine]


def test_a_line_that_stays_broken_keeps_what_came_for_the_next_call(
    server: Server, tmp_path: Path
) -> None:
    kept = 4 * CHUNK_BYTES
    server.faults = [kept, 0, 0]
    path = tmp_path / "corpus.bin"
    with pytest.raises(DataError, match=rf"broke off after {kept} bytes .* run the same"):
        download(server.url, path, SHA256, QUICK)
    assert not path.exists()
    assert partial(path).read_bytes() == CONTENT[:kept]
    download(server.url, path, SHA256, QUICK)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={kept}-"


@settings(deadline=None, max_examples=25)
@given(faults=st.lists(st.integers(1, 200_000), max_size=6), ranges=st.booleans())
def test_wherever_it_breaks_the_file_is_the_same(
    faults: list[int], ranges: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("down") / "corpus.bin"
    one = Server()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        one.faults, one.ranges = [*faults], ranges
        download(one.url, path, SHA256, Patience(5, attempts=8, pause_seconds=0))
    finally:
        one.shutdown()
        thread.join()
        one.server_close()
    assert path.read_bytes() == CONTENT


def test_the_rest_of_another_file_is_not_appended(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "corpus.bin"
    server.faults = [70_000, 0, 0]
    with pytest.raises(DataError):
        download(server.url, path, None, QUICK)
    server.content, server.etag = CONTENT[::-1], '"two"'
    download(server.url, path, None, QUICK)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_validator_or_checksum_nothing_is_appended(
    server: Server, tmp_path: Path, etag: str
) -> None:
    path = tmp_path / "corpus.bin"
    server.etag, server.faults = etag, [70_000]
    download(server.url, path, None, QUICK)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_file_that_is_whole_but_was_not_renamed_is_only_checked(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "corpus.bin"
    partial(path).write_bytes(CONTENT)
    download(server.url, path, SHA256, QUICK)
    assert path.read_bytes() == CONTENT
    # Longer than the file: of something else.
    path.rename(partial(path))
    with partial(path).open("ab") as stream:
        stream.write(b"more")
    download(server.url, path, SHA256, QUICK)
    assert path.read_bytes() == CONTENT


def test_trouble_of_the_server_is_waited_for_and_refusal_is_not(
    server: Server, tmp_path: Path
) -> None:
    server.faults = ["503", "429"]
    download(server.url, tmp_path / "corpus.bin", SHA256, QUICK)
    assert len(server.asked) == 3
    server.faults = ["404"]
    with pytest.raises(DataError, match=r"answered 404 Not Found; the file may have moved"):
        download(server.url, tmp_path / "other.bin", SHA256, QUICK)
    assert len(server.asked) == 4


def test_no_server(tmp_path: Path) -> None:
    one = Server()
    one.server_close()
    with pytest.raises(DataError, match=r"broke off after 0 bytes \(connection to .* failed"):
        download(one.url, tmp_path / "corpus.bin", None, QUICK)


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path, algorithm: str) -> None:
    right = checksum_of(algorithm)
    download(server.url, tmp_path / "right.bin", right, QUICK)
    server.content = CONTENT[:-1] + b"x"
    path = tmp_path / "corpus.bin"
    with pytest.raises(DataError, match=f"has checksum {algorithm}:.* expected {right}; .*removed"):
        download(server.url, path, right, QUICK)
    assert not path.exists()
    assert not partial(path).exists()


def checksum_of(algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"


def test_a_disk_that_is_too_small_is_refused_before(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=f"has 1000 bytes free, corpus.bin needs {len(CONTENT)}"):
        download(server.url, tmp_path / "corpus.bin", SHA256, QUICK)


# A process of its own, because a limit on files would hold for every test.
LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
from plant_dist.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_keeps_what_came(server: Server, tmp_path: Path) -> None:
    """The limit on a file's size makes a write fail as a full disk does (EFBIG for ENOSPC)."""
    registry = tmp_path / "registry.yaml"
    registry.write_text(yaml.safe_dump(a_registry(server, SHA256)))
    words = ["fetch", "made-up", "--registry", str(registry), "--output", str(tmp_path / "out")]
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert ran.returncode == DataError.exit_code, ran.stderr
    assert "no space left on disk while writing" in ran.stderr.splitlines()[-1]
    kept = partial(tmp_path / "out" / "corpus.bin").stat().st_size
    assert 0 < kept <= 200_000
    assert main(words) == 0
    assert (tmp_path / "out" / "corpus.bin").read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={kept}-"


def a_registry(server: Server, digest: str | None, **more: Any) -> dict[str, Any]:
    file = {"url": server.url, "name": "corpus.bin", "digest": digest, **more}
    entry = {
        "title": "Made up", "licence": "CC0", "source": "nowhere", "files": [file],
        "next": "look in {folder}",
    }  # fmt: skip
    return {"made-up": entry}


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plant-dist fetch made-up` of a registry made anew; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(digest: str | None = SHA256, **more: Any) -> int:
        registry = tmp_path / "registry.yaml"
        registry.write_text(yaml.safe_dump(a_registry(server, digest, **more)))
        return main(["fetch", "made-up", "--registry", str(registry)])

    return call


def record(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "data" / "made-up" / RECORD).read_text())
    return content


def test_fetch_shows_and_records_the_licence(
    run: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    shown = capsys.readouterr()
    assert "licence: CC0; source: nowhere" in shown.err
    assert "next: look in data/made-up" in shown.out
    written = record(tmp_path)
    assert (written["licence"], written["source"]) == ("CC0", "nowhere")
    (file,) = written["files"]
    assert (file["sha256"], file["bytes"]) == (SHA256, len(CONTENT))
    assert (file["url"], file["checked_against"]) == (server.url, "registry")
    # Again: the file is right, so nothing is asked for.
    assert run() == 0
    assert len(server.asked) == 1
    # A file that was damaged here is fetched anew.
    (tmp_path / "data" / "made-up" / "corpus.bin").write_bytes(b"damaged")
    assert run() == 0
    assert len(server.asked) == 2


def test_an_unknown_checksum_is_said_recorded_and_held_against_the_next(
    run: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(digest=None) == 0
    assert "nobody publishes its checksum; sha256:" in capsys.readouterr().err
    assert record(tmp_path)["files"][0]["checked_against"] == "nothing"
    (tmp_path / "data" / "made-up" / "corpus.bin").unlink()
    server.content = b"another corpus"
    assert run(digest=None) == DataError.exit_code
    assert f"expected {SHA256}" in capsys.readouterr().err
    server.content = CONTENT
    assert run(digest=None) == 0
    assert record(tmp_path)["files"][0]["checked_against"] == "record"


def zipped(name: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as packed:
        packed.writestr(name, "text")
    return raw.getvalue()


def tarred(name: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as packed:
        member = tarfile.TarInfo(name)
        member.size = 4
        packed.addfile(member, io.BytesIO(b"text"))
    return raw.getvalue()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_is_unpacked_beside_itself(
    run: Any, server: Server, tmp_path: Path, pack: Any
) -> None:
    server.content = pack("inner/file.txt")
    assert run(digest=None, unpack=True) == 0
    assert (tmp_path / "data" / "made-up" / "inner" / "file.txt").read_text() == "text"


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_writes_nothing_outside_its_folder(
    run: Any, server: Server, tmp_path: Path, pack: Any
) -> None:
    server.content = pack("../../escaped.txt")
    run(digest=None, unpack=True)
    assert not (tmp_path / "escaped.txt").exists()


def test_what_is_no_archive_is_said(
    run: Any, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = b"<html>please log in</html>"
    assert run(digest=None, unpack=True) == DataError.exit_code
    assert "corpus.bin cannot be unpacked" in capsys.readouterr().err


def test_a_damaged_record_is_said(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    (tmp_path / "data" / "made-up" / RECORD).write_text("{")
    assert run() == DataError.exit_code
    assert "fetched.json is damaged; remove it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mimic3", "mimicfull", "mimicfour", "mimic4", "mdace", "debtags"])
def test_what_may_not_be_fetched_is_refused_with_the_way_to_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", name]) == DataError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not fetched by this command. To get it:" in line
    if name.startswith("mimic"):
        assert "credentialed user of PhysioNet" in line
        assert "data use agreement" in line
        assert "set data.path to it" in line
        assert "physionet.org/content/mimic" in line
    assert list(tmp_path.iterdir()) == []


def test_the_list_and_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch"]) == 0
    listed = capsys.readouterr().out
    for name in load_registry():
        assert f"{name} " in listed
    assert "licence: CC BY 4.0" in listed
    assert main(["fetch", "codispe"]) == 2
    assert "no corpus 'codispe'; did you mean 'codiesp'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {title: b, licence: c}", "has neither files nor `obtain`"),
        ("a: {title: b, colour: red}", "unknown field 'colour' of 'b'"),
        ("a: {title: b, licence: c, source: d, files: [{url: e, name: ../f}]}", "no plain file"),
        ("a: {title: b, licence: c, source: d, files: [{url: e, name: f, digest: crc:1}]}",
         "neither sha256:… nor md5:…"),
        ("- a", "must map names"),
        ("a: 3", "registry"),
        ("a: [", "cannot be read"),
    ],
)  # fmt: skip
def test_a_registry_with_a_mistake_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(text)
    assert main(["fetch", "a", "--registry", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_the_shipped_registry_is_whole() -> None:
    """Each corpus is secure on its way, and says where it comes from and under which licence."""
    configs = {path.stem for path in (REGISTRY.parents[3] / "configs").glob("*.yaml")}
    for name, entry in load_registry().items():
        assert entry.licence, name
        assert entry.source.startswith("https://"), name
        assert bool(entry.files) != bool(entry.obtain), name
        for file in entry.files:
            assert file.url.startswith("https://"), name
        for config in re.findall(r"configs/(\w+)\.yaml", entry.next + entry.place):
            assert config in configs, name


def test_errors_of_the_disk_are_told_apart(tmp_path: Path) -> None:
    full = download_module.disk_error(OSError(errno.ENOSPC, "x"), tmp_path)
    other = download_module.disk_error(PermissionError(errno.EACCES, "Permission denied"), tmp_path)
    assert "no space left" in str(full)
    assert str(other).endswith("cannot be written: Permission denied")
    assert checksum(REGISTRY, "md5") == f"md5:{hashlib.md5(REGISTRY.read_bytes()).hexdigest()}"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
