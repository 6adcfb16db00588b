"""What the tests of pages share: how a browser sees one, and a text that attacks it."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`|*_[x](javascript:alert(3)) "
EVIL += "\x1b[31m\u202e{{ 7919*7907 }}"


class Page(HTMLParser):
    """What a browser would see: the tags, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.said.append(data)

    @property
    def text(self):
        return " ".join("".join(self.said).split())
