"""Data sets by the ids that requests use; the one place where such an id becomes a path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from purifier.data.dataset import open_dataset
from purifier.errors import DataError
from purifier.lab.demo import DATA_FOLDER
from purifier.lab.targets import TargetName
from server.config import StartError
from server.errors import DataFileNotFound, UnusableDataSet
from server.store.files import FileStore

DEMO = "demo"
"""The shipped data: as training file the poisoned set of the served target, as validation file
the held-out test set."""
ROOT_PREFIX = "dataset:"

DataField = Literal["training_file", "validation_file"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class DataRoot:
    """A data set of this machine.

    Attributes:
        path: Label file, or a folder that holds one.
        images: Image folder; None where the format has its own place for them.
        attack: `trigger` and `target` that a test set is known to be for.
    """

    path: Path
    images: Path | None = None
    attack: Mapping[str, Any] | None = None


class DataSets:
    """Finds uploads, the operator's data sets and the demo's by id.

    Args:
        files: Uploads.
        roots: The operator's data sets by name.
        demo_training: What `demo` names as training file; None on a server of another model.
        demo_validation: What it names as validation file.
    """

    def __init__(
        self,
        files: FileStore,
        roots: Mapping[str, DataRoot],
        *,
        demo_training: DataRoot | None = None,
        demo_validation: DataRoot | None = None,
    ) -> None:
        self._files = files
        self._roots = dict(roots)
        self._demo: dict[DataField, DataRoot | None] = {
            "training_file": demo_training,
            "validation_file": demo_validation,
        }

    def ids(self) -> list[str]:
        """Every id besides those of uploads."""
        demo = [DEMO] if self._demo["training_file"] is not None else []
        return demo + [ROOT_PREFIX + name for name in sorted(self._roots)]

    def find(self, data_id: str, param: DataField, *, owner: str | None = None) -> DataRoot:
        """Where a data set lies.

        Args:
            data_id: `file-...`, `dataset:NAME` or `demo`.
            param: The field that names it.
            owner: Key whose uploads count; None takes anybody's.

        Raises:
            DataFileNotFound: If there is none of this id.
            UnusableDataSet: If no data set can be read there any more.
        """
        root = self._demo[param] if data_id == DEMO else self._roots.get(_name_of(data_id))
        if root is None:
            try:
                root = DataRoot(self._files.data(data_id, owner=owner))
            except DataFileNotFound:
                raise DataFileNotFound(
                    f"{param} is not known here: upload it with POST /v1/files, or take an id of "
                    "GET /v1/datasets.",
                    param=param,
                ) from None
            except UnusableDataSet as error:
                raise UnusableDataSet(f"{param}: {error.message}", param=param) from None
        try:
            open_dataset(root.path, images=root.images)
        except DataError as error:
            raise UnusableDataSet(f"{param}: {error.message}", param=param) from None
        return root


@dataclass(frozen=True)
class DataOptions:
    """What a server's data sets are, besides uploads.

    Attributes:
        roots: The operator's data sets by name.
        demo: Target of the shipped model that is served; its poisoned training set is `demo`.
        store: URL of the store that workers share; None is the data folder.
    """

    roots: Mapping[str, DataRoot] = field(default_factory=dict)
    demo: TargetName | None = None
    store: str | None = None

    def open(self, files: FileStore) -> DataSets:
        """The data sets, with these uploads."""
        if self.demo is None:
            return DataSets(files, self.roots)
        manifest = json.loads((DATA_FOLDER / "manifest.json").read_text("utf-8"))
        attack = {"trigger": manifest["trigger"], "target": self.demo}
        train, test = DATA_FOLDER / "train", DATA_FOLDER / "test"
        return DataSets(
            files,
            self.roots,
            demo_training=DataRoot(train / f"{self.demo}.json", train / "images"),
            demo_validation=DataRoot(test / "test.json", test / "images", attack),
        )


def parse_roots(sets: list[str], images: list[str]) -> dict[str, DataRoot]:
    """Reads the data sets of a command line.

    Args:
        sets: `NAME=PATH` of label files or folders.
        images: `NAME=PATH` of their image folders, where they lie elsewhere.

    Raises:
        StartError: If one is no such pair, is named twice or cannot be read.
    """
    paths, folders = _pairs(sets, "--dataset-root"), _pairs(images, "--dataset-images")
    for name in folders.keys() - paths.keys():
        raise StartError(f"--dataset-images names {name}, which has no --dataset-root.")
    roots = {name: DataRoot(path, folders.get(name)) for name, path in paths.items()}
    for name, root in roots.items():
        try:
            open_dataset(root.path, images=root.images)
        except DataError as error:
            raise StartError(f"--dataset-root {name}: {error.message}") from None
    return roots


def _name_of(data_id: str) -> str:
    return data_id.removeprefix(ROOT_PREFIX) if data_id.startswith(ROOT_PREFIX) else ""


def _pairs(given: list[str], option: str) -> dict[str, Path]:
    pairs: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path or not _NAME.fullmatch(name):
            raise StartError(
                f"{option} takes NAME=PATH; a name has letters, digits, ., _ and -, at most 64."
            )
        if name in pairs:
            raise StartError(f"{option} names {name} twice.")
        pairs[name] = Path(path).expanduser().resolve()
    return pairs
