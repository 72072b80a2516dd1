"""What the page says where little is there, and of experts: sentences, without a look at the page around them."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from synthetic_rows import row, settings_with, write

from ray_ltdd.config import validate, write_yaml
from ray_ltdd.results.load import load_results
from ray_ltdd.results.report.contents import RunContents
from ray_ltdd.results.report.facts import imbalance
from ray_ltdd.results.report.method import steps
from ray_ltdd.results.report.outcome import published_tables
from ray_ltdd.results.report.page import write_report
from ray_ltdd.results.report.several import several

RESNET = {"model": {"architecture": "resnet9", "width": 32}, "training": {"epochs": 15, "batch_size": 64}}
CONVNET = {"model": {"architecture": "convnet"}, "training": {"epochs": 45, "batch_size": 16, "debias": False}}
MATCHED = {"model": {"architecture": "convnet"}, "taught_by": "observer", "function_matching": {"epochs": 250}}


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        (
            {"observer": RESNET, "teacher": RESNET},
            "One ResNet-9 (width 32) is observer and teacher, trained for 15 epochs in batches of 64, with debiasing.",
        ),
        (
            {"observer": RESNET, "teacher": RESNET, "teacher_seeds": 3, "more_teachers": [CONVNET]},
            "One ResNet-9 (width 32) is observer and teacher, trained for 15 epochs in batches of 64, with debiasing; with 2 more teachers of its "
            "settings; a further teacher is a ConvNet-3, trained for 45 epochs in batches of 16, without debiasing.",
        ),
        (
            {"observer": RESNET, "teacher": CONVNET | {"taught_by": "observer"}, "teacher_seeds": 2, "more_teachers": [RESNET | {"member": 1}]},
            "The observer is a ResNet-9 (width 32), trained for 15 epochs in batches of 64, with debiasing; 2 teachers are each a ConvNet-3, trained "
            "for 45 epochs in batches of 16, without debiasing, taught by the observer besides; a further teacher is a ResNet-9 (width 32), trained "
            "for 15 epochs in batches of 64, with debiasing.",
        ),
        (
            {"observer": RESNET, "teacher": MATCHED},
            "The observer is a ResNet-9 (width 32), trained for 15 epochs in batches of 64, with debiasing; the teacher is a ConvNet-3, trained for "
            "250 epochs in batches of 64 on the observer's logits (function matching).",
        ),
    ],
)
def test_every_expert_is_named_with_its_own_training(experts, said):
    settings = validate({"data": {"dataset": "cifar10_lt"}} | experts, "test").model_dump(mode="json")
    (name, sentence), *_ = steps(RunContents(Path(), settings, None, None, None, None, ()))
    assert (name, sentence) == ("Experts", said)


def test_nothing_but_trials_or_nothing_at_all(tmp_path):
    known = {"sweep": "s", "cell": "a-cell", "study": "a-cell-0a1b2c3d", "role": "trial", "trial": 0, "params": "{}"}
    path = write(tmp_path, row(settings=settings_with(evaluate__part="validation"), state="complete", **known))
    text = write_report(tmp_path).read_text()
    assert "No final run yet; 1 cell of a sweep with 1 trial." in text and "<h2>Runs</h2>" not in text
    path.write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged"):
        assert "No network has been tested to its end yet." in write_report(tmp_path).read_text()


def unfinished(root):
    """The folder of a run of which there are only settings; runs beside it are looked at, too."""
    (root / "run").mkdir()
    write_yaml(validate(settings_with(), "test"), root / "run" / "settings.yaml")
    return root / "run"


@pytest.mark.parametrize(("state", "top1"), [("pruned", 0.3), ("failed", None), ("complete", None), ("damaged", None)])
def test_a_run_without_a_finished_network_says_so(tmp_path, state, top1):
    folder = unfinished(tmp_path)
    path = write(folder, row(state=state) | {"top1": top1})
    if state == "damaged":
        path.write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged") if state == "damaged" else nullcontext():
        text = write_report(folder).read_text()
    assert text.count("No network has been tested to its end") == 1 and "All resolved settings" in text


def test_rows_without_an_accuracy_are_counted_and_left_out(tmp_path):
    folder = unfinished(tmp_path)
    write(folder, row(top1=0.5), row(number=1) | {"top1": None})
    text = write_report(folder).read_text()
    assert "1 of 2 result rows have no accuracy and are left out." in text and "<strong>50.0 %</strong><span>ConvNet-3, 1 student," in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"select_crops__method": "random"}, "The method: 38.7 %, 8.4 points below the published 47.1 % (RLDD)."),
        ({"recover__steps": 0}, "The paper has no number of this cell with the same parts of the method left out."),
    ],
)
def test_the_verdict_is_over_what_can_be_compared(tmp_path, changes, said):
    settings = settings_with(data__dataset="cifar100_lt", split__imbalance_factor=10.0, **changes)
    write(tmp_path, row(top1=0.387, settings=settings))
    assert [table.sentence for table in published_tables(load_results(tmp_path))] == [said]


def test_imbalance_factors_are_no_powers_of_ten():
    assert [imbalance(factor) for factor in (10.0, 98.0392, 256.4, 1234.0)] == ["10", "98", "256", "1,234"]


def test_results_of_several_runs_are_listed_cell_by_cell_best_first(tmp_path):
    for i, (factor, ipc, top1) in enumerate([(100, 10, 0.4), (50, 10, 0.3), (100, 10, 0.6), (100, 1, 0.2)]):
        settings = settings_with(split__imbalance_factor=factor, distill__images_per_class=ipc, recover__steps=10 + i)
        write(tmp_path / str(i), row(top1=top1, settings=settings, images_per_class=ipc))
    listed = [(r["imbalance_factor"], r["images_per_class"], r["mean"]) for r in several(load_results(tmp_path), tmp_path).results]
    assert listed == [(50, 10, 0.3), (100, 1, 0.2), (100, 10, 0.6), (100, 10, 0.4)]
