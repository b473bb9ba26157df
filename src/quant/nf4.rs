//! 4-bit NormalFloat with one scale per 64 elements, bit for bit as bitsandbytes stores and reads it.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use pulp::Arch;
use rayon::prelude::*;

use super::vectorized;
use super::{FloatType, Nf4Scales, Nf4Values, dynamic};

/// Elements that share one scale.
pub const BLOCK: usize = 64;
/// Scales that share one scale of their own (double quantisation).
pub const SCALE_BLOCK: usize = 256;

/// The 16 values a code stands for.
pub const TABLE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A scaled value above `THRESHOLDS[i]` (strictly) has a code above `i`.
pub const THRESHOLDS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_9,
    -0.459_995_27,
    -0.339_679_42,
    -0.234_607_4,
    -0.137_911_74,
    -0.045_525_018,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_76,
    0.389_312_54,
    0.501_663_45,
    0.642_786_9,
    0.861_478_45,
];

/// The code of 0: what a padding nibble and a block of zeros hold.
const ZERO: u8 = 7;
/// bitsandbytes divides by at least this.
const LEAST_SCALE: f32 = 1e-38;

/// The two values of a byte, high nibble first.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [TABLE[byte >> 4], TABLE[byte & 15]];
        byte += 1;
    }
    pairs
};

/// The codes (two per byte, the first in the high nibble) and the scale of every block of 64.
///
/// A last, shorter block is divided by its scale, the others multiplied by the reciprocal: so does bitsandbytes.
pub fn quantize(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    quantize_on(Arch::new(), values)
}

/// `quantize` with the vector instructions of `arch`.
pub(super) fn quantize_on(arch: Arch, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = vec![0f32; values.len().div_ceil(BLOCK)];
    const TASK: usize = 256; // blocks
    values
        .par_chunks(BLOCK * TASK)
        .zip(codes.par_chunks_mut(BLOCK * TASK / 2))
        .zip(absmax.par_chunks_mut(TASK))
        .for_each(|((values, codes), absmax)| vectorized(arch, || quantize_blocks(values, &mut *codes, &mut *absmax)));
    (codes, absmax)
}

#[inline(always)]
fn quantize_blocks(values: &[f32], codes: &mut [u8], absmax: &mut [f32]) {
    for ((values, codes), scale) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK / 2)).zip(absmax) {
        *scale = values.iter().fold(0f32, |max, value| max.max(value.abs()));
        if let Ok(block) = <&[f32; BLOCK]>::try_from(values) {
            let inverse = 1.0 / scale.max(LEAST_SCALE);
            let mut code = [0u8; BLOCK];
            for (code, value) in code.iter_mut().zip(block) {
                *code = nearest((value * inverse).clamp(-1.0, 1.0));
            }
            for (byte, pair) in codes.iter_mut().zip(code.chunks_exact(2)) {
                *byte = pair[0] << 4 | pair[1];
            }
        } else {
            *scale = scale.max(LEAST_SCALE);
            for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
                let code = |value: Option<&f32>| value.map_or(ZERO, |v| nearest((v / *scale).clamp(-1.0, 1.0)));
                *byte = code(pair.first()) << 4 | code(pair.get(1));
            }
        }
    }
}

#[inline(always)]
fn nearest(value: f32) -> u8 {
    let mut code = 0u8;
    for threshold in THRESHOLDS {
        code += u8::from(value > threshold);
    }
    code
}

/// The scales in 8 bits: their mean is taken off, the rest stored by the signed dynamic map in blocks of 256.
///
/// The mean is summed in f64 (torch's own order depends on its vector width) and the code is the nearest one, as in the CUDA
/// and torch backends; bitsandbytes' C++ CPU backend searches coarsely and is one code off for 2 to 4 in 1000 scales.
pub fn quantize_scales(absmax: &[f32]) -> Nf4Scales {
    let offset = mean(absmax);
    let map = dynamic::signed_map();
    let mut codes = Vec::with_capacity(absmax.len());
    let mut nested = Vec::with_capacity(absmax.len().div_ceil(SCALE_BLOCK));
    for block in absmax.chunks(SCALE_BLOCK) {
        let scale = block.iter().fold(0f32, |max, value| max.max((value - offset).abs()));
        nested.push(scale);
        let divisor = scale.max(LEAST_SCALE);
        let inverse = 1.0 / divisor;
        let is_whole = block.len() == SCALE_BLOCK;
        codes.extend(block.iter().map(|value| {
            let centred = value - offset;
            dynamic::nearest(map, if is_whole { centred * inverse } else { centred / divisor })
        }));
    }
    Nf4Scales::Nested { codes, absmax: nested, map: map.to_vec(), offset }
}

