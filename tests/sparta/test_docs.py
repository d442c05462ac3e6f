"""docs/torchsparta.md does what it says: its code is run as it is printed, in one scope, from top to bottom."""

import re
from pathlib import Path

import pytest

import torchsparta

PAGE = Path(__file__).parents[2] / "docs" / "torchsparta.md"


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), scope)
    printed = capsys.readouterr().out
    assert "pruned by propagation" in printed and "fine-grained" in printed
    assert (tmp_path / "sparse.safetensors").exists()


def test_the_names_on_the_page_exist():
    for name in set(re.findall(r"torchsparta\.(\w+)\(", PAGE.read_text())):
        assert hasattr(torchsparta, name), name
