"""Search in Chinese without a dictionary: a text is indexed by its pairs of neighbouring characters, and so is a query.

Sphinx's own search needs the package jieba to see Chinese words, and finds none without it.
"""

import re

from sphinx.search import languages
from sphinx.search.zh import SearchChinese

QUERY = r"""
function splitQuery(query) {
  const terms = query.match(/[a-zA-Z0-9_]+/g) || [];
  for (const run of query.match(/[\u4e00-\u9fff]+/g) || [])
    for (let i = 0; i + 1 < run.length; i++) terms.push(run.slice(i, i + 2));
  return terms;
}
"""


class ChinesePairs(SearchChinese):
    """Chinese by pairs of characters, everything else by words."""

    js_splitter_code = QUERY

    def split(self, input):
        """The terms of a text: its Latin words and numbers, and its pairs of Chinese characters."""
        runs = re.findall(r"[\u4e00-\u9fff]+", input)
        pairs = [run[i : i + 2] for run in runs for i in range(len(run) - 1)]
        words = self.latin1_letters.findall(input)
        self.latin_terms.extend(words)
        return pairs + words


def setup(app):
    """Called by Sphinx."""
    languages["zh"] = ChinesePairs
    return {"parallel_read_safe": True}
