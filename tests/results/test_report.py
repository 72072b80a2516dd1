"""The page: its numbers are the rows', it loads nothing, it says what is missing, and a real browser shows it at both widths."""

import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from browser import browser, find_browser
from PIL import Image
from synthetic_rows import row, settings_with, write
from typer.testing import CliRunner

from ray_ltdd import InputError
from ray_ltdd.cli_report import report
from ray_ltdd.config import validate, write_yaml
from ray_ltdd.results.fair_runs import NEEDS
from ray_ltdd.results.image_sets import ImageSets, load_image_sets, write_image_sets
from ray_ltdd.results.load import load_results
from ray_ltdd.results.published import published
from ray_ltdd.results.report.contents import read_run
from ray_ltdd.results.report.page import run_page, write_report
from ray_ltdd.yaml_files import with_settings

pytestmark = pytest.mark.slow

NAMES = ("apple <b>&", *(f"class {k}" for k in range(1, 10)))
VOID = {"meta", "link", "img", "source", "br"}


class Reader(HTMLParser):
    """Tables as rows of texts, by class; attributes that may load something; whether all elements are closed."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self.elements, self._open, self._cell = [], [], [], [], None
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "srcset", "href", "poster", "data", "action", "background")]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append((dict(attributes).get("class", ""), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def rows(self, kind):
        """All rows of the tables of one class."""
        return [cells for name, rows in self.tables if name == kind for cells in rows]


def made_up(root):
    """A finished run of CIFAR-10-LT, made up: two students, a baseline, an expert in both roles, images, a summary."""
    folder = root / "runs" / "made-up-0a1b2c3d"
    folder.mkdir(parents=True)
    settings = settings_with(name="made-up", evaluate__epochs=900)
    write_yaml(validate(settings, "test"), folder / "settings.yaml")
    common = {"created": "2026-01-02T03:04:05+00:00", "device": "a device", "versions": json.dumps({"torch": "9.9"}), "peak_memory_mb": 1234.5}
    common |= {"settings": settings, "group_rule": "by <rule>", "split_fingerprint": "5" * 64}
    expert = {"artifact": "the expert", "top1": 0.648, "many": 0.71, "medium": 0.57, "few": None}
    write(
        folder,
        row(top1=0.61, **common, medium=0.5),
        row(top1=0.63, number=1, **common, medium=0.6),
        row("random", top1=0.36, **common),
        row("observer", **common | expert),
        row("teacher", **common | expert),
    )
    stages = {"Experts": {"wall_seconds": 100.0, "compute_seconds": 2000.0}, "Recover": {"wall_seconds": 3.0, "compute_seconds": 3.0}}
    summary = {"fingerprint": "0a1b2c3d", "stages": stages, "notes": ["the observer is weak.", "a long note " * 60]}
    (folder / "summary.json").write_text(json.dumps(summary))
    draw = torch.Generator().manual_seed(0)
    panels = {
        name: [torch.randint(0, 256, (3, 3, 8, 8), generator=draw, dtype=torch.uint8) for _ in NAMES] for name in ("initial", "distilled", "real")
    }
    panels["real"] = [images[: 1 + 2 * (k < 9)] for k, images in enumerate(panels["real"])]
    write_image_sets(ImageSets(panels, NAMES), folder / "images.parquet")
    return folder


@pytest.fixture
def finished(tmp_path):
    return made_up(tmp_path)


def page_of(folder):
    text = write_report(folder).read_text()
    return text, Reader(text)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The made-up run, its page's text, and the page read."""
    folder = made_up(tmp_path_factory.mktemp("shown"))
    return folder, *page_of(folder)


def test_the_numbers_are_the_rows(shown):
    _, _, page = shown
    assert page.rows("outcome")[1:] == [
        ["distilled, soft labels", "62.0 ± 1.4", "", "", "60.0", "55.0", "30.0", "100", "2", "ConvNet-3"],
        ["random real, one-hot", "36.0", "", "", "60.0", "", "30.0", "100", "1", "ConvNet-3"],
        ["the observer itself", "64.8", "", "", "71.0", "57.0", "", "12,406", "1", "ConvNet-3"],
        ["the teacher itself", "64.8", "", "", "71.0", "57.0", "", "12,406", "1", "ConvNet-3"],
    ]


