"""The command line in this process: what every command prints, and that bad input is plain sentences, one a problem, and status 2."""

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, TINY
from PIL import Image

from ray_ltdd.cli import main
from ray_ltdd.config import load_config, setting_names, write_yaml
from ray_ltdd.errors import InputError
from ray_ltdd.kernels.build import library
from ray_ltdd.kernels.serving import multiply_bfloat16
from ray_ltdd.runs import reopen_config

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a command in `tmp_path`; returns its status, what it printed and what it said on standard error."""
    monkeypatch.chdir(tmp_path)
    # the command line shows warnings its own way; what pytest does with them comes back afterwards
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ray-ltdd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def refused(outcome, n_problems=1):
    status, printed, said = outcome
    lines = said.splitlines()
    assert status == 2 and not printed and "Traceback" not in said, said
    assert len(lines) == n_problems and all(line.startswith("ray-ltdd: ") for line in lines), said
    return said


def test_show_prints_every_setting_and_its_origin(call):
    status, printed, _ = call("show", QUICKSTART, "recover.steps=9")
    lines = dict(line.split(" = ", 1) for line in printed.splitlines())
    assert status == 0 and set(setting_names()) - {"more_teachers"} <= set(lines)
    assert lines["recover.steps"] == "9  # command line"
    assert lines["distill.images_per_class"] == f"5  # {QUICKSTART}"
    assert lines["recover.learning_rate"].endswith("# default") and lines["teacher.training.epochs"] == f"40  # experts ({QUICKSTART})"


def test_show_says_what_settings_mean(call):
    status, printed, _ = call("show", QUICKSTART, "recover.layer_weights={encoder.blocks.0.1: 2}", "--meanings")
    lines = printed.splitlines()
    assert status == 0 and "recover.layer_weights.encoder.blocks.0.1 = 2.0  # command line; weights of single monitored layers" in printed
    assert "cluster.workers = null  # default; most expert hosts at work; empty: as many as fit the GPUs, or the CPUs where there are none" in lines
    assert all(len(line.split("; ", 1)[1]) > 8 for line in lines)


def test_show_prints_names_that_hold_dots(call):
    status, printed, _ = call("show", QUICKSTART, "recover.layer_weights={encoder.blocks.0.1: 2}")
    assert status == 0 and "recover.layer_weights.encoder.blocks.0.1 = 2.0  # command line" in printed.splitlines()


def test_show_refuses_what_run_would(call):
    said = refused(call("show", QUICKSTART, "output.root=s3://bucket/x"))
    assert "output.root (it is 's3://bucket/x'): addresses with s3:// are not supported" in said


def test_what_standard_output_cannot_say_is_replaced(monkeypatch, tmp_path):
    (tmp_path / "ü.yaml").write_text("seed: 3\n")
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["ray-ltdd", "show", str(tmp_path / "ü.yaml")])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as ended:
        main()
    printed.flush()
    assert not ended.value.code and b"/?.yaml" in printed.buffer.getvalue()


def test_show_as_json_is_the_resolved_settings(call):
    status, printed, _ = call("show", QUICKSTART, "--json")
    assert status == 0 and json.loads(printed) == load_config(QUICKSTART).config.model_dump(mode="json")


def test_what_show_prints_can_be_run_again(call, tmp_path):
    write_yaml(load_config(QUICKSTART).config, tmp_path / "all.yaml")
    assert call("show", tmp_path / "all.yaml", "--json")[1] == call("show", QUICKSTART, "--json")[1]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return f"data.root={tmp_path_factory.mktemp('data')}"


def test_data_prepare_says_what_there_is_and_where(call, data_root):
    status, printed, _ = call("data", "prepare", "digits_lt", data_root)
    assert status == 0 and "1,297 training and 500 test images" in printed
    assert (Path(printed.splitlines()[-1].removeprefix("prepared in ")) / "train_images.npy").exists()


def test_data_describe(call, data_root, tmp_path):
    status, printed, _ = call("data", "describe", "digits_lt", data_root, "split.imbalance_factor=10")
    assert status == 0 and "fingerprint" in printed and "█" in printed
    assert (tmp_path / "digits_lt-exponential-if10-main-s0.png").stat().st_size > 5000
    status, printed, said = call("data", "describe", QUICKSTART, data_root, "--json", "--output", tmp_path / "x.png")
    facts = json.loads(printed)
    assert (
        status == 0
        and not said
        and facts["count_per_class"] == [110, 85, 65, 51, 39, 30, 23, 18, 14, 11]
        and facts["figure"] == str(tmp_path / "x.png")
    )
    for command in (["data", "describe", "digits_lt", data_root], ["export", tmp_path / "runs"]):
        status, _, said = call(*command, "--output", tmp_path)
        assert status == 2 and "Traceback" not in said
    assert f"{tmp_path} is a folder: set --output to a file" in call("data", "describe", "digits_lt", data_root, "--output", tmp_path)[2]


@pytest.mark.parametrize("override", ["seed=3", "name=mine"])
def test_data_commands_take_every_setting_by_name(call, data_root, override):
    assert call("data", "prepare", "digits_lt", data_root, override)[0] == 0


def test_doctor(call):
    status, printed, _ = call("doctor", "--json")
    facts = json.loads(printed)
    kernels = "none" if library() is None else "compiled, bfloat16 products" if multiply_bfloat16() else "compiled"
    assert facts["facts"]["own kernels"] == kernels
    assert status == 0 and {"device", "threads", "bfloat16", "torch", "free disk here", "free memory"} <= facts["facts"].keys()
    assert all(isinstance(sentence, str) and sentence.endswith(".") for sentence in facts["advice"])
    status, printed, _ = call("doctor")
    assert status == 0 and facts["facts"]["torch"] in printed


def test_doctor_and_compilation_mean_the_same_compiler(call, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    # compiled before, they would make up for it
    monkeypatch.setattr("ray_ltdd.compute.library", lambda: None)
    found = json.loads(call("doctor", "--json")[1])
    assert found["facts"]["C++ compiler"] == "none" and any("compute.compile=off" in sentence for sentence in found["advice"])


def test_doctor_says_that_bfloat16_needs_a_compiler_beside_our_kernels(call, monkeypatch):
    monkeypatch.setattr("ray_ltdd.doctor.cpp_compiler", lambda: None)
    monkeypatch.setattr("ray_ltdd.doctor.has_own_kernels", lambda _: True)
    for bfloat16 in (True, False):
        monkeypatch.setattr("ray_ltdd.doctor.has_bfloat16", lambda _, has=bfloat16: has)
        advice = json.loads(call("doctor", "--json")[1])["advice"]
        assert any("compute.compile=off" in sentence for sentence in advice) == bfloat16


def test_help_is_no_failure(call):
    status, printed, said = call("--help")
    assert status == 0 and "evaluate" in printed and not said


def test_all_problems_are_said_at_once(call):
    said = refused(call("run", QUICKSTART, "recover.stepz=1", "split.imbalance_factor=0.5", "distill.images_per_class=0", "sed=1"), 4)
    assert "did you mean 'recover.steps'?" in said and "did you mean 'seed'?" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "nothing.yaml"), "there is no configuration file nothing.yaml"),
        (("run", QUICKSTART, "recover.steps"), "cannot use 'recover.steps': overrides are written name=value"),
        (("run", QUICKSTART, "recover.steps=many"), "recover.steps (it is 'many')"),
        (("run", QUICKSTART, "evaluate.model.architecture=vgg12"), "did you mean 'vgg11'?"),
        (("run", QUICKSTART, "teacher.function_matching.epoch=9"), "did you mean 'teacher.function_matching.epochs'?"),
        (("data", "prepare", "cifar11_lt"), "did you mean cifar10_lt?"),
        (("data", "describe", "digits_lt", "split.imbalance_factr=3"), "did you mean 'split.imbalance_factor'?"),
        (("gallery", "."), "is no run"),
        (("evaluate", "nowhere"), "is no run"),
    ],
    ids=lambda value: " ".join(value).replace(str(ROOT), "") if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence(call, arguments, sentence):
    assert sentence in refused(call(*arguments))


@pytest.mark.parametrize("arguments", [("frobnicate",), ("run",), ("run", QUICKSTART, "--frobnicate"), ("evaluate", ".", "--seeds", "many")])
def test_bad_usage_is_one_sentence(call, arguments):
    assert "`ray-ltdd --help` lists the commands" in refused(call(*arguments))


@pytest.fixture
def opened(call, data_root, tmp_path):
    """A run's folder before anything was computed: its first expert cannot be trained at this rate."""
    status, _, said = call("run", QUICKSTART, *TINY, data_root, "output.root=runs", "experts.learning_rate=1e20", "experts.epochs=1")
    assert status == 2 and "NaN or infinite" in said
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.name != "store"]
    return folder


