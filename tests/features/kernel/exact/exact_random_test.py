"""Thirty thousand seeded cases of every size and shape, compared with fractions.

They run inside one compiled function as in the kernel (compact until a value does not fit, then
wide), and again with wide accumulators only.
"""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from numba import njit

from tidemill.features.kernel.exact.accumulators import (
    SQUARE_LIMBS,
    SUM_LIMBS,
    WIDE_SQUARE,
    WIDE_SUM,
    add_float,
    add_square,
    normalise,
    wide_add_compact,
    wide_add_float,
    wide_add_square,
)
from tidemill.features.kernel.exact.rounding import (
    mean_to_float,
    variance_to_float,
    wide_mean_to_float,
    wide_variance_to_float,
)
from tidemill.features.kernel.exact.wide_ints import Words

SQUARES = 1 + SUM_LIMBS
ROW = SQUARES + 1 + SQUARE_LIMBS


def rounded(exact: Fraction) -> tuple[float, bool]:
    try:
        return float(exact) + 0.0, False
    except OverflowError:
        return (math.inf if exact > 0 else -math.inf), True


def as_bits(result: tuple[float, bool]) -> tuple[str, bool]:
    return float(result[0]).hex(), bool(result[1])


@njit  # type: ignore[untyped-decorator, unused-ignore]
def _run(
    values: npt.NDArray[np.float64], starts: Words, ddofs: Words, wide_only: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return sum, mean, variance and overflow flags of every case, as a query computes them."""
    cases = len(starts) - 1
    results = np.zeros((cases, 3))
    flags = np.zeros((cases, 3), np.bool_)
    for case in range(cases):
        words = np.zeros((1, ROW), np.int64)
        arena = np.zeros(WIDE_SUM + WIDE_SQUARE, np.int64)
        sum_wide = square_wide = wide_only
        n = starts[case + 1] - starts[case]
        for at in range(starts[case], starts[case + 1]):
            x = values[at]
            if not sum_wide and not add_float(words, 0, 0, x):
                wide_add_compact(arena, 0, words, 0, 0, SUM_LIMBS)
                sum_wide = True
            if sum_wide:
                wide_add_float(arena, 0, x)
            if not square_wide and not add_square(words, 0, SQUARES, x):
                wide_add_compact(arena, WIDE_SUM, words, 0, SQUARES, SQUARE_LIMBS)
                square_wide = True
            if square_wide:
                wide_add_square(arena, WIDE_SUM, x)
        if case % 2 == 1 and not sum_wide:
            normalise(words, 0, 0, SUM_LIMBS)
        if case % 4 >= 2 and not square_wide:
            normalise(words, 0, SQUARES, SQUARE_LIMBS)
        if sum_wide:
            results[case, 0], flags[case, 0] = wide_mean_to_float(arena, 0, 1)
            results[case, 1], flags[case, 1] = wide_mean_to_float(arena, 0, n)
        else:
            results[case, 0], flags[case, 0] = mean_to_float(words, 0, 0, 1)
            results[case, 1], flags[case, 1] = mean_to_float(words, 0, 0, n)
        if n > ddofs[case]:
            if sum_wide or square_wide:
                if not sum_wide:
                    wide_add_compact(arena, 0, words, 0, 0, SUM_LIMBS)
                if not square_wide:
                    wide_add_compact(arena, WIDE_SUM, words, 0, SQUARES, SQUARE_LIMBS)
                results[case, 2], flags[case, 2] = wide_variance_to_float(
                    arena, 0, arena, WIDE_SUM, n, ddofs[case]
                )
            else:
                results[case, 2], flags[case, 2] = variance_to_float(
                    words, 0, 0, words, 0, SQUARES, n, ddofs[case]
                )
    return results, flags


def _random_case(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """Return rows of one of several shapes, usual and hostile."""
    kind = int(rng.integers(0, 12))
    signs = rng.choice([-1.0, 1.0], size)
    if kind == 0:
        values = rng.standard_normal(size)
    elif kind == 1:
        values = rng.integers(-1000, 1000, size).astype(np.float64)
    elif kind == 2:
        values = np.copysign(rng.integers(0, 2**63 - 1, size).view(np.float64), signs)
    elif kind == 3:
        values = signs * np.ldexp(1.0, rng.integers(-1074, 1024, size))
    elif kind == 4:
        values = rng.integers(1, 2**52, size).view(np.float64) * signs
    elif kind == 5:
        values = signs * np.ldexp(rng.random(size), rng.integers(1000, 1024, size))
    elif kind == 6:
        values = rng.standard_normal(1) + np.ldexp(rng.integers(-3, 4, size), -53)
    elif kind == 7:
        values = np.concatenate([half := rng.standard_normal(size) * 1e9, -half])
        values = rng.permutation(values)[: size + 1]
    elif kind == 8:
        values = signs * np.ldexp(1.0, rng.integers(-60, 60, size))
    elif kind == 9:
        values = 1e9 + rng.standard_normal(size) * 10.0 ** rng.integers(-9, 9)
    elif kind == 10:
        values = np.ldexp(rng.integers(-8, 9, size).astype(np.float64), rng.integers(-1074, -1000))
    else:
        values = np.exp(rng.standard_normal(size) * rng.integers(1, 60)) * signs
    return values[np.isfinite(values)]


def test_thirty_thousand_random_cases_equal_the_fractions() -> None:
    rng = np.random.default_rng(20261101)
    cases = [np.array([0.1])]
    while len(cases) < 30_000:
        values = _random_case(rng, int(rng.integers(1, 9)))
        if len(values):
            cases.append(values)
    cases += [np.resize(_random_case(rng, 1000), 1000) for _ in range(24)]
    cases = [values for values in cases if len(values)]
    starts = np.concatenate([[0], np.cumsum([len(values) for values in cases])])
    ddofs = rng.integers(0, 2, len(cases))
    compact = _run(np.concatenate(cases), starts, ddofs, False)
    wide = _run(np.concatenate(cases), starts, ddofs, True)
    assert compact[0].tobytes() == wide[0].tobytes()
    assert compact[1].tobytes() == wide[1].tobytes()
    overflows = 0
    for case, values in enumerate(cases):
        n, ddof = len(values), int(ddofs[case])
        fractions = [Fraction(x) for x in values.tolist()]
        total = sum(fractions, Fraction(0))
        expected = [rounded(total), rounded(total / n), (0.0, False)]
        if n > ddof:
            squares = sum((x * x for x in fractions), Fraction(0))
            expected[2] = rounded((squares - total * total / n) / (n - ddof))
        got = list(zip(compact[0][case], compact[1][case], strict=True))
        assert [as_bits(each) for each in got] == [as_bits(each) for each in expected], (
            values.tolist()
        )
        overflows += any(flag for _, flag in expected)
    # Check that the cases reach the extremes.
    assert overflows > 1000
