"""What figures show: their lines, labels and numbers. That they look well was seen by looking at them."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from synthetic_rows import row, settings_with, write

from ray_ltdd import InputError
from ray_ltdd.executor import StageRecord
from ray_ltdd.results.figures.accuracy_curves import accuracy_over_images, accuracy_over_imbalance
from ray_ltdd.results.figures.class_accuracy import class_accuracy
from ray_ltdd.results.figures.crops_response import CROPS, ROUNDS, THRESHOLD, crops_response, medians
from ray_ltdd.results.figures.gallery import gallery
from ray_ltdd.results.figures.momentum_response import SCHEDULE, momentum_response
from ray_ltdd.results.figures.parallel_coordinates import parallel_coordinates
from ray_ltdd.results.figures.parameter_importance import importances, parameter_importance
from ray_ltdd.results.figures.pareto import accuracy_and_bytes, accuracy_over_bytes, pareto_front
from ray_ltdd.results.figures.stage_costs import stage_costs
from ray_ltdd.results.figures.statistics_gap import layer_gaps, statistics_gap, whole_set
from ray_ltdd.results.figures.style import COLOURS, colour, marker, styled
from ray_ltdd.results.figures.sweep_history import sweep_history
from ray_ltdd.results.figures.trials import Objective, is_logarithmic, is_number
from ray_ltdd.results.load import load_results
from ray_ltdd.results.tables import own_results

NAMES = [f"class {k}" for k in range(10)]


def drawn(figure):
    """Draw the figure for real and return all texts in it; no text may hold a NaN, no data axis be without a label."""
    assert isinstance(figure.canvas, FigureCanvasAgg)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert len(np.unique(np.asarray(Image.open(buffer).convert("L")))) > 10, "the picture is blank"
    texts = [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]
    assert not [text for text in texts if "nan" in text.lower() or "None" in text]
    return texts


def labelled(figure, *axes_numbers):
    for number in axes_numbers:
        axes = figure.axes[number]
        assert axes.get_xlabel() and (axes.get_ylabel() or number > 0)


def curves(axes):
    """Label -> y values of what errorbar or plot has drawn."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, mpl.container.ErrorbarContainer) else handle for handle in handles]
    return {label: line.get_ydata() for label, line in zip(labels, lines, strict=True) if isinstance(line, mpl.lines.Line2D)}


@pytest.fixture
def rows(tmp_path):
    for factor in (50, 100):
        settings = settings_with(split__imbalance_factor=factor)
        write(
            tmp_path / str(factor),
            *(row(number=n, top1=0.5 + n / 50, settings=settings) for n in range(3)),
            row("random", top1=0.3, settings=settings),
        )
    return load_results(tmp_path)


def test_accuracy_over_imbalance_has_ours_and_the_published_curves(rows):
    figure = accuracy_over_imbalance(own_results(rows), "cifar10_lt", "ConvNet-3")
    texts = drawn(figure)
    assert [axes.get_title() for axes in figure.axes] == ["IPC 10", "IPC 20", "IPC 50"] and "top-1 test accuracy (%)" in texts
    labelled(figure, 0, 1, 2)
    first = curves(figure.axes[0])
    assert first["RLDD"].tolist() == [63.6, 62.9, 62.7] and first["ours"].tolist() == pytest.approx([52, 52])
    assert set(first) == {"RLDD", "DAMED", "EDC", "MTT", "Random", "ours", "random real images, ours"}
    assert "CIFAR-10-LT, ConvNet-3 students" in texts
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["10", "50", "100"]


def test_accuracy_over_images(rows):
    figure = accuracy_over_images(own_results(rows), "cifar10_lt", "ConvNet-3", methods=["RLDD"])
    drawn(figure)
    assert [axes.get_title() for axes in figure.axes] == ["IF 10", "IF 50", "IF 100"]
    assert curves(figure.axes[2])["RLDD"].tolist() == [44.8, 62.7, 66.4, 68.8]
    assert curves(figure.axes[2])["ours"].tolist() == pytest.approx([52]) and len(curves(figure.axes[0])["ours"]) == 0


