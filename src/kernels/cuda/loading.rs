//! From a file's bytes to weights on the GPU: copied by several threads, quantised or cast there.
//!
//! Pages of a file come into pinned memory at 5 to 10 GB/s a thread, from there to the GPU at several times that; so a few
//! threads share the copying, each with two pieces of pinned memory: it fills one while the other is on its way.
#![expect(unsafe_code, reason = "calls the CUDA driver and starts kernels")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaStream, sys};

use super::Cuda;
use super::device::{Arg, Buffer, Device, Grid, Pointer, driver};
use super::dtype::Dtype;
use super::host::{Event, Pinned};
use super::weight::{Nf4, Part, Storage, Weight};
use crate::kernels::{Error, Result, linear, same};
use crate::quant::nf4::{BLOCK, SCALE_BLOCK};
use crate::quant::{FloatBytes, FloatType, dynamic};

/// Bytes copied at a time.
const CHUNK: usize = 8 << 20;
/// Threads that copy, and no more than there are processors.
const MOST_READERS: usize = 8;
/// Where a matrix begins in the buffer of all: packs of 16 bytes are read from there.
const ALIGNMENT: usize = 256;
/// Running sums of the mean of the scales; `QUANT_SUMS` in quantize.cu.
const SUMS: u32 = 1024;

/// One thread's way to the GPU.
#[derive(Debug)]
pub(super) struct Lane {
    stream: Arc<CudaStream>,
    slots: [(Pinned, Event); 2],
}

/// Some bytes, and where they go.
#[derive(Clone, Copy, Debug)]
struct Chunk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Lane {
    fn new(device: &Device) -> Result<Self> {
        let slot = || Ok::<_, Error>((Pinned::new(device.context(), CHUNK)?, Event::new(device.context())?));
        Ok(Self { stream: device.context().new_stream().map_err(driver("load"))?, slots: [slot()?, slot()?] })
    }

    /// Copies chunks until none is left and waits for the last.
    fn copy(&mut self, device: &Device, chunks: &[Chunk<'_>], next: &AtomicUsize, to: Pointer) -> Result<()> {
        device.bind()?;
        let mut copied = 0;
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (memory, done) = &mut self.slots[copied % 2];
            done.wait()?;
            memory.put(chunk.bytes)?;
            let (to, from, stream) = (to.plus(chunk.at).0, memory.pointer().0, self.stream.cu_stream());
            // SAFETY: `to` was sized for all chunks by `upload_all`; the pinned memory holds the chunk and is not touched
            // before the event.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, from as *const _, chunk.bytes.len(), stream) }
                .result()
                .map_err(driver("load"))?;
            done.record(stream)?;
            copied += 1;
        }
        self.stream.synchronize().map_err(driver("load"))
    }
}

/// The lanes that are there; made at the first load, given back by `settle_memory`.
pub(super) type Lanes = Mutex<Vec<Lane>>;

