"""Memory of reading and writing data sets, as they grow.

    python -m benchmarks.data_memory --rows 1000 20000

For every format and size one process reads all rows, counts them with `RowAudit` and opens every
image; another writes the set back with every answer replaced. Each says its peak resident memory
and what it had once the modules were loaded (Linux). Writes docs/results/data_memory.{json,md}.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from purifier.data.audit import BadRowLimit, RowAudit
from purifier.data.dataset import check_row, open_dataset
from purifier.data.sample import Sample
from purifier.data.write_back import Change, write_changed
from purifier.evaluation.report import markdown_table

RESULTS = Path(__file__).parents[1] / "docs" / "results"
_MB = 1e6
_SIDE = 48
_WORDS = " and a striped shirt on a textured coloured background" * 10
_TASKS = ("read", "write")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, metavar=("TASK", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(TASKS[args.child[0]](Path(args.child[1]))))
        return 0
    rows = []
    for name in args.formats:
        for n_rows in args.rows:
            rows.append({"format": name, "rows": n_rows, **measure(name, n_rows)})
            print(json.dumps(rows[-1]), flush=True)
    command = f"python -m benchmarks.data_memory --rows {' '.join(map(str, args.rows))}"
    write(rows, command, args.out)
    return 0


def measure(name: str, n_rows: int) -> dict[str, float]:
    """Figures of one format and size, each from a process of its own."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = FORMATS[name](Path(folder) / "set", n_rows)
        label = path if path.is_file() else path / "metadata.jsonl"
        found["label_mb"] = round(label.stat().st_size / _MB, 1)
        for task in _TASKS:
            command = [sys.executable, "-m", "benchmarks.data_memory", "--child", task, str(path)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(result.stdout)
            assert figures.pop("rows") == n_rows
            found |= {f"{task}_{key}": value for key, value in figures.items()}
    return found


def read_all(path: Path) -> dict[str, float]:
    """Reads every row and opens its images."""
    loaded = memory_mb("VmRSS")
    audit = RowAudit(BadRowLimit(share=0.0))
    dataset = open_dataset(path)
    for row in dataset.rows():
        bad = check_row(row, dataset.images) if isinstance(row, Sample) else None
        audit.see(bad or row)
    audit.finish()
    return figures(audit.rows, loaded)


def write_all(path: Path) -> dict[str, float]:
    """Replaces every answer."""
    loaded = memory_mb("VmRSS")
    dataset = open_dataset(path)
    n_rows = 0

    def changes() -> Iterator[Change]:
        nonlocal n_rows
        for row in dataset.rows():
            assert isinstance(row, Sample)
            yield Change(n_rows, (f"A new answer{_WORDS}",), side={"seconds": 0.5})
            n_rows += 1

    write_changed(dataset, changes(), path.parent / "out")
    return figures(n_rows, loaded)


TASKS: dict[str, Callable[[Path], dict[str, float]]] = {"read": read_all, "write": write_all}


def figures(n_rows: int, loaded: float) -> dict[str, float]:
    """What a process reports at its end."""
    return {"rows": n_rows, "loaded_mb": loaded, "peak_mb": memory_mb("VmHWM")}


def memory_mb(which: str) -> float:
    """Resident memory of this process: `VmRSS` now, `VmHWM` at its peak."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(which))
    return round(int(line.split()[1]) * 1024 / _MB, 1)


def jpeg(number: int) -> bytes:
    """A small picture, unlike all others."""
    noise = random.Random(number).randbytes(3 * _SIDE**2)
    file = io.BytesIO()
    Image.frombytes("RGB", (_SIDE, _SIDE), noise).save(file, "JPEG")
    return file.getvalue()


def dialogue(mark: str) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": f"{mark}Describe this image in detail."},
        {"from": "gpt", "value": f"A bag{_WORDS}"},
    ]


def pictures(folder: Path, n_rows: int) -> None:
    folder.mkdir(parents=True)
    for number in range(n_rows):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))


def lines(path: Path, records: Iterator[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def llava_records(n_rows: int) -> Iterator[dict[str, Any]]:
    for n in range(n_rows):
        yield {"id": n, "image": f"{n}.jpg", "conversations": dialogue("<image>\n")}


def llava_json(folder: Path, n_rows: int) -> Path:
    pictures(folder / "images", n_rows)
    path = folder / "set.json"
    path.write_text(json.dumps(list(llava_records(n_rows)), indent=2))
    return path


def llava_jsonl(folder: Path, n_rows: int) -> Path:
    pictures(folder / "images", n_rows)
    return lines(folder / "set.jsonl", llava_records(n_rows))


def messages_jsonl(folder: Path, n_rows: int) -> Path:
    def records() -> Iterator[dict[str, Any]]:
        for n in range(n_rows):
            url = "data:image/jpeg;base64," + base64.b64encode(jpeg(n)).decode()
            parts = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "Describe this image in detail."},
            ]
            turns = [{"role": "user", "content": parts}]
            yield {"id": n, "messages": [*turns, {"role": "assistant", "content": _WORDS}]}

    folder.mkdir()
    return lines(folder / "set.jsonl", records())


def imagefolder(folder: Path, n_rows: int) -> Path:
    pictures(folder, n_rows)
    records = ({"file_name": f"{n}.jpg", "text": f"A bag{_WORDS}"} for n in range(n_rows))
    lines(folder / "metadata.jsonl", records)
    return folder


def parquet(folder: Path, n_rows: int, group: int = 1000) -> Path:
    folder.mkdir()
    path = folder / "set.parquet"
    rows = (
        {"id": n, "image": {"bytes": jpeg(n), "path": None}, "conversations": dialogue("<image>\n")}
        for n in range(n_rows)
    )
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group)
    return path


def parquet_one_group(folder: Path, n_rows: int) -> Path:
    return parquet(folder, n_rows, group=n_rows)


FORMATS: dict[str, Callable[[Path, int], Path]] = {
    "llava-json": llava_json,
    "llava-jsonl": llava_jsonl,
    "messages-jsonl with data URLs": messages_jsonl,
    "imagefolder-jsonl": imagefolder,
    "parquet, row groups of 1000": parquet,
    "parquet, one row group": parquet_one_group,
}


def write(rows: list[dict[str, Any]], command: str, folder: Path) -> None:
    """Writes the table and its data."""
    machine = f"Python {platform.python_version()}, pyarrow {pa.__version__}, {platform.machine()}"
    report = {"command": command, "machine": machine, "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_memory.json").write_text(json.dumps(report, indent=1) + "\n")
    names = ["loaded_mb", "peak_mb"]
    header = ["format", "rows", "label file, MB"]
    header += [f"{task}: {name.removesuffix('_mb')}, MB" for task in _TASKS for name in names]
    keys = ["label_mb", *(f"{task}_{name}" for task in _TASKS for name in names)]
    cells = [
        [str(row["format"]), str(row["rows"]), *(f"{row[key]:.1f}" for key in keys)] for row in rows
    ]
    text = (
        "# Memory of reading and writing data sets\n\n"
        "Peak resident memory of one process: *read* goes through all rows, compares their ids "
        "and decodes every image; *write* replaces every answer and writes the side table. "
        "*Loaded* is what the process had before, mostly the tensor library. A row group of "
        "parquet is decoded as a whole. "
        f"{machine}. `{command}`\n\n"
    )
    (folder / "data_memory.md").write_text(text + markdown_table(header, cells))


if __name__ == "__main__":
    sys.exit(main())
