"""Options: unknown names and values are refused with the closest valid one."""

from __future__ import annotations

import pytest
import torch

from torchroller.backend import roller
from torchroller.errors import OptionError, StrictError
from torchroller.options import parse_options


def test_an_unknown_option_names_the_closest_valid_one():
    with pytest.raises(
        OptionError, match=r"unknown option 'strickt' .*did you mean 'strict'.*valid options: \["
    ):
        parse_options(None, {"strickt": True})


def test_an_unknown_mode_names_the_closest_valid_one():
    with pytest.raises(OptionError, match=r"unknown mode 'max-autotun' .*did you mean 'max-autotune'"):
        parse_options("max-autotun", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": "yes"}, r"option 'strict' is 'yes' \(str\); expected bool"),
        ({"topk": True}, r"option 'topk' is True \(bool\); expected int"),
        ({"topk": 0}, r"option 'topk' is 0; it must be at least 1"),
        ({"executor": "nativ"}, r"option 'executor' is 'nativ' \(did you mean 'native'\?\)"),
        ({"cache_dir": 3}, r"option 'cache_dir' is 3 \(int\); expected str \| None"),
    ],
)
def test_a_wrong_value_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        parse_options(None, options)


def test_max_autotune_measures_and_the_default_does_not():
    assert parse_options("max-autotune", None).measure
    assert not parse_options("max-autotune", {"measure": False}).measure
    assert not parse_options(None, None).measure


def test_the_error_reaches_the_user_of_torch_compile():
    torch._dynamo.reset()
    with pytest.raises(Exception, match="did you mean 'fuse'"):
        torch.compile(lambda x: x + 1, backend=roller, options={"fuze": True})(torch.ones(3))


def test_strict_names_the_operator_and_the_line():
    torch._dynamo.reset()
    with pytest.raises(
        Exception, match=r"aten.cummax.default .*no rule for aten.cummax(?s:.*)test_options.py"
    ) as caught:
        torch.compile(lambda x: x.cummax(0)[0], backend=roller, options={"strict": True})(torch.ones(3))
    assert isinstance(caught.value.__cause__, StrictError) or "StrictError" in str(caught.value)
