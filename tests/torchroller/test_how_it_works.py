"""docs/how-it-works.md shows what the code prints: every block is run and its output compared."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-it-works.md"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.S)


@pytest.mark.slow
def test_the_page_shows_what_the_code_prints():
    names: dict[str, object] = {}
    blocks = list(BLOCK.finditer(PAGE.read_text()))
    assert len(blocks) == 8
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.group(1), str(PAGE), "exec"), names)
        assert printed.getvalue().rstrip() == (block.group(2) or "").rstrip(), block.group(1)
