//! Loops over lanes that the compiler turns into vector instructions inside `vectorized`.
//!
//! Everything here is `inline(always)`: a function that is not inlined into the dispatched closure is compiled for the
//! oldest CPU. Sums run over a fixed number of lanes, so they are the same on every CPU.

pub(super) use crate::quant::vectorized;

/// Partial sums kept by a reduction: enough to hide the latency of an addition on 512-bit vectors.
pub(super) const LANES: usize = 64;

/// `e^x` within 2 units in the last place for -87 <= x <= 88; 0 below, where it would be subnormal, infinite above.
///
/// `x = n·ln 2 + r`, `|r| <= ln 2/2`; `e^r` by a polynomial of degree 6, `2^n` by the exponent bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer and leaves it in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 88.72;
    // Comparisons, not `clamp`: they become one instruction each. NaN passes both and comes out as NaN.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    p = p * r * r + r + 1.0;
    // n = 128 has no exponent of its own: half of the factor goes in by the bits, two by a product.
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(126);
    let value = p * f32::from_bits(exponent << 23) * 2.0;
    let value = if x < LOWEST { 0.0 } else { value };
    if x > HIGHEST { f32::INFINITY } else { value }
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `Σ term(a[i], b[i])` over lanes, then over the lanes' sums pairwise.
#[inline(always)]
pub(super) fn sum2(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += term(a[lane], b[lane]);
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += term(*a, *b);
    }
    fold(sums, |x, y| x + y)
}

/// `Σ term(a[i])`, in the same order as `sum2`.
#[inline(always)]
pub(super) fn sum(a: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (a, rest) = a.as_chunks::<LANES>();
    for a in a {
        for lane in 0..LANES {
            sums[lane] += term(a[lane]);
        }
    }
    for (lane, a) in rest.iter().enumerate() {
        sums[lane] += term(*a);
    }
    fold(sums, |x, y| x + y)
}

/// The greatest value, negative infinity for none.
#[inline(always)]
pub(super) fn max(a: &[f32]) -> f32 {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let greater = |x: f32, y: f32| if x > y { x } else { y };
    let (a, rest) = a.as_chunks::<LANES>();
    for a in a {
        for lane in 0..LANES {
            highest[lane] = greater(a[lane], highest[lane]);
        }
    }
    for (lane, a) in rest.iter().enumerate() {
        highest[lane] = greater(*a, highest[lane]);
    }
    fold(highest, greater)
}

/// Folds the lanes pairwise: 64 to 32 to … to 1.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}
