"""Bilinear operators: linear, matmul and its kin, convolution, einsum.

Run over {may be nonzero} the operator counts the products that reach an output element. With U = not known
and N = may be nonzero, an output element is known iff f(U_a, N_b) + f(N_a, U_b) is 0 there, and its value is
f of the known values. What is needed backward is the operator's gradient expression over the same sets
(SparTA's propagation), which autograd supplies for every bilinear operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tesa import compact
from .facts import Call, Facts, any_over
from .rule import Needs, Rule, unknown

if TYPE_CHECKING:
    from ..structure.emit import Emitter
    from ..structure.keep import CallAxes


class Contraction(Rule):
    """out = alpha * f(a, b) + beta * bias. positions: of a, b and bias (None: no bias) in the arguments."""

    def __init__(self, a: int, b: int, bias: int | None = None):
        self.a, self.b, self.bias = a, b, bias

    # -- to specialise -------------------------------------------------------------------------------------
    def product(self, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
        """f itself, on float tensors, without bias."""
        raise NotImplementedError

    def layout(self, call: Call, a: Facts, b: Facts, need: Tensor | None) -> tuple[list[int], list[int]]:
        """Dimensions of a and of b that must be at their full size for f to mean what it should."""
        return list(range(len(a.shape))), list(range(len(b.shape)))

    def bias_view(self, call: Call, bias: Tensor) -> Tensor:
        """A bias in a shape that broadcasts to the output."""
        return bias

    def coefficients(self, call: Call) -> tuple[float, float]:
        """(alpha, beta)"""
        return 1.0, 1.0

    # -- the algebra ---------------------------------------------------------------------------------------
    def operands(self, call: Call) -> tuple[int, int, int | None] | None:
        a, b = call.index_of(call.at(self.a)), call.index_of(call.at(self.b))
        if a is None or b is None:
            return None
        if call.at(self.a) is call.at(self.b):
            b = a + 1
        return a, b, None if self.bias is None else call.index_of(call.at(self.bias))

    def _sized(
        self, call: Call, need: Tensor | None
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        ia, ib, _ = self.operands(call)  # type: ignore[misc]
        fa, fb = call.inputs[ia], call.inputs[ib]
        dims_a, dims_b = self.layout(call, fa, fb, need)

        def size(f: Facts, dims: list[int]) -> Callable[[Tensor], Tensor]:
            def expand(t: Tensor) -> Tensor:
                return t.expand([f.shape[d] if d in dims else t.shape[d] for d in range(len(f.shape))])

            return expand

        return size(fa, dims_a), size(fb, dims_b)

    def forward(self, call: Call) -> Facts:
        found = self.operands(call)
        if found is None:
            return unknown(call.out, call.confidence)
        ia, ib, ibias = found
        a, b = call.inputs[ia], call.inputs[ib]
        if a.none_known and b.none_known:
            return Facts.unknown(call.out, call.confidence)
        f = self.product(call)
        sa, sb = self._sized(call, None)
        with torch.no_grad():
            count = f(sa(~a.known).float(), sb(b.maybe).float())
            if not b.all_known:
                count = count + f(sa(a.maybe).float(), sb(~b.known).float())
            known = count == 0
            if not bool(known.any()):
                return Facts.unknown(call.out, call.confidence)
            value = self.known_product(call, f, a, b, sa, sb)
        alpha, beta = self.coefficients(call)
        value = alpha * value
        if ibias is not None:
            bias = call.inputs[ibias]
            value = value + beta * self.bias_view(call, bias.full(bias.value))
            known = known & self.bias_view(call, bias.full(bias.known))
        return Facts.of(known, value, call.out, call.confidence)

    def known_product(
        self,
        call: Call,
        f: Callable[[Tensor, Tensor], Tensor],
        a: Facts,
        b: Facts,
        sa: Callable[[Tensor], Tensor],
        sb: Callable[[Tensor], Tensor],
    ) -> Tensor:
        if a.all_zero_values or b.all_zero_values:
            return torch.zeros((), dtype=torch.float64)
        return f(sa(a.value).double(), sb(b.value).double())

    def backward(self, call: Call, out: Facts, need: Tensor) -> Needs:
        result: Needs = [None] * len(call.inputs)
        found = self.operands(call)
        if found is None or not bool(need.any()):
            return super().backward(call, out, need)
        ia, ib, ibias = found
        a, b = call.inputs[ia], call.inputs[ib]
        f = self.product(call)
        sa, sb = self._sized(call, need)
        result[ia] = _gradient(lambda x: f(x, sb(b.maybe).float()), sa(a.maybe), need)
        result[ib] = _gradient(lambda x: f(sa(a.maybe).float(), x), sb(b.maybe), need)
        if ibias is not None:
            bias = call.inputs[ibias]
            with torch.no_grad():
                shaped = self.bias_view(call, torch.ones(bias.shape))
            wanted = any_over(need.expand([max(n, 1) for n in need.shape]), shaped.shape)
            result[ibias] = compact(wanted.expand(shaped.shape).reshape(bias.shape))[0]
        return result


def _gradient(f: Callable[[Tensor], Tensor], at: Tensor, need: Tensor) -> Tensor:
    """Where d sum(f over needed outputs) / d at is not zero; f is linear with nonnegative coefficients."""
    with torch.enable_grad():
        x = torch.ones(at.shape, dtype=torch.float32, requires_grad=True)
        y = f(x)
        cotangent = need.reshape((1,) * (y.dim() - need.dim()) + need.shape).expand(y.shape).float()
        (gradient,) = torch.autograd.grad(y, x, cotangent, allow_unused=True)
    found = torch.zeros(at.shape, dtype=torch.bool) if gradient is None else gradient > 0
    return compact(found)[0]


class Linear(Contraction):
    """linear(x, w[N, K], b), and addmm(b, x, w[K, N]), mm, matmul with a weight: `transposed` is w's
    layout."""

    def __init__(self, x: int, w: int, bias: int | None, transposed: bool = False):
        super().__init__(x, w, bias)
        self.transposed = transposed

    def product(self, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
        return (lambda x, w: x @ w) if self.transposed else F.linear

    def coefficients(self, call: Call) -> tuple[float, float]:
        if call.op != "addmm":
            return 1.0, 1.0
        return float(call.at(4, "alpha")), float(call.at(3, "beta"))

    def layout(self, call: Call, a: Facts, b: Facts, need: Tensor | None) -> tuple[list[int], list[int]]:
        rank = len(a.shape)
        dims = [rank - 1]
        if need is not None:
            dims += [d for d in range(rank - 1) if need.shape[d] > 1]
        return dims, [0, 1]

    def keep(self, axes: CallAxes) -> None:
        found = self.operands(axes.call)
        if found is None:
            axes.lock_all()
            return
        ix, iw, ibias = found
        x, out = axes.inp(ix), axes.out()
        for d in range(len(x) - 1):
            axes.tie(x[d], out[d])
        if axes.static(iw) and (ibias is None or axes.static(ibias)):
            return  # the weight is cut to whatever its neighbours keep
        w = axes.inp(iw)
        axes.tie(w[0 if self.transposed else 1], x[-1])
        axes.tie(w[1 if self.transposed else 0], out[-1])
        if ibias is not None:
            bias = axes.inp(ibias)
            if len(bias[-1]) == len(out[-1]):
                axes.tie(bias[-1], out[-1])

    def emit(self, em: Emitter) -> Any:
        ix, iw, ibias = self.operands(em.node_call)  # type: ignore[misc]
        if self.coefficients(em.node_call) != (1.0, 1.0):
            return em.contribution(self, em.same())
        if not (em.axes.static(iw) and (ibias is None or em.axes.static(ibias))):
            return em.contribution(self, em.same())
        return em.linear_site(self, ix, iw, ibias)


class Matmul(Contraction):
    """matmul, bmm, mm, baddbmm: a[…, m, k] b[…, k, n]."""

    def product(self, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.matmul

    def coefficients(self, call: Call) -> tuple[float, float]:
        if call.op != "baddbmm":
            return 1.0, 1.0
        return float(call.at(4, "alpha")), float(call.at(3, "beta"))

    def layout(self, call: Call, a: Facts, b: Facts, need: Tensor | None) -> tuple[list[int], list[int]]:
        ra, rb = len(a.shape), len(b.shape)
        if ra < 2 or rb < 2:
            return list(range(ra)), list(range(rb))
        dims_a, dims_b = [ra - 1], [rb - 2]
        if need is not None:
            rank = need.dim()
            for d in range(rank):
                if need.shape[d] == 1:
                    continue
                back = rank - d
                if back != 1 and back <= ra:
                    dims_a.append(ra - back)
                if back != 2 and back <= rb:
                    dims_b.append(rb - back)
        return dims_a, dims_b

    def keep(self, axes: CallAxes) -> None:
        found = self.operands(axes.call)
        if found is None or found[2] is not None:
            axes.lock_all()
            return
        a, b, out = axes.inp(found[0]), axes.inp(found[1]), axes.out()
        if len(a) < 2 or len(b) < 2:
            axes.lock_all()
            return
        axes.tie(a[-1], b[-2])
        axes.tie(a[-2], out[-2])
        axes.tie(b[-1], out[-1])
        for back in range(3, len(out) + 1):
            for operand in (a, b):
                if back <= len(operand) and len(operand[-back]) == len(out[-back]):
                    axes.tie(operand[-back], out[-back])

    def emit(self, em: Emitter) -> Any:
        found = self.operands(em.node_call)
        if found is not None and found[2] is None:
            ia, ib, _ = found
            if em.axes.static(ib) and len(em.node_call.inputs[ib].shape) == 2:
                return em.linear_site(Linear(self.a, self.b, None, transposed=True), ia, ib, None)
        return em.contribution(self, em.same())


class IntegerMatmul(Matmul):
    """_int_mm: the integer product; no float kernel takes its place, and its sizes are restricted."""

    def product(self, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.matmul  # counts are floats; integers below 2^53 are exact in float64

    def keep(self, axes: CallAxes) -> None:
        axes.lock_all()

    def emit(self, em: Emitter) -> Any:
        return em.same()


class Convolution(Contraction):
    """conv1d, conv2d, conv3d and transposed ones, grouped and depthwise.

    Positions of the arguments as in aten.conv2d: input, weight, bias, stride, padding, dilation, groups.
    """

    def __init__(self, transposed: bool = False):
        super().__init__(0, 1, 2)
        self.transposed = transposed

    def product(self, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
        target: Any = call.node.target
        rest = [call.at(p) for p in range(3, len(target._schema.arguments))]
        return lambda x, w: target(x, w, None, *rest)

    def groups(self, call: Call) -> int:
        return int(call.at(6, "groups"))

    def bias_view(self, call: Call, bias: Tensor) -> Tensor:
        return bias.reshape(-1, *[1] * (len(call.out.shape) - bias_channel(call) - 1))

    def layout(self, call: Call, a: Facts, b: Facts, need: Tensor | None) -> tuple[list[int], list[int]]:
        rank = len(a.shape)
        lead = bias_channel(call)
        dims = list(range(lead, rank))
        if need is not None and lead and need.shape[0] > 1:
            dims.append(0)
        return dims, list(range(len(b.shape)))

    def _flat(self, call: Call, a: Facts, need: Tensor | None) -> bool:
        """Whether everything is the same at every position, so that channels alone decide."""
        lead = bias_channel(call)
        spatial = a.known.shape[lead + 1 :]
        return all(s == 1 for s in spatial) and (need is None or all(s == 1 for s in need.shape[lead + 1 :]))

    def _channel_product(self, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
        """f over channels: x [n, C, 1], w [N, C/g, 1] with the taps of the kernel merged."""
        groups = self.groups(call)
        conv = F.conv_transpose1d if self.transposed else F.conv1d
        return lambda x, w: conv(x, w, groups=groups)

    def forward(self, call: Call) -> Facts:
        a, b = call.inputs[0], call.inputs[1]
        lead = bias_channel(call)
        if not self._flat(call, a, None) or lead == 0:
            return super().forward(call)
        if a.none_known and b.none_known:
            return Facts.unknown(call.out, call.confidence)
        f = self._channel_product(call)

        def per_channel(t: Tensor) -> Tensor:
            return t.expand(t.shape[0], a.shape[1], *t.shape[2:]).flatten(2).float()

        nb = _merge_taps(b.full(b.maybe)).float()
        count = f(per_channel(~a.known), nb)
        if not b.all_known:
            count = count + f(per_channel(a.maybe), _merge_taps(b.full(~b.known)).float())
        known = count == 0
        if not bool(known.any()):
            return Facts.unknown(call.out, call.confidence)
        known = known.reshape(known.shape[0], known.shape[1], *[1] * (len(call.out.shape) - 2))
        value = torch.zeros((), dtype=torch.float64)
        if not a.all_zero_values and bool(
            (f(per_channel(a.value != 0), nb).reshape(known.shape)[known] > 0).any()
        ):
            # a nonzero constant: at padded borders its sum differs, so compute it position by position
            sa, sb = self._sized(call, None)
            value = self.product(call)(sa(a.value).double(), sb(b.value).double())
        if call.index_of(call.at(2)) is not None:
            bias = call.inputs[2]
            value = value + self.bias_view(call, bias.full(bias.value))
            known = known & self.bias_view(call, bias.full(bias.known))
        return Facts.of(known, value, call.out, call.confidence)

    def backward(self, call: Call, out: Facts, need: Tensor) -> Needs:
        a, b = call.inputs[0], call.inputs[1]
        lead = bias_channel(call)
        if not self._flat(call, a, need) or lead == 0 or not bool(need.any()):
            return super().backward(call, out, need)
        f = self._channel_product(call)
        batch = max(need.shape[0], a.known.shape[0])
        na = a.maybe.expand(batch, a.shape[1], *a.known.shape[2:]).flatten(2).float()
        nb = _merge_taps(b.full(b.maybe)).float()
        wanted = need.expand(need.shape[0], call.out.shape[1], *need.shape[2:]).flatten(2)
        need_a = _gradient(lambda x: f(x, nb), na, wanted)
        need_b = _gradient(lambda w: f(na, w), nb, wanted)
        spatial = len(a.shape) - 2
        result: Needs = [None] * len(call.inputs)
        result[0] = compact(need_a.reshape(*need_a.shape[:2], *[1] * spatial))[0]
        result[1] = need_b.reshape(*need_b.shape[:2], *[1] * spatial)
        if call.index_of(call.at(2)) is not None:
            result[2] = compact(any_over(wanted.any(2), (1, call.out.shape[1]))[0].expand(call.out.shape[1]))[
                0
            ]
        return result

    def keep(self, axes: CallAxes) -> None:
        call = axes.call
        lead = bias_channel(call)
        x, out = axes.inp(0), axes.out()
        has_bias = call.index_of(call.at(2)) is not None
        if lead == 0 or self.transposed or not axes.static(1) or (has_bias and not axes.static(2)):
            axes.lock_all()
            return
        axes.tie(x[0], out[0])
        for d in range(2, len(x)):
            axes.lock(x[d])
            axes.lock(out[d])
        groups, c, n = self.groups(call), len(x[1]), len(out[1])
        if groups == 1:
            return
        # a group disappears as a whole; within groups all lose the same positions
        group = axes.fresh(groups)
        axes.product(x[1], [group, axes.fresh(c // groups)])
        axes.product(out[1], [group, axes.fresh(n // groups)])

    def emit(self, em: Emitter) -> Any:
        call = em.node_call
        static = em.axes.static(1) and (call.index_of(call.at(2)) is None or em.axes.static(2))
        if self.transposed or bias_channel(call) == 0 or not static:
            return em.same()
        return em.conv_site(self)


class AnyConvolution(Convolution):
    """aten.convolution and _convolution, transposed or not by an argument: the algebra holds, shapes stay."""

    def groups(self, call: Call) -> int:
        return int(call.at(8, "groups"))

    def forward(self, call: Call) -> Facts:
        return Contraction.forward(self, call)

    def backward(self, call: Call, out: Facts, need: Tensor) -> Needs:
        return Contraction.backward(self, call, out, need)

    def keep(self, axes: CallAxes) -> None:
        axes.lock_all()

    def emit(self, em: Emitter) -> Any:
        return em.same()


def bias_channel(call: Call) -> int:
    """The channel dimension of a convolution's input: 1, or 0 without a batch dimension."""
    return 1 if len(call.inputs[0].shape) == len(call.inputs[1].shape) else 0


def _merge_taps(w: Tensor) -> Tensor:
    """[N, C/g, taps…] bool -> [N, C/g, 1]: any tap."""
    return w.flatten(2).any(2, keepdim=True)


class Einsum(Contraction):
    """einsum of two operands without repeated or omitted indices in one of them."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def operands(self, call: Call) -> tuple[int, int, int | None] | None:
        return (0, 1, None) if len(call.inputs) == 2 and call.at(0).count(",") == 1 else None

    def product(self, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
        equation = call.at(0)
        return lambda x, y: torch.einsum(equation, x, y)

    def keep(self, axes: CallAxes) -> None:
        axes.lock_all()
