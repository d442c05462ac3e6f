"""Reads the textual form of Triton IR into plain objects.

Triton's Python bindings give no access to generic attributes, dense constants or block contents, so the printed
module is the interface. The reader knows the printed shapes of operations, not their meaning:

    module   := (loc alias | tt.func)*
    function := tt.func @name(args) { block* }
    block    := [^label(args):] op*
    op       := [%result[:n] =] name operands attributes : types [regions]
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Type:
    """A scalar (`shape` is None) or a tensor; `elem` is f32, i1, bf16, index, … or `ptr`; `pointee` for pointers."""

    elem: str
    shape: tuple[int, ...] | None = None
    pointee: str | None = None

    @property
    def is_tensor(self) -> bool:
        return self.shape is not None

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape; a scalar has no dimensions."""
        return self.shape or ()

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    def with_elem(self, elem: str) -> Type:
        return Type(elem, self.shape)

    def __str__(self) -> str:
        elem = f"ptr<{self.pointee}>" if self.elem == "ptr" else self.elem
        return elem if self.shape is None else f"tensor<{'x'.join(map(str, (*self.shape, elem)))}>"


@dataclass(eq=False)
class Value:
    """An SSA value; identity is the object."""

    name: str
    type: Type
    op: Op | None = None
    number: int = 0


@dataclass(eq=False)
class Block:
    label: str
    args: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)


@dataclass(eq=False)
class Region:
    blocks: list[Block] = field(default_factory=list)


@dataclass(eq=False)
class Op:
    """One operation: `text` is what stands between its name and its types; `attrs` are parsed where simple."""

    name: str
    operands: list[Value]
    results: list[Value]
    text: str
    signature: str
    regions: list[Region] = field(default_factory=list)
    location: str = ""
    successors: list[tuple[str, list[Value]]] = field(default_factory=list)

    def attr(self, name: str) -> str | None:
        """The text of `name = value` in the printed operation, without its type."""
        m = re.search(rf"(?<![\w.]){re.escape(name)} = (array<[^>]*>|\"[^\"]*\"|[^,}}\s>]+)", self.text)
        return m.group(1) if m else None

    def int_attr(self, name: str, default: int | None = None) -> int:
        text = self.attr(name)
        if text is None:
            if default is None:
                raise KeyError(f"{self.name} has no attribute {name!r}: {self.text}")
            return default
        return int(text)


@dataclass(eq=False)
class Function:
    name: str
    args: list[Value]
    arg_attrs: list[str]
    results: list[Type]
    body: Region
    public: bool


class ReadError(ValueError):
    """The printed module has a form that this reader does not know."""


def parse_type(text: str) -> Type:
    """`tensor<64x32x!tt.ptr<f16>>`, `!tt.ptr<f32, 1>`, `i32` → Type."""
    text = text.strip()
    if text.startswith("tensor<"):
        inner = text[7:-1]
        shape: list[int] = []
        while m := re.match(r"(\d+)x", inner):
            shape.append(int(m.group(1)))
            inner = inner[m.end() :]
        inner = inner.split(", #")[0]
        element = parse_type(inner)
        return Type(element.elem, tuple(shape), element.pointee)
    if text.startswith("!tt.ptr<"):
        return Type("ptr", None, _split(text[8:-1])[0])
    if text.startswith("!tt.tensordesc<"):
        return Type("desc", None, text[15:-1])
    return Type(text)


def _split(text: str, separator: str = ",") -> list[str]:
    """Split at top-level separators: brackets and quotes protect."""
    parts, depth, current, quoted = [], 0, "", False
    for i, ch in enumerate(text):
        if ch == '"':
            quoted = not quoted
        elif not quoted and ch in "<({[":
            depth += 1
        elif not quoted and ch in ">)}]" and not (ch == ">" and text[i - 1] == "-"):
            depth -= 1
        if ch == separator and depth == 0 and not quoted:
            parts.append(current.strip())
            current = ""
        else:
            current += ch
    if current.strip():
        parts.append(current.strip())
    return parts


def _type_list(text: str) -> list[Type]:
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return [parse_type(t) for t in _split(text)] if text else []


def _cut_signature(text: str) -> tuple[str, str]:
    """Split `… : types` at the last top-level ` : `."""
    depth, quoted, cut = 0, False, -1
    for i, ch in enumerate(text):
        if ch == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif ch in "<({[":
            depth += 1
        elif ch in ">)}]" and not (ch == ">" and text[i - 1] == "-"):
            depth -= 1
        elif ch == ":" and depth == 0 and text[i - 1 : i + 2] in (" : ", " :"):
            cut = i
    return (text, "") if cut < 0 else (text[:cut].strip(), text[cut + 1 :].strip())


