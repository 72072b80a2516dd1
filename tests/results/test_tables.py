"""The paper's tables with ours beside theirs, in four formats."""

import re
from html.parser import HTMLParser

import pytest
from synthetic_rows import row, settings_with, write

from ray_ltdd import InputError
from ray_ltdd.results.load import load_results
from ray_ltdd.results.protocol import differences, n_tested_per_class, variant
from ray_ltdd.results.published import published
from ray_ltdd.results.table_formats import letter, render
from ray_ltdd.results.tables import NUMBERS, own_results, paper_table

N_COLUMNS = {1: 9, 2: 9, 3: 4, 4: 4, 5: 4, 6: 3, 7: 4, 8: 3}


def authors(**changes):
    """The authors' settings for CIFAR-10-LT as far as they can be set, with some changed."""
    own = {"observer__model__architecture": "resnet32", "observer__model__width": 64, "relabel__views__min_scale": 0.08}
    return settings_with(**own | changes)


ALWAYS = ("students with cosine rate (paper: rate halved after epochs 800, 900 and 950)", "student views: no RandAugment (paper: RandAugment)")


@pytest.fixture
def rows(tmp_path):
    write(
        tmp_path / "full", *(row(number=n, top1=0.6 + n / 100, settings=authors()) for n in range(5)), row("random", top1=0.345, settings=authors())
    )
    write(tmp_path / "less", row(top1=0.5, settings=authors(distill__images_per_class=20, experts__epochs=1, observer__training__epochs=20)))
    return load_results(tmp_path)


def found(table):
    return {row.label: row for row in table.rows}


@pytest.mark.parametrize("number", NUMBERS)
def test_every_published_number_is_in_its_place(number):
    table = paper_table(number)
    theirs = published()
    theirs = theirs[theirs["table"] == number]
    assert {len(row.cells) for row in table.rows} | {len(level) for level in table.headings} == {N_COLUMNS[number]}
    assert [row.label for row in table.rows] == list(dict.fromkeys(theirs["method"]))
    assert sorted(cell.percent for row in table.rows for cell in row.cells if cell.percent is not None) == sorted(theirs["percent"])
    place = {level[0].split()[0]: level for level in table.headings}
    for entry in theirs.itertuples():
        columns = set(range(N_COLUMNS[number]))
        for name, value in (("IF", entry.imbalance_factor), ("IPC", entry.images_per_class)):
            if name in place:
                columns &= {i for i, text in enumerate(place[name]) if text == f"{name} {value:g}"}
        cells = [found(table)[entry.method].cells[i].percent for i in columns]
        assert entry.percent in cells


def test_table_one_and_its_first_line():
    table = paper_table(1)
    assert table.title == "Table 1: top-1 accuracy in percent: CIFAR-10-LT, ConvNet-3"
    assert table.headings[0] == ("IF 10",) * 3 + ("IF 50",) * 3 + ("IF 100",) * 3 and table.headings[1] == ("IPC 10", "IPC 20", "IPC 50") * 3
    assert [cell.percent for cell in table.rows[0].cells] == [32.5, 39.6, 51.9, 33.2, 42.0, 51.6, 34.4, 41.4, 52.6]


def test_ours_stand_below_with_the_difference(rows):
    table = paper_table(1, rows, {rows[rows["images_per_class"] == 20]["recipe"].iloc[0]: "short"})
    ours = found(table)["ours"]
    assert ours.cells[6].percent == pytest.approx(62) and ours.cells[6].deviation == pytest.approx(1.5811, abs=1e-3)
    assert [table.footnotes[mark] for mark in ours.cells[6].marks] == list(ALWAYS)
    assert [cell.percent for cell in ours.cells[:6]] == [None] * 6
    assert found(table)["ours minus RLDD"].cells[6].percent == pytest.approx(62 - 62.7)
    assert found(table)["random real images, ours minus Random"].cells[6].percent == pytest.approx(0.1)
    short = found(table)["short"].cells[7]
    assert [table.footnotes[mark] for mark in short.marks] == [*ALWAYS, "1 student (paper: 5)", "experts of 20 and 200 epochs (paper: 200)"]
    assert [row.kind for row in table.rows[-6:]] == ["ours"] * 3 + ["difference"] * 3