def test_published_numbers_stand_beside_ours_with_marks(shown):
    _, text, page = shown
    theirs = published().query("benchmark == 'cifar10_lt' and imbalance_factor == 100 and images_per_class == 10 and network == 'ConvNet-3'")
    rows = dict(page.rows("published")[1:])
    assert set(theirs["method"]) < set(rows) and set(rows) - set(theirs["method"]) == {"ours", "random real images, ours"}
    for record in theirs.to_dict("records"):
        assert rows[record["method"]].startswith(f"{record['percent']:.1f}")
    assert re.fullmatch(r"62\.0 ± 1\.4\s?[a-z](,[a-z])*", rows["ours"]) and rows["random real images, ours"].startswith("36.0")
    numbers = [float(value.split()[0].rstrip("abcdefgh,")) for value in rows.values()]
    assert numbers == sorted(numbers, reverse=True)
    reference = float(theirs.query("method == 'RLDD'")["percent"].iloc[0])
    assert (
        f"The method: 62.0 %, {abs(62 - reference):.1f} points {'above' if reference < 62 else 'below'} the published {reference:.1f} % (RLDD)."
        in text
    )
    for mark in ("2 students (paper: 5)", "students of 900 epochs (paper: 1000)", "best of the checks made on the test set"):
        assert mark in text


def test_it_loads_nothing(shown):
    _, text, page = shown
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base"} and [a for t, a in page.elements if t == "link"] == [
        {"rel": "icon", "href": "data:,"}
    ]
    assert not re.search(r"@import|url\(|https?://", re.sub(r"data:[^\"]*", "", text))
    svgs = [base64.b64decode(address.partition(",")[2]).decode() for address in page.addresses if address.startswith("data:image/svg")]
    assert len(svgs) == 4, "two figures, each for two widths"
    for svg in svgs:
        assert "<path" in svg and "<text" not in svg
        assert all(found.startswith("#") for found in re.findall(r'href="([^"]*)"', svg)) and not re.search(r"url\((?!#)", svg)


def test_the_gallery_shows_the_images_and_names(shown):
    folder, text, page = shown
    sets = load_image_sets(folder)
    strips = {a["alt"]: a["src"] for tag, a in page.elements if tag == "img" and "images of the class" in a["alt"]}
    assert len(strips) == 30 and "apple &lt;b&gt;&amp;" in text and "apple <b>" not in text
    for name, of_class in sets.panels.items():
        for k, images in enumerate(of_class):
            strip = np.asarray(
                Image.open(io.BytesIO(base64.b64decode(strips[f"{len(images)} {name} images of the class {NAMES[k]}"].partition(",")[2])))
            )
            assert strip.shape == (8, 3 * 8 + 2, 4)
            for i, image in enumerate(images.numpy()):
                assert np.array_equal(strip[:, 9 * i : 9 * i + 8, :3], image.transpose(1, 2, 0))
            assert (strip[:, [8, 17], 3] == 0).all() and (strip[:, 9 * len(images) :, 3] == 0).all()
    assert "5,000" in text and "by &lt;rule&gt;" in text


def test_many_and_large_images_are_cut_and_reduced(finished):
    names = tuple(f"c{k}" for k in range(45))
    panels = {"distilled": [torch.full((12, 1, 96, 96), k, dtype=torch.uint8) for k in range(45)]}
    write_image_sets(ImageSets(panels, names), finished / "images.parquet")
    write(finished, row(settings=settings_with(name="made-up"), count_per_class=[100] * 45, per_class=[0.5] * 45, artifact="more"))
    rows = load_results(finished)
    shutil.rmtree(finished / "results")
    write(finished, row(settings=settings_with(name="made-up"), count_per_class=[100] * 45, per_class=[0.5] * 45))
    text, page = page_of(finished)
    strips = [a for tag, a in page.elements if tag == "img" and "images of the class" in a["alt"]]
    assert len(rows) and len(strips) == 20 and strips[0]["alt"].endswith("c0") and strips[-1]["alt"].endswith("c44")
    assert Image.open(io.BytesIO(base64.b64decode(strips[0]["src"].partition(",")[2]))).size == (10 * 64 + 9 * 4, 64)
    assert "Real images are not shown" in text and "20 of 45 classes, evenly spaced. The first 10 of 12 images of each class" in text


