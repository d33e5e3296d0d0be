"""A queue for a GPU that is lent for minutes: checks, speed tables, then `cifar10-short`, a slice at a time, in calls that go on.

    python benchmarks/gpu.py --data-root data                      # the next slices, for 13 minutes; results in reports/reference/
    python benchmarks/gpu.py --data-root data --minutes 9 --out DIR
    python benchmarks/gpu.py --list                                # all slices, their expected minutes, and what is done
    python benchmarks/gpu.py --rehearse                            # all of it, tiny and on the CPU, in runs/rehearsal/

A slice is done when its product is in --out or in reports/reference/: a table or the output of a failed check in gpu/, the archive of a
method in cifar10-short/. One that is not expected to fit into the minutes left is passed over, unless it is the first of the call. Where
a check failed, delete its file to repeat it. It needs no notebook packages.

A check or a table for which time is up begins anew another time: gpu/<name>.stopped in --out says so, and it comes after all that was
stopped less often, trainings too.

A training for which time is up stops as Ctrl-C stops it. Its run stays in --runs, where the next call goes on. For a call elsewhere it
also goes in pieces to unfinished/ in --out, of 15 MiB at most. Pieces leave only while the call made fewer than eight files, new or
overwritten, and four at most; calls of `--minutes 0` bring the rest. What else a call makes is not limited. A call elsewhere finds the
pieces in unfinished/ of --out or of reports/reference/, and gathers them in --runs until they are complete.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpu_slices import HERE, PRESET, Slice, slices
from gpu_training import own_runs
from packing import complete, pack, pieces, unpack
from side_by_side import FOLDER, markdown

from robustlib.runs import Run

REFERENCE = HERE.parent / "reports" / "reference"
STOPPING, PACKING = 15.0, 45.0  # seconds for a step that is told to stop, and for the rest of the call
AT_A_TIME, FILES = 4, 8  # pieces that a call brings out at most; each only while it made fewer files
clock = time.monotonic


@dataclass
class Queue:
    """One call: where things are, when its time is up, and what failed."""

    slices: list[Slice]
    runs: Path
    out: Path
    end: float  # by `clock`; steps are stopped before, so that there is time to pack
    known: list[Path] = field(default_factory=list)  # other folders of products and pieces
    changed: bool = False  # whether the trainings may have other values than the preset's
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = self.files()
        self.slices = sorted(self.slices, key=self.stops)

    @property
    def until(self) -> float:
        """When steps are stopped."""
        return self.end - STOPPING - PACKING

    def done(self, part: Slice) -> bool:
        """Whether its product is there."""
        return any(part.products(place) for place in (self.out, *self.known))

    def stops(self, part: Slice) -> int:
        """How often time was up for a check or a table."""
        notes = [part.note(place) for place in (self.out, *self.known)]
        return max((len(note.read_text().splitlines()) for note in notes if note.exists()), default=0)

    def files(self) -> dict[Path, int]:
        """What is in `out`, and when each file was written last, in nanoseconds."""
        return {path: path.stat().st_mtime_ns for path in self.out.rglob("*") if path.is_file()}

    def work(self) -> None:
        """Does what fits, in order; what is stopped is packed, and nothing follows it."""
        begun = False
        for part in self.slices:
            left = self.until - clock()
            if left <= 0 or self.done(part) or (begun and part.minutes * 60 > left):
                continue
            begun = True
            print(
                f"# {part.name}: expected to take {part.minutes:.1f} of {left / 60:.1f} minutes\n$",
                *part.command,
                flush=True,
            )
            if not (self.train(part) if part.training else self.check(part)):
                print(f"# Time was up for {part.name}.", flush=True)
                return

    def check(self, part: Slice) -> bool:
        """Runs tests or a table; False if time was up, which is noted. Where no table was written, the output is the product."""
        folder = self.out / "gpu"
        with tempfile.TemporaryFile("w+") as output:
            code = wait(part.command, self.until, stdout=output, stderr=subprocess.STDOUT, env={FOLDER: str(folder)})
            output.seek(0)
            said = output.read()
        print(said, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        if code is None:
            part.note(self.out).write_text("Time was up.\n" * (self.stops(part) + 1))
            return False
        if not part.products(self.out):
            text = f"$ {' '.join(part.command)}\nexit code {code}\n\n{said}"
            (folder / f"{part.name}.txt").write_text(text)
        self.failed += [part.name] if code else []
        return True

    def train(self, part: Slice) -> bool:
        """Trains and evaluates a method, or goes on with it, and exports it; False if time was up."""
        from export_reference import export

        code, old = wait(part.command, self.until), pieces(self.places, part.name)
        if code is None:
            packed = [pack(run, self.runs, self.runs / "leaving") for run in self.unfinished(part.name)]
            for path in old if packed else []:
                path.unlink()
        elif code:
            self.failed.append(part.name)
        else:
            export(self.runs, PRESET, self.out / PRESET, changed=self.changed, method=part.name)
        return code is not None

    def unfinished(self, method: str) -> list[Run]:
        """The queue's own run of a method, where it is here."""
        return own_runs(method, self.runs, self.changed)

    @property
    def places(self) -> list[Path]:
        """Where this call may remove pieces."""
        return [self.out / "unfinished", self.runs / "arriving", self.runs / "leaving"]

    def arrive(self) -> None:
        """Gathers the pieces of unfinished trainings that are not here, and unpacks those that are complete."""
        here, places = self.runs / "arriving", [place / "unfinished" for place in (self.out, *self.known)]
        for part in self.slices:
            if not part.training or self.done(part) or self.unfinished(part.name):
                continue
            for path in (found := pieces(places, part.name)):
                here.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, here)
            if whole := complete([here], part.name):
                unpack(whole, self.runs)
                print(f"# {part.name} goes on from {len(whole)} pieces.", flush=True)
            elif found:
                print(f"# {part.name}: {len(pieces([here], part.name))} pieces are here, which is not all.", flush=True)

    def leave(self) -> None:
        """Removes the pieces of what is done, and brings out the next of what is not."""
        for part in self.slices:
            if self.done(part):
                for path in [*pieces(self.places, part.name), part.note(self.out)]:
                    path.unlink(missing_ok=True)
        waiting = [path for part in self.slices for path in pieces([self.runs / "leaving"], part.name)]
        made = self.files().items() - self.before.items()
        room = max(0, min(AT_A_TIME, FILES - len(made)))
        for path in waiting[:room]:
            (self.out / "unfinished").mkdir(parents=True, exist_ok=True)
            shutil.move(path, self.out / "unfinished" / path.name)
        if left := len(waiting[room:]):
            print(f"# {left} pieces wait in {self.runs}: call again with --minutes 0.", flush=True)


