"""Settings: precedence, inheritance, refusals, fingerprints; every configuration file loads."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from ray_ltdd.config import load_config, setting_names, validate, write_yaml
from ray_ltdd.errors import InputError
from ray_ltdd.stages.recover import RecoverConfig
from ray_ltdd.yaml_files import parse_override, read_yaml

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "c.yaml").write_text(text)
        return tmp_path / "c.yaml"

    return write


def test_precedence_and_origins(file):
    path = file("recover: {steps: 7, learning_rate: 3e-4}\n")
    loaded = load_config(path, ["recover.steps=9"])
    recover = loaded.config.recover
    assert (recover.steps, recover.learning_rate, recover.min_scale) == (9, 3e-4, 0.5)
    assert loaded.origins["recover.steps"] == "command line"
    assert loaded.origins["recover.learning_rate"] == str(path)
    assert loaded.origins["recover.min_scale"] == "default"


def test_experts_are_inherited_and_overridden(file):
    text = "experts: {epochs: 3}\nteacher: {training: {epochs: 5}}\nmore_teachers: [{member: 1}]\n"
    loaded = load_config(file(text), ["experts.batch_size=8"])
    config = loaded.config
    assert [config.observer.training.epochs, config.teacher.training.epochs, config.more_teachers[0].training.epochs] == [3, 5, 3]
    assert config.teacher.training.batch_size == 8
    assert loaded.origins["observer.training.epochs"].startswith("experts (")
    assert len(config.teachers) == 2


def test_teachers_of_other_seeds_differ_in_their_number_alone(file):
    config = load_config(file("teacher_seeds: 3\nteacher: {member: 4, training: {epochs: 5}}\nmore_teachers: [{member: 1}]\n")).config
    assert [teacher.member for teacher in config.teachers] == [4, 5, 6, 1]
    assert {teacher.model_copy(update={"member": 4}).model_dump_json() for teacher in config.teachers[:3]} == {config.teacher.model_dump_json()}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("teacher_seeds: 2\nmore_teachers: [{member: 2}, {member: 1}]\n", r"more_teachers\.1\.member=1"),
        ("more_teachers: [{member: 3}, {member: 3}]\n", r"more_teachers\.0\.member=3"),
        ("more_teachers: [{}]\n", r"more_teachers\.0\.member=0"),
        ("more_teachers: [{model: {width: 128, normalization: instance}}]\n", r"more_teachers\.0\.member=0"),
    ],
)
def test_a_teacher_that_would_count_twice_is_refused(file, text, place):
    with pytest.raises(InputError, match=place):
        load_config(file(text))


@pytest.mark.parametrize(("image_size", "same"), [(8, True), (32, True), (64, False)])
def test_a_teacher_of_the_depth_that_the_images_give_anyway_is_refused_where_they_are_known(file, image_size, same):
    config = load_config(file("teacher: {model: {width: 16}, member: 1}\nmore_teachers: [{model: {width: 16, depth: 3}, member: 1}]\n")).config
    with pytest.raises(InputError, match=r"^more_teachers\.0\.member=1: .*\.$") if same else nullcontext():
        config.require_different_teachers(image_size)


def test_a_section_that_a_file_leaves_empty_is_empty(file):
    path = file("recover:\nobserver:\nexperts: {epochs: 3}\n")
    for overrides, steps in ((["recover.steps=7"], 7), ([], RecoverConfig().steps)):
        config = load_config(path, overrides).config
        assert (config.recover.steps, config.observer.training.epochs) == (steps, 3)
    assert load_config(file("experts:\nobserver: {training: {epochs: 5}}\n")).config.observer.training.epochs == 5
    with pytest.raises(InputError, match=r"c\.yaml: data\.root \(it is None\)"):
        load_config(file("data: {root: }\n"))


def test_all_mistakes_at_once_with_the_nearest_name(file):
    path = file("recover: {stepz: 3}\nsplitt: {}\n")
    with pytest.raises(InputError) as caught:
        load_config(path, ["split.imbalance_factor=0.5", "distill.images_per_class=0", "epochs=4", "experts.epochs=0"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert f"{path}: there is no setting 'recover.stepz': did you mean 'recover.steps'?" in lines
    assert f"{path}: there is no setting 'splitt': did you mean 'split'?" in lines
    assert "command line: there is no setting 'epochs': did you mean 'experts.epochs'?" in lines
    assert any(line.startswith("command line: split.imbalance_factor (it is 0.5)") for line in lines)
    assert any(line.startswith("command line: distill.images_per_class (it is 0)") for line in lines)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("experst.epochs=3", "there is no setting 'experst': did you mean 'experts'?"),
        ("observer.traning.epochs=3", "there is no setting 'observer.traning': did you mean 'observer.training'?"),
        ("recover.steps.x=3", "recover.steps: input should be a valid integer."),
    ],
)
def test_a_mistyped_section_is_blamed_on_where_it_was_given(file, override, sentence):
    with pytest.raises(InputError) as caught:
        load_config(file("recover: {learning_rate: 0.1}\nselect_crops: {min_scale: 0.9}\n"), [override])
    assert str(caught.value) == f"command line: {sentence}"


def test_what_file_and_command_line_say_together_is_blamed_on_the_file(file):
    path = file("select_crops: {min_scale: 0.9}\n")
    with pytest.raises(InputError, match=rf"^{path}: select_crops: .*is above max_scale=0.5"):
        load_config(path, ["select_crops.max_scale=0.5"])


@pytest.mark.parametrize(
    ("text", "nested"),
    [
        ("experts.epochs: 3\n", "'experts.epochs' is written as one key there: nest it, experts: {epochs: ...}."),
        ("observer: {model.width: 3}\n", "'observer.model.width' is written as one key there: nest it, observer: {model: {width: ...}}."),
        ("observer.model: {width: 3}\n", "'observer.model' is written as one key there: nest it, observer: {model: ...}."),
    ],
)
def test_a_dotted_name_in_a_file_is_to_be_nested(file, text, nested):
    path = file(text)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: {nested}"


def test_a_sweep_is_no_experiment():
    path = CONFIGS / "sweep" / "digits_quick.yaml"
    with pytest.raises(InputError, match=rf"^{path} is a sweep: `ray-ltdd sweep {path}` runs it[^\n]*$"):
        load_config(path, ["recover.steps=3"])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "seed: 1\nseed: 2\n"])
def test_bad_yaml_is_refused(file, text):
    with pytest.raises(InputError):
        load_config(file(text))


@pytest.mark.parametrize(
    "text",
    [
        "observer: &e {model: {architecture: convnet, width: 32}}\nteacher: *e\n",
        "observer: {model: &m {architecture: convnet, width: 32}}\nteacher: {model: *m}\n",
        "observer: &e {model: {architecture: convnet, width: 32}}\nteacher: {<<: *e, member: 1}\n",
    ],
)
def test_an_override_of_what_an_alias_copies_stays_in_its_place(file, text):
    config = load_config(file(text), ["observer.model.width=8"]).config
    assert (config.observer.model.width, config.teacher.model.width) == (8, 32)


def test_an_alias_inside_what_it_names_is_refused(file):
    with pytest.raises(InputError, match=r"c\.yaml is not valid YAML: an alias stands inside what it names\."):
        load_config(file("recover: &x {betas: [*x]}\n"))


@pytest.mark.parametrize("text", ["recover.steps", "=3", "a=[1"])
def test_bad_overrides_are_refused(text):
    with pytest.raises(InputError, match="cannot"):
        parse_override(text)


@pytest.mark.parametrize("value", ["/tmp/my #1", "#1", "{a: x} # y", "a: 1 #2"])
def test_what_yaml_takes_for_a_comment_is_refused_in_an_override(value):
    with pytest.raises(InputError, match=r"takes # after a space for a comment; quote the value"):
        parse_override(f"data.path={value}")


@pytest.mark.parametrize(
    ("text", "value"), [("'/tmp/my #1'", "/tmp/my #1"), ("{a: 'x #1' }", {"a": "x #1"}), ("a#b ", "a#b"), ("|\n a #1\n", "a #1\n")]
)
def test_a_sharp_that_is_no_comment_is_taken(text, value):
    assert parse_override(f"data.path={text}") == ("data.path", value)


def test_a_bare_tilde_is_refused_in_an_override():
    with pytest.raises(
        InputError, match=r"^cannot use 'data\.path=~': ~ alone means no value in YAML; write data\.path=null, or the folder's path\.$"
    ):
        parse_override("data.path=~")
    assert parse_override("data.path='~'") == ("data.path", "~")


@pytest.mark.parametrize("value", ["2020-13-45", "!!int abc", "!!float x", "!!float _", "!!bool x", "{? !!seq [{a: 1}] : 1}"])
def test_a_value_that_is_none_of_its_kind_is_refused(file, value):
    with pytest.raises(InputError, match=r"^cannot read the value of 'name=.*: quote it"):
        parse_override(f"name={value}")
    with pytest.raises(InputError, match=r"^cannot read a value of .*c\.yaml \(.*\): quote it"):
        read_yaml(file(f"name: {value}\n"))


def test_overriding_below_a_value_is_refused(file):
    with pytest.raises(InputError, match="has no parts"):
        load_config(file("seed: 1\n"), ["seed.x=1"])


@pytest.mark.parametrize("name", ["output.root", "output.store", "data.root", "data.path"])
@pytest.mark.parametrize("address", ["s3://bucket/x", "gs://b", "hdfs://host:9000/x", "file:///x", "abfs+ssl://x"])
def test_an_address_where_a_folder_is_needed_is_refused(name, address):
    with pytest.raises(InputError) as caught:
        load_config(CONFIGS / "quickstart.yaml", [f"{name}={address}"])
    scheme = address.partition("//")[0] + "//"
    reason = f"addresses with {scheme} are not supported, a folder that all nodes see (on a mounted file system) is needed."
    assert str(caught.value) == f"command line: {name} (it is '{address}'): {reason}"


@pytest.mark.parametrize("folder", ["/mnt/a//b", "s3:x", "./a:b", "~/x", "//server/x"])
def test_every_path_of_a_folder_is_taken(folder):
    assert load_config(CONFIGS / "quickstart.yaml", [f"data.root='{folder}'"]).config.data.root == os.path.expanduser(folder)


@pytest.mark.parametrize("name", ["output.root", "output.store", "data.root", "data.path"])
def test_a_tilde_is_the_home_folder_for_every_path(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    section, key = name.split(".")
    assert getattr(getattr(load_config(CONFIGS / "quickstart.yaml", [f"{name}=~/x"]).config, section), key) == "/home/somebody/x"


def test_a_name_that_no_file_system_takes_is_refused():
    with pytest.raises(InputError, match=r"^command line: name .*: string should have at most 200 characters\.$"):
        load_config(CONFIGS / "quickstart.yaml", ["name=" + 201 * "a"])


@pytest.mark.parametrize("betas", ["[1.5, 0.9]", "[0.5, 1]", "[-0.1, 0.9]"])
def test_betas_are_shares(betas):
    with pytest.raises(InputError, match=r"recover\.betas\.\d"):
        load_config(CONFIGS / "quickstart.yaml", [f"recover.betas={betas}"])


def test_a_missing_file_names_the_nearest():
    with pytest.raises(InputError, match=r"did you mean .*quickstart\.yaml"):
        load_config(CONFIGS / "quikstart.yaml")


def test_a_link_to_nowhere_is_said(tmp_path):
    (tmp_path / "c.yaml").symlink_to("gone.yaml")
    with pytest.raises(InputError, match=r"^the configuration file .*c\.yaml is a link to gone\.yaml, which does not exist: mend the link\.$"):
        load_config(tmp_path / "c.yaml")


def test_every_configuration_file_loads():
    paths = sorted(path for path in [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("authors/*.yaml")] if path.name != "kuberay.yaml")
    assert len(paths) == 13
    for path in paths:
        load_config(path)


def test_dump_and_load_is_the_same_experiment(tmp_path):
    config = load_config(CONFIGS / "quickstart.yaml").config
    write_yaml(config, tmp_path / "settings.yaml")
    assert validate(read_yaml(tmp_path / "settings.yaml"), "x") == config


@pytest.mark.parametrize("override", ["name=other", "output.root=/x", "compute.threads=3", "data.root=/y"])
def test_fingerprint_ignores_names_and_folders(override):
    base = load_config(CONFIGS / "quickstart.yaml").config.fingerprint
    assert load_config(CONFIGS / "quickstart.yaml", [override]).config.fingerprint == base


@pytest.mark.parametrize(
    "override", ["seed=3", "split.name=b", "recover.steps=1", "evaluate.seeds=9", "experts.epochs=9", "compute.precision=bfloat16"]
)
def test_fingerprint_reacts_to_what_matters(override):
    base = load_config(CONFIGS / "quickstart.yaml").config.fingerprint
    assert load_config(CONFIGS / "quickstart.yaml", [override]).config.fingerprint != base


def test_setting_names_cover_every_stage():
    names = set(setting_names())
    assert {"recover.steps", "split.imbalance_factor", "relabel.views.batch_size", "teacher.training.epochs"} <= names
