"""The recipe docs/recipes/add_a_sparse_format.md does what it says: its code is run as it is printed."""

import re
from pathlib import Path

import torch

from torchsparta.formats import FORMATS

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "add_a_sparse_format.md"


def test_the_recipe_runs_and_its_format_obeys_the_laws():
    known = dict(FORMATS)
    scope: dict = {}
    try:
        for code in re.findall(r"```python\n(.*?)```", RECIPE.read_text(), re.DOTALL):
            exec(compile(code, str(RECIPE), "exec"), scope)
        weight, mask, banded, x, y, loaded = (
            scope[n] for n in ("weight", "mask", "banded", "x", "y", "loaded")
        )
        assert torch.equal(banded.unpack(), weight * mask)
        want = x.double() @ banded.unpack().double().T
        assert float((y.double() - want).abs().max() / want.abs().max()) < 2e-6
        assert banded.entries < 64 * 96 // 8
        assert loaded.format_name() == "banded"
        assert torch.equal(loaded.current_weight(), weight * mask)
        assert torch.equal(loaded(x), y)
        for n, k, share in ((40, 30, 0.1), (7, 5, 0.5), (9, 64, 0.0)):
            w, m = torch.randn(n, k), torch.rand(n, k) < share
            assert torch.equal(scope["Banded"].pack(w, m).unpack(), w * m)
    finally:
        FORMATS.clear()
        FORMATS.update(known)


def test_the_files_that_the_recipe_names_exist():
    text = RECIPE.read_text()
    for name in re.findall(r"(?:tests/sparta|torchsparta)/\w+\.py", text):
        assert (RECIPE.parents[2] / name).exists(), name
