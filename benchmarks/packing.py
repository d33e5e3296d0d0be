"""An unfinished run as an archive in pieces, for machines from which only few and small files come back.

Nothing is lost: the training that goes on from it is the same, bit for bit on a CPU. Left out is what can be rebuilt: the best weights
where they are the checkpoint's, which a resumed training writes again; the checkpoint of a finished training; and the last weights where
they are the best and these are there. Of a float32 number only the exponent compresses, so the four bytes of each lie in planes of their own.

    python benchmarks/packing.py --runs runs    # packs each run there that has a checkpoint, aside, and says what comes out
"""

import argparse
import io
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from robustlib.runs import Run, find_runs, write_atomic
from robustlib.training.loop import load_checkpoint

PIECE = 15 * 2**20  # bytes at most, of 16 MiB
BEST, LAST, CHECKPOINT = "model.safetensors", "last.safetensors", "checkpoint.pt"
PLANES, HEAD = ".planes", ".head"  # endings of what lies in planes, and of weights of which only the head is kept
NAME = re.compile(r"(?P<method>\w+)-(?P<made>\d+)-(?P<place>\d+)of(?P<number>\d+)\.part")


def pack(run: Run, runs: Path, out: Path) -> list[Path]:
    """Writes the run, which lies below `runs`, as files of at most PIECE bytes in `out`, and returns them in order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in _content(run):
            archive.writestr(f"{run.path.relative_to(runs).as_posix()}/{name}", data)
    whole, method = buffer.getbuffer(), run.path.parent.name
    number, made = -(-len(whole) // PIECE), time.time_ns()
    paths = [out / f"{method}-{made}-{k + 1}of{number}.part" for k in range(number)]
    for k, path in enumerate(paths):
        write_atomic(path, whole[k * PIECE : (k + 1) * PIECE])
    return paths


def _content(run: Run) -> Iterator[tuple[str, bytes]]:
    """The parts of the archive of a run, by name."""
    left = _rebuilt(run)
    for file in sorted(file for file in run.path.rglob("*") if file.is_file() and not file.name.startswith(".")):
        name, data = file.relative_to(run.path).as_posix(), file.read_bytes()
        if name in left:
            continue
        if name == LAST and BEST not in left and _split(data)[1] == _split((run.path / BEST).read_bytes())[1]:
            yield name + HEAD, _split(data)[0]
        elif file.suffix in (".pt", ".safetensors"):
            planes, rest = to_planes(data)
            yield from ((f"{name}{PLANES}{k}", plane) for k, plane in enumerate([*planes, rest]))
        else:
            yield name, data


def _rebuilt(run: Run) -> set[str]:
    """The files of a run that its other files make again."""
    if run.status()["state"] == "done":
        return {CHECKPOINT}
    saved = load_checkpoint(run.path / CHECKPOINT, run.place)
    return {BEST} if saved and saved["state"].best == saved["state"].epoch > 0 else set()


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The head of a safetensors file, and its numbers."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[:end], data[end:]


def to_planes(data: bytes) -> tuple[list[bytes], bytes]:
    """The bytes of little-endian float32 numbers by their place, the exponent as the last of four; and what is left at the end."""
    even = len(data) // 4 * 4
    numbers = np.frombuffer(data[:even], "<u4")
    turned = (numbers << 1 | numbers >> 31).astype("<u4").view(np.uint8).reshape(-1, 4)  # the sign goes to the low end
    return [np.ascontiguousarray(turned[:, k]).tobytes() for k in range(4)], data[even:]


def from_planes(planes: Sequence[bytes], rest: bytes) -> bytes:
    """What `to_planes` took apart."""
    turned = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1).reshape(-1).view("<u4")
    return (turned >> 1 | turned << 31).astype("<u4").tobytes() + rest


def complete(places: Sequence[Path], method: str) -> list[Path]:
    """The pieces of the newest archive of a method of which all are in these folders, in order; [] if there is none."""
    found: dict[tuple[int, int], dict[int, Path]] = {}
    for path in pieces(places, method):
        part = NAME.fullmatch(path.name)
        assert part
        found.setdefault((int(part["made"]), int(part["number"])), {})[int(part["place"])] = path
    whole = [key for key, parts in found.items() if len(parts) == key[1]]
    return [path for _, path in sorted(found[max(whole)].items())] if whole else []


def pieces(places: Sequence[Path], method: str) -> list[Path]:
    """All pieces of archives of a method in these folders."""
    named = [(NAME.fullmatch(path.name), path) for place in places for path in sorted(place.glob("*.part"))]
    return [path for part, path in named if part and part["method"] == method]


def unpack(parts: Sequence[Path], runs: Path) -> None:
    """Puts the run back below `runs`, whole or not at all, in the place of what is left of it there."""
    with zipfile.ZipFile(io.BytesIO(b"".join(path.read_bytes() for path in parts))) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    folder = "/".join(next(iter(packed)).split("/")[:3])
    new = runs / "unpacking"
    shutil.rmtree(new, ignore_errors=True)
    for name, data in _files(packed).items():
        file = new / Path(name).relative_to(folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (runs / folder).parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(runs / folder, ignore_errors=True)
    new.rename(runs / folder)


def _files(packed: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that the parts of an archive make."""
    files = {name: data for name, data in packed.items() if PLANES not in name and not name.endswith(HEAD)}
    for name in {name.split(PLANES)[0] for name in packed if PLANES in name}:
        *planes, rest = (packed[f"{name}{PLANES}{k}"] for k in range(5))
        files[name] = from_planes(planes, rest)
    for name in [name for name in packed if name.endswith(HEAD)]:
        best = files[name.replace(LAST + HEAD, BEST)]
        files[name.removesuffix(HEAD)] = packed[name] + _split(best)[1]
    return files


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for run in find_runs(options.runs, finished=False):
        if not run.damage and (run.path / CHECKPOINT).exists():
            with tempfile.TemporaryDirectory() as out:
                began = time.process_time()
                parts = pack(run, options.runs, Path(out))
                mib = sum(path.stat().st_size for path in parts) / 2**20
            before = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) / 2**20
            seconds = time.process_time() - began
            print(f"{run.name}: {before:.1f} MiB become {mib:.1f} in {len(parts)} pieces; {seconds:.1f} CPU-seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