@pytest.mark.parametrize(("n", "spread"), [(1, 1.0), (2, 1.06), (3, 1.06**2), (34, 1.08**2)])
def test_curves_of_one_place_stay_near_it(rows, n, spread):
    """Only the curves with a point in the panel are moved apart, however many there are, and never far."""
    one = own_results(rows).query("imbalance_factor == 100 and label == 'ours'")
    elsewhere = [one.assign(label=f"elsewhere {i}", images_per_class=20) for i in range(9)]
    panel = accuracy_over_imbalance(pd.concat([one.assign(label=f"ours {i}") for i in range(n)] + elsewhere), "cifar10_lt", "ConvNet-3").axes[0]
    handles, labels = panel.get_legend_handles_labels()
    x = np.concatenate([handle[0].get_xdata() for handle, label in zip(handles, labels, strict=True) if label.startswith("ours")])
    assert len(x) == n and x.max() / x.min() == pytest.approx(spread) and np.sqrt(x.max() * x.min()) == pytest.approx(100)


@pytest.mark.parametrize("n", [8, 9])
def test_of_too_many_settings_to_be_told_apart_each_is_a_dot(rows, n):
    ours = own_results(rows)
    ours = pd.concat([ours.query("method == 'random'"), *(ours.query("method == 'distilled'").assign(label=f"ours {i}") for i in range(n))])
    figure = accuracy_over_imbalance(ours, "cifar10_lt", "ConvNet-3")
    drawn(figure)
    found = {label: values for label, values in curves(figure.axes[0]).items() if "ours" in label}
    assert len(found.pop("random real images, ours")) == 2
    assert found.keys() == ({f"ours {i}" for i in range(8)} if n == 8 else {"ours, each of 9 settings"})
    assert sum(map(len, found.values())) == 2 * n


def test_curves_without_any_row_of_ours_or_without_anything(rows):
    none = own_results(rows).iloc[:0]
    drawn(accuracy_over_imbalance(none, "imagenet_lt", "ConvNet-4"))
    drawn(accuracy_over_images(none, "cifar10_lt", "VGG-11"))
    with pytest.raises(InputError, match="no accuracy of ConvNet-9 students on cifar10_lt"):
        accuracy_over_imbalance(none, "cifar10_lt", "ConvNet-9")


def test_class_accuracy_is_the_mean_over_seeds_in_order_of_frequency(rows):
    of_100 = rows[rows["imbalance_factor"] == 100]
    shuffled = of_100.assign(
        count_per_class=[counts[::-1] for counts in of_100["count_per_class"]], per_class=[share[::-1] for share in of_100["per_class"]]
    )
    for frame, names in ((of_100, NAMES), (shuffled, NAMES[::-1])):
        figure = class_accuracy(frame, names)
        texts = drawn(figure)
        upper, lower = figure.axes
        expected = 100 * np.mean([share for share in of_100[of_100["method"] == "distilled"]["per_class"]], axis=0)
        assert curves(upper)["distilled, soft labels: 52.0 %"].tolist() == pytest.approx(expected.tolist())
        assert [bar.get_height() for bar in lower.patches] == of_100.iloc[0]["count_per_class"].tolist()
        assert [label.get_text() for label in lower.get_xticklabels()] == NAMES
        assert {"5,000", "50", "class, largest first", "test accuracy of the class (%)"} <= set(texts)


def test_class_accuracy_of_many_classes_and_of_one_expert_in_two_roles(rows):
    many = rows[rows["imbalance_factor"] == 100].iloc[:1]
    share, counts = np.linspace(1, 0, 100), np.arange(200, 100, -1)
    experts = [many.assign(method=name, artifact="expert") for name in ("observer", "teacher")]
    frame = pd.concat([many, *experts]).assign(per_class=[share] * 3, count_per_class=[counts] * 3)
    figure = class_accuracy(frame)
    texts = drawn(figure)
    assert "class, largest first (100 classes)" in texts
    assert len(curves(figure.axes[0])) == 2 and any(text.startswith("the expert itself (observer and teacher)") for text in texts)
    smoothed = next(iter(curves(figure.axes[0]).values()))
    assert smoothed[50] == pytest.approx(100 * share[45:55].mean())


def test_class_accuracy_names_recipes_and_refuses_a_mixture(rows):
    one = rows[(rows["imbalance_factor"] == 50) & (rows["method"] == "distilled")]
    figure = class_accuracy(one, labels={one["recipe"].iloc[0]: "mine"})
    assert list(curves(figure.axes[0])) == ["mine: 52.0 %"]
    with pytest.raises(InputError, match="the rows are of 2 splits"):
        class_accuracy(rows)
    with pytest.raises(InputError, match="nothing to draw"):
        class_accuracy(rows.iloc[:0])