def test_a_matched_teachers_training_is_named_and_the_one_it_did_not_have_is_not(tmp_path):
    changes = {"observer__training__epochs": 150, "teacher__training__epochs": 45, "teacher__function_matching": {"epochs": 250}}
    write(tmp_path, row(settings=settings_with(**changes)))
    (sentences,) = differences(load_results(tmp_path)).values()
    assert "experts of 150 epochs (paper: 200)" in sentences
    assert "a teacher that matched the observer's function for 250 epochs (paper: trained from labels)" in sentences


def test_the_epochs_of_further_teachers_are_among_the_experts(tmp_path):
    more = [{"training": {"epochs": 15}}, {"training": {"epochs": 45}}, {"training": {"epochs": 1}, "function_matching": {"epochs": 9}}]
    write(tmp_path, row(settings=settings_with(observer__training__epochs=20, teacher__training__epochs=45, more_teachers=more)))
    (sentences,) = differences(load_results(tmp_path)).values()
    assert {"experts of 15, 20 and 45 epochs (paper: 200)", "labels averaged over 4 teachers (paper: one)"} <= set(sentences)
    assert "a teacher that matched the observer's function for 9 epochs (paper: trained from labels)" in sentences


def test_rivals_are_told_apart_by_name_and_clashes_are_refused(rows, tmp_path):
    labels = {row.label for row in paper_table(1, rows).rows if row.kind == "ours"}
    assert labels == {f"ours (run, {key})" for key in {label[-5:-1] for label in labels if label != "random real images, ours"}} | {
        "random real images, ours"
    }
    write(tmp_path / "other", row(settings=settings_with(name="other", recover__steps=9)))
    write(tmp_path / "named", row(settings=settings_with(name="named", recover__steps=8)))
    two = load_results([tmp_path / "other", tmp_path / "named"])
    assert {row.label for row in paper_table(1, two).rows if row.kind == "ours"} == {"ours (other)", "ours (named)"}
    with pytest.raises(InputError, match=r"both stand for 'mine' at benchmark=cifar10_lt, imbalance_factor=100.0, images_per_class=10"):
        paper_table(1, two, dict.fromkeys(two["recipe"], "mine"))


def test_one_recipe_over_all_columns_is_one_row(tmp_path):
    for factor in (10, 50, 100):
        for ipc in (10, 20, 50):
            write(tmp_path / f"{factor}-{ipc}", row(settings=settings_with(split__imbalance_factor=factor, distill__images_per_class=ipc)))
    ours = [row for row in paper_table(1, load_results(tmp_path)).rows if row.kind == "ours"]
    assert [row.label for row in ours] == ["ours"] and all(cell.percent == 50 for cell in ours[0].cells)


def test_parts_left_out_are_compared_with_the_same_part_left_out(tmp_path):
    changes = {
        "w/o model debiasing": {"observer__training__debias": False, "teacher__training__debias": False},
        "w/o statistics recalibration": {"calibrate__class_weights": "sample"},
    }
    base = {"data__dataset": "cifar100_lt", "split__imbalance_factor": 50}
    for index, change in enumerate(changes.values()):
        write(tmp_path / str(index), row(settings=settings_with(**base, **change)))
    table = paper_table(8, load_results(tmp_path))
    for name, theirs in zip(changes, (31.7, 40.9), strict=True):
        assert found(table)[f"ours {name} minus RLDD {name}"].cells[0].percent == pytest.approx(50 - theirs)
        assert found(table)[f"ours {name}"].cells[1].percent is None


def test_random_crops_are_the_method_and_a_footnote_not_an_ablation(tmp_path):
    """The best settings start from them: their number is the paper's, not that of its ablation."""
    for factor, top1, theirs in ((50.0, 0.428, 42.1), (10.0, 0.387, 47.1)):
        settings = settings_with(data__dataset="cifar100_lt", split__imbalance_factor=factor, select_crops__method="random")
        write(tmp_path / f"{factor:g}", row(top1=top1, settings=settings))
        (ours,) = own_results(load_results(tmp_path / f"{factor:g}")).to_dict("records")
        assert (ours["label"], ours["published"], ours["published_percent"]) == ("ours", "RLDD", theirs)
        assert ours["difference"] == pytest.approx(100 * top1 - theirs) and "random initial crops (paper: the most confident)" in ours["marks"]
    write(tmp_path / "confident", row(settings=settings_with(data__dataset="cifar100_lt", split__imbalance_factor=50.0)))
    rivals = own_results(load_results([tmp_path / "50", tmp_path / "confident"]))
    assert rivals["label"].tolist() == ["ours (run, random crops)", "ours (run, confident crops)"]
    baselines = [
        row("random", settings=settings_with(select_crops__method=name, evaluate__epochs=9 + i)) for i, name in enumerate(("random", "noise"))
    ]
    write(tmp_path / "baselines", *baselines)
    assert not any("crops" in label for label in own_results(load_results(tmp_path / "baselines"))["label"]), "they are no crops"