def test_colours_of_grey_images_are_refused_before_anything_is_trained(call, data_root, tmp_path):
    colours = ["relabel.views.hue=0.1", "relabel.views.saturation=0.5"]
    for wanted, named in ((colours, " and ".join(colours)), (["experts.hue=0.1"], "observer.training.hue=0.1")):
        status, printed, said = call("run", QUICKSTART, data_root, "output.root=runs", *wanted)
        assert status == 2 and not printed and "Traceback" not in said
        assert f"{named} would change colours, but the images' channels are 1, not 3: set 0." in said
    assert not (tmp_path / "runs" / "store" / "experts").exists()


@pytest.mark.parametrize("unusable", ["relabel.views.hue=0.1", "split.imbalance_factor=1000", "data.path=nowhere"])
def test_a_run_that_is_refused_leaves_no_folder(call, data_root, tmp_path, unusable):
    status, _, said = call("run", QUICKSTART, data_root, "output.root=runs", unusable)
    assert status == 2 and "Traceback" not in said
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name != "store"] == []


def test_what_cannot_be_tested_is_refused_before_anything_is_trained(call, data_root, tmp_path):
    for wanted, sentence in (
        (["evaluate.part=validation", "evaluate.baselines=[]"], "evaluate.part=validation, but the split sets no images aside"),
        (["evaluate.model.depth=9"], "depth"),
        (["more_teachers=[{model: {depth: 9}}]"], "depth"),
        (["teacher.model.depth=null", "more_teachers=[{model: {width: 8, depth: 3}}]"], "more_teachers.0.member=0: another teacher has the same"),
    ):
        status, printed, said = call("run", QUICKSTART, *TINY, data_root, "output.root=runs", *wanted)
        assert status == 2 and not printed and "Traceback" not in said and sentence in said, said
    assert not (tmp_path / "runs" / "store" / "experts").exists()


