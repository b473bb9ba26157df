//! Stored forms of frozen matrices and 8-bit states: arithmetic only, no files.

use half::{bf16, f16};

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
