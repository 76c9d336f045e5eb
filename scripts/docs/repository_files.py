"""Lets the pages link to files of the repository, with the same links that work where the repository is browsed.

The READMEs in PAGES become pages of the site. Any other file that a page links to is shown on a page of its own; a
folder is only named.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
OWN = "scripts/docs/pages/"
PAGES = {
    "README.md": "index.md",
    ".github/SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "hf_vse/README.md": "house.md",
    "scripts/benchmarks/README.md": "benchmarks.md",
    "scripts/recipes/methods/README.md": "methods.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
IMAGE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)\)")
SHOWN = '---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# {name}\n\n~~~~{language} title="{path}"\n{text}\n~~~~\n'
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json"}


def path_of(link: str, page: str) -> str:
    """The path in the repository that a link on a page, itself at a path in the repository, leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def is_outside(link: str) -> bool:
    return link.startswith(("http://", "https://", "mailto:", "#"))


def place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix(OWN) if path.startswith(OWN) else f"source/{path}.md"


def on_files(files, config):
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in PAGES}
    pages = texts | {OWN + file.src_uri: file.content_string for file in files.documentation_pages()}
    for path, text in texts.items():
        files.append(File.generated(config, PAGES[path], content=text))
    linked = {path_of(link["target"], page) for page, text in pages.items() for link in LINK.finditer(text)
              if not is_outside(link["target"])}  # fmt: skip
    for path in sorted(linked):
        source = ROOT / path
        if source.is_file() and place(path) not in files.src_uris:
            text, language = source.read_text(encoding="utf-8"), LANGUAGES.get(source.suffix, "text")
            shown = SHOWN.format(name=source.name, language=language, path=path, text=text)
            files.append(File.generated(config, place(path), content=shown))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of the repository become links of the site; one that leads nowhere is reported by MkDocs."""
    uri = page.file.src_uri
    here = next((path for path, name in PAGES.items() if name == uri), OWN + uri)

    def link(found):
        target = found["target"]
        path = path_of(target, here)
        if is_outside(target):
            return found[0]
        if (ROOT / path).is_dir():
            return found["text"]
        there = posixpath.relpath(place(path), posixpath.dirname(uri) or ".")
        return f"[{found['text']}]({there}{found['anchor'] or ''})"

    def image(found):
        path = path_of(found["target"], here)
        return f"![{found['text']}]({posixpath.relpath(place(path), posixpath.dirname(uri) or '.')})"

    return IMAGE.sub(image, LINK.sub(link, markdown))
