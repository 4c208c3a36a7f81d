"""Small IDX and CIFAR files, a local HTTP server that can misbehave, and an empty cache."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest

from dswag.data import sources
from dswag.data.releases import Release


def _idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of bytes, written from the format's description."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _tar_gz(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _release(contents: Mapping[str, bytes], *mirrors: str, archive: str | None = None) -> Release:
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return Release("tiny", sha256, folders=("tiny", "Tiny/raw"), largest=1 << 20, mirrors=mirrors, archive=archive)


@pytest.fixture(scope="session")
def make_tar_gz() -> Callable[[Mapping[str, bytes]], bytes]:
    """Packs contents, by member name, into a .tar.gz."""
    return _tar_gz


@pytest.fixture(scope="session")
def make_release() -> Callable[..., Release]:
    """Makes the release whose files have the given contents, with these mirrors."""
    return _release


@dataclass
class Mirror:
    """Files that a server on 127.0.0.1 hands out, and how it fails; `requested` records the paths asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    cut_after: int | None = None
    requested: list[str] = field(default_factory=list)


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.requested.append(self.path)
            body = mirror.files.get(self.path.lstrip("/"))
            self.send_response(mirror.status if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write((body or b"")[: mirror.cut_after])

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

    return Handler


@pytest.fixture
def start_mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Mirror]]:
    """Starts servers; all are stopped when the test ends."""
    servers = []
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def start(files: Mapping[str, bytes], *, status: int = 200, cut_after: int | None = None) -> Mirror:
        mirror = Mirror(files=dict(files), status=status, cut_after=cut_after)
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(mirror))
        mirror.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        servers.append((server, thread))
        return mirror

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, empty, with no other place that holds data."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    monkeypatch.setattr(sources, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.delenv("DSWAG_DATA_DIR", raising=False)
    return folder


@pytest.fixture
def idx_files() -> dict[str, bytes]:
    """Contents of the four IDX files of a data set of 20 + 10 images of 6 x 5 pixels."""
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": _idx_bytes(generator.integers(0, 256, (20, 6, 5))),
        "train-labels-idx1-ubyte": _idx_bytes(generator.integers(0, 10, 20)),
        "t10k-images-idx3-ubyte": _idx_bytes(generator.integers(0, 256, (10, 6, 5))),
        "t10k-labels-idx1-ubyte": _idx_bytes(generator.integers(0, 10, 10)),
    }


@pytest.fixture
def cifar_files() -> dict[str, bytes]:
    """Contents of the six files of CIFAR-10, with four records each."""
    generator = np.random.default_rng(1)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return {
        name: np.hstack([generator.integers(0, 10, (4, 1)), generator.integers(0, 256, (4, 3072))])
        .astype(np.uint8)
        .tobytes()
        for name in names
    }


@pytest.fixture
def packed(idx_files: dict[str, bytes]) -> dict[str, bytes]:
    """The IDX files as a server hands them out."""
    return {f"{name}.gz": gzip.compress(content) for name, content in idx_files.items()}
