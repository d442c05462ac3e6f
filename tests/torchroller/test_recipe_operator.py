"""The recipe in docs/recipes/add_an_operator.md does what it says."""

import re
from pathlib import Path

from torchroller.ops.registry import RULES

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "add_an_operator.md"


def test_the_recipe_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", RECIPE.read_text(), re.S)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, str(RECIPE), "exec"), names)
    finally:
        RULES.pop("recipe.squareplus", None)
    printed = capsys.readouterr().out
    assert "call sqrt" in printed and "write" in printed
