"""Files that survive a crash: whole or not there, and recognized where a bit has changed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"  # in a folder: {name: [SHA-256 that the file may have, ...]}
_CHUNK = 1 << 20


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text: a reader, or a crash, sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            sync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a full disk gets its room back
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync(descriptor: int) -> None:
    """Wait until what was written lies on the disk."""
    os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """The same for a file that other code has written."""
    with path.open("rb+") as file:  # Windows syncs only what may be written
        sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder lie on the disk; Windows keeps them by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a crash half way leaves nothing that looks like it."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)  # of an earlier crash
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_checksums(folder: Path, sums: Mapping[str, list[str]]) -> None:
    """Write `checksums.json`.

    Args:
        folder: of the files.
        sums: SHA-256 by the file's path in the folder, with `/`; more than one while a file is being replaced.
    """
    write_atomically(folder / CHECKSUMS_FILE, json.dumps(sums, indent=1, sort_keys=True) + "\n")


def read_checksums(folder: Path) -> dict[str, list[str]]:
    """What `write_checksums` wrote.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    text = (folder / CHECKSUMS_FILE).read_text(encoding="utf-8")
    sums = json.loads(text)
    if not isinstance(sums, dict) or not all(
        isinstance(allowed, list) and all(isinstance(one, str) for one in allowed) for allowed in sums.values()
    ):
        raise ValueError("not an object of lists of checksums")
    return sums


def checksum_problems(folder: Path, required: tuple[str, ...]) -> Iterator[str]:
    """What keeps a folder from being as it was written.

    Args:
        folder: with `checksums.json`.
        required: names that must be listed there.

    Yields:
        A line for each file that is missing, cannot be read or has changed.

    Raises:
        PermissionError: The files may not be read, so that nothing is known.
    """
    try:
        sums = read_checksums(folder)
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        yield f"{CHECKSUMS_FILE}: {error}"
        return
    for name in sorted({*required, *sums}):
        try:
            if name not in sums:
                yield f"{name} is not in {CHECKSUMS_FILE}"
            elif Path(name).is_absolute() or ".." in Path(name).parts:
                yield f"{CHECKSUMS_FILE} names {name!r}, which is no file of this folder"
            elif not (folder / name).is_file():
                yield f"{name} is missing"
            elif sha256_of(folder / name) not in sums[name]:
                yield f"{name} is not as it was written: its SHA-256 has changed"
        except PermissionError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a name with a null byte
            yield f"{name}: {error}"


def replace_files(folder: Path, write: Callable[[Path], object]) -> None:
    """Replace files of a folder and their checksums, so that at any moment the checksums fit what lies there.

    Each file is replaced whole; until all are, `checksums.json` allows the old and the new.

    Args:
        folder: made if absent, but not its parents.
        write: writes the new files into the folder it is given; those that it leaves out stay.

    Raises:
        OSError: They cannot be written; those of before lie there.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        write(staging)
        new = {}
        for file in staging.iterdir():
            sync_file(file)
            new[file.name] = [sha256_of(file)]
        folder.mkdir(exist_ok=True)
        old = read_checksums(folder) if (folder / CHECKSUMS_FILE).exists() else {}
        write_checksums(folder, {**old, **{name: [*sums, *old.get(name, ())] for name, sums in new.items()}})
        for name in new:
            os.replace(staging / name, folder / name)
        sync_folder(folder)
        write_checksums(folder, {**old, **new})
    finally:
        shutil.rmtree(staging, ignore_errors=True)
