//! GGML's simplest block formats: 32 elements with one scale (and, for Q4_1, one minimum), little-endian.

use half::f16;
use pulp::Arch;

use super::GgmlKind;
use super::vectorized;

/// Elements of a block.
pub const BLOCK: usize = 32;

impl GgmlKind {
    /// Bytes of a block of 32 elements.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }

    /// GGML's own name of the format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        }
    }

    /// Bytes of a row of `cols` elements; `None` unless `cols` is a multiple of 32.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(BLOCK) { (cols / BLOCK).checked_mul(self.block_bytes()) } else { None }
    }
}

/// The elements of whole blocks as f32.
///
/// Q8_0 `d·q`; Q4_0 `d·(q - 8)`; Q4_1 `d·q + m` with two roundings. In Q4 blocks the low nibbles hold the first 16
/// elements, the high nibbles the last 16.
pub fn dequantize(kind: GgmlKind, bytes: &[u8], out: &mut [f32]) {
    dequantize_on(Arch::new(), kind, bytes, out);
}

/// `dequantize` with the vector instructions of `arch`.
pub(super) fn dequantize_on(arch: Arch, kind: GgmlKind, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() / kind.block_bytes() * BLOCK, out.len(), "{} blocks and outputs", kind.name());
    vectorized(arch, || match kind {
        GgmlKind::Q8_0 => q8_0(bytes, &mut *out),
        GgmlKind::Q4_0 => q4_0(bytes, &mut *out),
        GgmlKind::Q4_1 => q4_1(bytes, &mut *out),
    });
}

#[inline(always)]
fn q8_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let scale = half_at(block, 0);
        for (value, &code) in out.iter_mut().zip(&block[2..]) {
            *value = f32::from(code as i8) * scale;
        }
    }
}

#[inline(always)]
fn q4_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let scale = half_at(block, 0);
        let (low, high) = out.split_at_mut(BLOCK / 2);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
            *low = (f32::from(byte & 15) - 8.0) * scale;
            *high = (f32::from(byte >> 4) - 8.0) * scale;
        }
    }
}

#[inline(always)]
fn q4_1(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let scale = half_at(block, 0);
        let least = half_at(block, 2);
        let (low, high) = out.split_at_mut(BLOCK / 2);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
            *low = f32::from(byte & 15) * scale + least;
            *high = f32::from(byte >> 4) * scale + least;
        }
    }
}

#[inline(always)]
fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}
