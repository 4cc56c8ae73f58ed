"""Keep the rendered book whole without a network: no script from elsewhere, one copy of each.

What lies in _static is put on every page; a script or style that has the name of a page is kept on that page only.
"""

from pathlib import Path


def _drop(app, pagename, templatename, context, doctree):
    """Take the live-code scripts, second copies, and what belongs to other pages out of a page's lists."""
    others = app.env.found_docs - {pagename}
    seen = set()
    for kind in ("script_files", "css_files"):
        kept = []
        for file in context.get(kind, []):
            name = str(getattr(file, "filename", file) or "")
            body = str(getattr(file, "attributes", {}).get("body", ""))
            thebe = kind == "script_files" and "thebe" in (name + body).lower()
            if thebe or (name and name in seen) or Path(name).stem in others:
                continue
            seen.add(name)
            kept.append(file)
        context[kind] = kept


def setup(app):
    """Called by Sphinx."""
    app.connect("html-page-context", _drop, priority=900)
    return {"parallel_read_safe": True}
