"""Every command and every setting the documents show is one that loads: a figure whose command has a typo cannot be made again."""

import re
import shlex
from pathlib import Path

import pytest

from ray_ltdd.config import ExperimentConfig, load_config
from ray_ltdd.errors import InputError

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "analysis" / "data" / "README.md")
SETTING = re.compile(rf"({'|'.join(ExperimentConfig.model_fields)})(\.[a-z_]+)*=\S.*", re.DOTALL)


def settings_shown(text):
    """(configuration or None, overrides) of every `ray-ltdd run` line and of every code span that begins with a setting."""
    blocks = re.findall(r"^ray-ltdd run[^#\n`]*", text, re.MULTILINE)
    for span in [*blocks, *re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]:
        words = shlex.split(span.removeprefix("... "))
        config = next((word for word in words if word.startswith("configs/") and word.endswith(".yaml")), None)
        overrides = [word for word in words if SETTING.fullmatch(word)]
        shows_a_run = words[:2] == ["ray-ltdd", "run"] and config is not None
        if shows_a_run or (words and SETTING.fullmatch(words[0])):
            yield config, overrides


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_shown_loads(document):
    problems = []
    for config, overrides in settings_shown(document.read_text()):
        try:
            load_config(ROOT / (config or "configs/cifar10_lt.yaml"), overrides)
        except InputError as error:
            problems.append(f"{' '.join(overrides)}: {error}")
    assert not problems


def test_settings_are_found_in_text():
    text = (
        "`ray-ltdd run configs/a.yaml data.x=1 'teacher={e: 2}'` and `... split.g=h seed=3`, not `plain`, `data.path=`, `other.x=1`\n"
        "ray-ltdd run configs/k.yaml split.m=4  # why"
    )
    assert list(settings_shown(text)) == [
        ("configs/k.yaml", ["split.m=4"]),
        ("configs/a.yaml", ["data.x=1", "teacher={e: 2}"]),
        (None, ["split.g=h", "seed=3"]),
    ]
