//! A base of random values, made tensor by tensor.

use half::bf16;

use crate::quant::{FloatType, Nf4Scales, Nf4Values, StoredMatrix, StoredValues, dynamic, nf4};
use crate::weights::ModelConfig;

use super::frozen::Source;
use super::{Error, Result};

/// The middle of the linears' block scales, which makes their values about 0.02 large, as trained ones are.
const SCALE: f32 = 0.05;

/// Linears in NF4 with double quantisation or in bf16, embedding and head in bf16, norms of ones.
#[derive(Debug)]
pub(super) struct RandomBase {
    config: ModelConfig,
    seed: u64,
    in_4bit: bool,
}

impl RandomBase {
    pub fn new(config: ModelConfig, seed: u64, in_4bit: bool) -> Self {
        Self { config, seed, in_4bit }
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.config.shape(name).ok_or_else(|| Error::UnknownTensor { name: name.to_owned() })
    }
}

impl Source for RandomBase {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn matrix(&self, name: &str) -> Result<StoredMatrix> {
        let shape = self.shape(name)?;
        let &[rows, cols] = shape.as_slice() else {
            return Err(Error::UnknownTensor { name: name.to_owned() });
        };
        let mut bytes = Bytes(name.bytes().fold(self.seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())));
        let elements = rows * cols;
        let is_linear = name.ends_with("_proj.weight");
        let values = if is_linear && self.in_4bit {
            let blocks = elements.div_ceil(nf4::BLOCK);
            let absmax = Nf4Scales::Nested {
                codes: bytes.take(blocks),
                absmax: vec![SCALE / 4.0; blocks.div_ceil(nf4::SCALE_BLOCK)],
                map: dynamic::signed_map().to_vec(),
                offset: SCALE,
            };
            let codes = bytes.take(elements.div_ceil(2));
            StoredValues::Nf4(Nf4Values { codes, absmax, dtype: FloatType::Bf16 })
        } else {
            // 1/64 to 1/32 with any sign
            let value = |two: &[u8]| bf16::from_bits(u16::from_le_bytes([two[0], two[1]]) & 0x807f | 0x3c80);
            StoredValues::Bf16(bytes.take(2 * elements).chunks_exact(2).map(value).collect())
        };
        Ok(StoredMatrix { rows, cols, values })
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        Ok(vec![1.0; self.shape(name)?.iter().product()])
    }
}

/// splitmix64, eight bytes at a time.
struct Bytes(u64);

impl Bytes {
    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
        while bytes.len() < len {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend((z ^ (z >> 31)).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
