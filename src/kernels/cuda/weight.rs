//! A frozen matrix on the device: NF4 as it is stored, or values of one dtype.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::device::{Arg, Buffer, Device, Pointer};
use super::dtype::Dtype;
use crate::kernels::{Error, Result, linear, same};
use crate::quant::{FloatType, Nf4Scales, Nf4Values, StoredMatrix, StoredValues};

/// The row-wise concatenation of stored matrices.
#[derive(Debug)]
pub struct Weight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) parts: Vec<Part>,
}

/// Rows `first .. first + rows` of a weight.
#[derive(Debug)]
pub(crate) struct Part {
    pub first: usize,
    pub rows: usize,
    pub storage: Storage,
}

#[derive(Debug)]
pub(crate) enum Storage {
    Dense { dtype: Dtype, values: Buffer },
    Nf4(Box<Nf4>),
}

/// bitsandbytes' NF4: codes, and scales that are plain f32 or quantised themselves.
#[derive(Debug)]
pub(crate) struct Nf4 {
    codes: Buffer,
    /// Empty when the scales are plain.
    scale_codes: Buffer,
    absmax: Buffer,
    map: Buffer,
    offset: f32,
    /// Where the offset is until `read_offsets` has brought it here.
    mean: Option<Buffer>,
    /// What dequantised values are rounded to first.
    rounding: Dtype,
}

/// Codes, scale codes, scales and offset.
#[cfg(test)]
pub(super) type Stored = (Vec<u8>, Vec<u8>, Vec<f32>, f32);

impl Nf4 {
    fn new(device: &Device, values: &Nf4Values) -> Result<Self> {
        let upload = |bytes: &[u8]| device.upload("weight", bytes);
        let (scale_codes, absmax, map, offset) = match &values.absmax {
            Nf4Scales::Plain(absmax) => (Buffer::default(), device.upload("weight", absmax)?, Buffer::default(), 0.0),
            Nf4Scales::Nested { codes, absmax, map, offset } => {
                (upload(codes)?, device.upload("weight", absmax)?, device.upload("weight", map)?, *offset)
            }
        };
        let rounding = match values.dtype {
            FloatType::F32 => Dtype::F32,
            FloatType::F16 => Dtype::F16,
            FloatType::Bf16 => Dtype::Bf16,
        };
        Ok(Self { codes: upload(&values.codes)?, scale_codes, absmax, map, offset, mean: None, rounding })
    }

    /// What was quantised on the device, its offset still there.
    pub(super) fn made(
        codes: Buffer,
        scale_codes: Buffer,
        absmax: Buffer,
        map: Buffer,
        mean: Buffer,
        rounding: Dtype,
    ) -> Self {
        Self { codes, scale_codes, absmax, map, offset: 0.0, mean: Some(mean), rounding }
    }

    /// What is on the device.
    #[cfg(test)]
    pub(super) fn read(&self, device: &Device) -> Result<Stored> {
        let (mut codes, mut scale_codes) = (vec![0; self.codes.len()], vec![0; self.scale_codes.len()]);
        let mut absmax = vec![0.0_f32; self.absmax.len() / size_of::<f32>()];
        device.read("weight", &self.codes, 0, &mut codes)?;
        device.read("weight", &self.scale_codes, 0, &mut scale_codes)?;
        device.read("weight", &self.absmax, 0, &mut absmax)?;
        Ok((codes, scale_codes, absmax, self.offset))
    }

    /// What dequantised values are rounded to before they take the compute dtype.
    pub(crate) fn rounding(&self) -> Dtype {
        self.rounding
    }

    /// Whether the scales are quantised themselves.
    pub(crate) fn is_nested(&self) -> bool {
        self.scale_codes.len() > 0
    }

    /// The first arguments of the kernels that read NF4.
    pub(crate) fn args(&self) -> [Arg; 6] {
        let pointer = |buffer: &Buffer| Arg::from(buffer.pointer());
        let [codes, scale_codes, absmax, map] = [&self.codes, &self.scale_codes, &self.absmax, &self.map].map(pointer);
        [codes, scale_codes, absmax, map, self.offset.into(), self.rounding.kind().into()]
    }
}

impl Weight {
    /// What is neither NF4 nor f32 nor 16-bit is dequantised here. Under a 16-bit compute dtype every dense part is
    /// rounded to it once, now instead of at each product; under f32 16-bit values stay as they are.
    ///
    /// `is_pinned`: dense parts stay in the computer's memory.
    pub(super) fn new(device: &Device, dtype: Dtype, stored: Vec<StoredMatrix>, is_pinned: bool) -> Result<Self> {
        let cols = stored.first().map_or(0, |part| part.cols);
        let mut weight = Self { rows: 0, cols, parts: Vec::new() };
        let mut dense = Dense { first: 0, rows: 0, dtype, bytes: Vec::new(), is_pinned };
        for part in stored {
            same("weight", "the columns of a part", part.cols, cols)?;
            // everything after reads as many values as these: their number must be right
            let elements = part.rows.checked_mul(cols).ok_or(Error::Memory { op: "weight", bytes: usize::MAX })?;
            let rows = part.rows;
            match &part.values {
                StoredValues::Nf4(values) => {
                    check_nf4(values, elements)?;
                    dense.close(device, &mut weight.parts)?;
                    let storage = Storage::Nf4(Box::new(Nf4::new(device, values)?));
                    weight.parts.push(Part { first: weight.rows, rows, storage });
                }
                values => {
                    let (kept, bytes) = encode(values, &part, dtype);
                    same("weight", "the bytes of a part", bytes.len(), elements * kept.bytes())?;
                    if dense.dtype != kept {
                        dense.close(device, &mut weight.parts)?;
                    }
                    if dense.rows == 0 {
                        (dense.first, dense.dtype) = (weight.rows, kept);
                    }
                    dense.rows += rows;
                    if dense.bytes.is_empty() { dense.bytes = bytes } else { dense.bytes.extend(bytes) }
                }
            }
            weight.rows += rows;
        }
        dense.close(device, &mut weight.parts)?;
        Ok(weight)
    }