def result_types(name: str, text: str, signature: str, count: int) -> list[Type]:
    """Types of the results as far as the printed form implies them."""
    if count == 0:
        return []
    if "->" in signature:
        depth = 0
        for i, ch in enumerate(signature):
            depth += ch in "<(" and signature[i - 1 : i + 1] != "->"
            depth -= ch in ">)" and signature[i - 1 : i + 1] != "->"
            if signature[i : i + 2] == "->" and depth == 0:
                types = _type_list(signature[i + 2 :])
                return types * count if len(types) == 1 else types  # tt.split prints the type of both once
    types = [parse_type(t) for t in _split(signature.split(" to ")[-1])] if signature else []
    if name == "arith.constant" and not types:
        return [Type("i1")]
    if name in ("arith.cmpi", "arith.cmpf"):
        return [types[0].with_elem("i1")]
    if name == "arith.select":
        return [types[-1]]
    if name == "tt.load":
        pointee = parse_type(types[0].pointee or "")
        return [Type(pointee.elem, types[0].shape, pointee.pointee)]
    if name == "tt.addptr":
        return [types[0]]
    if len(types) == count:
        return types
    return [types[0]] * count


_RESULT = re.compile(r"^(%[\w$.#-]+(?::\d+)?(?:, %[\w$.-]+(?::\d+)?)*) = (.*)$", re.S)
_OPERAND = re.compile(r"%[\w$.-]+(?:#\d+)?")
_NAME = re.compile(r'^"?([A-Za-z_][\w.]*)"?')
_LOC = re.compile(r" loc\(((?:[^()\"]|\"[^\"]*\"|\((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*\))*)\)")


# Frames inside Triton's own library (tl.sum, tl.softmax …): the user's line is the one that called it.
_LIBRARY = re.compile(r"[/\\]triton[/\\](language|tools)[/\\]")
_DEPTH = 16