impl Cuda {
    /// `Backend::weights_from`.
    pub(super) fn load(&self, matrices: &[Vec<FloatBytes<'_>>], in_nf4: bool) -> Result<Vec<Weight>> {
        let mut starts = Vec::new();
        let mut end = 0_usize;
        for part in matrices.iter().flatten() {
            let elements = part.rows.checked_mul(part.cols).ok_or(Error::Memory { op: "load", bytes: usize::MAX })?;
            let bytes = elements.saturating_mul(rounding(part.dtype).bytes());
            same("load", "the bytes of a matrix", part.bytes.len(), bytes)?;
            starts.push(end);
            end = (end + part.bytes.len()).next_multiple_of(ALIGNMENT);
        }
        let raw = self.device.alloc("load", end)?;
        self.upload_all(matrices.iter().flatten().zip(starts.iter().copied()), &raw)?;
        let mut starts = starts.into_iter();
        let mut weights = Vec::new();
        for parts in matrices {
            let parts: Vec<_> =
                parts.iter().zip(&mut starts).map(|(part, at)| (part, raw.pointer().plus(at))).collect();
            weights.push(if in_nf4 { self.quantize(&parts)? } else { self.keep(&parts)? });
        }
        // the means of the scales, which are arguments of the kernels that read them
        for weight in &mut weights {
            weight.read_offsets(&self.device)?;
            self.note_scratch(weight);
        }
        Ok(weights)
    }

    fn upload_all<'a>(&self, parts: impl Iterator<Item = (&'a FloatBytes<'a>, usize)>, to: &Buffer) -> Result<()> {
        let mut chunks = Vec::new();
        for (part, at) in parts {
            chunks.extend(part.bytes.chunks(CHUNK).enumerate().map(|(i, bytes)| Chunk { bytes, at: at + i * CHUNK }));
        }
        // `to` is there for the other streams too
        self.device.wait()?;
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let readers = cores.min(MOST_READERS).min(chunks.len());
        while lanes.len() < readers {
            lanes.push(Lane::new(&self.device)?);
        }
        let (next, device, to) = (AtomicUsize::new(0), &*self.device, to.pointer());
        std::thread::scope(|scope| {
            let copy = |lane| scope.spawn(|| Lane::copy(lane, device, &chunks, &next, to));
            let readers: Vec<_> = lanes.iter_mut().take(readers).map(copy).collect();
            readers.into_iter().try_for_each(|reader| match reader.join() {
                Ok(copied) => copied,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    fn quantize(&self, parts: &[(&FloatBytes<'_>, Pointer)]) -> Result<Weight> {
        let mut weight = Weight { rows: 0, cols: parts.first().map_or(0, |(part, _)| part.cols), parts: Vec::new() };
        for (part, raw) in parts {
            same("load", "the columns of a part", part.cols, weight.cols)?;
            let storage = Storage::Nf4(Box::new(self.quantize_part(part, *raw)?));
            weight.parts.push(Part { first: weight.rows, rows: part.rows, storage });
            weight.rows += part.rows;
        }
        Ok(weight)
    }

    fn quantize_part(&self, part: &FloatBytes<'_>, raw: Pointer) -> Result<Nf4> {
        let (device, dtype) = (&*self.device, rounding(part.dtype));
        let elements = part.rows * part.cols;
        let blocks = elements.div_ceil(BLOCK);
        let floats = |count: usize| device.alloc("load", count * Dtype::F32.bytes());
        let (codes, scales, mean) = (device.alloc("load", elements.div_ceil(2))?, floats(blocks)?, floats(1)?);
        let (scale_codes, absmax) = (device.alloc("load", blocks)?, floats(blocks.div_ceil(SCALE_BLOCK))?);
        let map = device.upload("load", dynamic::signed_map())?;
        let at = |buffer: &Buffer| Arg::from(buffer.pointer());
        let first = [raw.into(), dtype.kind().into(), elements.into(), at(&codes), at(&scales)];
        let second = [at(&scales), blocks.into(), at(&mean)];
        let third = [at(&scales), blocks.into(), at(&mean), at(&map), at(&scale_codes), at(&absmax)];
        let grid = Grid::new(blocks.div_ceil(SCALE_BLOCK), SCALE_BLOCK as u32);
        // SAFETY: `raw` holds `elements` values of `dtype`: `load`; the rest was sized just above.
        unsafe {
            device.launch("linear_quantize", Dtype::F32, device.over(blocks * 8), &first)?;
            device.launch("linear_scale_mean", Dtype::F32, Grid::new(1, SUMS), &second)?;
            device.launch("linear_quantize_scales", Dtype::F32, grid, &third)?;
        }
        Ok(Nf4::made(codes, scale_codes, absmax, map, mean, dtype))
    }

    /// As `Weight::new` keeps dense parts: one buffer where they are all of one dtype.
    fn keep(&self, parts: &[(&FloatBytes<'_>, Pointer)]) -> Result<Weight> {
        let kept = |part: &FloatBytes<'_>| match (part.dtype, self.dtype) {
            (FloatType::Bf16, Dtype::F32) => Dtype::Bf16,
            (FloatType::F16, Dtype::F32) => Dtype::F16,
            (_, dtype) => dtype,
        };
        let mut weight = Weight { rows: 0, cols: parts.first().map_or(0, |(part, _)| part.cols), parts: Vec::new() };
        for run in parts.chunk_by(|(a, _), (b, _)| kept(a) == kept(b)) {
            let rows: usize = run.iter().map(|(part, _)| part.rows).sum();
            let dtype = run.first().map_or(self.dtype, |(part, _)| kept(part));
            let values = self.device.alloc("load", rows * weight.cols * dtype.bytes())?;
            let mut out = values.pointer();
            for (part, raw) in run {
                same("load", "the columns of a part", part.cols, weight.cols)?;
                let elements = part.rows * part.cols;
                linear::cuda::cast(&self.device, (*raw, rounding(part.dtype)), elements, (out, dtype))?;
                out = out.plus(elements * dtype.bytes());
            }
            weight.parts.push(Part { first: weight.rows, rows, storage: Storage::Dense { dtype, values } });
            weight.rows += rows;
        }
        Ok(weight)
    }
}

fn rounding(dtype: FloatType) -> Dtype {
    match dtype {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::Bf16,
    }
}