    pub(super) fn bytes(&self) -> usize {
        let bytes = |part: &Part| match &part.storage {
            Storage::Dense { values, .. } => values.device_len(),
            Storage::Nf4(nf4) => nf4.codes.len() + nf4.scale_codes.len() + nf4.absmax.len() + nf4.map.len(),
        };
        self.parts.iter().map(bytes).sum()
    }

    /// Waits for what was quantised on the device and brings its offsets here.
    pub(super) fn read_offsets(&mut self, device: &Device) -> Result<()> {
        for part in &mut self.parts {
            if let Storage::Nf4(nf4) = &mut part.storage
                && let Some(mean) = nf4.mean.take()
            {
                let mut offset = [0.0_f32];
                device.read("load", &mean, 0, &mut offset)?;
                [nf4.offset] = offset;
            }
        }
        Ok(())
    }

    /// Bytes of scratch that a product under `dtype` needs: of the whole matrix, or of its largest part.
    pub(super) fn scratch_bytes(&self, dtype: Dtype, is_split: bool) -> usize {
        let part = self.parts.iter().map(|part| part.rows).max().unwrap_or(0);
        match self.parts.as_slice() {
            [Part { storage: Storage::Dense { dtype: stored, .. }, .. }] if *stored == dtype => 0,
            _ => (if is_split { part } else { self.rows }) * self.cols * dtype.bytes(),
        }
    }

    /// Lends the matrix in `dtype` to `work`: itself if it is stored so, else dequantised into the scratch, whole or,
    /// where that would be too large, part by part. `work` gets the address and the first and the number of its rows.
    ///
    /// The device works in order, so the scratch may be filled anew as soon as `work` has asked for its product.
    pub(crate) fn with(
        &self,
        device: &Device,
        scratch: &Scratch,
        dtype: Dtype,
        mut work: impl FnMut(Pointer, usize, usize) -> Result<()>,
    ) -> Result<()> {
        if let [Part { storage: Storage::Dense { dtype: stored, values }, .. }] = self.parts.as_slice()
            && *stored == dtype
        {
            return work(values.pointer(), 0, self.rows);
        }
        let is_split = scratch.is_split && self.scratch_bytes(dtype, false) > scratch.widest.load(Ordering::Relaxed);
        let mut buffer = scratch.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.scratch_bytes(dtype, is_split);
        if buffer.len() < bytes {
            *buffer = Buffer::default();
            *buffer = device.alloc("weight", bytes)?;
        }
        for part in &self.parts {
            let place = if is_split { 0 } else { part.first * self.cols * dtype.bytes() };
            let out = buffer.pointer().plus(place);
            linear::cuda::dequantize(device, part, part.rows * self.cols, (out, dtype))?;
            if is_split {
                work(buffer.pointer(), part.first, part.rows)?;
            }
        }
        if is_split { Ok(()) } else { work(buffer.pointer(), 0, self.rows) }
    }
}

/// Where weights are dequantised before a product.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(super) buffer: Mutex<Buffer>,
    /// Bytes that the weights there are need.
    pub(super) widest: AtomicUsize,
    /// Matrices larger than the largest part of any are dequantised part by part.
    pub(super) is_split: bool,
}

/// Consecutive dense parts of one dtype, on their way to one buffer.
struct Dense {
    first: usize,
    rows: usize,
    dtype: Dtype,
    bytes: Vec<u8>,
    is_pinned: bool,
}

impl Dense {
    fn close(&mut self, device: &Device, parts: &mut Vec<Part>) -> Result<()> {
        if self.rows > 0 {
            let bytes = std::mem::take(&mut self.bytes);
            let values = if self.is_pinned { device.pin(&bytes)? } else { device.upload("weight", &bytes)? };
            let storage = Storage::Dense { dtype: self.dtype, values };
            parts.push(Part { first: self.first, rows: std::mem::take(&mut self.rows), storage });
        }
        Ok(())
    }
}

fn check_nf4(values: &Nf4Values, elements: usize) -> Result<()> {
    let blocks = elements.div_ceil(crate::quant::nf4::BLOCK);
    same("weight", "bytes of codes", values.codes.len(), elements.div_ceil(2))?;
    same("weight", "block scales", values.absmax.len(), blocks)?;
    if let Nf4Scales::Nested { absmax, map, .. } = &values.absmax {
        same("weight", "scales of scales", absmax.len(), blocks.div_ceil(crate::quant::nf4::SCALE_BLOCK))?;
        same("weight", "values in the scale map", map.len(), 256)?;
    }
    Ok(())
}

/// The values as the device keeps them, and in which dtype.
fn encode(values: &StoredValues, part: &StoredMatrix, dtype: Dtype) -> (Dtype, Vec<u8>) {
    match (values, dtype) {
        (StoredValues::Bf16(values), Dtype::F32 | Dtype::Bf16) => {
            (Dtype::Bf16, values.iter().flat_map(|value| value.to_ne_bytes()).collect())
        }
        (StoredValues::F16(values), Dtype::F32 | Dtype::F16) => {
            (Dtype::F16, values.iter().flat_map(|value| value.to_ne_bytes()).collect())
        }
        (StoredValues::F32(values), _) => (dtype, dtype.encode(values)),
        _ => (dtype, dtype.encode(&part.dequantize())),
    }
}