def test_networks_of_one_method_are_curves_of_their_own(rows):
    one = rows[(rows["imbalance_factor"] == 50) & (rows["method"] == "distilled")]
    teachers = [one.iloc[[i]].assign(method="teacher", network=name, top1=0.1 * i) for i, name in enumerate(("ConvNet-3", "ResNet-9"))]
    figure = class_accuracy(pd.concat([*teachers, one.iloc[[2]]]))
    assert list(curves(figure.axes[0])) == [
        "the teacher itself, ConvNet-3: 0.0 %",
        "the teacher itself, ResNet-9: 10.0 %",
        "distilled, soft labels: 54.0 %",
    ]


def test_class_names_are_no_formulas(rows):
    names = ["$5_$10", "$\\frac$", *NAMES[2:]]
    figure = class_accuracy(rows[rows["imbalance_factor"] == 50], names)
    assert set(names) <= set(drawn(figure))
    drawn(gallery({"real": [torch.zeros(1, 3, 8, 8, dtype=torch.uint8)] * 10}, names, [5] * 10, "title"))


def test_classes_without_test_images_are_gaps(rows):
    one = rows[(rows["imbalance_factor"] == 50) & (rows["method"] == "random")]
    gap = one.assign(per_class=[[None, *one["per_class"].iloc[0][1:]]])
    figure = class_accuracy(gap)
    drawn(figure)
    (line,) = curves(figure.axes[0]).values()
    assert np.isnan(line).tolist() == [True] + [False] * 9


def test_gallery_puts_every_image_in_its_place():
    red, green = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    red[:, 0], green[:, 1] = 255, 255
    figure = gallery({"initial": [red, green], "real": [green, red[:0]]}, ["cat", "dog"], [5000, 50], "title")
    texts = drawn(figure)
    assert {"initial", "real", "title", "cat (5,000)", "dog (50)"} <= set(texts)
    first, second = (axes.images[0].get_array() for axes in figure.axes)
    assert first.shape == (17, 17, 3) and second.shape == (17, 8, 3)
    assert first[0, 0].tolist() == first[0, 9].tolist() == [255, 0, 0] and first[9, 0].tolist() == [0, 255, 0]
    assert first[9, 9].tolist() == first[8, 0].tolist() == second[9, 0].tolist() == [255, 255, 255]


def test_gallery_shows_classes_from_head_to_tail():
    images = [torch.full((12, 1, 4, 4), k, dtype=torch.uint8) for k in range(100)]
    figure = gallery({"all": images}, [str(k) for k in range(100)], [100 - k for k in range(100)], "", most_rows=3, most_columns=4)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0 (100)", "50 (50)", "99 (1)"]
    assert figure.axes[0].images[0].get_array().shape[:2] == (14, 19)


def test_a_class_name_is_no_formula(rows):
    name, image = "$\\frac$", torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    assert f"{name} (1)" in drawn(gallery({"initial": [image, image + 255]}, [name, "b"], [1, 1], ""))
    figure = class_accuracy(rows[rows["imbalance_factor"] == 100], [name, *NAMES[1:]])
    assert name in drawn(figure)


def test_gallery_refuses_what_does_not_fit():
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="'a' has images of 1 classes, but there are 2"):
        gallery({"a": [image]}, ["x", "y"], [1, 1], "")
    with pytest.raises(InputError, match="no panel has an image"):
        gallery({"a": [image[:0]]}, ["x"], [1], "")


def moments(seed, n_classes=3, layers=("a", "b")):
    rng = torch.Generator().manual_seed(seed)
    found = {f"{layer}/mean": torch.randn(n_classes, 4, generator=rng, dtype=torch.float64) for layer in layers}
    return found | {f"{layer}/var": torch.rand(n_classes, 4, generator=rng, dtype=torch.float64) for layer in layers}


def test_gaps_by_their_definition():
    first, reference = moments(0), moments(1)
    gaps = layer_gaps(first, reference, ["b", "a"])
    assert gaps["layer"].tolist() == ["b", "a"]
    for entry in gaps.itertuples():
        mean, var, mean_ref, var_ref = (side[f"{entry.layer}/{name}"].tolist() for side in (first, reference) for name in ("mean", "var"))
        expected_mean = [
            sum((x - y) ** 2 for x, y in zip(*pair, strict=True)) ** 0.5 / sum(v for v in ref) ** 0.5
            for pair, ref in zip(zip(mean, mean_ref, strict=True), var_ref, strict=True)
        ]
        expected_var = [
            sum((x - y) ** 2 for x, y in zip(*pair, strict=True)) ** 0.5 / sum(v * v for v in ref) ** 0.5
            for pair, ref in zip(zip(var, var_ref, strict=True), var_ref, strict=True)
        ]
        assert entry.mean_gap == pytest.approx(sum(expected_mean) / 3) and entry.var_gap == pytest.approx(sum(expected_var) / 3)