class _Reader:
    def __init__(self, text: str) -> None:
        self.aliases = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.M))
        self.lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
        self.position = 0
        self.values: dict[str, Value] = {}

    def location(self, line: str) -> str:
        """The user's `file:line` behind the last loc(...) of a printed line."""
        found = _LOC.findall(line)
        frames = self.frames(found[-1]) if found else []
        users = [f for f in frames if not _LIBRARY.search(f)] or frames
        return users[0] if users else ""

    def frames(self, text: str, depth: int = 0) -> list[str]:
        """`file:line` of a location and of the calls that led there, innermost first."""
        frames: list[str] = []
        for m in re.finditer(r'"([^"]+)":(\d+):\d+|(#loc\d*)', text):
            if m.group(3) is None:
                frames.append(f"{m.group(1)}:{m.group(2)}")
            elif m.group(3) in self.aliases and depth < _DEPTH:
                frames += self.frames(self.aliases[m.group(3)], depth + 1)
        return frames

    def next(self) -> str:
        line = self.lines[self.position]
        self.position += 1
        return line

    def lookup(self, token: str) -> Value:
        name, _, number = token.partition("#")
        key = f"{name}#{number or 0}"
        if key not in self.values:
            raise ReadError(f"value {token} is used before it is defined")
        return self.values[key]

    def define(self, name: str, type: Type, op: Op | None = None, number: int = 0) -> Value:
        value = Value(f"{name}#{number}" if number else name, type, op, number)
        self.values[f"{name}#{number}"] = value
        return value

    def read(self) -> list[Function]:
        functions = []
        while self.position < len(self.lines):
            line = self.next()
            if re.match(r"\s*tt\.func ", line):
                functions.append(self.function(line))
        return functions

    def function(self, raw: str) -> Function:
        line = _LOC.sub("", raw).strip()
        m = re.match(r"tt\.func (public |private )?@(\"[^\"]+\"|[\w$.]+)\(", line)
        if m is None:
            raise ReadError(f"cannot read the function header {line!r}")
        depth, i = 1, m.end()
        while depth:
            depth += (line[i] in "(<{") - (line[i] in ")}") - (line[i] == ">" and line[i - 1] != "-")
            i += 1
        args, attrs = [], []
        for part in _split(line[m.end() : i - 1]):
            name, _, rest = part.partition(": ")
            type_text, brace, attr = rest.partition(" {")
            args.append(self.define(name.strip(), parse_type(type_text)))
            attrs.append(brace + attr)
        tail = line[i:]
        results = re.match(r"\s*->\s*(.*?)(?: attributes|\s*\{)", tail)
        body = self.region()[0]
        kind = m.group(1) or ""
        return Function(
            m.group(2).strip('"'), args, attrs, _type_list(results.group(1)) if results else [], body,
            kind.strip() != "private",
        )  # fmt: skip

    def region(self) -> tuple[Region, str]:
        """Read blocks up to the closing brace; gives the region and the text of the closing line."""
        region = Region([Block("")])
        while True:
            raw = self.next()
            line = _LOC.sub("", raw).strip()
            if line.startswith("}"):
                if not region.blocks[0].ops and len(region.blocks) > 1 and not region.blocks[0].args:
                    region.blocks.pop(0)
                return region, raw
            if line.startswith("^"):
                m = re.match(r"\^(\w+)(?:\((.*)\))?:", line)
                if m is None:
                    raise ReadError(f"cannot read the block label {line!r}")
                args = []
                for part in _split(m.group(2) or ""):
                    name, _, type_text = part.partition(": ")
                    args.append(self.define(name.strip(), parse_type(type_text)))
                region.blocks.append(Block(m.group(1), args))
                continue
            region.blocks[-1].ops.append(self.op(raw))

    def op(self, raw: str) -> Op:
        line = _LOC.sub("", raw).strip()
        results_text = ""
        if m := _RESULT.match(line):
            results_text, line = m.groups()
        m2 = _NAME.match(line)
        if m2 is None:
            raise ReadError(f"cannot read the operation {line!r}")
        name, rest = m2.group(1), line[m2.end() :].strip()
        names: list[tuple[str, int]] = []
        for part in results_text.split(", ") if results_text else []:
            base, _, count = part.partition(":")
            names.append((base, int(count or 1)))
        total = sum(c for _, c in names)
        if rest.endswith("{"):
            return self.op_with_regions(raw, name, rest, names)
        text, signature = _cut_signature(rest)
        op = Op(name, [], [], text, signature, location=self.location(raw))
        if name in ("cf.br", "cf.cond_br"):
            self.branch(op, rest)
        else:
            op.operands = [self.lookup(t) for t in _OPERAND.findall(re.sub(r'"[^"]*"', "", text))]
        types = result_types(name, text, signature, total)
        self.bind(op, names, types)
        return op

    def bind(self, op: Op, names: list[tuple[str, int]], types: list[Type]) -> None:
        k = 0
        for base, count in names:
            for number in range(count):
                op.results.append(self.define(base, types[k], op, number))
                k += 1

    def branch(self, op: Op, rest: str) -> None:
        parts = re.findall(r"\^(\w+)(?:\(([^()]*)\))?", rest)
        if op.name == "cf.cond_br":
            op.operands = [self.lookup(_OPERAND.findall(rest)[0])]
        for label, args in parts:
            tokens = _OPERAND.findall(args.split(" : ")[0]) if args else []
            op.successors.append((label, [self.lookup(t) for t in tokens]))

    def op_with_regions(self, raw: str, name: str, rest: str, names: list[tuple[str, int]]) -> Op:
        header = rest.rstrip("{").strip().removesuffix("(").strip()
        op = Op(name, [], [], header, "", location=self.location(raw))
        if name == "scf.for":
            m = re.match(r"(?:unsigned )?(%\S+) = (%\S+) to (%\S+) step (%\S+)(.*)$", header, re.S)
            if m is None:
                raise ReadError(f"cannot read {name} {header!r}")
            bounds = [self.lookup(t) for t in m.group(2, 3, 4)]
            carried, tail = self.carried(m.group(5))
            op.operands = bounds + [init for _, init, _ in carried]
            body = Block("")
            body.args = [self.define(m.group(1), bounds[0].type)]
            body.args += [self.define(arg, init.type) for arg, init, _ in carried]
            region, close = self.region()
            region.blocks[0].args = body.args
            op.regions = [region]
            types = [init.type for _, init, _ in carried]
        elif name == "scf.while":
            carried, tail = self.carried(header)
            op.operands = [init for _, init, _ in carried]
            args = [self.define(arg, init.type) for arg, init, _ in carried]
            before, close = self.region()
            before.blocks[0].args = args
            after, close = self.region()
            op.regions = [before, after]
            types = _type_list(tail.rsplit("->", 1)[1]) if "->" in tail else []
        elif name == "scf.if":
            op.operands = [self.lookup(_OPERAND.findall(header)[0])]
            types = _type_list(header.rsplit("->", 1)[1]) if "->" in header else []
            then, close = self.region()
            op.regions = [then]
            if re.match(r"\s*\} else \{", _LOC.sub("", close)):
                other, close = self.region()
                op.regions.append(other)
        else:  # generic form: "tt.reduce"(%a, %b) <{axis = 0 : i32}> ({ … }) : (types) -> types
            op.operands = [self.lookup(t) for t in _OPERAND.findall(header)]
            region, close = self.region()
            op.regions = [region]
            op.signature = _cut_signature(_LOC.sub("", close).strip().lstrip("})"))[1]
            types = result_types(name, header, op.signature, sum(c for _, c in names))
        if not op.location:
            op.location = self.location(close)
        op.text += " " + _LOC.sub("", close).strip().lstrip("}").strip()
        self.bind(op, names, types)
        return op

    def carried(self, text: str) -> tuple[list[tuple[str, Value, str]], str]:
        """`iter_args(%a = %b, …) -> (types)` or the `(%a = %b)` of a while."""
        m = re.search(r"\((%[^()]*=[^()]*)\)", text)
        if m is None:
            return [], text
        pairs = []
        for part in m.group(1).split(", "):
            arg, _, init = part.partition(" = ")
            pairs.append((arg.strip(), self.lookup(init.strip()), ""))
        return pairs, text[m.end() :]


def read(text: str) -> list[Function]:
    """Parse a printed TTIR module. Raises ReadError on forms it does not know."""
    return _Reader(text).read()