def test_validation_accuracies_are_no_results(tmp_path):
    write(tmp_path, row(settings=settings_with(evaluate__part="validation")))
    assert all(row.kind == "published" for row in paper_table(1, load_results(tmp_path)).rows)
    assert own_results(load_results(tmp_path)).empty


def test_the_authors_own_schedule_is_no_difference(tmp_path):
    write(tmp_path, row(settings=authors(evaluate__halve_at=[0.8, 0.9, 0.95])))
    assert differences(load_results(tmp_path)) == {load_results(tmp_path)["recipe"][0]: (ALWAYS[1],)}


@pytest.mark.parametrize(
    ("change", "more", "sentence"),
    [
        (
            {"evaluate__learning_rate": 0.003},
            {},
            "students with AdamW at 0.003, cosine rate (paper: AdamW at 0.001, rate halved after epochs 800, 900 and 950)",
        ),
        (
            {"relabel__views__batch_size": 50},
            {},
            "students with cosine rate, batches of 50 (paper: rate halved after epochs 800, 900 and 950, batches of 25)",
        ),
        (
            {"evaluate__optimizer": "muon", "evaluate__linear_step": 3.0},
            {},
            "students with Muon in all layers at 0.001, cosine rate (paper: AdamW at 0.001, rate halved after epochs 800, 900 and 950)",
        ),
        (
            {"evaluate__optimizer": "muon"},
            {},
            "students with Muon at 0.001, cosine rate (paper: AdamW at 0.001, rate halved after epochs 800, 900 and 950)",
        ),
        (
            {"evaluate__halve_at": [0.15]},
            {},
            "students with rate halved after epoch 150 (paper: rate halved after epochs 800, 900 and 950)",
        ),
        ({"relabel__views__flip": False}, {}, "student views: no RandAugment, no flips (paper: RandAugment, flips)"),
        ({"relabel__views__min_scale": 0.2}, {}, "student views: no RandAugment, crops from 0.2 (paper: RandAugment, crops from 0.08)"),
        ({"observer__model__architecture": "convnet", "observer__model__width": None}, {}, "observer ConvNet (paper: ResNet-32, 4 times wide)"),
        (
            {"relabel__views__hue": 0.1},
            {},
            "student views: changed colours, no RandAugment (paper: RandAugment)",
        ),
        ({"teacher_seeds": 3}, {}, "labels averaged over 3 teachers (paper: one)"),
        ({"observer__model__width": 32}, {}, "observer ResNet-32, width 32 (paper: ResNet-32, 4 times wide)"),
        ({"relabel__mirror_average": True}, {}, "logits averaged over each view and its mirror image (paper: of the view alone)"),
        ({"evaluate__epochs": 200}, {}, "students of 200 epochs (paper: 1000)"),
        ({"recover__steps": 300}, {}, "300 steps of recovery (paper: 75)"),
        ({"select_crops__method": "random"}, {}, "random initial crops (paper: the most confident)"),
        (
            {"calibrate__momentum__schedule": "constant"},
            {},
            "class moments under the constant schedule (paper: every image weighs the same)",
        ),
        ({"relabel__labels": "one"}, {}, "labels: one stored logit vector per image (paper: the teacher labels every view)"),
        ({"relabel__labels": "stored"}, {}, "labels: stored logits of 50 epochs of views (paper: the teacher labels every view)"),
        ({"evaluate__part": "validation"}, {}, "tested on the validation part of the training source, not on the test set"),
        ({}, {"n_tested": 500}, "tested on 500 images per class (paper: 1000)"),
        ({}, {"count_per_class": [4900, 49]}, "the largest class has 4900 training images (paper: 5000)"),
    ],
)
def test_where_the_protocol_differs_it_is_said(tmp_path, change, more, sentence):
    write(tmp_path, row(settings=authors(**change), **more))
    (marks,) = differences(load_results(tmp_path)).values()
    assert sentence in marks and set(marks) - {sentence} <= set(ALWAYS)


def test_the_papers_own_protocol_has_the_marks_that_nobody_can_avoid(tmp_path):
    write(tmp_path, row(settings=authors()), row("random"), row("observer"))
    assert list(differences(load_results(tmp_path)).values()) == [ALWAYS, ()]


