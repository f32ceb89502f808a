"""Checks the links inside of a built site: ``python docs/check_links.py docs/_build/html``.

Every relative link, picture and script must be a file, and every ``#anchor`` an identifier in it.
It prints how many pages and links there are. The exit code is 1 if one leads nowhere.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the identifiers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.identifiers: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.identifiers.add(value)
            elif name in ("href", "src") and value and tag != "base":
                self.links.append(value)


def check(site: Path) -> int:
    """Prints links that lead nowhere, and returns their number."""
    files = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in files}
    count, bad = 0, 0
    for path, page in sorted(pages.items()):
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            goal = goal / "index.html" if goal.is_dir() else goal
            wrong = not goal.is_file()
            if not wrong and parts.fragment and goal.suffix == ".html":
                known = pages[site.resolve() / goal.relative_to(site.resolve())].identifiers
                wrong = unquote(parts.fragment) not in known
            if wrong:
                bad += 1
                print(f"{path.relative_to(site)}: {link} leads nowhere", file=sys.stderr)
    print(f"{len(pages)} pages, {count} links inside the site, {bad} lead nowhere")
    return bad


if __name__ == "__main__":
    sys.exit(bool(check(Path(sys.argv[1]).resolve())))