def test_no_gap_to_oneself_and_whole_sets():
    own = moments(0)
    assert layer_gaps(own, own, ["a"])[["mean_gap", "var_gap"]].values.tolist() == [[0, 0]]
    counted = own | {"count": torch.tensor([6, 3, 1])}
    balanced, sampled = whole_set(counted, "uniform"), whole_set(counted, "sample")
    assert torch.allclose(balanced["a/mean"], own["a/mean"].mean(0))
    assert torch.allclose(balanced["a/var"], own["a/var"].mean(0) + own["a/mean"].var(0, unbiased=False))
    assert torch.allclose(sampled["b/mean"], (torch.tensor([[0.6], [0.3], [0.1]]).double() * own["b/mean"]).sum(0))
    assert layer_gaps(sampled, balanced, ["a", "b"])["mean_gap"].gt(0).all()


def test_statistics_gap_figure():
    gaps = {"before": layer_gaps(moments(0), moments(1), ["a", "b"]), "after": layer_gaps(moments(1), moments(1), ["a", "b"])}
    figure = statistics_gap(gaps)
    texts = drawn(figure)
    labelled(figure, 0, 1)
    assert "relative gap (no unit)" in texts and curves(figure.axes[0])["after"].tolist() == [0, 0]
    assert curves(figure.axes[1])["before"].tolist() == gaps["before"]["var_gap"].tolist()
    with pytest.raises(InputError, match="over the same layers"):
        statistics_gap(gaps | {"other": gaps["after"].iloc[:1]})
    with pytest.raises(InputError, match="at least one"):
        statistics_gap({})


def test_statistics_that_do_not_match():
    with pytest.raises(InputError, match="no tensor 'c/mean'"):
        layer_gaps(moments(0), moments(1), ["c"])
    with pytest.raises(InputError, match=r"shape \[3, 4\] and a reference of shape \[2, 4\]"):
        layer_gaps(moments(0), moments(1, n_classes=2), ["a"])


def test_stage_costs():
    plain = {"Experts": StageRecord("Experts", 2.0, 100.0).describe(), "Recover": StageRecord("Recover", 30.0, 30.0).describe()}
    figure = stage_costs(plain)
    texts = drawn(figure)
    assert len(figure.axes) == 1 and figure.axes[0].get_xlabel() == "seconds"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Experts", "Recover"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [2, 30, 100, 30]
    assert {"in this run (32 s in all)", "to compute its artifacts (130 s in all)"} <= set(texts)
    figure = stage_costs(plain | {"Students": StageRecord("Students", 10.0, 18.0, n_workers=2, busy_seconds=15.0).describe()})
    assert "75% of 2" in drawn(figure) and figure.axes[1].get_xlabel() == "workers busy (% of their time)"
    with pytest.raises(InputError, match="nothing to draw"):
        stage_costs({})


def test_pareto_front_by_comparing_all_with_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        cost, gain = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
        expected = [
            not any(cost[j] <= cost[i] and gain[j] >= gain[i] and (cost[j] < cost[i] or gain[j] > gain[i]) for j in range(12)) for i in range(12)
        ]
        assert pareto_front(cost, gain).tolist() == expected


def test_accuracy_over_bytes(tmp_path):
    for ipc, labels, size, top1 in ((10, "one", 1_000, 0.4), (10, "online", 3_000_000, 0.6), (20, "one", 2_000, 0.35)):
        settings = settings_with(distill__images_per_class=ipc, relabel__labels=labels)
        write(
            tmp_path / f"{ipc}{labels}",
            *(row(number=n, top1=top1, settings=settings, label_bytes=size) for n in range(2)),
            row("random", settings=settings),
        )
    table = accuracy_and_bytes(load_results(tmp_path)).set_index(["images_per_class", "labels"])
    assert table["bytes"].to_dict() == {(10, "one"): 251_000, (10, "online"): 3_250_000, (20, "one"): 252_000}
    assert table["is_best"].to_dict() == {(10, "one"): True, (10, "online"): True, (20, "one"): False}
    figure = accuracy_over_bytes(table.reset_index())
    texts = drawn(figure)
    labelled(figure, 0)
    assert {"Pareto front", "one logit vector per image", "teacher kept (online labels)", "bytes of images (PNG) and labels"} <= set(texts)
    assert [text for text in texts if text.startswith("IPC")] == ["IPC 10", "IPC 10"]
    crowd = pd.concat([table.reset_index().assign(is_best=True, bytes=table["bytes"].to_numpy() * (1 + i / 100)) for i in range(5)])
    assert [text for text in drawn(accuracy_over_bytes(crowd)) if text.startswith("IPC")] == ["IPC 10", "IPC 10", "IPC 20"], "one name a place"
    with pytest.raises(InputError, match="different network"):
        accuracy_over_bytes(table.reset_index().assign(network=["a", "b", "c"]))


