"""Build the documentation as a site: `python scripts/build_docs.py` -> build/docs/html/index.html. No network.

The pages are docs/*.md, the notebooks with their stored outputs, and a reference made from docstrings. Sphinx with MyST
builds them. Every warning is an error: a dead link, a missing anchor, a docstring that does not parse.
`--external` also checks the links to other sites, which needs a network.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = "https://github.com/dpo-workbench/dpo_workbench/blob/main/"
AREAS = {  # heading of a reference page -> the modules whose public names it shows
    "Tasks": "tasks",
    "Models": "models",
    "Pairs": "pairs",
    "Mining": "mining",
    "Training": "training",
    "Evaluation": "evaluation",
    "Studies": "studies",
    "Labelling": "labelling",
    "Export": "export",
    "Errors and environment": "common",
}
CONF = '''
project, author, copyright = "dpo_workbench", "the authors of dpo_workbench", "the authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title, html_show_sourcelink = "furo", "dpo_workbench", False
html_static_path, html_css_files = ["site"], ["site.css"]
nb_execution_mode = "off"
myst_enable_extensions, myst_heading_anchors, myst_update_mathjax = ["dollarmath", "colon_fence"], 3, False
autodoc_typehints, autodoc_member_order, autoclass_content = "signature", "bysource", "class"
python_use_unqualified_type_names, add_module_names, default_role = True, False, "code"
exclude_patterns, nitpicky = [], False
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]
linkcheck_timeout = 20


def escape(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`; signs that reStructuredText would read as markup are taken as signs."""
    import re

    literal = False
    for k, line in enumerate(lines):
        indented = line.startswith("    ") and (literal or (k and lines[k - 1].endswith("::")))
        literal = indented or (literal and not line.strip())
        if not indented:
            parts = line.split("`")
            parts[::2] = [re.sub(r"([*|])|(?<=\\w)_(?=\\W|$)", lambda m: "\\\\" + m[0], part) for part in parts[::2]]
            lines[k] = "`".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=900)