def test_on_cifar100_the_cosine_is_the_papers_and_adamw_is_not(tmp_path):
    settings = settings_with(data__dataset="cifar100_lt", recover__steps=2000, observer__model__architecture="resnet32")
    write(tmp_path, row(settings=settings))
    (marks,) = differences(load_results(tmp_path)).values()
    assert "students with AdamW at 0.001, batches of 25 (paper: SGD at 0.1, batches of 100)" in marks
    assert "student views: no RandAugment, crops from 0.2 (paper: RandAugment, crops from 0.5)" in marks
    assert not [mark for mark in marks if "observer" in mark or "cosine" in mark]


def test_what_a_run_leaves_out():
    assert variant({}) == "" and variant(settings_with()) == ""
    one_expert = settings_with(observer__training__debias=False)
    assert variant(one_expert) == ""
    assert variant(settings_with(recover__steps=0, select_crops__method="random")) == "w/o recovery"
    assert variant(settings_with(select_crops__method="noise")) == "w/o initial crops"
    assert variant(settings_with(evaluate__soft_weight=0.0)) == "w/o soft labels"


def test_test_images_of_a_class_from_accuracies():
    assert n_tested_per_class([[0.5, 0.25], [0.856, None], None]) == 500
    assert n_tested_per_class([[i / 50 for i in (1, 7, 50)]]) == 50
    assert n_tested_per_class([[1.0, 0.0, float("nan")]]) == 1
    assert n_tested_per_class([[i / 1000 for i in range(1001)]]) == 1000


def test_there_is_no_table_nine():
    with pytest.raises(InputError, match="no table 9"):
        paper_table(9)


def test_letters():
    assert [letter(i) for i in (0, 25, 26, 27, 51, 52, 701, 702)] == ["a", "z", "aa", "ab", "az", "ba", "zz", "aaa"]


def test_text_is_aligned_and_missing_cells_are_blank(rows):
    text = render(paper_table(2, rows), "text")
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["RDED"].endswith("28.0 ± 0.2") and "nan" not in text and "None" not in text
    assert lines["RDED"].index("28.0") == lines["DAMED"].index("29.8")
    assert render(paper_table(1, rows), "text").splitlines()[-1].startswith("Published students (and experts) are the best")
    first = render(paper_table(1, rows), "text")
    assert "62.0 ± 1.6" in first and "50.0 [a,b,c,d]" in first and "[c] 1 student (paper: 5)" in first and "−0.7" in first


def test_markdown_has_a_cell_for_every_column(rows):
    lines = [line for line in render(paper_table(1, rows), "markdown").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {11} and len(lines) == 2 + 13 + 3 + 3
    assert lines[0].count("IF 100<br>IPC") == 3
    ours = next(line for line in lines if line.startswith("| **ours") and "62.0" in line)
    assert [part.strip() for part in ours.split("|")[2:8]] == [""] * 6


def test_latex_has_balanced_groups_and_equal_rows(rows):
    text = render(paper_table(1, rows), "latex")
    assert text.count("{") == text.count("}") and text.count("\\begin") == text.count("\\end")
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(body) == 13 + 3 + 3 and all(len(re.findall(r"(?<!\\)&", line)) == 9 for line in body)
    assert r"\multicolumn{3}{c}{IF 100}" in text and r"50.0$^{a,b,c,d}$" in text and "±" not in text and "−" not in text
    assert r"62.0 $\pm$ 1.6" in text


def test_latex_escapes_a_users_label(rows):
    text = render(paper_table(1, rows, dict.fromkeys(rows[rows["images_per_class"] == 20]["recipe"], r"50%_of \x & ~^")), "latex")
    assert r"50\%\_of \textbackslash{}x \& \textasciitilde{}\textasciicircum{}" in text


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(int(dict(attributes).get("colspan", 1)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("number", NUMBERS)
def test_html_is_well_formed_and_every_row_as_wide(rows, number):
    parser = Cells()
    text = render(paper_table(number, rows, dict.fromkeys(rows[rows["images_per_class"] == 20]["recipe"], "a<b & c")), "html")
    parser.feed(text)
    assert parser.open == [] and {sum(row) for row in parser.rows} == {N_COLUMNS[number] + 1}
    assert ("a&lt;b &amp; c" in text) == (number == 1)
    assert "<td></td>" in text or number in (1, 7)