def test_settings_and_provenance(shown):
    folder, text, page = shown
    changed = {name: value for name, value in page.tables[2][1]}
    assert changed["evaluate.epochs"] == "900" and changed["name"] == '"made-up"' and changed["recover.steps"] == "75"
    assert not any(".training." in name for name in changed), "what the roles inherit is said once"
    everything = {cells[0]: cells[1] for cells in page.rows("settings")}
    assert everything["recover.steps"] == "75" and everything["observer.training.epochs"] == "200"
    for fact in ("a device", "torch 9.9", "555555555555", "2026-01-02 03:04 UTC", "1,234 MB", "observer 0: the expert"):
        assert fact in text
    assert f"ray-ltdd run {folder}/settings.yaml output.root=runs-again" in text
    assert "33 min" in text, "seconds to compute, added up"
    assert "The observer is weak." in text and text.count('<details class="note">') == 1


def test_the_same_run_gives_the_same_page(shown):
    folder, text, _ = shown
    assert run_page(read_run(folder)) == text


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("results", "No network has been tested yet"),
        ("summary.json", "The run has not come to its end"),
        ("images.parquet", "No images have been distilled yet"),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(finished, part, said):
    shutil.rmtree(finished / part) if (finished / part).is_dir() else (finished / part).unlink()
    text, page = page_of(finished)
    assert said in text and text.count('class="problem"') == 1
    assert page.rows("settings") and bool(page.rows("outcome")) == (part != "results")


def test_a_run_that_has_only_begun(finished):
    for path in finished.iterdir():
        if path.name != "settings.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text, page = page_of(finished)
    assert text.count('class="problem"') == 3 and "CIFAR-10-LT, imbalance factor 100, to be distilled into 10 images per class" in text
    assert not page.rows("outcome") and page.rows("settings")


def test_without_image_files_the_gallery_of_the_run_is_shown(finished):
    (finished / "images.parquet").unlink()
    Image.new("RGB", (30, 20), "red").save(finished / "gallery.png")
    _, page = page_of(finished)
    (sheet,) = [a["src"] for tag, a in page.elements if a.get("class") == "sheet"]
    assert base64.b64decode(sheet.partition(",")[2]) == (finished / "gallery.png").read_bytes()


def test_damage_is_said_not_raised(finished):
    (finished / "summary.json").write_text("{")
    (finished / "images.parquet").write_bytes(b"no parquet")
    (finished / "distilled").mkdir()
    text, _ = page_of(finished)
    assert "summary.json is damaged" in text and "images.parquet are damaged" in text


def test_a_benchmark_without_published_numbers(tmp_path):
    settings = settings_with(data__dataset="digits_lt")
    write_yaml(validate(settings, "test"), tmp_path / "settings.yaml")
    write(tmp_path, row(settings=settings))
    text, page = page_of(tmp_path)
    assert "The paper has no number for this cell (digits_lt" in text and not page.rows("published")


def test_two_recipes_in_one_run_are_two_lines(tmp_path):
    write_yaml(validate(settings_with(), "test"), tmp_path / "settings.yaml")
    write(tmp_path, *(row(settings=settings_with(recover__learning_rate=rate), top1=top1) for rate, top1 in ((0.05, 0.5), (0.06, 0.6))))
    _, page = page_of(tmp_path)
    ours = [cells for cells in page.rows("published") if cells[0].startswith("ours")]
    assert [cells[1][:4] for cells in ours] == ["60.0", "50.0"] and ours[0][0] != ours[1][0]


def several_rows(root):
    for factor, top1 in ((10, 0.7), (100, 0.6)):
        write(root / f"run-{factor}", row(settings=settings_with(split__imbalance_factor=float(factor)), top1=top1, run=f"run-{factor}"))


def test_several_runs(tmp_path):
    several_rows(tmp_path)
    text, page = page_of(tmp_path)
    found = page.rows("results")[1:]
    assert [[cells[0], *cells[6:]] for cells in found] == [["ours", "CIFAR-10-LT", factor, "10", "ConvNet-3", "1"] for factor in ("10", "100")]
    assert [cells[1][:4] for cells in found] == ["70.0", "60.0"]
    for cells, top1 in zip(found, (70, 60), strict=True):
        assert cells[2:4] == ["", ""] and cells[5].replace("−", "-") == f"{top1 - float(cells[4].split()[0]):+.1f}"
    assert "2 runs on CIFAR-10-LT, 2 tested networks." in text and "accuracy over the imbalance factor" in text
    assert [cells[0] for cells in page.rows("runs")[1:]] == ["run-10", "run-100"] and page.rows("paper-table") and not page.rows("cells")
    assert all(address.startswith("data:") for address in page.addresses)


