"""Integers of several 64-bit words: the machine operations that exact sums need.

A *word* is an int64 that holds 64 bits; each function says whether it reads them as signed or
unsigned. Integers of several words are little-endian: word 0 is the least significant. numba has no
integer wider than 64 bits and turns a mix of int64 and uint64 into float64, so the operations that
need a carry, a wide product or a logical shift are written here as LLVM instructions over int64
words. They compile to a few machine instructions (on x86-64 ``adc``, ``mul``, ``shld``, ``tzcnt``)
and give the same bits on every CPU.

Words in memory are read and written by address, also an int64: a compiled function that takes an
array counts references to it, and the atomic increments cost more than the addition. The caller
keeps the array alive while it uses an address.
"""

# ruff: noqa: ARG001
# The arguments of an intrinsic are its signature; its body uses their LLVM values instead.

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba.core import cgutils, types
from numba.core.errors import RequireLiteralValue, TypingError
from numba.extending import intrinsic

from tidemill.features.kernel.compiled import inner

Words = npt.NDArray[np.int64]

_WORD = ir.IntType(64)
_INT = types.int64


def _pack(builder: Any, words: Sequence[Any], bits: int) -> Any:
    """Join words, least significant first, into one zero-extended LLVM integer."""
    wide = ir.IntType(bits)
    value = builder.zext(words[0], wide)
    for place, word in enumerate(words[1:], start=1):
        value = builder.or_(value, builder.shl(builder.zext(word, wide), wide(64 * place)))
    return value


def _unpack(builder: Any, value: Any, count: int) -> list[Any]:
    """Return the lowest ``count`` words of an LLVM integer, least significant first."""
    wide = value.type
    return [builder.trunc(builder.lshr(value, wide(64 * place)), _WORD) for place in range(count)]


def _words(count: int) -> Any:
    return types.UniTuple(_INT, count)


def _address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Return the address of an array's word ``offset``, as an integer."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.add(builder.ptrtoint(data, _WORD), builder.mul(offset, _WORD(8)))


def _require_words(kind: Any, axes: int, name: str) -> None:
    if not (
        isinstance(kind, types.Array)
        and kind.dtype == _INT
        and kind.ndim == axes
        and kind.layout == "C"
    ):
        raise TypingError(
            f"{name} is {kind}, expected a C-contiguous int64 array of {axes} axes: "
            "copy it with numpy.ascontiguousarray or change its dtype"
        )


@intrinsic
def prefetch(typing_context: Any, address: Any) -> tuple[Any, Any]:
    """Load the cache line at an address into the cache early; any address is allowed."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        )
        place = builder.inttoptr(arguments[0], pointer)
        # For reading, likely to be used again, data.
        builder.call(function, [place, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(_INT), emit


@intrinsic
def row_address(typing_context: Any, words: Any, pos: Any, base: Any) -> tuple[Any, Any]:
    """Return the address of ``words[pos, base]`` in a C-contiguous matrix; not bounds-checked."""
    _require_words(words, 2, "words")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row, column = arguments
        kind = signature.args[0]
        shape = context.make_array(kind)(context, builder, array).shape
        offset = builder.add(builder.mul(row, builder.extract_value(shape, 1)), column)
        return _address(context, builder, kind, array, offset)

    return _INT(words, _INT, _INT), emit


@intrinsic
def word_address(typing_context: Any, arena: Any, ref: Any) -> tuple[Any, Any]:
    """Return the address of ``arena[ref]`` in a C-contiguous vector; not bounds-checked."""
    _require_words(arena, 1, "arena")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset = arguments
        return _address(context, builder, signature.args[0], array, offset)

    return _INT(arena, _INT), emit


@intrinsic
def stack_words(typing_context: Any, count: Any) -> tuple[Any, Any]:
    """Return the address of ``count`` words, a constant number, on the caller's stack.

    The words are not cleared.
    """
    if not isinstance(count, types.IntegerLiteral):
        raise RequireLiteralValue("stack_words takes a constant number of words")
    size = count.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = cgutils.alloca_once(builder, _WORD, size)
        return builder.ptrtoint(words, _WORD)

    return _INT(count), emit


@intrinsic
def load(typing_context: Any, address: Any, place: Any) -> tuple[Any, Any]:
    """Return the word ``place`` words after an address."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.load(builder.gep(start, [arguments[1]]))

    return _INT(_INT, _INT), emit


@intrinsic
def store(typing_context: Any, address: Any, place: Any, word: Any) -> tuple[Any, Any]:
    """Write a word ``place`` words after an address."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = builder.inttoptr(arguments[0], _WORD.as_pointer())
        builder.store(arguments[2], builder.gep(start, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(_INT, _INT, _INT), emit


@intrinsic
def float_to_bits(typing_context: Any, value: Any) -> tuple[Any, Any]:
    """Return the 64 bits of a float64 as a word."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _WORD)

    return _INT(types.float64), emit


