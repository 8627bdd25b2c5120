"""The 19 tasks of CuriaBench as data: `known/NAME.json`, one a task, from its public card, uploader and trainer.

What is not published is null there. Names of classes are not, so classes are called by their numbers.
"""

import functools
import json
from importlib import resources
from typing import TypedDict


class Known(TypedDict):
    """A task of CuriaBench. `folders`: names under which it is published or kept; `classes`: how many; `mask`: whether
    samples have one, null = look; `track`: 2d or 3d; `primary`: the score that its authors report."""

    name: str
    title: str
    dataset: str | None
    folders: list[str]
    kind: str
    classes: int | None
    track: str | None
    mask: bool | None
    modality: str
    primary: str | None
    head: str | None
    mask_rule: str | None


@functools.cache
def known_tasks() -> tuple[Known, ...]:
    """All 19, by name."""
    folder = resources.files(__package__).joinpath("known")
    files = sorted((path for path in folder.iterdir() if path.name.endswith(".json")), key=lambda path: path.name)
    return tuple(json.loads(path.read_text("utf-8")) for path in files)


def known_task(folder: str) -> Known | None:
    """The task that a folder of this name holds, if it is one of CuriaBench's."""
    return next((task for task in known_tasks() if folder in task["folders"]), None)