def test_runs_whose_rows_are_in_one_file_are_runs_each(tmp_path):
    write(tmp_path / "copied", *(row(settings=settings_with(seed=seed), run=f"run-{seed}") for seed in (0, 1, 2)))
    text, page = page_of(tmp_path)
    assert "3 runs on CIFAR-10-LT, 3 tested networks." in text and [cells[0] for cells in page.rows("runs")[1:]] == ["run-0", "run-1", "run-2"]


def fair_runs(root, top1_of):
    """A run and those its fair scores need, each in a folder of its own."""
    for name, need in NEEDS.items():
        settings = with_settings(settings_with(data__dataset="cifar100_lt"), need.changes)
        write_yaml(validate(settings, "test"), (root / name).mkdir(parents=True) or root / name / "settings.yaml")
        # more than ten classes: top-5 is told
        more = {"count_per_class": [9] * 11, "per_class": [0.5] * 11, "top5": 0.875}
        write(root / name, row(need.method, top1=top1_of[name], settings=settings, **more))


def test_fair_scores_stand_beside_top1_or_what_they_lack(tmp_path):
    accuracies = {"distilled": 0.6, "random": 0.5, "real_hard": 0.7, "distilled_hard": 0.4, "distilled_plain": 0.55, "random_plain": 0.35}
    fair_runs(tmp_path, accuracies)
    label, augmentation = (f"{(math.exp(x) - math.exp(-1)) / (math.e - math.exp(-1)):.3f}" for x in ((0.1 - 0.3) / 2, (0.1 + 0.2) / 2))
    text, page = page_of(tmp_path / "distilled")
    assert page.rows("outcome")[0][1:5] == ["top-1", "top-5", "label-robust", "augmentation-robust"]
    assert page.rows("outcome")[1][1:5] == ["60.0", "87.5", label, augmentation] and "score: there is no run" not in text
    text, page = page_of(tmp_path)
    (ours,) = [cells for cells in page.rows("results")[1:] if cells[3]]
    assert ours[1][:4] == "60.0" and ours[2:5] == ["87.5", label, augmentation] and "robust score of" not in text
    shutil.rmtree(tmp_path / "random_plain")
    text, page = page_of(tmp_path / "distilled")
    assert page.rows("outcome")[1][3:5] == [label, ""]
    lacking = NEEDS["random_plain"].meaning.replace("'", "&#39;")
    assert f"No augmentation-robust score: there is no run beside this one with {lacking}." in text
    assert f"ray-ltdd run {tmp_path}/distilled/settings.yaml" in text and "relabel.views.mix=none" in text and "No label-robust" not in text
    assert f"with {lacking}." in page_of(tmp_path)[0]


def test_a_sweep(tmp_path):
    several_rows(tmp_path)
    known = {"sweep": "s", "cell": "a-cell", "study": "a-cell-0a1b2c3d", "role": "trial", "created": "2026-01-01T00:00:00+00:00"}
    trials = [
        row(
            settings=settings_with(evaluate__part="validation", recover__steps=10 + i),
            top1=0.3 + i / 100,
            artifact=f"trial {i}",
            trial=i,
            state="complete" if i < 9 else "pruned",
            params=json.dumps({"recover.steps": 10 + i}),
            **known,
        )
        for i in range(10)
    ]
    finals = [
        row(
            settings=settings_with(seed=seed, recover__steps=steps),
            top1=top1,
            artifact=f"{role} {seed}",
            **known | {"role": role, "trial": None, "created": "2026-01-02T00:00:00+00:00"},
        )
        for role, steps, values in (("winner", 18, (0.51, 0.53)), ("defaults", 60, (0.46, 0.47)))
        for seed, top1 in enumerate(values)
    ]
    write(tmp_path / "trials", *trials)
    write(tmp_path / "finals", *finals)
    text, page = page_of(tmp_path)
    assert page.rows("comparison")[1] == ["a-cell", "52.0", "46.5", "+5.5", "−0.9 to +11.9", "0.058", "2"]
    assert page.rows("cells")[1][:6] == ["a-cell", "10", "9", "1", "0", "38.0"] and page.rows("cells")[1][-1] == "recover.steps=18"
    assert "1 cell of a sweep with 10 trials" in text and "a-cell: course of the sweep" in text and "a-cell: importance" in text
    assert len(page.rows("results")) == 5, "trials are no results"
    assert "4 runs" not in text and "trials" not in [cells[0] for cells in page.rows("runs")[1:]]
    wide = [a for tag, a in page.elements if tag == "figure" and a["class"] == "chart scroll"]
    assert wide, "panels side by side scroll on a phone"


