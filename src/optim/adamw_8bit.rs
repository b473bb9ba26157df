//! bitsandbytes' AdamW with moments in 8 bits, block by block.

use super::adamw::{check_len, check_segments, floats, update};
use super::state::{State, Values};
use super::{Error, Result, Settings, check_step};
use crate::kernels::{Backend, StateSegment};

const NAME: &str = "adamw_8bit";
/// Moments that share one scale.
const BLOCK: usize = 256;

/// AdamW whose moments are 8-bit codes with one scale per 256 values; small tensors keep full precision.
///
/// Source: Dettmers et al. 2022, arXiv:2110.02861; update and decay in the order of bitsandbytes' CUDA kernel.
#[derive(Debug)]
pub struct AdamW8bit<B: Backend> {
    settings: Settings,
    segments: Vec<StateSegment>,
    len: usize,
    steps: u64,
    codes: (B::Bytes, B::Bytes),
    absmax: (B::Full, B::Full),
    full: (B::Full, B::Full),
}

impl<B: Backend> AdamW8bit<B> {
    /// State for a flat buffer of `len` parameters, zeroed; `segments` say which tensors are kept in 8 bits.
    pub fn new(backend: &B, settings: Settings, segments: &[StateSegment], len: usize) -> Result<Self> {
        settings.check()?;
        check_segments(segments, len)?;
        if let Some(segment) = segments.iter().find(|segment| segment.eight_bit && segment.offset % BLOCK != 0) {
            let (offset, end) = (segment.offset, segment.offset + segment.len);
            return Err(Error::Segment { offset, end, why: "do not start at a multiple of 256" });
        }
        let blocks = len.div_ceil(BLOCK);
        let full = segments.iter().filter(|segment| !segment.eight_bit).map(|segment| segment.offset + segment.len);
        let full = full.max().unwrap_or(0);
        Ok(Self {
            settings,
            segments: segments.to_vec(),
            len,
            steps: 0,
            codes: (backend.bytes(len)?, backend.bytes(len)?),
            absmax: (backend.full(blocks)?, backend.full(blocks)?),
            full: (backend.full(full)?, backend.full(full)?),
        })
    }

    /// One update at rate `lr`; every gradient is multiplied by `gradient_scale` (see `clip_factor`).
    pub fn step(
        &mut self,
        backend: &B,
        params: &mut B::Full,
        gradients: &B::Full,
        lr: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        check_step(lr, gradient_scale)?;
        check_len(backend.full_len(params), self.len)?;
        check_len(backend.full_len(gradients), self.len)?;
        let step = update(&self.settings, self.steps + 1, lr, gradient_scale);
        backend.adamw_8bit(
            params,
            gradients,
            (&mut self.codes.0, &mut self.codes.1),
            (&mut self.absmax.0, &mut self.absmax.1),
            (&mut self.full.0, &mut self.full.1),
            &self.segments,
            &step,
        )?;
        self.steps += 1;
        Ok(())
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn state(&self, backend: &B) -> Result<State> {
        let vectors = vec![
            ("codes_m".to_owned(), Values::Bytes(backend.read_bytes(&self.codes.0)?)),
            ("codes_v".to_owned(), Values::Bytes(backend.read_bytes(&self.codes.1)?)),
            ("absmax_m".to_owned(), floats(backend, &self.absmax.0)?),
            ("absmax_v".to_owned(), floats(backend, &self.absmax.1)?),
            ("m".to_owned(), floats(backend, &self.full.0)?),
            ("v".to_owned(), floats(backend, &self.full.1)?),
        ];
        Ok(State { optimizer: NAME.to_owned(), steps: self.steps, vectors })
    }

    /// Continues from a saved state; nothing is changed if it does not fit.
    pub fn restore(&mut self, backend: &B, state: &State) -> Result<()> {
        state.check_optimizer(NAME)?;
        let (blocks, full) = (backend.full_len(&self.absmax.0), backend.full_len(&self.full.0));
        let codes = (state.bytes("codes_m", self.len)?, state.bytes("codes_v", self.len)?);
        let absmax = (state.floats("absmax_m", blocks)?, state.floats("absmax_v", blocks)?);
        let moments = (state.floats("m", full)?, state.floats("v", full)?);
        backend.write_bytes(&mut self.codes.0, codes.0)?;
        backend.write_bytes(&mut self.codes.1, codes.1)?;
        backend.write_full(&mut self.absmax.0, 0, absmax.0)?;
        backend.write_full(&mut self.absmax.1, 0, absmax.1)?;
        backend.write_full(&mut self.full.0, 0, moments.0)?;
        backend.write_full(&mut self.full.1, 0, moments.1)?;
        self.steps = state.steps;
        Ok(())
    }
}
