"""The conditions of local rules: a small language over named inputs, parsed here and evaluated here, with no `eval`.

    temperature > 80 and not (state == "off") or age(temperature) > 60

    values      numbers, texts in quotes, true, false, inputs by name
    operators   or   and   not   == != < <= > >=   + -   * / %   - (before one value), weakest first, as in Python
    functions   abs(x)  min(x, …)  max(x, …)  round(x) round(x, digits)
                age(INPUT)      seconds since its value came
                changed(INPUT)  whether it has another value than before

Three-valued: what depends on a value that is not there is *unknown*, and so is a division by zero or a comparison of a
number with a text. `false and unknown` is false, `true or unknown` is true. An expression that parses never fails.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from msgspec import Struct

from tinyedge.errors import TinyEdgeError
from tinyedge.limits import EXPRESSION_CHARS_MAX, EXPRESSION_DEPTH_MAX

Value = float | str | bool | None  # None: unknown

NUMBER, TEXT, BOOLEAN, ANY = "a number", "a text", "true or false", "any value"


class ExpressionError(TinyEdgeError):
    """`position` counts characters of the expression from 1."""

    def __init__(self, text: str, position: int, problem: str, right: str) -> None:
        shown = text if len(text) <= 80 else text[:77] + "..."
        super().__init__(f"{shown!r} is wrong at character {position}", problem, right)
        self.position = position
        self.problem = problem
        self.right = right


class Input(Struct, frozen=True):
    """What is known of an input now. `age_s` None: no value has come yet."""

    value: Value = None
    age_s: float | None = None
    changed: bool = False


class Expression(Struct, frozen=True):
    """Made by `parse`. `inputs` are those that it reads; `uses_age` says that time alone may change its value."""

    text: str
    inputs: frozenset[str]
    uses_age: bool
    _root: _Node

    def evaluate(self, inputs: Mapping[str, Input]) -> bool | None:
        """None: unknown. An input that is not in `inputs` has no value."""
        found = self._root.value(inputs)
        return found if isinstance(found, bool) else None


def parse(text: str, inputs: Collection[str], kinds: Mapping[str, str] | None = None) -> Expression:
    """A condition over `inputs`, by name, of which some are known to be of a kind. Raises ExpressionError."""
    parser = _Parser(text, inputs, kinds or {})
    root = parser.whole()
    if root.kind not in (BOOLEAN, ANY):
        parser.fail(1, f"it is {root.kind}", "make it a condition, such as temperature > 80")
    return Expression(text, frozenset(parser.used), parser.uses_age, root)


def is_name(text: str) -> bool:
    """Whether an input may be called so."""
    return bool(_NAME.fullmatch(text)) and text not in _WORDS and text not in _FUNCTIONS


# --- words -------------------------------------------------------------------------------------------

_WORDS = ("and", "or", "not", "true", "false")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<text>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<operator>==|!=|<=|>=|[<>()+\-*/%,])",
    re.DOTALL,
)
_INSTEAD = {"=": "==", "&": "and", "|": "or", "!": "not", "~": "not", "^": "* (there is no power)"}
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'"}


class _Token(Struct, frozen=True):
    kind: str  # number, text, name, operator, end
    text: str
    position: int  # from 1


def _tokens(text: str) -> list[_Token]:
    if len(text) > EXPRESSION_CHARS_MAX:
        raise ExpressionError(
            text, EXPRESSION_CHARS_MAX, f"it has {len(text)} characters", f"at most {EXPRESSION_CHARS_MAX}"
        )
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _strange(text, place)
        if match.lastgroup != "space":
            found.append(_Token(match.lastgroup or "", match.group(), place + 1))
        place = match.end()
    return [*found, _Token("end", "", len(text) + 1)]


def _strange(text: str, place: int) -> ExpressionError:
    one = text[place]
    if one in "\"'":
        return ExpressionError(text, place + 1, "this text has no end", f"close it with {one}")
    right = f"write {_INSTEAD[one]}" if one in _INSTEAD else "use names, numbers, texts in quotes, and operators"
    return ExpressionError(text, place + 1, f"{one!r} means nothing here", right)


# --- trees -------------------------------------------------------------------------------------------


class _Node(Struct, frozen=True):
    """`kind` is what it surely gives if it gives anything, ANY if that depends on an input."""

    kind: str

    def value(self, inputs: Mapping[str, Input]) -> Value:
        raise NotImplementedError


class _Constant(_Node, frozen=True):
    constant: Value

    def value(self, inputs: Mapping[str, Input]) -> Value:
        return self.constant


class _Read(_Node, frozen=True):
    """An input, or its age, or whether it has changed."""

    name: str
    what: str = ""

    def value(self, inputs: Mapping[str, Input]) -> Value:
        found = inputs.get(self.name)
        if found is None:
            return None
        if self.what == "age":
            return found.age_s
        if self.what == "changed":
            return found.changed if found.value is not None else None
        return _finite(found.value)


class _Not(_Node, frozen=True):
    one: _Node

    def value(self, inputs: Mapping[str, Input]) -> Value:
        found = self.one.value(inputs)
        return not found if isinstance(found, bool) else None


class _Either(_Node, frozen=True):
    """`and` (what decides is False) and `or` (True)."""

    decides: bool
    left: _Node
    right: _Node

    def value(self, inputs: Mapping[str, Input]) -> Value:
        both = [one if isinstance(one, bool) else None for one in (self.left.value(inputs), self.right.value(inputs))]
        if self.decides in both:
            return self.decides
        return None if None in both else not self.decides


class _Compare(_Node, frozen=True):
    compare: Callable[[Any, Any], bool]
    left: _Node
    right: _Node

    def value(self, inputs: Mapping[str, Input]) -> Value:
        left, right = self.left.value(inputs), self.right.value(inputs)
        if left is None or right is None or _kind(left) != _kind(right):
            return None
        if isinstance(left, bool) and self.compare not in (operator.eq, operator.ne):
            return None
        return self.compare(left, right)


class _Compute(_Node, frozen=True):
    compute: Callable[..., float]
    operands: tuple[_Node, ...]

    def value(self, inputs: Mapping[str, Input]) -> Value:
        numbers = []
        for one in self.operands:
            found = one.value(inputs)
            if isinstance(found, bool | str) or found is None:
                return None
            numbers.append(found)
        try:
            return _finite(float(self.compute(*numbers)))
        except (ArithmeticError, ValueError):
            return None


def _finite(value: Value) -> Value:
    """What is no number is no value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return value