def test_bad_places_are_one_sentence(finished, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "settings.yaml").write_text("")
    for folder, output, said in (
        (tmp_path / "hollow", None, "settings.yaml is empty"),
        (tmp_path / "nowhere", None, "there is no folder"),
        (tmp_path / "empty", None, "there are no result rows"),
        (finished, finished / "settings.yaml" / "page.html", "--output=.*cannot be written"),
    ):
        with pytest.raises(InputError, match=said) as refusal:
            write_report(folder, output)
        assert "\n" not in str(refusal.value)


def test_the_command_prints_the_file(finished, tmp_path):
    app = typer.Typer()
    app.command()(report)
    for output, expected in ((tmp_path / "a" / "page.html", tmp_path / "a" / "page.html"), (tmp_path, tmp_path / "report.html")):
        outcome = CliRunner().invoke(app, [str(finished), "--output", str(output)])
        assert outcome.exit_code == 0 and outcome.output.replace("\n", "") == str(expected) and expected.stat().st_size > 10_000


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine: `apt-get install -y chromium` gives one")
    with browser(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


OVERFLOW = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - document.documentElement.clientWidth"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(chromium, shown, width, dark):
    path = shown[0] / "report.html"
    chromium.open(path, width, phone=width < 600, dark=dark)
    assert chromium.requests() == [path.resolve().as_uri()], "nothing but the page itself is loaded"
    assert [event["params"] for event in chromium.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")] == []
    assert chromium.evaluate("innerWidth") == width and chromium.evaluate(OVERFLOW) == 0, "the page scrolls sideways"
    # every picture is decoded and has a size; wide tables scroll in their own box
    assert chromium.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.clientWidth <= innerWidth)")
    assert chromium.evaluate("[...document.querySelectorAll('table')].every(t => t.closest('.scroll'))")
    shown = np.asarray(Image.open(io.BytesIO(chromium.screenshot())).convert("L"))
    assert shown.shape[1] == width * (2 if width < 600 else 1) and len(np.unique(shown)) > 100, "the page is blank"
    paper = np.bincount(shown.ravel()).argmax()
    assert paper < 60 if dark else paper > 220
    # below the first screen there is something too
    assert (np.abs(shown[len(shown) // 2 :].astype(int) - paper) > 40).mean() > 0.01
    narrow = chromium.evaluate("document.querySelector('.chart img').currentSrc === document.querySelector('.chart source').srcset")
    assert narrow == (width < 600)
    # and the check of the width can fail
    assert chromium.evaluate("document.body.insertAdjacentHTML('beforeend', '<div style=\"width:2000px\">x</div>'), " + OVERFLOW) > 0


def test_a_browser_shows_several_runs_and_a_real_run(chromium, tiny_run, tmp_path):
    several_rows(tmp_path)
    for folder in (tmp_path, tiny_run):
        path = write_report(folder, tmp_path / "page.html")
        text = Path(path).read_text()
        assert 'class="problem"' not in text
        for width in (1280, 390):
            chromium.open(path, width, phone=width < 600)
            assert chromium.evaluate(OVERFLOW) == 0 and chromium.requests() == [path.resolve().as_uri()]
    assert "initial images of the class 0" in text
    distilled = next(o for o in json.loads((tiny_run / "summary.json").read_text())["outcomes"] if o["method"] == "distilled")
    assert Reader(text).rows("outcome")[1][1] == f"{distilled['top1_percent']:.1f}"
