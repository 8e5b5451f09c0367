# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Finds what would stop LaTeX in a written table, without LaTeX."""

import re


def latex_faults(text):
    """What would stop LaTeX: specials, braces, environments, and rows of the wrong width."""
    faults = []
    bare = re.sub(r"\\[\\&%$#_{}]", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))
    faults += [f"bare {special}" for special in "%#_~^" if special in re.sub(r"\$.*?\$", "", bare)]
    if bare.count("$") % 2:
        faults.append("a $ that is not closed")
    plain = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in plain:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            break
    faults += ["braces"] if depth else []
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            faults.append(f"end of {name}")
    faults += opened
    for body in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.match(r"\{([lr]+)\}", body).group(1))
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        faults += [row for row in rows if len(re.findall(r"(?<!\\)&", row)) != columns - 1]
    return faults
