"""Every command and every setting the documents show is one that loads: a figure whose command has a typo cannot be made again."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from ray_ltdd.config import ExperimentConfig, load_config
from ray_ltdd.errors import InputError
from ray_ltdd.search.config import SweepConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = {"README.md": 14, "docs/analysis.md": 2, "docs/cluster.md": 2, "docs/results.md": 18, "docs/sweeps.md": 0, "analysis/data/README.md": 9}
"""And how many lists of settings each shows at least."""

SETTING = re.compile(r"([a-z_]+)(\.[a-z_]+)*=\S.*", re.DOTALL)
OF_SWEEPS = set(SweepConfig.model_fields) - set(ExperimentConfig.model_fields)


def settings_shown(text):
    """(configuration or None, overrides) of every `ray-ltdd run` line, every code span and every shell variable that begin with a setting."""
    runs = re.findall(r"^ *ray-ltdd run((?:\\\n|[^#\n`])*)", text, re.MULTILINE) + re.findall(r"`ray-ltdd run([^`]*)`", text)
    lists = re.findall(r"(?<!`)`(?:\.\.\. )?([^`]+)`(?!`)", text) + re.findall(r'^\w+="([^"$]+)"', text, re.MULTILINE)
    for words in map(shlex.split, runs):
        config = re.search(r"configs/\S+\.yaml", words[0]) if words else None
        if config:
            yield config[0], [word for word in words if SETTING.fullmatch(word)]
    for words in filter(None, map(shlex.split, lists)):
        first = SETTING.fullmatch(words[0])
        if first and first[2] and first[1] not in OF_SWEEPS:
            yield None, [word for word in words if SETTING.fullmatch(word)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_setting_shown_loads(document):
    problems, shown = [], list(settings_shown((ROOT / document).read_text()))
    for config, overrides in shown:
        try:
            load_config(ROOT / (config or "configs/cifar10_lt_adamw.yaml"), overrides)
        except InputError as error:
            problems.append(f"{' '.join(overrides)}: {error}")
    assert not problems
    assert len(shown) >= DOCUMENTS[document]


def test_settings_are_found_in_text():
    text = (
        "`ray-ltdd run configs/a.yaml data.x=1 'teacher={e: 2}'` and `... split.g=h seed=3`, not `plain`, `data.path=`, `pruner.kind=none`, `x=1`\n"
        "  ray-ltdd run configs/k.yaml \\\n    split.m=4  # why\n"
        "as `ray-ltdd run configs/b.yaml seed=1\nseed=2` does\n"
        'variable="evalaute.epochs=1 relabel.tau=2"\n'
    )
    assert list(settings_shown(text)) == [
        ("configs/k.yaml", ["split.m=4"]),
        ("configs/a.yaml", ["data.x=1", "teacher={e: 2}"]),
        ("configs/b.yaml", ["seed=1", "seed=2"]),
        (None, ["split.g=h", "seed=3"]),
        (None, ["evalaute.epochs=1", "relabel.tau=2"]),
    ]


BENCHMARKS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


def options_of(benchmark):
    """Run it as its command line does, but for its help alone; return the options listed there."""
    path, said = str(ROOT / "benchmarks" / benchmark), io.StringIO()
    with patch.object(sys, "argv", [path, "--help"]), redirect_stdout(said), pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    assert end.value.code == 0
    return set(re.findall(r"--[a-z-]+", said.getvalue().split("\noptions:\n")[1]))


def options_shown(benchmark):
    """All that follow its name in a document or in its own first lines."""
    texts = [(ROOT / name).read_text() for name in DOCUMENTS] + [(ROOT / "benchmarks" / benchmark).read_text().split('"""')[1]]
    commands = [re.split(r"`|\n\n", text)[0] for whole in texts for text in whole.split(f"benchmarks/{benchmark}")[1:]]
    assert commands
    return {option for command in commands for option in re.findall(r"(?<=[ \[])--[a-z-]+", command)}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_benchmark_starts_and_has_the_options_shown(benchmark):
    assert options_shown(benchmark) <= options_of(benchmark)


def test_every_benchmark_shown_is_there():
    shown = {name for document in DOCUMENTS for name in re.findall(r"benchmarks/(\w+\.py)", (ROOT / document).read_text())}
    assert shown and shown <= set(BENCHMARKS)
