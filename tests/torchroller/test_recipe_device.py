"""The recipe in docs/recipes/add_a_device.md does what it says."""

import re
from pathlib import Path

from test_device import test_shipped_specs_are_consistent as check_consistency
from test_search import check

from torchroller import operators
from torchroller.search import construct

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "add_a_device.md"


def test_the_recipe_runs_and_its_device_is_sound(capsys):
    blocks = re.findall(r"```python\n(.*?)```", RECIPE.read_text(), re.S)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(RECIPE), "exec"), names)
    assert "L40S  [cuda 89]  142 units" in capsys.readouterr().out
    device = names["L40S"]
    check_consistency(device)
    for op in operators.read()[::10]:
        for program in construct(op.expr(), device, tiled=op.tiled).ranked:
            check(op.expr(), device, program)


def test_the_commands_of_the_recipe_exist():
    text = RECIPE.read_text()
    for name in re.findall(r"tests/torchroller/\w+\.py", text):
        assert (RECIPE.parents[2] / name).exists()
