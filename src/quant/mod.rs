//! Stored forms of frozen matrices and 8-bit states: arithmetic only, no files.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub mod dynamic;
pub mod ggml;
pub mod nf4;
#[cfg(test)]
pub(crate) mod tests;

/// What can be wrong with the stored form of a matrix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("a matrix of {rows} x {cols} elements is larger than this machine can address")]
    TooLarge { rows: usize, cols: usize },
    #[error("{storage} {what}: got {got}, a {rows} x {cols} matrix has {wanted}")]
    Length { storage: &'static str, what: &'static str, got: usize, wanted: usize, rows: usize, cols: usize },
    #[error("{storage} stores rows in blocks of 32 elements; rows of {cols} do not fit")]
    Columns { storage: &'static str, cols: usize },
}

pub type Result<T> = std::result::Result<T, Error>;

/// A frozen matrix of `rows` x `cols`, row-major, as it is stored.
#[derive(Clone, Debug)]
pub struct StoredMatrix {
    pub rows: usize,
    pub cols: usize,
    pub values: StoredValues,
}

/// The stored values of a matrix.
#[derive(Clone, Debug)]
pub enum StoredValues {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Nf4(Nf4Values),
    Ggml(GgmlValues),
}

/// bitsandbytes' 4-bit NormalFloat: two codes per byte (first in the high nibble), one scale per 64 elements.
#[derive(Clone, Debug)]
pub struct Nf4Values {
    pub codes: Vec<u8>,
    pub absmax: Nf4Scales,
    /// The dtype the matrix had before it was quantised; dequantised values are rounded to it by bitsandbytes.
    pub dtype: FloatType,
}

/// The scales of NF4 blocks: plain, or quantised themselves (double quantisation).
#[derive(Clone, Debug)]
pub enum Nf4Scales {
    Plain(Vec<f32>),
    Nested { codes: Vec<u8>, absmax: Vec<f32>, map: Vec<f32>, offset: f32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

/// Rows of GGML blocks, exactly the file's bytes.
#[derive(Clone, Debug)]
pub struct GgmlValues {
    pub kind: GgmlKind,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlKind {
    Q8_0,
    Q4_0,
    Q4_1,
}

/// A matrix of `rows` x `cols` as a file holds it: little-endian numbers, row-major.
#[derive(Clone, Copy, Debug)]
pub struct FloatBytes<'a> {
    pub rows: usize,
    pub cols: usize,
    pub dtype: FloatType,
    /// rows * cols numbers.
    pub bytes: &'a [u8],
}

impl FloatBytes<'_> {
    /// The same in memory of its own.
    pub fn stored(&self) -> StoredMatrix {
        let values = match self.dtype {
            FloatType::F32 => StoredValues::F32(f32s(self.bytes)),
            FloatType::F16 => StoredValues::F16(f16s(self.bytes)),
            FloatType::Bf16 => StoredValues::Bf16(bf16s(self.bytes)),
        };
        StoredMatrix { rows: self.rows, cols: self.cols, values }
    }
}

pub(crate) fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

pub(crate) fn f16s(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect()
}

pub(crate) fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes.as_chunks::<2>().0.iter().map(|&bytes| bf16::from_le_bytes(bytes)).collect()
}

