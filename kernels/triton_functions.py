"""Functions of numbers that generated Triton kernels are made of.

Every one takes and gives blocks of one type, f32 or f64 where nothing else is said; they are the
functions of `include/fusec/generated.h`, and what is said there of their results holds here.
Functions that few models use are computed in f64 for both types.  Nothing of a vendor's library is
needed beyond what `triton.language` itself offers, so all run under Triton's interpreter.
"""

import triton
import triton.language as tl

# --- bits -----------------------------------------------------------------------------------


@triton.jit
def copy_sign(x, y):
    """The magnitude of `x` with the sign of `y`."""
    kind: tl.constexpr = tl.int64 if x.dtype == tl.float64 else tl.int32
    rest: tl.constexpr = 0x7FFFFFFFFFFFFFFF if x.dtype == tl.float64 else 0x7FFFFFFF
    magnitude = x.to(kind, bitcast=True) & rest
    bits = y.to(kind, bitcast=True)
    return (magnitude | (bits - (bits & rest))).to(x.dtype, bitcast=True)


@triton.jit
def negate(x):
    """-x, of zeros too."""
    return x * -1.0


@triton.jit
def widen_f8(codes, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """The f32 of 8-bit floats that are numbers."""
    magnitude = codes.to(tl.int32) & 0x7F
    unit: tl.constexpr = 2.0 ** (1 - BIAS - MANTISSA)
    subnormal = magnitude.to(tl.float32) * unit
    bits = (magnitude << (23 - MANTISSA)) + ((127 - BIAS) << 23)
    normal = bits.to(tl.float32, bitcast=True)
    value = tl.where(magnitude < (1 << MANTISSA), subnormal, normal)
    return tl.where(codes.to(tl.int32) > 0x7F, negate(value), value)


@triton.jit
def read_f8e4m3fn(codes):
    """The f32 of f8e4m3fn."""
    special = (codes.to(tl.int32) & 0x7F) == 0x7F
    return tl.where(special, float("nan"), widen_f8(codes, 3, 7))


@triton.jit
def read_f8e4m3fnuz(codes):
    """The f32 of f8e4m3fnuz."""
    return tl.where(codes.to(tl.int32) == 0x80, float("nan"), widen_f8(codes, 3, 8))


@triton.jit
def read_f8e5m2(codes):
    """The f32 of f8e5m2."""
    code = codes.to(tl.int32)
    infinity = tl.where(code > 0x7F, float("-inf"), float("inf"))
    special = tl.where((code & 3) != 0, float("nan"), infinity)
    return tl.where((code & 0x7C) == 0x7C, special, widen_f8(codes, 2, 15))


@triton.jit
def round_f8(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """The magnitudes of f32 as 8-bit floats, rounded to even; may exceed the largest code."""
    magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    shift: tl.constexpr = 23 - MANTISSA
    rebias: tl.constexpr = (127 - BIAS) << 23
    normal = magnitude - rebias
    normal = (normal + ((1 << (shift - 1)) - 1) + ((normal >> shift) & 1)) >> shift
    # Below the smallest normal number the unit is fixed: adding 1.5 * 2^23 units rounds to it.
    anchor: tl.constexpr = 1.5 * 2.0 ** (23 + 1 - BIAS - MANTISSA)
    anchor_bits: tl.constexpr = ((127 + 23 + 1 - BIAS - MANTISSA) << 23) + (1 << 22)
    moved = magnitude.to(tl.float32, bitcast=True) + anchor
    subnormal = moved.to(tl.int32, bitcast=True) - anchor_bits
    return tl.where(magnitude < rebias + (1 << 23), subnormal, normal)


@triton.jit
def is_special(x):
    """Whether an f32 is infinite or NaN."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000


@triton.jit
def sign_of_f8(x):
    """The sign bit of an f32, where an 8-bit float has it."""
    return (x.to(tl.int32, bitcast=True) >> 24) & 0x80


@triton.jit
def narrow_f8e4m3fn(x):
    """The f8e4m3fn of f32; what does not fit is NaN."""
    bits = round_f8(x, 3, 7)
    bits = tl.where(is_special(x) | (bits > 0x7E), 0x7F, bits)
    return (bits | sign_of_f8(x)).to(tl.uint8)


@triton.jit
def narrow_f8e4m3fnuz(x):
    """The f8e4m3fnuz of f32; what does not fit is NaN, and there is no negative zero."""
    bits = round_f8(x, 3, 8)
    signed = tl.where(bits == 0, 0, bits | sign_of_f8(x))
    return tl.where(is_special(x) | (bits > 0x7F), 0x80, signed).to(tl.uint8)


@triton.jit
def narrow_f8e5m2(x):
    """The f8e5m2 of f32; what does not fit is infinite."""
    bits = round_f8(x, 2, 15)
    bits = tl.where(is_special(x) | (bits > 0x7C), 0x7C, bits)
    return (tl.where(x != x, 0x7F, bits) | sign_of_f8(x)).to(tl.uint8)


# --- conversions and integers ---------------------------------------------------------------


@triton.jit
def to_integer(
    x,
    KIND: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
):
    """Floats truncated to KIND: NaN is 0, from HIGH on they are MOST, up to LOW they are LEAST."""
    high = x >= HIGH
    low = x <= LOW
    inside = tl.where(high | low | (x != x), 0.0, x).to(KIND)
    return tl.where(high, MOST, tl.where(low, LEAST, inside)).to(KIND)


@triton.jit
def divisor(b):
    """`b`, or 1 where it is 0: integers have no quotient there, and nothing is told of it."""
    return tl.where(b == 0, 1, b).to(b.dtype)


@triton.jit
def int_fmod(a, b):
    """The remainder with the sign of the dividend."""
    b = divisor(b)
    minus = (b == -1) if b.dtype.is_int_signed() else (b == 0)
    rest = a % tl.where(minus, 1, b).to(b.dtype)
    return tl.where(minus, 0, rest).to(a.dtype)


@triton.jit
def int_mod(a, b):
    """The remainder with the sign of the divisor."""
    rest = int_fmod(a, b)
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def int_floordiv(a, b):
    """The quotient, rounded down."""
    rest = int_fmod(a, b)
    b = divisor(b)
    minus = (b == -1) if b.dtype.is_int_signed() else (b == 0)
    quotient = a // tl.where(minus, 1, b).to(b.dtype)
    lower = (rest != 0) & ((a < 0) != (b < 0))
    return tl.where(minus, 0 - a, quotient - lower.to(a.dtype))


@triton.jit
def int_pow(base, exponent):
    """A power; of negative ones only those of 1 and -1 are not 0."""
    odd = (exponent & 1) != 0
    inverse = tl.where(base == 1, 1, 0)
    if base.dtype.is_int_signed():
        inverse = tl.where(base == -1, tl.where(odd, -1, 1), inverse)
    result = tl.where(exponent < 0, inverse, 1).to(base.dtype)
    rest = tl.where(exponent < 0, 0, exponent).to(exponent.dtype)
    for _ in range(base.dtype.primitive_bitwidth):
        result = tl.where((rest & 1) != 0, result * base, result)
        base = base * base
        rest = rest >> 1
    return result


@triton.jit
def int_shl(x, count):
    """`x` moved up by any count."""
    fits = (count >= 0) & (count < x.dtype.primitive_bitwidth)
    return tl.where(fits, x << tl.where(fits, count, 0).to(x.dtype), 0).to(x.dtype)


@triton.jit
def int_shr(x, count):
    """`x` moved down by any count; its sign comes in from above."""
    fits = (count >= 0) & (count < x.dtype.primitive_bitwidth)
    sign = tl.where(x < 0, -1, 0) if x.dtype.is_int_signed() else tl.where(x < 0, 0, 0)
    return tl.where(fits, x >> tl.where(fits, count, 0).to(x.dtype), sign.to(x.dtype))


@triton.jit
def sign(x):
    """-1, 0 or 1; NaN of NaN."""
    return tl.where(x != x, x, (x > 0).to(x.dtype) - (x < 0).to(x.dtype))


# --- order, NaN included --------------------------------------------------------------------


@triton.jit
def maximum(a, b):
    """The larger; NaN if one is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def minimum(a, b):
    """The smaller; NaN if one is."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def is_infinite(x):
    """Whether `x` is infinite."""
    return tl.abs(x) == float("inf")


@triton.jit
def relu(x):
    """`x`, and 0 below 0."""
    return tl.where((x > 0) | (x != x), x, 0)


@triton.jit
def key(x, NAN: tl.constexpr):
    """Integers that order as the floats do; both zeros are one, NaN is NAN."""
    kind: tl.constexpr = tl.int64 if x.dtype == tl.float64 else tl.int32
    rest: tl.constexpr = 0x7FFFFFFFFFFFFFFF if x.dtype == tl.float64 else 0x7FFFFFFF
    bits = tl.where(x == 0, 0, x).to(kind, bitcast=True)
    return tl.where(x != x, NAN, tl.where(bits < 0, bits ^ rest, bits)).to(kind)


@triton.jit
def number(keys, KIND: tl.constexpr):
    """The floats of which `key` made integers."""
    rest: tl.constexpr = 0x7FFFFFFFFFFFFFFF if KIND == tl.float64 else 0x7FFFFFFF
    return tl.where(keys < 0, keys ^ rest, keys).to(KIND, bitcast=True)


@triton.jit
def product(a, b):
    """For reductions."""
    return a * b


# --- arithmetic -----------------------------------------------------------------------------


@triton.jit
def divide(a, b):
    """The quotient, rounded to nearest."""
    if a.dtype == tl.float64:
        return a / b
    else:  # Triton compiles what comes behind a return, too
        return tl.math.div_rn(a, b)


@triton.jit
def one(x):
    """1 in the type of `x`."""
    return tl.full((), 1, x.dtype)


@triton.jit
def reciprocal(x):
    """1 / x, rounded to nearest."""
    return divide(one(x), x)


@triton.jit
def sqrt(x):
    """The square root, rounded to nearest."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.math.sqrt_rn(x)


@triton.jit
def rsqrt(x):
    """1 / sqrt(x)."""
    return reciprocal(sqrt(x))


@triton.jit
def trunc(x):
    """`x` rounded towards 0."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):
    """`x` rounded to nearest, halves to even."""
    # From 2^(digits of the mantissa) on all are whole; below, the sum has a unit of 1.
    anchor: tl.constexpr = 4503599627370496.0 if x.dtype == tl.float64 else 8388608.0
    magnitude = tl.abs(x)
    whole = (magnitude + anchor) - anchor
    return copy_sign(tl.where(magnitude < anchor, whole, magnitude), x)


@triton.jit
def fmod(a, b):
    """The remainder with the sign of the dividend; exact in f32."""
    if a.dtype == tl.float64:
        return a % b
    else:
        # Quotients of which 28 bits are kept have exact products in f64: 2^277 needs ten of them.
        rest = tl.abs(a).to(tl.float64)
        size = tl.abs(b).to(tl.float64)
        for _ in range(10):
            quotient = (rest / size).to(tl.int64, bitcast=True) & -33554432
            whole = tl.floor(quotient.to(tl.float64, bitcast=True))
            rest = tl.where(rest >= size, rest - whole * size, rest)
            rest = tl.where(rest < 0, rest + size, rest)
        known = (tl.abs(a) < float("inf")) & (size > 0)
        return copy_sign(tl.where(known, rest.to(tl.float32), float("nan")), a)


@triton.jit
def float_mod(a, b):
    """The remainder with the sign of the divisor, as Python's."""
    rest = fmod(a, b)
    moved = tl.where((rest < 0) != (b < 0), rest + b, rest)
    return tl.where(rest == 0, copy_sign(rest, b), moved)


@triton.jit
def float_floordiv(a, b):
    """The quotient that belongs to `float_mod`."""
    ratio = divide(a, b)
    # Not by `float_mod`, which is infinite where `b` is.
    rest = fmod(a, b)
    quotient = divide(a - rest, b)
    quotient = tl.where((rest != 0) & ((rest < 0) != (b < 0)), quotient - 1.0, quotient)
    whole = tl.floor(quotient)
    whole = tl.where(quotient - whole > 0.5, whole + 1.0, whole)
    whole = tl.where(quotient == 0, copy_sign(quotient, ratio), whole)
    return tl.where(b == 0, ratio, whole)


# --- exponentials and logarithms ------------------------------------------------------------


@triton.jit
def exp(x):
    """e^x."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        # e^(n ln(2) + r) with n whole and 2^n a number, so that it is made of its bits; ln(2) is in
        # two parts, of which the first has products without rounding (Cody and Waite).
        n = (x * 1.4426950408889634 + 12582912.0) - 12582912.0
        n = tl.where(n < 127.0, n, 127.0)
        n = tl.where(n > -126.0, n, -126.0)
        r = (x - n * 0.693145751953125) - n * 1.428606765330187045e-06
        scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        return tl.exp2(r * 1.4426950408889634) * scale


@triton.jit
def log2(x):
    """The logarithm to base 2; not of `log`, whose multiple misses the whole numbers."""
    return tl.log2(x)


@triton.jit
def log1p(x):
    """log(1 + x); the quotient makes good for the rounding of the sum (Kahan)."""
    w = 1.0 + x
    difference = w - 1.0
    result = tl.log(w) * divide(x, tl.where(difference == 0, 1.0, difference))
    result = tl.where(difference == 0, x, result)
    return tl.where(w == float("inf"), w, result)


@triton.jit
def expm1(x):
    """e^x - 1; the quotient makes good for the rounding of the power (Kahan)."""
    u = exp(x)
    difference = u - 1.0
    result = difference * divide(x, tl.log(u))
    result = tl.where(u == 1.0, x, result)
    result = tl.where(difference == -1.0, -1.0, result)
    return tl.where((u == float("inf")) | (u != u), u, result)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return reciprocal(1.0 + exp(-x))


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return divide(x, 1.0 + exp(-x))


@triton.jit
def tanh(x):
    """The hyperbolic tangent; in f32 a polynomial near 0 (Cephes tanhf)."""
    magnitude = tl.abs(x)
    if x.dtype == tl.float64:
        e = expm1(-2.0 * magnitude)
        return copy_sign(-e / (2.0 + e), x)
    else:
        large = 1.0 - divide(2.0 * one(x), exp(magnitude + magnitude) + 1.0)
        square = x * x
        p = -5.70498872745e-3 * square + 2.06390887954e-2
        p = p * square - 5.37397155531e-2
        p = p * square + 1.33314422036e-1
        p = p * square - 3.33332819422e-1
        small = (p * square) * x + x
        return tl.where(magnitude < 0.625, small, copy_sign(large, x))


@triton.jit
def softplus_of_one(x):
    """log(1 + exp(x)) without overflow."""
    result = tl.where(x > 0, x, 0.0) + log1p(exp(-tl.abs(x)))
    return tl.where(x != x, x, result)


@triton.jit
def softplus(x, beta, threshold):
    """log(1 + exp(beta x)) / beta, and x where beta x is above the threshold."""
    scaled = x * beta
    return tl.where(scaled > threshold, x, divide(softplus_of_one(scaled), beta))


@triton.jit
def log_sigmoid(x):
    """log(sigmoid(x))."""
    return -softplus_of_one(-x)


@triton.jit
def gelu(x):
    """x times the normal distribution's function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """`gelu` by a tangent (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def quick_gelu(x):
    """x * sigmoid(1.702 x)."""
    return x * sigmoid(1.702 * x)


@triton.jit
def within_six(x):
    """x + 3 between 0 and 6, by 6."""
    zero = tl.full((), 0, x.dtype)
    six = tl.full((), 6, x.dtype)
    return minimum(maximum(x + 3.0, zero), six)


@triton.jit
def hardsigmoid(x):
    """x + 3 between 0 and 6, by 6."""
    return divide(within_six(x), 6.0 * one(x))


@triton.jit
def hardswish(x):
    """x * hardsigmoid(x)."""
    return divide(x * within_six(x), 6.0 * one(x))


@triton.jit
def mish(x):
    """x * tanh(softplus(x))."""
    return x * tanh(softplus_of_one(x))


@triton.jit
def leaky_relu(x, slope):
    """x, and slope x below 0."""
    return tl.where(x > 0, x, slope * x)


@triton.jit
def elu(x, alpha):
    """x, and alpha (exp(x) - 1) below 0."""
    result = tl.where(x > 0, x, alpha * expm1(tl.where(x < 0, x, 0.0)))
    return tl.where(x != x, x, result)


# --- angles ---------------------------------------------------------------------------------


@triton.jit
def quadrant(x):
    """An angle less the nearest multiple of pi/2, in f64, and the last bits of that multiple.

    Reduced by pi/2 in three parts.  From 2^50 on, where neighbouring f32 are many turns apart, the
    angle is NaN.
    """
    wide = x.to(tl.float64)
    shifted = wide * 0.6366197723675814 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = tl.math.fma(n, tl.full((), -1.5707963267948966, tl.float64), wide)
    r = tl.math.fma(n, tl.full((), -6.123233995736766e-17, tl.float64), r)
    if x.dtype == tl.float64:
        r = tl.math.fma(n, tl.full((), 1.4973849048591833e-33, tl.float64), r)
    fits = tl.abs(wide) < 1125899906842624.0
    turns = shifted.to(tl.int64, bitcast=True).to(tl.int32)
    return tl.where(fits, r, float("nan")).to(x.dtype), turns


@triton.jit
def sin_turned(r, turns):
    """The sine of r + turns * pi/2, |r| <= pi/4 (Cephes sinf and cosf, or sin and cos)."""
    square = r * r
    if r.dtype == tl.float64:
        p = 1.58962301576546568060e-10 * square - 2.50507477628578072866e-8
        p = p * square + 2.75573136213857245213e-6
        p = p * square - 1.98412698295895385996e-4
        p = p * square + 8.33333333332211858878e-3
        p = p * square - 1.66666666666666307295e-1
        q = -1.13585365213876817300e-11 * square + 2.08757008419747316778e-9
        q = q * square - 2.75573141792967388112e-7
        q = q * square + 2.48015872888517045348e-5
        q = q * square - 1.38888888888730564116e-3
        q = q * square + 4.16666666666665929218e-2
    else:
        p = 2.718121664e-6 * square - 1.98393348e-4
        p = p * square + 8.33332959e-3
        p = p * square - 1.66666666e-1
        q = 2.44331571e-5 * square - 1.38873162e-3
        q = q * square + 4.16666456e-2
    cosine = 1.0 - (0.5 * square - q * square * square)
    value = tl.where((turns & 1) != 0, cosine, (p * square) * r + r)
    return tl.where((turns & 2) != 0, negate(value), value)


@triton.jit
def sin(x):
    """The sine."""
    r, turns = quadrant(x)
    return sin_turned(r, turns)


@triton.jit
def cos(x):
    """The cosine."""
    r, turns = quadrant(x)
    return sin_turned(r, turns + 1)


@triton.jit
def tan(x):
    """The tangent."""
    r, turns = quadrant(x)
    return divide(sin_turned(r, turns), sin_turned(r, turns + 1))


@triton.jit
def atan_f64(x):
    """The arc tangent of f64 (Cephes atan)."""
    magnitude = tl.abs(x)
    large = magnitude > 2.414213562373095
    middle = magnitude > 0.66
    above = tl.where(large, -1.0, tl.where(middle, magnitude - 1.0, magnitude))
    below = tl.where(large, magnitude, tl.where(middle, magnitude + 1.0, 1.0))
    w = above / below
    square = w * w
    p = -8.750608600031904122785e-1 * square - 1.615753718733365076637e1
    p = p * square - 7.500855792314704667340e1
    p = p * square - 1.228866684490136173410e2
    p = p * square - 6.485021904942025371773e1
    q = square + 2.485846490142306297962e1
    q = q * square + 1.650270098316988542046e2
    q = q * square + 4.328810604912902668951e2
    q = q * square + 4.853903996359136964868e2
    q = q * square + 1.945506571482613964425e2
    zero = tl.full((), 0, tl.float64)
    rest = w * (square * p / q) + w
    rest += tl.where(large, 6.123233995736766e-17, tl.where(middle, 3.061616997868383e-17, zero))
    base = tl.where(large, 1.5707963267948966, tl.where(middle, 0.7853981633974483, zero))
    return copy_sign(base + rest, x)


@triton.jit
def atan2_f64(y, x):
    """The angle of (x, y) in f64; that of two infinities is a multiple of pi/4."""
    endless = (tl.abs(y) == float("inf")) & (tl.abs(x) == float("inf"))
    top = tl.where(endless, 1.0, tl.abs(y))
    side = tl.where(endless, 1.0, tl.abs(x))
    empty = (top == 0) & (side == 0)
    angle = atan_f64(top / tl.where(empty, 1.0, side))
    left = x.to(tl.int64, bitcast=True) < 0
    angle = tl.where(left, 3.141592653589793 - angle, angle)
    angle = tl.where((x != x) | (y != y), float("nan"), angle)
    return copy_sign(angle, y)


@triton.jit
def atan(x):
    """The arc tangent."""
    return atan_f64(x.to(tl.float64)).to(x.dtype)


@triton.jit
def atan2(y, x):
    """The angle of (x, y)."""
    return atan2_f64(y.to(tl.float64), x.to(tl.float64)).to(x.dtype)


@triton.jit
def asin(x):
    """The arc sine."""
    wide = x.to(tl.float64)
    return atan2_f64(wide, tl.sqrt((1.0 - wide) * (1.0 + wide))).to(x.dtype)


@triton.jit
def acos(x):
    """The arc cosine."""
    wide = x.to(tl.float64)
    return atan2_f64(tl.sqrt((1.0 - wide) * (1.0 + wide)), wide).to(x.dtype)


# --- functions in f64 -----------------------------------------------------------------------


@triton.jit
def sinh(x):
    """The hyperbolic sine; halves of the exponent reach as far as the result."""
    wide = tl.abs(x.to(tl.float64))
    e = expm1(tl.where(wide < 1.0, wide, 1.0))
    half = tl.exp(0.5 * wide)
    large = (0.5 * half) * half - 0.5 / (half * half)
    small = 0.5 * (e + e / (e + 1.0))
    return copy_sign(tl.where(wide < 1.0, small, large).to(x.dtype), x)


@triton.jit
def cosh(x):
    """The hyperbolic cosine."""
    half = tl.exp(0.5 * tl.abs(x.to(tl.float64)))
    return ((0.5 * half) * half + 0.5 / (half * half)).to(x.dtype)


@triton.jit
def asinh(x):
    """The inverse of `sinh`; from 2^28 on it is log(2x)."""
    wide = tl.abs(x.to(tl.float64))
    inside = tl.where(wide < 268435456.0, wide, 1.0)
    small = log1p(inside + inside * inside / (1.0 + tl.sqrt(inside * inside + 1.0)))
    large = tl.log(wide) + 0.6931471805599453
    return copy_sign(tl.where(wide < 268435456.0, small, large).to(x.dtype), x)


@triton.jit
def acosh(x):
    """The inverse of `cosh`; from 2^28 on it is log(2x)."""
    wide = x.to(tl.float64)
    above = tl.where(wide < 268435456.0, wide, 2.0) - 1.0
    small = log1p(above + tl.sqrt(above * (above + 2.0)))
    large = tl.log(wide) + 0.6931471805599453
    result = tl.where(wide < 268435456.0, small, large)
    return tl.where((wide >= 1.0) | (wide != wide), result, float("nan")).to(x.dtype)


@triton.jit
def atanh(x):
    """The inverse of `tanh`."""
    wide = tl.abs(x.to(tl.float64))
    return copy_sign((0.5 * log1p(2.0 * wide / (1.0 - wide))).to(x.dtype), x)


@triton.jit
def erf(x):
    """The error function."""
    return tl.erf(x)


@triton.jit
def erfc(x):
    """1 - erf(x), by rational functions beyond 1 (Cephes erfc)."""
    wide = x.to(tl.float64)
    z = tl.abs(wide)
    p = 2.46196981473530512524e-10 * z + 5.64189564831068821977e-1
    p = p * z + 7.46321056442269912687
    p = p * z + 4.86371970985681366614e1
    p = p * z + 1.96520832956077098242e2
    p = p * z + 5.26445194995477358631e2
    p = p * z + 9.34528527171957607540e2
    p = p * z + 1.02755188689515710272e3
    p = p * z + 5.57535335369399327526e2
    q = z + 1.32281951154744992508e1
    q = q * z + 8.67072140885989742329e1
    q = q * z + 3.54937778887819891062e2
    q = q * z + 9.75708501743205489753e2
    q = q * z + 1.82390916687909736289e3
    q = q * z + 2.24633760818710981792e3
    q = q * z + 1.65666309194161350182e3
    q = q * z + 5.57535340817727675546e2
    r = 5.64189583547755073984e-1 * z + 1.27536670759978104416
    r = r * z + 5.01905042251180477414
    r = r * z + 6.16021097993053585195
    r = r * z + 7.40974269950448939160
    r = r * z + 2.97886665372100240670
    s = z + 2.26052863220117276590
    s = s * z + 9.39603524938001434673
    s = s * z + 1.20489539808096656605e1
    s = s * z + 1.70814450747565897222e1
    s = s * z + 9.60896809063285878198
    s = s * z + 3.36907645100081516050
    ratio = tl.where(z < 8.0, p / q, r / s)
    tail = tl.where(z < 28.0, tl.exp(-z * z) * ratio, 0.0)
    tail = tl.where(wide < 0, 2.0 - tail, tail)
    result = tl.where(z < 1.0, 1.0 - tl.erf(wide), tail)
    return tl.where(wide != wide, wide, result).to(x.dtype)


@triton.jit
def power(x, y):
    """x to the power of y, with the special cases of C's `pow`."""
    base = tl.abs(x.to(tl.float64))
    exponent = y.to(tl.float64)
    unit = (exponent == 0) | (base == 1.0)
    safe = tl.where(unit, 1.0, base)
    result = tl.exp2(tl.where(unit, 0.0, exponent) * tl.log2(safe))
    whole = tl.floor(exponent) == exponent
    half = exponent * 0.5
    odd = whole & (tl.floor(half) != half)
    negative = (copy_sign(one(base), x.to(tl.float64)) < 0) & (x == x)
    result = tl.where(negative & odd, negate(result), result)
    undefined = negative & (base > 0) & (base < float("inf")) & (whole == 0)
    result = tl.where(undefined | ((x != x) & (exponent != 0)), float("nan"), result)
    known_one = (x == 1.0) | (exponent == 0)
    result = tl.where((y != y) & (known_one == 0), float("nan"), result)
    return tl.where(known_one, 1.0, result).to(x.dtype)
