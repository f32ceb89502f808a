"""Every block of Python code in the README and in some pages of docs/ runs; links lead to files."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/start.md",
    "docs/usage.md",
    "docs/arviz.md",
    "docs/checkpoint.md",
    "docs/howto/own_guide.md",
]


def blocks(page):
    """The Python code of a page, a string for each block."""
    return re.findall(r"^```python\n(.*?)^```", (REPOSITORY / page).read_text(), re.S | re.M)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # trainings are short
def test_code_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)  # a guide is saved
    namespace = {"__name__": "__main__"}
    code = blocks(page)
    assert len(code) >= 2
    for i, block in enumerate(code):
        exec(compile(block, f"{page}, block {i}", "exec"), namespace)


@pytest.mark.parametrize(
    "page",
    [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
        *(str(p.relative_to(REPOSITORY)) for p in sorted(REPOSITORY.glob("docs/**/*.md"))),
    ],
)
def test_links(page):
    """Relative links of a page, with or without a section, lead to files."""
    text = (REPOSITORY / page).read_text()
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)  # code has brackets too
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http", "#")):
            assert ((REPOSITORY / page).parent / link.split("#")[0]).exists(), link
