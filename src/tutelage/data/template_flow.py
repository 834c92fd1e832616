"""What a chat template does with the texts of messages, read from its source. Torch-free.

Most templates copy a text to its place and decide by roles alone where that is, perhaps after stripping it and asking
whether it holds `</think>`. For those the rendering of one conversation says how every other one with the same roles
is rendered. Here that is proven, by following each text through the template's syntax tree. Whatever is not known to be
harmless ends the proof. What is done with it: template_shapes.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jinja2 import Environment, nodes


class _Kind(Enum):
    """What an expression can be; `FREE` is everything that depends on the roles of the messages alone."""

    FREE = "free"
    MESSAGES = "messages"
    MESSAGE = "message"
    CONTENT = "content"  # the text of one message and nothing else
    TEXT = "text"  # a text with other text around it
    PARTS = "parts"  # a text split by what it does not hold: a list of itself


FREE, MESSAGES, MESSAGE = _Kind.FREE, _Kind.MESSAGES, _Kind.MESSAGE
CONTENT, TEXT, PARTS = _Kind.CONTENT, _Kind.TEXT, _Kind.PARTS

_TYPE_TESTS = {"string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "number", "boolean"}
_STRIPPING = {"strip", "lstrip", "rstrip"}
_OF_A_LOOP = {"index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0"}
"""What a loop says of itself; it also gives messages besides its own."""
_BY_CHANCE = {"random", "lipsum"}


class _UnprovenError(Exception):
    """A text is used in a way that may change what is rendered."""


@dataclass(frozen=True)
class PlainTexts:
    """Of which texts a template renders nothing but copies: not empty, without any of `marks`, and, where it strips
    them, without white space at either end."""

    marks: tuple[str, ...]
    strips: bool

    def hold(self, texts: Iterable[str]) -> bool:
        """Whether all of them are such texts."""
        for text in texts:
            if not text or (self.strips and (text[0].isspace() or text[-1].isspace())):
                return False
            for mark in self.marks:
                if mark in text:
                    return False
        return True


def plain_texts(environment: Environment, source: str) -> PlainTexts | None:
    """For which texts the template is proven to copy them and to decide by roles alone; None where that isn't proven.

    environment: what the template is rendered with. Raises jinja2's TemplateSyntaxError.
    """
    try:
        tree = environment.parse(source)
        flow = _Flow()
        while True:  # a loop may carry a name's kind back to what stands before it
            known = dict(flow.kinds)
            flow.block(tree.body)
            if flow.kinds == known:
                return PlainTexts(tuple(sorted(flow.marks)), flow.strips)
    except _UnprovenError:
        return None


class _Flow:
    """Kinds of names, wherever in the template they are set, and what is asked of texts."""

    def __init__(self) -> None:
        self.kinds: dict[str, _Kind] = {"messages": MESSAGES}
        self.marks: set[str] = set()
        self.strips = False
        self._in_macro = False

    # --- statements -----------------------------------------------------------------------------------------------

    def block(self, statements: Sequence[nodes.Node]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: Any) -> None:
        if isinstance(node, nodes.Output):
            allowed = (FREE,) if self._in_macro else (FREE, CONTENT, TEXT)
            for part in node.nodes:
                _require(isinstance(part, nodes.TemplateData) or self.kind(part) in allowed)
        elif isinstance(node, nodes.If):
            self._branches(node)
        elif isinstance(node, nodes.For):
            items = self.kind(node.iter)
            _require(items in (FREE, MESSAGES) and not node.recursive)
            self._bind(node.target, MESSAGE if items is MESSAGES else FREE)
            if node.test is not None:
                self._condition(node.test)
            self.block([*node.body, *node.else_])
        elif isinstance(node, nodes.Assign):
            self._bind(node.target, self.kind(node.node))
        elif isinstance(node, nodes.Macro):
            self._macro(node)
        elif isinstance(node, nodes.CallBlock):  # transformers' {% generation %}, which renders what is in it
            called = node.call.node
            _require(isinstance(called, nodes.ExtensionAttribute) and called.name == "_generation_support")
            self.block(node.body)
        else:
            _require(isinstance(node, nodes.Break | nodes.Continue))

    def _branches(self, node: nodes.If) -> None:
        """`if`, `elif` and `else` up to the first that is always taken."""
        for branch in (node, *node.elif_):
            self._condition(branch.test)
            if not self._asks_for_string(branch.test, negated=True):
                self.block(branch.body)
            if self._asks_for_string(branch.test):
                return
        self.block(node.else_)

    def _asks_for_string(self, test: Any, negated: bool = False) -> bool:
        """Whether it is `message['content'] is string` (or `is not`): our messages have nothing but strings."""
        if negated:
            return isinstance(test, nodes.Not) and self._asks_for_string(test.node)
        direct = isinstance(test, nodes.Test) and isinstance(test.node, nodes.Getattr | nodes.Getitem)
        return direct and test.name == "string" and self.kind(test.node) is CONTENT

    def _macro(self, node: nodes.Macro) -> None:
        for argument in node.args:
            self._bind(argument, FREE)
        for default in node.defaults:
            _require(self.kind(default) is FREE)
        outer, self._in_macro = self._in_macro, True
        self.block(node.body)
        self._in_macro = outer

    def _bind(self, target: Any, kind: _Kind) -> None:
        if isinstance(target, nodes.Tuple):
            for item in target.items:
                self._bind(item, kind)
            _require(kind is FREE)
        elif isinstance(target, nodes.NSRef):
            _require(kind is FREE)
        else:
            _require(isinstance(target, nodes.Name))
            name = target.name
            self.kinds[name] = _either(self.kinds.get(name, kind), kind)

    # --- expressions ----------------------------------------------------------------------------------------------

    def _condition(self, node: nodes.Node) -> None:
        """Whether something is true depends on the roles alone: messages have entries, plain texts are not empty."""
        if isinstance(node, nodes.And | nodes.Or):
            self._condition(node.left)
            self._condition(node.right)
        elif isinstance(node, nodes.Not):
            self._condition(node.node)
        else:
            self.kind(node)

    def kind(self, node: Any) -> _Kind:
        """What the expression is. Raises _UnprovenError for a use of texts that is not known to be harmless."""
        if isinstance(node, nodes.Const):
            return FREE
        if isinstance(node, nodes.Name):
            _require(node.name != "loop" and node.name not in _BY_CHANCE)
            return self.kinds.get(node.name, FREE)
        if isinstance(node, nodes.Getattr):
            if isinstance(node.node, nodes.Name) and node.node.name == "loop":
                _require(node.attr in _OF_A_LOOP)
                return FREE
            return self._entry(self.kind(node.node), node.attr)
        if isinstance(node, nodes.Getitem):
            return self._item(node)
        if isinstance(node, nodes.Add | nodes.Concat):
            parts = node.nodes if isinstance(node, nodes.Concat) else (node.left, node.right)
            kinds = {self.kind(part) for part in parts}
            _require(kinds <= {FREE, CONTENT, TEXT})
            return FREE if kinds == {FREE} else TEXT
        if isinstance(node, nodes.And | nodes.Or):
            left, right = self.kind(node.left), self.kind(node.right)
            return left if left is right else _either(left, right)
        if isinstance(node, nodes.Not):
            self._condition(node.node)
            return FREE
        if isinstance(node, nodes.CondExpr):
            self._condition(node.test)
            first, second = self.kind(node.expr1), FREE if node.expr2 is None else self.kind(node.expr2)
            return first if first is second else _either(first, second)
        if isinstance(node, nodes.Compare):
            return self._comparison(node)
        if isinstance(node, nodes.Test):
            self._require_free(_arguments(node))
            _require(self.kind(node.node) is FREE or node.name in _TYPE_TESTS)
            return FREE
        if isinstance(node, nodes.Filter):
            return self._filtered(node)
        if isinstance(node, nodes.Call):
            return self._called(node)
        known = nodes.BinExpr | nodes.UnaryExpr | nodes.Literal | nodes.Pair | nodes.Keyword | nodes.Slice
        _require(isinstance(node, known))
        self._require_free(node.iter_child_nodes())
        return FREE

    def _entry(self, base: _Kind, name: str) -> _Kind:
        """`base.name`, or `base['name']`."""
        if base is MESSAGE:
            _require(not hasattr(dict, name))
            return CONTENT if name == "content" else FREE
        _require(base is FREE)
        return FREE

    def _item(self, node: nodes.Getitem) -> _Kind:
        base, index = self.kind(node.node), node.arg
        constant = index.value if isinstance(index, nodes.Const) else None
        if base is MESSAGE or isinstance(constant, str):
            _require(isinstance(constant, str))
            return self._entry(base, str(constant))
        self._require_free([index])
        if base is MESSAGES:
            return MESSAGES if isinstance(index, nodes.Slice) else MESSAGE
        if base is PARTS and _is_first_or_last(index):
            return CONTENT
        _require(base is FREE)
        return FREE

    def _comparison(self, node: nodes.Compare) -> _Kind:
        operands: list[Any] = [node.expr, *(operand.expr for operand in node.ops)]
        kinds = [self.kind(operand) for operand in operands]
        if set(kinds) == {FREE}:
            return FREE
        _require(len(operands) == 2)
        (first, second), operator = operands, node.ops[0].op
        if operator.endswith("in"):  # `in`, and Jinja's name of `not in`
            _require(kinds[0] is FREE and kinds[1] in (CONTENT, MESSAGE))
            if kinds[1] is CONTENT:
                self._mark(first)
            return FREE
        _require(operator in ("eq", "ne") and set(kinds) == {FREE, CONTENT})
        constant = first if kinds[0] is FREE else second
        _require(isinstance(constant, nodes.Const))
        if isinstance(constant.value, str):
            self._mark(constant)
        return FREE

    def _filtered(self, node: nodes.Filter) -> _Kind:
        _require(node.node is not None)
        _require(node.name not in _BY_CHANCE)
        base = self.kind(node.node)
        first = node.args[0] if node.args else None
        self._require_free(_arguments(node))
        if base is FREE:
            return FREE
        if base is MESSAGES:
            if node.name in ("selectattr", "rejectattr"):
                _require(isinstance(first, nodes.Const) and first.value == "role")
                return MESSAGES
            known = {"length": FREE, "count": FREE, "list": MESSAGES, "first": MESSAGE, "last": MESSAGE}
        elif base is PARTS:
            known = {"length": FREE, "count": FREE, "first": CONTENT, "last": CONTENT}
        else:
            _require(base in (CONTENT, TEXT) and not (node.name == "trim" and _arguments(node)))
            known = {"trim": base, "string": base, "default": base, "d": base}
            self.strips |= node.name == "trim"
        _require(node.name in known)
        return known[node.name]

    def _called(self, node: nodes.Call) -> _Kind:
        if isinstance(node.node, nodes.Name) and node.node.name == "raise_exception":
            for argument in node.args:
                self.kind(argument)
            return FREE  # nothing is rendered
        arguments = _arguments(node)
        self._require_free(arguments)
        if not isinstance(node.node, nodes.Getattr):
            _require(self.kind(node.node) is FREE)
            return FREE
        base, method = self.kind(node.node.node), node.node.attr
        constant = node.args[0].value if node.args and isinstance(node.args[0], nodes.Const) else None
        if base is MESSAGE:
            _require(method == "get" and isinstance(constant, str))
            return CONTENT if constant == "content" else FREE
        if base in (CONTENT, TEXT) and method in _STRIPPING:
            _require(not arguments or (len(arguments) == 1 and isinstance(constant, str) and constant.isspace()))
            self.strips = True
            return base
        if base is CONTENT:
            _require(method in ("startswith", "endswith", "split") and len(arguments) == 1)
            self._mark(node.args[0] if node.args else None)
            return PARTS if method == "split" else FREE
        _require(base is FREE)
        return FREE

    def _mark(self, node: Any) -> None:
        _require(isinstance(node, nodes.Const) and isinstance(node.value, str) and node.value != "")
        self.marks.add(node.value)

    def _require_free(self, parts: Iterable[nodes.Node | None]) -> None:
        for part in parts:
            _require(part is None or self.kind(part) is FREE)


def _arguments(node: Any) -> list[nodes.Node]:
    return [*node.args, *node.kwargs, *filter(None, (node.dyn_args, node.dyn_kwargs))]


def _is_first_or_last(index: Any) -> bool:
    """0 or -1."""
    if isinstance(index, nodes.Neg):
        return isinstance(index.node, nodes.Const) and index.node.value == 1
    return isinstance(index, nodes.Const) and index.value == 0


def _either(first: _Kind, second: _Kind) -> _Kind:
    """What a name is that may be either: of two texts neither is known to be a message's text alone."""
    if first is second:
        return first
    _require({first, second} <= {FREE, CONTENT, TEXT})
    return TEXT if TEXT in (first, second) else CONTENT


def _require(harmless: bool) -> None:
    if not harmless:
        raise _UnprovenError
