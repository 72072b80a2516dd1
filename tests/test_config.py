"""What `test_settings.py` leaves: every name misspelt, every value's origin, every file dumped and read again, values as YAML 1.2 reads them."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ltdd.config import ExperimentConfig, load_config, setting_names, validate, write_yaml
from ray_ltdd.errors import InputError
from ray_ltdd.yaml_files import parse_override, read_yaml

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = [path for path in sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("authors/*.yaml")]) if path.name != "kuberay.yaml"]
NAMES = [name for name in setting_names() if name != "more_teachers"]


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    return tmp_path / "c.yaml"


def set_at(name, value):
    values = inner = {}
    *sections, last = name.split(".")
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    return values


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from([name for name in NAMES if len(name.rpartition(".")[2]) > 4]), data=st.data())
def test_a_letter_too_few_is_noticed_and_the_right_name_is_offered(name, data):
    section, dot, last = name.rpartition(".")
    at = data.draw(st.integers(0, len(last) - 1))
    wrong = f"{section}{dot}{last[:at]}{last[at + 1 :]}"
    if wrong in NAMES:
        return
    with pytest.raises(InputError) as caught:
        validate(set_at(wrong, 1), "file")
    # a wrong name under `experts` is wrong in the roles that inherit it, too, and is said once
    assert str(caught.value) == f"file: there is no setting '{wrong}': did you mean '{name}'?"


def test_every_default_can_be_written_out(empty):
    """Each setting's own default, given by its dotted name, is accepted and changes nothing but its origin."""
    plain = load_config(empty)
    for name in NAMES:
        value = plain.config.model_dump(mode="json")
        for part in name.split("."):
            value = value[part]
        text = json.dumps(value)
        loaded = load_config(empty, [f"{name}={text}"])
        assert loaded.config == plain.config, name
        assert {n for n, origin in loaded.origins.items() if origin == "command line"} == {name}
    assert set(plain.origins.values()) == {"default"} and set(plain.origins) == set(setting_names())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_dump_is_the_same_experiment(tmp_path, path):
    config = load_config(path).config
    write_yaml(config, tmp_path / "dump.yaml")
    again = load_config(tmp_path / "dump.yaml").config
    assert again == config and again.fingerprint == config.fingerprint
    assert config.run_folder.name == f"{config.name}-{config.fingerprint[:8]}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1", 1),
        ("null", None),
        ("[random]", ["random"]),
        ("'1'", "1"),
        ("a=b", "a=b"),
        ("{epochs: 3}", {"epochs": 3}),
    ],
)
def test_values_are_yaml(text, value):
    assert parse_override(f"a.b={text}") == ("a.b", value)


@pytest.mark.parametrize(
    "override", ["recover.steps=x", "recover.learning_rate=x", "compute.device=x", "evaluate.baselines=[x]", "recover.betas=[0.5, x]", "data=3"]
)
def test_the_wrong_kind_of_value_is_one_sentence(empty, override):
    with pytest.raises(InputError, match=rf"^command line: {override.partition('=')[0]}[^\n]*\.$"):
        load_config(empty, [override])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_numbers_that_are_none_are_refused(empty, value):
    with pytest.raises(InputError, match=r"^command line: recover\.learning_rate"):
        load_config(empty, [f"recover.learning_rate={value}"])


def test_a_whole_section_replaces_what_the_file_says_of_it(tmp_path):
    (tmp_path / "c.yaml").write_text("experts: {epochs: 3, batch_size: 8}\n")
    loaded = load_config(tmp_path / "c.yaml", ["experts={epochs: 5}"])
    assert (loaded.config.experts.epochs, loaded.config.experts.batch_size) == (5, 64)
    assert (loaded.origins["experts.epochs"], loaded.origins["experts.batch_size"]) == ("command line", "default")
    assert loaded.origins["observer.training.epochs"] == "experts (command line)"


def test_of_two_overrides_the_later_wins(empty):
    assert load_config(empty, ["seed=1", "seed=2"]).config.seed == 2


def test_a_wrong_value_that_three_roles_inherit_is_said_once(empty):
    with pytest.raises(InputError) as caught:
        load_config(empty, ["experts.epochs=0", "more_teachers=[{member: 1}]"])
    assert str(caught.value).splitlines() == [str(caught.value)] and "experts.epochs (it is 0)" in str(caught.value)


def test_problems_inside_a_list_name_their_place(empty):
    with pytest.raises(InputError, match=r"more_teachers\.0\.model\.width \(it is -1\)"):
        load_config(empty, ["more_teachers=[{model: {width: -1}}]"])


@pytest.mark.parametrize("text", ["experts: 3\n", "observer: x\n", "more_teachers: 5\n", "more_teachers: [1]\n", "1: 2\n", "recover: [1]\n"])
def test_the_wrong_shape_is_a_sentence_and_no_traceback(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError):
        load_config(tmp_path / "c.yaml")


def test_what_cannot_be_read_as_text_is_one_sentence(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "c.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot read the configuration file"):
            read_yaml(path)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(NAMES))
def test_the_fingerprint_ignores_names_folders_and_the_machine_only(name):
    change = {"name": "other", "data.path": "/x", "data.root": "/x", "compute.threads": 7, "compute.device": "cpu"}
    change |= {"output.root": "/x", "output.store": "/x", "output.checkpoint_seconds": 1.5, "relabel.epochs_per_task": 3}
    base = ExperimentConfig().fingerprint
    if name.startswith("cluster.") and name != "cluster.expert_workers":
        change[name] = {"cluster.executor": "inline", "cluster.address": "10.0.0.1:6379", "cluster.keep_hosts": True}.get(name, 3)
    if name in change:
        assert validate(set_at(name, change[name]), "x").fingerprint == base
        return
    for value in (
        1,
        2,
        0.51,
        "other",
        True,
        False,
        "random",
        "one",
        "off",
        "float32",
        "resnet18",
        "batch",
        "sgd",
        "validation",
        "cifar10_lt",
        [1, 2],
    ):
        try:
            config = validate(set_at(name, value), "x")
        except InputError:
            continue
        if config != ExperimentConfig():
            assert config.fingerprint != base, (name, value)