def _kind(value: Value) -> str:
    return BOOLEAN if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER


def _round(number: float, digits: float = 0.0) -> float:
    if not digits.is_integer() or abs(digits) > 15:
        raise ValueError(digits)
    return round(number, int(digits))


# --- the parser (Pratt: each operator says how strongly it binds) -------------------------------------

_OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _SIGN = range(1, 8)
_STRENGTH = {
    "or": _OR, "and": _AND,
    "==": _COMPARISON, "!=": _COMPARISON, "<": _COMPARISON, "<=": _COMPARISON, ">": _COMPARISON, ">=": _COMPARISON,
    "+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "%": _PRODUCT,
}  # fmt: skip
_COMPARES: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_COMPUTES: dict[str, Callable[..., float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod,
}  # fmt: skip
_FUNCTIONS: dict[str, tuple[Callable[..., float] | None, int, int]] = {  # least and most arguments
    "abs": (abs, 1, 1),
    "min": (lambda *numbers: min(numbers), 1, 16),
    "max": (lambda *numbers: max(numbers), 1, 16),
    "round": (_round, 1, 2),
    "age": (None, 1, 1),
    "changed": (None, 1, 1),
}


class _Parser:
    def __init__(self, text: str, inputs: Collection[str], kinds: Mapping[str, str]) -> None:
        self._text = text
        self._inputs = inputs
        self._kinds = kinds
        self._tokens = _tokens(text)
        self._place = 0
        self._depth = 0
        self.used: set[str] = set()
        self.uses_age = False

    def fail(self, position: int, problem: str, right: str) -> NoReturn:
        raise ExpressionError(self._text, position, problem, right)

    def whole(self) -> _Node:
        node = self._expression(0)
        token = self._next()
        if token.kind != "end":
            if token.text == ")":
                self.fail(token.position, "this parenthesis was not opened", "take it away")
            self.fail(token.position, f"{token.text!r} follows a value", "put an operator between them, such as and")
        return node

    def _peek(self) -> _Token:
        return self._tokens[self._place]

    def _next(self) -> _Token:
        token = self._tokens[self._place]
        self._place = min(self._place + 1, len(self._tokens) - 1)
        return token

    def _expression(self, weakest: int) -> _Node:
        self._depth += 1
        if self._depth > EXPRESSION_DEPTH_MAX:
            self.fail(self._peek().position, "it is nested too deeply", f"at most {EXPRESSION_DEPTH_MAX} levels")
        left = self._first(weakest)
        while (strength := _STRENGTH.get(self._peek().text, 0)) > weakest:
            left = self._infix(left, strength)
        self._depth -= 1
        return left

    def _infix(self, left: _Node, strength: int) -> _Node:
        token = self._next()
        right = self._expression(strength)
        sign = token.text
        if sign in _COMPUTES:
            return self._compute(token, _COMPUTES[sign], left, right)
        if sign in _COMPARES:
            return self._compare(token, left, right)
        for side in (left, right):
            self._must(token, side, BOOLEAN, f"{sign} joins conditions")
        return _Either(BOOLEAN, sign == "or", left, right)

    def _compare(self, token: _Token, left: _Node, right: _Node) -> _Node:
        if _STRENGTH.get(self._peek().text) == _COMPARISON:
            self.fail(self._peek().position, "this compares three values at once", "write a < b and b < c")
        kinds = {left.kind, right.kind} - {ANY}
        if len(kinds) > 1:
            self.fail(token.position, f"this compares {left.kind} with {right.kind}", "compare two of the same kind")
        if kinds == {BOOLEAN} and token.text not in ("==", "!="):
            self.fail(token.position, f"true and false have no order for {token.text}", "use == or !=")
        return _Compare(BOOLEAN, _COMPARES[token.text], left, right)

    def _compute(self, token: _Token, compute: Callable[..., float], *operands: _Node) -> _Node:
        for one in operands:
            self._must(token, one, NUMBER, f"{token.text} reckons with numbers")
        return _Compute(NUMBER, compute, operands)

    def _must(self, token: _Token, node: _Node, kind: str, why: str) -> None:
        if node.kind not in (kind, ANY):
            self.fail(token.position, f"{why}, and this is {node.kind}", f"give it {kind}")

    def _first(self, weakest: int) -> _Node:
        """A value, or what stands before one."""
        token = self._next()
        if token.kind == "number":
            return _Constant(NUMBER, self._number(token))
        if token.kind == "text":
            return _Constant(TEXT, self._unquoted(token))
        if token.kind == "name":
            return self._word(token, weakest)
        if token.text == "(":
            node = self._expression(0)
            self._close(token)
            return node
        if token.text in ("-", "+"):
            operand = self._expression(_SIGN)
            return self._compute(token, operator.neg if token.text == "-" else operator.pos, operand)
        what = "it ends here" if token.kind == "end" else f"{token.text!r} stands where a value should"
        return self.fail(token.position, what, "put a number, a text in quotes, an input or a parenthesis here")

    def _word(self, token: _Token, weakest: int) -> _Node:
        word = token.text
        if word in ("true", "false"):
            return _Constant(BOOLEAN, word == "true")
        if word == "not":
            if weakest > _NOT:
                self.fail(
                    token.position, "not stands behind an operator that binds more strongly", "put it in parentheses"
                )
            operand = self._expression(_NOT)
            self._must(token, operand, BOOLEAN, "not turns a condition round")
            return _Not(BOOLEAN, operand)
        if self._peek().text == "(":
            return self._call(token)
        if word in self._inputs:
            self.used.add(word)
            return _Read(self._kinds.get(word, ANY), word)
        known = ", ".join(sorted(self._inputs)) or "none"
        if word in ("and", "or"):
            self.fail(token.position, f"{word} stands where a value should", "put a condition on each side of it")
        if word in _FUNCTIONS:
            self.fail(token.position, f"{word} is a function", f"write {word}(…)")
        return self.fail(token.position, f"no input is called {word}", f"inputs are: {known}; a text stands in quotes")

    def _call(self, token: _Token) -> _Node:
        name = token.text
        if name not in _FUNCTIONS:
            self.fail(token.position, f"there is no function {name}", "there are " + ", ".join(_FUNCTIONS))
        opened = self._next()
        if name in ("age", "changed"):
            return self._about_input(token, opened)
        compute, least, most = _FUNCTIONS[name]
        operands = [self._expression(0)]
        while self._peek().text == ",":
            self._next()
            operands.append(self._expression(0))
        self._close(opened)
        if compute is None or not least <= len(operands) <= most:
            self.fail(token.position, f"{name} has {len(operands)} arguments", f"give it {least} to {most}")
        return self._compute(token, compute, *operands)

    def _about_input(self, token: _Token, opened: _Token) -> _Node:
        argument = self._next()
        if argument.kind != "name" or argument.text not in self._inputs:
            known = ", ".join(sorted(self._inputs)) or "none"
            self.fail(argument.position, f"{token.text} asks about one input", f"name it: {known}")
        self._close(opened)
        self.used.add(argument.text)
        self.uses_age |= token.text == "age"
        return _Read(NUMBER if token.text == "age" else BOOLEAN, argument.text, token.text)

    def _close(self, opened: _Token) -> None:
        token = self._next()
        if token.text != ")":
            self.fail(
                token.position, f"the parenthesis of character {opened.position} is still open", "close it with )"
            )

    def _number(self, token: _Token) -> float:
        number = float(token.text)
        if not math.isfinite(number):
            self.fail(token.position, "this number is too large", "at most 1.7e308")
        return number

    def _unquoted(self, token: _Token) -> str:
        def escaped(match: re.Match[str]) -> str:
            if match[1] not in _ESCAPES:
                position = token.position + 1 + match.start()
                self.fail(position, f"\\{match[1]} stands for nothing", "use \\\\, \\n, \\t or a quote after \\")
            return _ESCAPES[match[1]]

        return re.sub(r"\\(.)", escaped, token.text[1:-1], flags=re.DOTALL)