@pytest.fixture
def trials():
    rng = np.random.default_rng(0)
    n = 40
    schedule = np.array(["cumulative", "constant", "power", "warmup"])[np.arange(n) % 4]
    frame = pd.DataFrame({"number": range(n), "state": ["COMPLETE"] * 32 + ["PRUNED"] * 5 + ["FAIL"] * 3, SCHEDULE: schedule})
    frame["calibrate.momentum.value"] = np.where(np.isin(schedule, ["constant", "warmup"]), 10 ** rng.uniform(-2, -0.3, n), np.nan)
    frame["calibrate.momentum.exponent"] = np.where(schedule == "power", 4 ** rng.uniform(-1, 1, n), np.nan)
    frame[THRESHOLD], frame[CROPS], frame[ROUNDS] = rng.uniform(0, 0.95, n), rng.integers(1, 21, n), rng.choice([1, 2, np.nan], n)
    frame["value"] = 0.5 + 0.2 * frame[THRESHOLD] + rng.normal(0, 0.005, n)
    frame.loc[frame["state"] == "FAIL", "value"] = np.nan
    frame.loc[frame["state"] == "PRUNED", "value"] = 0.99
    return frame


def test_sweep_history(trials):
    figure = sweep_history(trials.sample(frac=1, random_state=0), baseline=0.55)
    texts = drawn(figure)
    labelled(figure, 0)
    best = figure.axes[0].get_lines()[0].get_ydata()
    complete = trials["value"].to_numpy()[:32]
    assert best.tolist() == pytest.approx([100 * max(complete[: i + 1]) for i in range(32)])
    assert {"best so far", "complete (32)", "pruned, last value (5)", "fail (3)", "default settings", "trial", "validation top-1 (%)"} <= set(texts)
    down = sweep_history(trials, Objective("seconds (s)", 1.0, maximize=False)).axes[0]
    assert down.get_lines()[0].get_ydata()[-1] == pytest.approx(complete.min()) and down.get_ylabel() == "seconds (s)"


def test_importance_finds_what_matters(trials, capfd):
    parameters = [SCHEDULE, "calibrate.momentum.value", THRESHOLD, CROPS, ROUNDS]
    found = importances(trials, parameters)
    assert found.index[0] == THRESHOLD and found.sum() == pytest.approx(1) and set(found.index) == {SCHEDULE, THRESHOLD, CROPS}
    assert importances(trials, parameters).equals(found)
    figure = parameter_importance(trials, parameters)
    texts = drawn(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(found.index)
    assert any("not rated" in text and ROUNDS in text and "32 trials" in text for text in texts)
    named = importances(trials.assign(**{ROUNDS: trials[ROUNDS].astype(object).where(trials[ROUNDS].notna(), "no limit")}), parameters)
    assert ROUNDS in named.index
    assert capfd.readouterr() == ("", ""), "Optuna announces its studies unless told not to"


def test_importance_needs_enough_trials_and_something_to_rate(trials):
    with pytest.raises(InputError, match="7 finished trials"):
        importances(trials.iloc[:7], [THRESHOLD])
    with pytest.raises(InputError, match="nothing to rate"):
        importances(trials, ["calibrate.momentum.value"])


def test_importance_without_optuna(trials, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match="pip install optuna"):
        importances(trials, [THRESHOLD])


def test_parallel_coordinates(trials):
    parameters = [SCHEDULE, "calibrate.momentum.value", THRESHOLD]
    figure = parallel_coordinates(trials, parameters)
    texts = drawn(figure)
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 4]
    assert len(lines) == 32
    assert {"absent", "cumulative", "warmup", "validation top-1 (%)"} <= set(texts)
    heights = np.array([line.get_ydata() for line in lines])
    assert heights[-1, -1] == 1 and heights[0, -1] == 0
    assert np.isfinite(heights).all() and heights[:, [0, 2, 3]].min() >= 0 and (heights[:, 1] < 0).sum() == 16
    with pytest.raises(InputError, match="at least one parameter"):
        parallel_coordinates(trials, [])
    with pytest.raises(InputError, match="one trial has ended"):
        parallel_coordinates(trials.iloc[[0]], parameters)