def wait(command: list[str], until: float, env: dict[str, str] | None = None, **options) -> int | None:
    """The exit code of a command; None where time was up: then it got SIGINT as by Ctrl-C, STOPPING seconds, and was killed."""
    # A machine that is taken away says so by SIGTERM.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with subprocess.Popen(command, env={**os.environ, **(env or {})}, start_new_session=True, **options) as process:
        try:
            while process.poll() is None and clock() < until:
                time.sleep(0.1)
            if (code := process.poll()) is not None:
                return code
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOPPING)
        finally:  # nor does what it started go on, here or after a Ctrl-C
            signal.signal(signal.SIGTERM, before)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return None


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--minutes", type=float, default=13.0, help="of this call; 0 moves pieces alone")
    parser.add_argument("--out", type=Path, help="default: reports/reference")
    parser.add_argument("--runs", type=Path, help="default: runs")
    parser.add_argument("--only", nargs="*", help="slices; all if not given")
    parser.add_argument("--list", action="store_true", help="print the slices and do nothing")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args(arguments)
    runs = options.runs or Path("runs/rehearsal/runs" if options.rehearse else "runs")
    out, known = options.out or (Path("runs/rehearsal/out") if options.rehearse else REFERENCE), [REFERENCE]
    parts = slices(options.data_root, runs, options.rehearse)
    parts = [part for part in parts if options.only is None or part.name in options.only]
    end = clock() + options.minutes * 60
    queue = Queue(parts, runs, out, end, [] if options.rehearse else known, changed=options.rehearse)
    if options.list:
        rows = [
            {
                "slice": p.name,
                "expected minutes": f"{p.minutes:.1f}",
                "why": p.why,
                "done": "yes" if queue.done(p) else "no",
            }
            for p in queue.slices
        ]
        print(markdown(rows))
        return 0
    queue.arrive()
    queue.work()
    queue.leave()
    left = [part.name for part in parts if not queue.done(part)]
    print(f"failed: {', '.join(queue.failed) or 'none'}; left to do: {', '.join(left) or 'none'}")
    return 1 if queue.failed else 0


if __name__ == "__main__":
    sys.exit(main())
