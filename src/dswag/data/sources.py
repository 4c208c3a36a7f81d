"""The published files of a data set: found on disk or fetched, and checked.

Every file is checked by the SHA-256 of its uncompressed content, so that a plain file, a `.gz` that somebody packed
again and a member of an archive are held to the same standard. A file that is found but wrong is an error: it is never
skipped in silence.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dswag.core.extras import required
from dswag.data.downloads import CacheNotWritableError, fetch
from dswag.data.formats import DataFormatError, gunzip, tar_members
from dswag.data.releases import Release

DATA_DIR_VARIABLE = "DSWAG_DATA_DIR"
DEBIAN_FOLDER = Path("/usr/share/datasets")


class DataNotFoundError(FileNotFoundError):
    """A data set that lies in none of the places searched and was not fetched; says where it looked and what to do."""


def read_files(
    release: Release,
    names: Sequence[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool = False,
) -> dict[str, bytes]:
    """Uncompressed contents of the named files, in that order.

    Looks in `data_dir`, the folder in the environment's DSWAG_DATA_DIR, the cache and Debian's folder; what is in none
    of them is fetched into the cache.

    Raises:
        DataNotFoundError: a file that is nowhere, or a data folder that does not exist.
        DataFormatError: a file on disk that is damaged or another than the published one.
        CacheNotWritableError: a cache that cannot take the download.
    """
    places = _places(data_dir)
    contents: dict[str, bytes] = {}
    for place in places.values():
        contents |= _read_place(release, [name for name in names if name not in contents], place)
    failures: list[str] = []
    if download and len(contents) < len(names):
        contents |= _fetch_missing(release, [name for name in names if name not in contents], progress, failures)
    if missing := [name for name in names if name not in contents]:
        raise _not_found(release, missing, places, failures if download else ["nowhere: downloading is switched off"])
    return {name: contents[name] for name in names}


def _places(data_dir: str | os.PathLike[str] | None) -> dict[str, Path]:
    """Folders to search, by what a message calls them."""
    places: dict[str, Path] = {}
    for origin, given in (("data_dir", data_dir), (DATA_DIR_VARIABLE, os.environ.get(DATA_DIR_VARIABLE))):
        if given:
            places[origin] = Path(given).expanduser()
            if not places[origin].is_dir():
                raise DataNotFoundError(
                    f"{origin} must be an existing folder, got {str(given)!r}: create or correct it"
                )
    return places | {"the cache": _cache(), "Debian's folder": DEBIAN_FOLDER}


def _cache() -> Path:
    return Path(required("pooch", "the cache of data sets").os_cache("dswag"))


def _read_place(release: Release, names: Sequence[str], place: Path) -> dict[str, bytes]:
    """Those of the named files that lie in the place, plain, as .gz or in the archive."""
    contents = {}
    for name in names:
        for folder in release.folders:
            plain, compressed = place / folder / name, place / folder / f"{name}.gz"
            if plain.is_file():
                contents[name] = _checked(release, name, plain.read_bytes(), str(plain))
                break
            if compressed.is_file():
                contents[name] = _read_gz(release, name, compressed, str(compressed))
                break
    missing = [name for name in names if name not in contents]
    if missing and release.archive and (archive := place / release.archive).is_file():
        contents |= _read_archive(release, missing, archive, str(archive))
    return contents


def _read_gz(release: Release, name: str, path: Path, origin: str) -> bytes:
    return _checked(release, name, gunzip(path.read_bytes(), origin, largest=release.largest), origin)


def _read_archive(release: Release, names: Sequence[str], path: Path, origin: str) -> dict[str, bytes]:
    with path.open("rb") as archive:
        contents = tar_members(archive, names, origin, largest=release.largest)
    return {name: _checked(release, name, contents[name], f"{name} in {origin}") for name in names}


def _checked(release: Release, name: str, content: bytes, origin: str) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != release.sha256[name]:
        raise DataFormatError(
            f"{origin} is not {name} of {release.name} as published: its content must have SHA-256 "
            f"{release.sha256[name]}, got {digest} ({len(content)} bytes): it is damaged, incomplete or of another "
            "data set; get it again"
        )
    return content


def _fetch_missing(release: Release, names: Sequence[str], progress: bool, failures: list[str]) -> dict[str, bytes]:
    """Contents of files fetched into the cache; stops at the first that no mirror gives, and adds why to `failures`."""
    if release.archive:
        return _fetch(release, release.archive, _cache(), progress, failures)
    contents: dict[str, bytes] = {}
    for name in names:
        fetched = _fetch(release, f"{name}.gz", _cache() / release.folders[0], progress, failures)
        if not fetched:
            break
        contents |= fetched
    return contents


def _fetch(release: Release, file: str, folder: Path, progress: bool, failures: list[str]) -> dict[str, bytes]:
    def read(path: Path, url: str) -> dict[str, bytes]:
        if release.archive:
            return _read_archive(release, list(release.sha256), path, url)
        name = file.removesuffix(".gz")
        return {name: _read_gz(release, name, path, url)}

    for url in [f"{mirror}{file}" for mirror in release.mirrors]:
        try:
            return fetch(url, folder / file, read, progress=progress)
        except CacheNotWritableError:
            raise
        except (OSError, DataFormatError) as error:
            failures.append(f"{url}: {error}")
    return {}


def _not_found(
    release: Release, missing: Sequence[str], places: Mapping[str, Path], fetched_from: Sequence[str]
) -> DataNotFoundError:
    form = f"unpacked or in {release.archive}" if release.archive else "plain or .gz"
    lines = [f"data set {release.name} was not found: no {', '.join(missing)} ({form})", "looked in:"]
    for origin, place in places.items():
        lines += [f"  {place / folder} ({origin})" for folder in release.folders]
        lines += [f"  {place / release.archive} ({origin})"] if release.archive else []
    lines += ["tried to fetch it from:", *(f"  {line}" for line in fetched_from)]
    lines += [
        "what to do: run again with a network, or copy the files into "
        f"DIR/{release.folders[0]} and name DIR by data_dir or {DATA_DIR_VARIABLE}"
    ]
    return DataNotFoundError("\n".join(lines))