def test_one_folder_is_of_one_dataset(call, tmp_path):
    for name in "ab":
        for part in ("train", "test"):
            for label in ("cat", "dog"):
                (tmp_path / name / part / label).mkdir(parents=True)
                for i in range(20):
                    pixels = np.random.default_rng([ord(name), i]).integers(0, 256, (16, 16), np.uint8)
                    Image.fromarray(pixels).save(tmp_path / name / part / label / f"{i}.png")
    settings = [*TINY, "experts.learning_rate=1e20", "data.dataset=image_folder", "data.root=data", "output.root=runs", "split.imbalance_factor=2"]
    assert "NaN or infinite" in call("run", QUICKSTART, *settings, "data.path=a")[2]
    (tmp_path / "a").rename(tmp_path / "moved")
    assert "NaN or infinite" in call("run", QUICKSTART, *settings, "data.path=moved")[2]
    status, printed, said = call("run", QUICKSTART, *settings, "data.path=b")
    assert status == 2 and not printed and "has results of other data" in said and "name=" in said and "Traceback" not in said
    status, _, said = call("run", QUICKSTART, *settings, "data.path=b", "name=b")
    assert status == 2 and "NaN or infinite" in said


def test_a_damaged_run_is_one_sentence(call, opened):
    settings = (opened / "settings.yaml").read_text()
    for broken, sentence in ((settings + "a: [", "is not valid YAML"), (settings.replace("recover:", "recoverr:"), "did you mean 'recover'?")):
        (opened / "settings.yaml").write_text(broken)
        assert sentence in refused(call("evaluate", opened))


def test_what_a_run_is_reopened_with_goes_into_an_empty_section_and_not_into_a_single_value(tmp_path):
    (tmp_path / "settings.yaml").write_text("evaluate:\n")
    assert reopen_config(tmp_path, ["evaluate.seeds=2"]).evaluate.seeds == 2
    (tmp_path / "settings.yaml").write_text("evaluate: 3\n")
    with pytest.raises(InputError, match=r"settings\.yaml: evaluate \(it is 3\)"):
        reopen_config(tmp_path, ["evaluate.seeds=2"])


def test_an_empty_settings_file_is_not_a_run_of_defaults(tmp_path):
    (tmp_path / "settings.yaml").write_text("")
    with pytest.raises(InputError, match="is no run"):
        reopen_config(tmp_path)


@pytest.mark.parametrize(("options", "sentence"), [(("--student", "vgg12"), "did you mean 'vgg11'?"), (("--seeds", "0"), "evaluate.seeds (it is 0)")])
def test_evaluate_with_bad_options_is_one_sentence(call, opened, options, sentence):
    assert sentence in refused(call("evaluate", opened, *options))