def test_momentum_response(trials):
    figure = momentum_response(trials)
    texts = drawn(figure)
    assert [axes.get_title() for axes in figure.axes] == ["by schedule (trials)", "constant", "power", "warmup"]
    assert {"cumulative (8)", "value (no unit)", "exponent (no unit)", "validation top-1 (%)"} <= set(texts)
    shown = figure.axes[2].collections[0].get_offsets()
    power = trials[(trials[SCHEDULE] == "power") & (trials["state"] == "COMPLETE")]
    assert np.allclose(shown, np.stack([power["calibrate.momentum.exponent"], 100 * power["value"]], 1))
    assert len(drawn(momentum_response(trials[["number", "state", "value", SCHEDULE]]))) > 0


def test_crops_response(trials):
    figure = crops_response(trials)
    texts = drawn(figure)
    assert "confidence threshold\n(probability)" in texts and len(figure.axes) == 5
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["1", "2", "none"]
    assert len(figure.axes[0].collections[0].get_offsets()) == 32
    named = crops_response(trials.assign(**{ROUNDS: trials[ROUNDS].astype(object).where(trials[ROUNDS].notna(), "no limit")}))
    assert [label.get_text() for label in named.axes[2].get_xticklabels()] == ["1", "2", "none"]
    assert len(crops_response(trials.drop(columns=[CROPS, ROUNDS])).axes) == 1


def test_the_running_median_has_one_point_a_value_whatever_the_order():
    x, y = np.repeat([1.0, 2, 3], [4, 1, 3]), np.array([5.0, 1, 2, 9, 7, 8, 4, 6])
    # of the value 2 there is one, and one on either side brings all that are equal to it
    assert medians(x, y, 3) == {1: 3.5, 2: 5.5, 3: 6}
    assert medians(x[::-1], y[::-1], 3) == medians(x, y, 3)
    rng = np.random.default_rng(0)
    single, noise = rng.permutation(20).astype(float), rng.normal(size=20)
    plain = pd.Series(noise, single).sort_index().rolling(5, center=True).median().dropna()
    assert medians(single, noise, 5) == pytest.approx(plain.to_dict())


@pytest.mark.parametrize(
    "draw", [sweep_history, momentum_response, crops_response, lambda t: parallel_coordinates(t, [THRESHOLD]), lambda t: importances(t, [THRESHOLD])]
)
def test_sweeps_without_an_ended_trial_or_a_column(trials, draw):
    with pytest.raises(InputError, match="none of the 8 trials has ended"):
        draw(trials.iloc[32:])
    with pytest.raises(InputError, match="no column 'value'"):
        draw(trials.drop(columns="value"))


def test_kinds_of_parameters():
    assert is_number(pd.Series([1, None, 3.0])) and not is_number(pd.Series([True, False])) and not is_number(pd.Series(["a", None]))
    assert is_logarithmic(pd.Series(np.geomspace(0.01, 1, 9))) and not is_logarithmic(pd.Series(np.linspace(0.01, 1, 9)))
    assert (
        not is_logarithmic(pd.Series([0.0, 1, 100])) and not is_logarithmic(pd.Series([1.0, 2, 4])) and not is_logarithmic(pd.Series([], dtype=float))
    )


def test_figures_neither_take_nor_leave_a_style(trials):
    plain = sweep_history(trials)
    mpl.rcParams["font.size"], mpl.rcParams["axes.grid"] = 30, False
    try:
        other = sweep_history(trials)
        assert mpl.rcParams["font.size"] == 30 and mpl.rcParams["axes.grid"] is False
    finally:
        mpl.rcdefaults()
    pictures = []
    for figure in (plain, other):
        figure.savefig(buffer := io.BytesIO(), format="png", metadata={"Software": None})
        pictures.append(buffer.getvalue())
    assert pictures[0] == pictures[1]


def test_series_are_told_apart():
    assert len({(colour(i), marker(i)) for i in range(49)}) == 49
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (mpl.colors.to_rgb(ink) for ink in COLOURS)]
    assert max(light) < 0.75, "too pale for white paper"
    assert styled(lambda: mpl.rcParams["font.size"])() == 9
