"""A hook of MkDocs: links from the pages to the rest of the repository work on the site too, while it has no public address.

A linked file outside of docs/ is copied into the site, and a linked folder of docs/ gets a page that lists it.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
COPIES = "repository"
# GitHub counts four columns of code from a list item's text, Python-Markdown eight from the margin.
CODE_IN_A_LIST = re.compile(r"(?<=\n\n) {7}(?=\S)")


def _target(config: MkDocsConfig, page: str, link: str) -> Path:
    return Path(os.path.normpath(Path(config.docs_dir, page).parent / link))


def _place(config: MkDocsConfig, target: Path) -> str | None:
    """Where the site has what MkDocs itself would not find; None for pages, pictures and what does not exist."""
    docs = Path(config.docs_dir)
    if target.is_relative_to(docs):
        return f"{target.relative_to(docs).as_posix()}/index.md" if target.is_dir() and target != docs else None
    root = docs.parent
    return f"{COPIES}/{target.relative_to(root).as_posix()}.txt" if target.is_file() and target.is_relative_to(root) else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the copies and the lists."""
    for page in list(files.documentation_pages()):
        for _, link, _ in LINK.findall(page.content_string):
            target = _target(config, page.src_uri, link)
            place = _place(config, target)
            if place is None or files.get_file_from_path(place):
                continue
            if target.is_dir():
                names = sorted(path.name for path in target.iterdir() if path.is_file())
                text = f"# {target.name}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
                files.append(File.generated(config, place, content=text))
            else:
                files.append(File.generated(config, place, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links to them, and indents code in lists as Python-Markdown wants it."""
    here = os.path.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        place = _place(config, _target(config, page.file.src_uri, match[2]))
        return match[0] if place is None else f"{match[1]}{os.path.relpath(place, here or '.')}{match[3]}"

    return CODE_IN_A_LIST.sub(" " * 8, LINK.sub(moved, markdown))
