"""The page: complete, valid, of one file, and readable on a phone, in the dark and in print."""

import html
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
from support.results import SAMPLE_ATTRS, dataset, numbers, result, statistics

from pyro_flowsamp import IMH, AutoFlow, FitOptions, ReportOptions, Target, VectorizedMCMC, report

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

ARVIZ_0 = az.__version__.startswith("0.")
VOID = {"meta", "link", "br", "img", "input", "hr"}
SECTIONS = "checks summary convergence worst pairs weights acceptance training modes evidence"
SECTIONS = [*SECTIONS.split(), "candidates", "record"]
SMALL = ReportOptions(worst=1, pairs=2)


class Page(HTMLParser):
    """Collects identifiers, links and text, and notes tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.wrong, self.ids, self.links, self.words = [], [], [], [], []
        self.feed(text)
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def complete():
    """A result with all that a report can show."""
    groups = {
        "proposal": dataset(numbers(1, 200, seed=3)),
        "proposal_stats": dataset({"log_weight": np.random.default_rng(0).normal(size=(1, 200))}),
    }
    return result(numbers(), statistics(), SAMPLE_ATTRS, tree=True, groups=groups)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("report") / "report.html"
    return report(complete(), made, title="Two <modes> & more", options=SMALL)


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_valid(page):
    assert page.wrong == []
    assert len(page.ids) == len(set(page.ids))
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    assert "Two <modes> & more" in page.text


def test_the_page_loads_nothing(page, path):
    assert page.links and all(link.startswith(("#", "data:image/png")) for link in page.links)
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text and "@import" not in text and "url(http" not in text


def test_the_verdict_comes_first_and_all_is_told(page):
    text = page.text
    assert text.index("The draws look reliable") < text.index("What was looked at")
    for words in (
        "IMH (spline)", "1e+06 of work", "made the draws", "123 456", "torch 2.13.0",
        "-12.500", "300 steps", "because the flow was good enough", "found 2 separate modes",
        "4 × 200", "theta[1]",
    ):  # fmt: skip
        assert words in text, words
    assert "Not recorded" not in text


def test_a_bare_result_says_what_is_missing(tmp_path):
    path = report(result(), tmp_path / "bare.html", options=SMALL)
    text = Page(path.read_text(encoding="utf-8")).text
    assert text.count("Not recorded") >= 5
    assert "give proposals=to_arviz(guide, ...)" in text and "seed" in text


def test_problems_are_marked(tmp_path):
    data = result(numbers(offset=[0, 0, 0, 2]), attrs={"problems": "max_seconds are over"})
    text = report(data, tmp_path / "bad.html", options=SMALL).read_text(encoding="utf-8")
    page = Page(text)
    assert page.wrong == [] and text.count('class="wrong"') >= 2
    assert page.text.index("The draws may be wrong") < page.text.index("Max_seconds are over.")


def test_names_cannot_break_the_page(tmp_path):
    name = "</svg><script>x" if ARVIZ_0 else "<svg><script>x"  # ArviZ 1.x allows no slash
    values = {name: numbers()["mean"], "a$_{b$": numbers(seed=2)["mean"]}
    text = report(result(values), tmp_path / "x.html", options=SMALL).read_text(encoding="utf-8")
    assert Page(text).wrong == [] and "<script" not in text


def test_the_same_result_gives_the_same_page(tmp_path, path):
    again = report(complete(), tmp_path / "again.html", title="Two <modes> & more", options=SMALL)
    assert again.read_bytes() == path.read_bytes()


def test_a_run_has_its_flow_and_its_training(tmp_path):
    target = Target.from_energy(lambda x: (x.square().sum(-1) / 2 - 1).square(), 2)
    guide = AutoFlow(target, options=FitOptions(progress=False, max_steps=50))
    run = VectorizedMCMC(IMH(guide=guide), 20, 20, 50, disable_progbar=True)
    run.run()
    before = torch.get_rng_state()
    path = report(run, tmp_path / "run.html", options=SMALL)
    assert torch.equal(before, torch.get_rng_state())
    text = Page(path.read_text(encoding="utf-8")).text
    assert "flow's draws" in text and "The training ended" in text
    assert "No problem was seen" in text or "The draws may be wrong" in text


@pytest.mark.slow
def test_time_and_size_of_a_large_result(tmp_path):
    """A hundred thousand draws of a hundred parameters, in ten seconds of one core and 5 MB."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 100, 100)).astype(np.float32)
    data = {
        "posterior": dataset({"theta": x}),
        "sample_stats": dataset(statistics(1000, 100)),
        "proposal": dataset({"theta": 1.3 * x[:10].reshape(1, 1000, 100)}),
    }
    clock = time.process_time()
    path = report(xr.DataTree.from_dict(data), tmp_path / "large.html")
    assert time.process_time() - clock < 10
    assert path.stat().st_size < 5e6


# ---- refusals ------------------------------------------------------------------------------------
def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"needs jinja2: pip install 'pyro_flowsamp\[report\]'"):
        report(result(), tmp_path / "x.html")


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder .*nowhere of the report"):
        report(result(), tmp_path / "nowhere" / "x.html")


# ---- in a browser --------------------------------------------------------------------------------
CHROMIUM = shutil.which("chromium")
BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
WIDTH = 390  #: of a phone's screen


def browse(tmp_path, text, *options):
    """The page after its scripts, by a browser that shows this text."""
    shown = tmp_path / "shown.html"
    shown.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *options]
    command += ["--virtual-time-budget=5000", "--dump-dom", shown.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def measured(tmp_path, path, expression, *options):
    """The value of an expression in a frame of a phone's width that shows the page."""
    inside = html.escape(path.read_text(encoding="utf-8"), quote=True)
    script = f"const d = this.contentDocument; document.title = String({expression})"
    frame = f'<iframe width={WIDTH} height=800 srcdoc="{inside}" onload="{script}"></iframe>'
    dom = browse(tmp_path, f"<!DOCTYPE html><title></title>{frame}", *options)
    return html.unescape(re.search("<title>(.*?)</title>", dom)[1])


@BROWSER
@pytest.mark.slow
def test_the_page_is_not_wider_than_a_phone(tmp_path, path):
    found = measured(tmp_path, path, "d.documentElement.scrollWidth")
    assert 0 < int(found) <= WIDTH


@BROWSER
@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_colours_follow_the_reader(tmp_path, path, scheme, dark):
    blink = f"--blink-settings=preferredColorScheme={scheme}"
    colour = measured(tmp_path, path, "getComputedStyle(d.body).backgroundColor", blink)
    level = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert (level < 60) == dark, colour


@BROWSER
@pytest.mark.slow
def test_the_page_can_be_printed(tmp_path, path):
    made = tmp_path / "report.pdf"
    browse(tmp_path, path.read_text(encoding="utf-8"), f"--print-to-pdf={made}")
    assert made.read_bytes().startswith(b"%PDF")