/// The mean in f64, in an order that a thousand adders at once keep too: 1024 running sums, then added in halves.
fn mean(values: &[f32]) -> f32 {
    const SUMS: usize = 1024;
    let mut sums = [0f64; SUMS];
    for values in values.chunks(SUMS) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += f64::from(value);
        }
    }
    let mut half = SUMS / 2;
    while half > 0 {
        let (low, high) = sums.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low += *high;
        }
        half /= 2;
    }
    (sums[0] / values.len().max(1) as f64) as f32
}

impl Nf4Scales {
    /// The number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(absmax) => absmax.len(),
            Self::Nested { codes, .. } => codes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scale of block `block`; two roundings when nested (a fused multiply-add would differ in the last bit).
    #[inline(always)]
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Self::Plain(absmax) => absmax[block],
            Self::Nested { codes, absmax, map, offset } => {
                let product = map[usize::from(codes[block])] * absmax[block / SCALE_BLOCK];
                product + offset
            }
        }
    }
}

/// Elements `elements` of the flattened matrix as f32, rounded to the dtype the matrix had before.
pub fn dequantize(values: &Nf4Values, elements: Range<usize>, out: &mut [f32]) {
    dequantize_on(Arch::new(), values, elements, out);
}

/// `dequantize` with the vector instructions of `arch`.
pub(super) fn dequantize_on(arch: Arch, values: &Nf4Values, elements: Range<usize>, out: &mut [f32]) {
    assert_eq!(out.len(), elements.len(), "one output per element");
    vectorized(arch, || match values.dtype {
        FloatType::F32 => dequantize_blocks(values, elements.clone(), &mut *out, |_| {}),
        FloatType::Bf16 => dequantize_blocks(values, elements.clone(), &mut *out, |block| {
            for value in block {
                *value = round_bf16(*value);
            }
        }),
        FloatType::F16 => dequantize_blocks(values, elements.clone(), &mut *out, |block| {
            let mut rounded = [half::f16::ZERO; BLOCK];
            let rounded = &mut rounded[..block.len()];
            rounded.convert_from_f32_slice(block);
            rounded.convert_to_f32_slice(block);
        }),
    });
}

#[inline(always)]
fn dequantize_blocks(values: &Nf4Values, elements: Range<usize>, out: &mut [f32], round: impl Fn(&mut [f32])) {
    let mut element = elements.start;
    let mut rest = out;
    while !rest.is_empty() {
        let block = element / BLOCK;
        let in_block = element % BLOCK;
        let (piece, tail) = rest.split_at_mut(rest.len().min(BLOCK - in_block));
        let scale = values.absmax.get(block);
        let first_byte = block * (BLOCK / 2);
        if let Ok(piece) = <&mut [f32; BLOCK]>::try_from(&mut *piece) {
            let bytes = &values.codes[first_byte..first_byte + BLOCK / 2];
            for (pair, &byte) in piece.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *pair = PAIRS[usize::from(byte)];
            }
            for value in piece.iter_mut() {
                *value *= scale;
            }
        } else {
            for (i, value) in piece.iter_mut().enumerate() {
                let pair = PAIRS[usize::from(values.codes[first_byte + (in_block + i) / 2])];
                *value = pair[(in_block + i) % 2] * scale;
            }
        }
        round(piece);
        element += piece.len();
        rest = tail;
    }
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
fn round_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    f32::from_bits(if value.is_nan() { bits } else { rounded })
}
