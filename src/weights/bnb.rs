//! bitsandbytes' 4-bit tensors: one matrix is stored as up to six tensors named after it.

use std::collections::HashMap;

use serde_json::Value;

use super::checkpoint::{Checkpoint, Entry};
use super::safetensors::Dtype;
use super::{Error, Result};
use crate::quant::nf4::{BLOCK, SCALE_BLOCK, TABLE};
use crate::quant::{FloatType, Nf4Scales, Nf4Values, StoredValues, f32s};

const STATE: &str = ".quant_state.bitsandbytes__nf4";
const STATE_FP4: &str = ".quant_state.bitsandbytes__fp4";
const PARTS: [&str; 6] = [STATE, ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE_FP4];

/// What `quant_state` says about a matrix.
#[derive(Debug)]
pub(super) struct QuantState {
    pub shape: Vec<usize>,
    blocksize: usize,
    dtype: FloatType,
    nested: Option<Nested>,
}

#[derive(Debug)]
struct Nested {
    offset: f32,
}

/// The matrix that `name` is a part of.
pub(super) fn tensor_of_part(name: &str) -> Option<&str> {
    PARTS.iter().find_map(|part| name.strip_suffix(part))
}

/// The quantisation of the matrix `name`, or nothing when it is stored as plain numbers.
pub(super) fn quant_state(
    checkpoint: &Checkpoint,
    tensors: &HashMap<String, Entry>,
    name: &str,
) -> Result<Option<QuantState>> {
    if tensors.contains_key(&format!("{name}{STATE_FP4}")) {
        return Err(checkpoint.storage(name, "bitsandbytes' fp4", "F32, F16, BF16 and bitsandbytes' nf4"));
    }
    let part = format!("{name}{STATE}");
    let Some(entry) = tensors.get(&part) else { return Ok(None) };
    let damaged = |problem: String| checkpoint.damaged(&part, problem);
    let bytes = checkpoint.bytes(entry);
    let json: Value = serde_json::from_slice(bytes).map_err(|error| damaged(format!("not JSON: {error}")))?;
    let whole = |key: &str| json.get(key).and_then(Value::as_u64).and_then(|value| usize::try_from(value).ok());
    let shape = json.get("shape").and_then(Value::as_array).and_then(|sizes| {
        sizes.iter().map(|size| size.as_u64().and_then(|size| usize::try_from(size).ok())).collect::<Option<Vec<_>>>()
    });
    let shape = shape.ok_or_else(|| damaged("it lacks `shape`".into()))?;
    let blocksize = whole("blocksize").ok_or_else(|| damaged("it lacks `blocksize`".into()))?;
    if blocksize == 0 || !blocksize.is_multiple_of(BLOCK) || blocksize > 4096 {
        return Err(damaged(format!("`blocksize` is {blocksize}; read are 64 and its multiples up to 4096")));
    }
    let dtype = match json.get("dtype").and_then(Value::as_str) {
        Some("float32") => FloatType::F32,
        Some("float16") => FloatType::F16,
        Some("bfloat16") => FloatType::Bf16,
        _ => return Err(damaged("`dtype` is none of float32, float16, bfloat16".into())),
    };
    let nested = match json.get("nested_offset") {
        None | Some(Value::Null) => None,
        Some(offset) => {
            if whole("nested_blocksize") != Some(SCALE_BLOCK) {
                return Err(damaged(format!("`nested_blocksize` is not {SCALE_BLOCK}")));
            }
            let offset = offset.as_f64().map(|offset| offset as f32).filter(|offset| offset.is_finite());
            Some(Nested { offset: offset.ok_or_else(|| damaged("`nested_offset` is no number".into()))? })
        }
    };
    Ok(Some(QuantState { shape, blocksize, dtype, nested }))
}

/// The codes and scales of the matrix `name`.
pub(super) fn values(
    checkpoint: &Checkpoint,
    tensors: &HashMap<String, Entry>,
    name: &str,
    state: &QuantState,
) -> Result<StoredValues> {
    let part = |suffix: &str| {
        let name = format!("{name}{suffix}");
        let entry = tensors.get(&name).ok_or_else(|| checkpoint.missing(&name))?;
        Ok::<_, Error>((name, entry))
    };
    let floats = |suffix: &str| {
        let (name, entry) = part(suffix)?;
        if entry.dtype != Dtype::F32 {
            return Err(checkpoint.damaged(&name, format!("stored as {}, not F32", entry.dtype.name())));
        }
        let values = f32s(checkpoint.bytes(entry));
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(checkpoint.damaged(&name, "it holds a value that is not finite")),
        }
    };
    if tensors.contains_key(&format!("{name}.quant_map")) && floats(".quant_map")? != TABLE {
        return Err(checkpoint.damaged(&format!("{name}.quant_map"), "it is not the nf4 table"));
    }
    // The codes may be stored under any dtype (`bnb_4bit_quant_storage`): their bytes are what counts.
    let codes = checkpoint.bytes(part("")?.1).to_vec();
    let absmax = match &state.nested {
        None => Nf4Scales::Plain(floats(".absmax")?),
        Some(Nested { offset }) => {
            let (codes_name, entry) = part(".absmax")?;
            if entry.dtype != Dtype::U8 {
                return Err(checkpoint.damaged(&codes_name, format!("stored as {}, not U8", entry.dtype.name())));
            }
            let codes = checkpoint.bytes(entry).to_vec();
            let (absmax, map) = (floats(".nested_absmax")?, floats(".nested_quant_map")?);
            if map.len() != 256 {
                let problem = format!("it has {} values, not 256", map.len());
                return Err(checkpoint.damaged(&format!("{name}.nested_quant_map"), problem));
            }
            if absmax.len() != codes.len().div_ceil(SCALE_BLOCK) {
                let problem = format!("it has {} values for {} scales", absmax.len(), codes.len());
                return Err(checkpoint.damaged(&format!("{name}.nested_absmax"), problem));
            }
            Nf4Scales::Nested { codes, absmax, map, offset: *offset }
        }
    };
    let absmax = match state.blocksize / BLOCK {
        1 => absmax,
        // Larger blocks become several blocks of 64 with the same scale.
        times => {
            let elements = state.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
            let blocks = elements.unwrap_or(0).div_ceil(BLOCK);
            if absmax.len() != blocks.div_ceil(times) {
                let problem = format!("it has {} scales for blocks of {}", absmax.len(), state.blocksize);
                return Err(checkpoint.damaged(&format!("{name}.absmax"), problem));
            }
            Nf4Scales::Plain((0..blocks).map(|block| absmax.get(block / times)).collect())
        }
    };
    Ok(StoredValues::Nf4(Nf4Values { codes, absmax, dtype: state.dtype }))
}