'''
CSS = "article table { font-size: 0.8rem }"  # tables of results have many columns


def page(text: str) -> str:
    """A page of docs/ for the site. Links to files outside the site lead to the published repository."""
    text = re.sub(r"\]\(\.\./notebooks/([\w.]+)\)", r"](course/\1)", text)
    text = re.sub(r"\]\(\.\./(SECURITY|CONTRIBUTING|CHANGELOG)\.md\)", lambda m: f"]({m[1].lower()}.md)", text)
    text = re.sub(r"\]\((?:\.\./)+([^)]+)\)", lambda m: f"]({SITE}{m[1]})", text)
    return text


def from_root(text: str) -> str:
    """A page from the repository's root for the site."""
    text = re.sub(r"\]\(docs/([\w./#-]+)\)", r"](\1)", text)
    return re.sub(r"\]\((?!https?:|#|[\w-]+\.md)([\w./-]+)\)", lambda m: f"]({SITE}{m[1]})", text)


def reference() -> dict[str, str]:
    """Pages of the reference: name -> MyST text."""
    import dpo_workbench as dw

    pages = {}
    for title, area in AREAS.items():
        lines = [f"# {title}", ""]
        for home, names in dw._HOMES.items():
            if home.split(".")[0] != area:
                continue
            for name in names:
                found = getattr(dw, name)
                if not callable(found):  # a table or a value
                    told = ", ".join(f"`{key}`" for key in found) if isinstance(found, Mapping) else f"`{found}`"
                    lines += [f"**`dw.{name}`**: {told}.", ""]
                    continue
                kind = "class" if isinstance(found, type) else "function"
                options = ["   :members:"] if kind == "class" and not issubclass(found, BaseException) else []
                lines += ["```{eval-rst}", f".. auto{kind}:: dpo_workbench.{home}.{name}", *options, "```", ""]
                if name == "TrainConfig":
                    lines += settings()
        pages[area] = "\n".join(lines)
    return pages


def settings() -> list[str]:
    """Fields of `TrainConfig` with their defaults and comments, as a table."""
    from dpo_workbench.training.config import TrainConfig

    source = (ROOT / "dpo_workbench" / "training" / "config.py").read_text(encoding="utf-8")
    told = dict(re.findall(r"^    (\w+): .*?# (.*)$", source, flags=re.M))
    rows = [f"| `{f.name}` | `{f.default!r}` | {told[f.name]} |" for f in fields(TrainConfig)]
    return ["| setting | default | what it does |", "|---|---|---|", *rows, ""]


def gather(source: Path) -> None:
    """Write all pages and conf.py into an empty folder."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copytree(ROOT / "docs" / "figures", source / "figures")
    for path in sorted((ROOT / "docs").glob("*.md")):
        (source / path.name).write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = from_root((ROOT / name).read_text(encoding="utf-8"))
        (source / name.lower()).write_text(text, encoding="utf-8")
    for folder in ("", "solutions"):
        place = source / "course" / folder
        place.mkdir(parents=True, exist_ok=True)
        for path in sorted((ROOT / "notebooks" / folder).glob("*.ipynb")):
            text = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
            (place / path.name).write_text(with_alternatives(text), encoding="utf-8")
    (source / "reference").mkdir()
    for name, text in reference().items():
        (source / "reference" / f"{name}.md").write_text(text, encoding="utf-8")
    (source / "site").mkdir()
    (source / "site" / "site.css").write_text(CSS, encoding="utf-8")
    (source / "conf.py").write_text(CONF, encoding="utf-8")
    with (source / "index.md").open("a", encoding="utf-8") as file:
        file.write(contents(source))


def with_alternatives(text: str) -> str:
    """A notebook in which each figure has an alternative text: the first lines of the text printed with it."""
    notebook, before = json.loads(text), ""
    for cell in notebook["cells"]:
        outputs = cell.get("outputs", [])
        printed = "".join("".join(output.get("text", "")) for output in outputs) or before
        if any("image/png" in output.get("data", {}) for output in outputs):
            lines = [" ".join(line.split()) for line in printed.splitlines()[:2]]
            cell["metadata"]["mystnb"] = {"image": {"alt": "; ".join(lines)}}
        before = printed if outputs else ""
    return json.dumps(notebook)


def contents(source: Path) -> str:
    """The tables of contents on the first page."""
    guides = [
        "where_to_run",
        "recipe",
        "models",
        "data",
        "preflight",
        "plan",
        "tasks",
        "losses",
        "evaluation",
        "labelling",
        "publish",
        "judge",
        "scale_up",
        "server",
        "sandbox",
    ]
    parts = {
        "The course": sorted(f"course/{p.stem}" for p in (source / "course").glob("*.ipynb")),
        "Solutions": sorted(f"course/solutions/{p.stem}" for p in (source / "course" / "solutions").glob("*.ipynb")),
        "How to": guides,
        "Results": ["results", "claims", "performance"],
        "Reference": [f"reference/{area}" for area in AREAS.values()],
        "About": ["glossary", "security", "contributing", "changelog"],
    }
    blocks = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```", ""])
        for title, names in parts.items()
        if names
    ]
    return "\n" + "\n".join(blocks)


def build(out: Path, builder: str = "html") -> int:
    """Run Sphinx; its exit code."""
    from sphinx.cmd.build import build_main

    gather(out / "source")
    return build_main(["-b", builder, "-W", "--keep-going", "-q", str(out / "source"), str(out / builder)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    parser.add_argument("--external", action="store_true", help="try links to other sites")
    args = parser.parse_args()
    code = build(args.out, "linkcheck" if args.external else "html")
    if not code and not args.external:
        print(f"open {args.out / 'html' / 'index.html'}")
    sys.exit(code)


if __name__ == "__main__":
    main()