@intrinsic
def bits_to_float(typing_context: Any, word: Any) -> tuple[Any, Any]:
    """Return the float64 whose 64 bits are the word."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(_INT), emit


@intrinsic
def trailing_zeros(typing_context: Any, word: Any) -> tuple[Any, Any]:
    """Count the zero bits below the lowest set bit of a word; 64 for zero."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return _INT(_INT), emit


@intrinsic
def leading_zeros(typing_context: Any, word: Any) -> tuple[Any, Any]:
    """Count the zero bits above the highest set bit of a word; 64 for zero."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.IntType(1)(0))

    return _INT(_INT), emit


@intrinsic
def shift_right_unsigned(typing_context: Any, word: Any, count: Any) -> tuple[Any, Any]:
    """Shift a word right by 0..63 bits, filling with zeros (``>>`` on int64 copies the sign)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.lshr(arguments[0], arguments[1])

    return _INT(_INT, _INT), emit


@intrinsic
def below_unsigned(typing_context: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Return whether word ``a`` is below word ``b``, both unsigned."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.icmp_unsigned("<", arguments[0], arguments[1])

    return types.boolean(_INT, _INT), emit


@intrinsic
def divide_unsigned(typing_context: Any, word: Any, divisor: Any) -> tuple[Any, Any]:
    """Return (quotient, remainder) of an unsigned word and a non-zero unsigned divisor."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_value, divisor_value = arguments
        quotient = builder.udiv(word_value, divisor_value)
        remainder = builder.sub(word_value, builder.mul(quotient, divisor_value))
        return context.make_tuple(builder, signature.return_type, [quotient, remainder])

    return _words(2)(_INT, _INT), emit


@intrinsic
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any]:
    """Return (low, high) of ``a * b + c + d`` over unsigned words: never more than 128 bits."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide_a, wide_b, wide_c, wide_d = (_pack(builder, [word], 128) for word in arguments)
        value = builder.add(builder.add(builder.mul(wide_a, wide_b), wide_c), wide_d)
        return context.make_tuple(builder, signature.return_type, _unpack(builder, value, 2))

    return _words(2)(_INT, _INT, _INT, _INT), emit


@intrinsic
def add_carry(typing_context: Any, a: Any, b: Any, carry: Any) -> tuple[Any, Any]:
    """Return (sum, carry out) of two unsigned words and a carry of 0 or 1."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide_a, wide_b, wide_carry = (_pack(builder, [word], 128) for word in arguments)
        value = builder.add(builder.add(wide_a, wide_b), wide_carry)
        return context.make_tuple(builder, signature.return_type, _unpack(builder, value, 2))

    return _words(2)(_INT, _INT, _INT), emit


@intrinsic
def add_128(typing_context: Any, a0: Any, a1: Any, b0: Any, b1: Any) -> tuple[Any, Any]:
    """Return (word 0, word 1, overflow) of the sum of two signed 128-bit integers."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a = _pack(builder, arguments[:2], 128)
        b = _pack(builder, arguments[2:], 128)
        both = builder.sadd_with_overflow(a, b)
        words = _unpack(builder, builder.extract_value(both, 0), 2)
        # numba keeps booleans as i1 values inside tuples.
        words.append(builder.extract_value(both, 1))
        return context.make_tuple(builder, signature.return_type, words)

    return types.Tuple((_INT, _INT, types.boolean))(_INT, _INT, _INT, _INT), emit


@intrinsic
def add_192(
    typing_context: Any, a0: Any, a1: Any, a2: Any, b0: Any, b1: Any, b2: Any
) -> tuple[Any, Any]:
    """Return the three words of the sum of two 192-bit integers, modulo 2**192."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.add(_pack(builder, arguments[:3], 192), _pack(builder, arguments[3:], 192))
        return context.make_tuple(builder, signature.return_type, _unpack(builder, value, 3))

    return _words(3)(_INT, _INT, _INT, _INT, _INT, _INT), emit


@intrinsic
def shift_left_128(typing_context: Any, w0: Any, w1: Any, count: Any) -> tuple[Any, Any]:
    """Shift a 128-bit integer left by 0..127 bits, modulo 2**128; returns two words."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _pack(builder, arguments[:2], 128)
        value = builder.shl(value, builder.zext(arguments[2], ir.IntType(128)))
        return context.make_tuple(builder, signature.return_type, _unpack(builder, value, 2))

    return _words(2)(_INT, _INT, _INT), emit


@intrinsic
def shift_left_256(
    typing_context: Any, w0: Any, w1: Any, w2: Any, w3: Any, count: Any
) -> tuple[Any, Any]:
    """Shift a 256-bit integer left by 0..255 bits, modulo 2**256; returns four words."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _pack(builder, arguments[:4], 256)
        value = builder.shl(value, builder.zext(arguments[4], ir.IntType(256)))
        return context.make_tuple(builder, signature.return_type, _unpack(builder, value, 4))

    return _words(4)(_INT, _INT, _INT, _INT, _INT), emit


@intrinsic
def subtract_256(
    typing_context: Any,
    a0: Any,
    a1: Any,
    a2: Any,
    a3: Any,
    b0: Any,
    b1: Any,
    b2: Any,
    b3: Any,
) -> tuple[Any, Any]:
    """Return four words of ``a - b`` modulo 2**256, and the borrow: 1 where a < b, unsigned."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a = _pack(builder, arguments[:4], 256)
        b = _pack(builder, arguments[4:], 256)
        words = _unpack(builder, builder.sub(a, b), 4)
        words.append(builder.zext(builder.icmp_unsigned("<", a, b), _WORD))
        return context.make_tuple(builder, signature.return_type, words)

    return _words(5)(_INT, _INT, _INT, _INT, _INT, _INT, _INT, _INT), emit


@inner(forceinline=True)
def shift_left_192(w0: int, w1: int, w2: int, count: int) -> tuple[int, int, int]:
    """Shift a 192-bit integer left by 0..191 bits, modulo 2**192; returns three words."""
    bits = count & 63
    s0 = w0 << bits
    # A shift by 64 is undefined on the machine; two shifts, of which one is by 1, are not.
    s1 = (w1 << bits) | shift_right_unsigned(shift_right_unsigned(w0, 1), 63 - bits)
    s2 = (w2 << bits) | shift_right_unsigned(shift_right_unsigned(w1, 1), 63 - bits)
    if count < 64:
        return s0, s1, s2
    if count < 128:
        return 0, s0, s1
    return 0, 0, s0


@inner
def signed_bits_192(w0: int, w1: int, w2: int) -> int:
    """Return the least b with -2**b <= value < 2**b for a signed 192-bit integer."""
    sign = w2 >> 63
    bits: int
    if w2 != sign:
        bits = 192 - leading_zeros(w2 ^ sign)
    elif w1 != sign:
        bits = 128 - leading_zeros(w1 ^ sign)
    else:
        bits = 64 - leading_zeros(w0 ^ sign)
    return bits


@inner
def strip_trailing_zeros_192(w0: int, w1: int, w2: int) -> tuple[int, int, int, int]:
    """Shift a non-zero signed 192-bit integer right until it is odd.

    Returns:
        The three words of the odd integer, and by how many bits it was shifted.
    """
    sign = w2 >> 63
    stripped = 0
    while w0 == 0:
        w0, w1, w2 = w1, w2, sign
        stripped += 64
    bits = trailing_zeros(w0)
    w0 = shift_right_unsigned(w0, bits) | ((w1 << 1) << (63 - bits))
    w1 = shift_right_unsigned(w1, bits) | ((w2 << 1) << (63 - bits))
    return w0, w1, w2 >> bits, stripped + bits


@inner
def clear(at: int, n_words: int) -> None:
    """Set words in memory to zero."""
    for place in range(n_words):
        store(at, place, 0)


@inner
def add_shifted(at: int, n_words: int, w0: int, w1: int, w2: int, shift: int) -> None:
    """Add a signed 192-bit integer, shifted left by ``shift`` bits, to an integer in memory.

    The integer at the address ``at`` has ``n_words`` words; the sum is taken modulo
    ``2**(64 * n_words)``.
    """
    first = shift >> 6
    bits = shift & 63
    sign = w2 >> 63
    s1 = (w1 << bits) | shift_right_unsigned(shift_right_unsigned(w0, 1), 63 - bits)
    s2 = (w2 << bits) | shift_right_unsigned(shift_right_unsigned(w1, 1), 63 - bits)
    s3 = (w2 >> 1) >> (63 - bits)
    carry = 0
    for place, part in enumerate((w0 << bits, s1, s2, s3)):
        # Words past the end only repeat the sign of a sum that fits.
        if first + place < n_words:
            total, carry = add_carry(load(at, first + place), part, carry)
            store(at, first + place, total)
    place = first + 4
    # From here on, adding -1 with a carry, or 0 without, changes nothing.
    while place < n_words and carry != (sign & 1):
        total, carry = add_carry(load(at, place), sign, carry)
        store(at, place, total)
        place += 1
