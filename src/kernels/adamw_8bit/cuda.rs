//! `adamw_8bit` on the GPU: one launch for all segments, a block of threads per block of 256 parameters.
#![expect(unsafe_code, reason = "starts kernels")]

use super::super::adamw::cuda::Table;
use super::{keep_and_fresh, step_size_and_eps};
use crate::kernels::cuda::{Arg, Buffer, Bytes, Device, Dtype, Full};
use crate::kernels::{AdamWStep, Result};

/// The state of the optimizer, m before v, and the two dynamic maps one after the other.
pub(crate) struct State<'a> {
    pub codes: (&'a mut Bytes, &'a mut Bytes),
    pub absmax: (&'a mut Full, &'a mut Full),
    pub full: (&'a mut Full, &'a mut Full),
    pub maps: &'a Buffer,
}

pub(crate) fn update(
    device: &Device,
    params: &mut Full,
    gradients: &Full,
    state: State<'_>,
    table: &Table,
    step: &AdamWStep,
) -> Result<()> {
    let (step_size, eps) = step_size_and_eps(step);
    let [(beta1, fresh1), (beta2, fresh2)] = [step.beta1, step.beta2].map(keep_and_fresh);
    let keep = 1.0 - step.lr * step.weight_decay;
    let buffers = [
        params.arg(),
        gradients.arg(),
        state.codes.0.arg(),
        state.codes.1.arg(),
        state.absmax.0.arg(),
        state.absmax.1.arg(),
        state.full.0.arg(),
        state.full.1.arg(),
    ];
    let factors = [beta1, beta2, fresh1, fresh2, step_size as f32, eps as f32, keep as f32, step.gradient_scale as f32];
    let factors = factors.map(Arg::from);
    let args = [buffers.as_slice(), &table.args(4), &[state.maps.pointer().into()], &factors].concat();
    // SAFETY: every segment ends inside the buffers of its kind, 8-bit ones start at a block, no two overlap:
    // `check_lens` in mod.rs. `maps` holds 512 values: `Cuda::new`.
    unsafe { device.launch("adamw_8bit", Dtype::F32, table.grid(), &args) }
}