impl FloatType {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name checkpoints use: `float32`, `float16`, `bfloat16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }
}

impl StoredMatrix {
    /// A matrix whose stored parts have the lengths `rows` x `cols` asks for.
    pub fn new(rows: usize, cols: usize, values: StoredValues) -> Result<Self> {
        let elements = rows.checked_mul(cols).ok_or(Error::TooLarge { rows, cols })?;
        let storage = values.storage();
        let same = |what, got, wanted| {
            if got == wanted { Ok(()) } else { Err(Error::Length { storage, what, got, wanted, rows, cols }) }
        };
        match &values {
            StoredValues::F32(values) => same("values", values.len(), elements)?,
            StoredValues::F16(values) => same("values", values.len(), elements)?,
            StoredValues::Bf16(values) => same("values", values.len(), elements)?,
            StoredValues::Nf4(values) => {
                let blocks = elements.div_ceil(nf4::BLOCK);
                same("bytes of codes", values.codes.len(), elements.div_ceil(2))?;
                same("block scales", values.absmax.len(), blocks)?;
                if let Nf4Scales::Nested { absmax, map, .. } = &values.absmax {
                    same("scales of scales", absmax.len(), blocks.div_ceil(nf4::SCALE_BLOCK))?;
                    same("values in the scale map", map.len(), 256)?;
                }
            }
            StoredValues::Ggml(values) => {
                let row = values.kind.row_bytes(cols).ok_or(Error::Columns { storage, cols })?;
                same("bytes", values.bytes.len(), row.checked_mul(rows).ok_or(Error::TooLarge { rows, cols })?)?;
            }
        }
        Ok(Self { rows, cols, values })
    }

    /// `rows` x `cols`.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// Bytes the stored form occupies.
    pub fn bytes(&self) -> usize {
        match &self.values {
            StoredValues::F32(values) => values.len() * 4,
            StoredValues::F16(values) => values.len() * 2,
            StoredValues::Bf16(values) => values.len() * 2,
            StoredValues::Nf4(values) => {
                let scales = match &values.absmax {
                    Nf4Scales::Plain(absmax) => absmax.len() * 4,
                    Nf4Scales::Nested { codes, absmax, map, .. } => codes.len() + (absmax.len() + map.len() + 1) * 4,
                };
                values.codes.len() + scales
            }
            StoredValues::Ggml(values) => values.bytes.len(),
        }
    }

    /// The name of the stored form: `f32`, `f16`, `bf16`, `nf4`, `Q8_0`, `Q4_0`, `Q4_1`.
    pub fn storage(&self) -> &'static str {
        self.values.storage()
    }

    /// Rows `rows` as f32, row-major; `out` holds `rows.len()` x `cols` values.
    ///
    /// NF4 values are rounded to the dtype they had before quantisation, then widened: what bitsandbytes multiplies
    /// with.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(out.len(), rows.len() * self.cols, "one output per element");
        let elements = rows.start * self.cols..rows.end * self.cols;
        match &self.values {
            StoredValues::F32(values) => out.copy_from_slice(&values[elements]),
            StoredValues::F16(values) => values[elements].convert_to_f32_slice(out),
            StoredValues::Bf16(values) => widen_bf16(&values[elements], out),
            StoredValues::Nf4(values) => nf4::dequantize(values, elements, out),
            StoredValues::Ggml(values) => {
                let row = self.cols / ggml::BLOCK * values.kind.block_bytes();
                ggml::dequantize(values.kind, &values.bytes[rows.start * row..rows.end * row], out);
            }
        }
    }

    /// The whole matrix as f32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.elements()];
        self.dequantize_rows(0..self.rows, &mut out);
        out
    }

    /// The matrix in NF4 with doubly quantised scales; one that is stored in blocks already stays as it is.
    pub fn quantize_nf4(&self) -> Self {
        let dtype = match &self.values {
            StoredValues::F32(_) => FloatType::F32,
            StoredValues::F16(_) => FloatType::F16,
            StoredValues::Bf16(_) => FloatType::Bf16,
            StoredValues::Nf4(_) | StoredValues::Ggml(_) => return self.clone(),
        };
        let (codes, absmax) = match &self.values {
            StoredValues::F32(values) => nf4::quantize(values),
            _ => nf4::quantize(&self.dequantize()),
        };
        let absmax = nf4::quantize_scales(&absmax);
        Self { rows: self.rows, cols: self.cols, values: StoredValues::Nf4(Nf4Values { codes, absmax, dtype }) }
    }
}

impl StoredValues {
    fn storage(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::F16(_) => "f16",
            Self::Bf16(_) => "bf16",
            Self::Nf4(_) => "nf4",
            Self::Ggml(values) => values.kind.name(),
        }
    }
}

/// Writes `values` as f32, exactly.
pub(crate) fn widen_bf16(values: &[bf16], out: &mut [f32]) {
    vectorized(pulp::Arch::new(), || {
        for (out, value) in out.iter_mut().zip(values) {
            *out = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    });
}

struct Loops<F>(F);

impl<R, F: FnMut() -> R> pulp::WithSimd for Loops<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Runs `loops`, an `inline(always)` closure, compiled for this CPU's vectors.
///
/// Not `arch.dispatch(closure)`: that calls it as `FnOnce`, through a shim the compiler leaves out of line, so the loops
/// are compiled for the oldest CPU (measured: ten times slower).
#[inline(always)]
pub(crate) fn vectorized<R>(arch: pulp::Arch, loops: impl FnMut() -> R) -> R {
    arch.dispatch(Loops(loops))
}
