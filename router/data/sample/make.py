#!/usr/bin/env python3
"""Writes documents/*.md from the Debian package dict-jargon (The Jargon File 4.4.7, public domain).

    apt-get download dict-jargon && dpkg -x dict-jargon_*.deb unpacked
    python3 make.py unpacked

entries.txt lists the entries taken, one headword of the index a line. The words of an entry are kept; what changes is
layout: the headword becomes a Markdown heading, the part of speech an italic line, wrapped lines are joined to
paragraphs, deeper-indented blocks become code blocks; braces around cross-references, soft hyphens and the names of
pictures are removed.
"""
import gzip
import pathlib
import re
import sys

DIGITS = {c: n for n, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def number(text):
    value = 0
    for digit in text:
        value = value * 64 + DIGITS[digit]
    return value


def entries(root):
    base = root / "usr/share/dictd"
    data = gzip.decompress((base / "jargon.dict.dz").read_bytes())
    for line in (base / "jargon.index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")
        start, length = number(start), number(length)
        yield word, data[start : start + length].decode("utf-8")


def markdown(entry):
    head, *lines = entry.rstrip().split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    out = [f"# {head.strip()}"]
    if lines and not lines[0].startswith("    "):
        speech = re.sub(r"/[^/]*/,?", "", lines.pop(0)).strip(" ,")
        if speech:
            out.append(f"*{speech}*")
    for block in re.split(r"\n[ \t]*\n", "\n".join(lines)):
        block = block.strip("\n")
        if not block.strip():
            continue
        rows = block.split("\n")
        if all(row.startswith("     ") for row in rows):
            out.append("```\n" + "\n".join(row[4:].rstrip() for row in rows) + "\n```")
            continue
        text = re.sub(r"\s+", " ", " ".join(row.strip() for row in rows))
        text = re.sub(r"\{\s*([^{}]*?)\s*\}", r"\1", text)
        text = re.sub(r"([“‘(\[]) ", r"\1", text).replace("\u00ad", "")
        if not re.fullmatch(r"\[\w+[-_]\w+\]", text):  # the name of a picture
            out.append(text)
    return "\n\n".join(out) + "\n"


def main():
    here = pathlib.Path(__file__).parent
    wanted = set((here / "entries.txt").read_text(encoding="utf-8").split("\n")) - {""}
    folder = here / "documents"
    folder.mkdir(exist_ok=True)
    for word, entry in entries(pathlib.Path(sys.argv[1])):
        if word in wanted:
            wanted.discard(word)
            slug = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
            (folder / f"{slug}.md").write_text(markdown(entry), encoding="utf-8")
    if wanted:
        sys.exit(f"not in the dictionary: {sorted(wanted)}")


main()
