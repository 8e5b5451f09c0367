# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Puts a report's parts into page.html: one file, no library, nothing asked of the network."""

import html
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

_TEMPLATE = "page.html"


def fill(title: str, body: str, gallery: Mapping[str, Any] | None) -> str:
    """The whole page.

    Args:
        title: plain text.
        body: HTML of the report.
        gallery: what `gallery.build` gathered, for the script to page through; None: no gallery.

    Returns:
        The HTML text.
    """
    template = importlib.resources.files("medloc_jax.evaluation").joinpath(_TEMPLATE)
    # "</script>" in a completion must not end the script that holds it.
    data = json.dumps(gallery, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    parts = {"TITLE": html.escape(title), "BODY": body, "DATA": data}
    # Split first: what is put in may hold anything, the marks of the template included.
    pieces = template.read_text(encoding="utf-8").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


GALLERY = """<section id="gallery" aria-labelledby="gallery-title">
<h2 id="gallery-title">Gallery</h2>
<p class="note">%s</p>
<noscript><p>Paging through the predictions needs JavaScript.</p></noscript>
<form id="filters">
<label>Method <select id="f-method"></select></label>
<label>Class <select id="f-class"></select></label>
<label>IoU from <input id="f-low" type="number" inputmode="decimal" min="0" max="1" step="0.05"
 value="0"></label>
<label>to <input id="f-high" type="number" inputmode="decimal" min="0" max="1" step="0.05"
 value="1"></label>
<label>Sort <select id="f-sort"><option value="worst">worst first</option>
<option value="best">best first</option><option value="id">by name</option></select></label>
<button type="reset">Reset</button>
</form>
<p id="status" role="status" aria-live="polite"></p>
<ul id="thumbs" aria-label="Predictions; arrow keys move, Enter opens"></ul>
<div class="pager"><button type="button" id="page-back">‹ Previous page</button>
<button type="button" id="page-on">Next page ›</button></div>
<dialog id="viewer" aria-labelledby="viewer-title">
<div class="bar"><h3 id="viewer-title"></h3>
<button type="button" id="viewer-close">Close</button></div>
<div id="viewer-picture"></div>
<p id="viewer-facts"></p>
<label>Beside it <select id="viewer-other"></select></label>
<h4 id="viewer-text-title">Completion</h4>
<pre id="viewer-text" tabindex="0" aria-labelledby="viewer-text-title"></pre>
<div id="viewer-second" hidden><h4 id="viewer-second-title"></h4>
<pre id="viewer-second-text" tabindex="0" aria-labelledby="viewer-second-title"></pre></div>
<div class="pager"><button type="button" id="viewer-back">‹ Previous</button>
<span id="viewer-place"></span>
<button type="button" id="viewer-on">Next ›</button></div>
</dialog>
</section>"""
