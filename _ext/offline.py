"""Keep the rendered book whole without a network: no script from elsewhere, one copy of MathJax."""


def _drop(app, pagename, templatename, context, doctree):
    """Take the live-code scripts, and a second MathJax, out of a page's list of scripts."""
    seen, kept = set(), []
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or "")
        body = str(getattr(script, "attributes", {}).get("body", ""))
        if "thebe" in (name + body).lower() or ("mathjax" in name.lower() and name in seen):
            continue
        seen.add(name)
        kept.append(script)
    context["script_files"] = kept


def setup(app):
    """Called by Sphinx."""
    app.connect("html-page-context", _drop, priority=900)
    return {"parallel_read_safe": True}
