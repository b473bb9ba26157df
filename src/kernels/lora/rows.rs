//! `lora_down` for a few rows of x, with the norm before it where it is wanted.
#![expect(unsafe_code, reason = "starts kernels")]

use super::cuda::stacked;
use crate::kernels::cuda::{Act, Arg, Device, Full, Grid, Pointer};
use crate::kernels::linear::MOST_ROWS;
use crate::kernels::{LoraGroup, Result};

/// `DOWN_RUNS` and `DOWN_THREADS` in kernel.cu.
const MOST_RUNS: usize = 3;
const THREADS: u32 = 512;

/// The norm of x: weight, eps, and where the normalised rows go.
pub(crate) struct Norm<'a> {
    pub weight: &'a Full,
    pub eps: f64,
    pub y: &'a mut Act,
}

/// Whether `down` has a kernel for this.
pub(crate) fn fits(x: &Act, group: Option<&LoraGroup>) -> bool {
    let covers = |group: &LoraGroup| {
        let rank: usize = group.parts.iter().map(|part| part.rank).sum();
        rank == group.rank && stacked(group).len() <= MOST_RUNS
    };
    (1..=MOST_ROWS).contains(&x.rows) && group.is_none_or(covers)
}

/// `s = x·Aᵀ`, x normalised first where `norm` is given. Only for what `fits` allows.
pub(crate) fn down(
    device: &Device,
    x: &Act,
    norm: Option<Norm<'_>>,
    adapters: Option<(&LoraGroup, &Full, &mut Act)>,
) -> Result<()> {
    let dtype = x.dtype;
    let mut fields: Vec<Arg> = vec![x.arg(), x.rows.into(), x.cols.into()];
    match norm {
        Some(norm) => fields.extend([norm.weight.arg(), (norm.eps as f32).into(), norm.y.arg()]),
        None => fields.extend([Arg::from(Pointer::NULL); 3]),
    }
    let (mut runs, mut count, mut rank) = (Vec::new(), 0, 0);
    match adapters {
        Some((group, params, s)) => {
            let params = params.narrow(device, dtype)?;
            fields.extend([s.arg(), s.cols.into()]);
            for run in stacked(group) {
                runs.extend([Arg::from(params.plus(run.a * dtype.bytes())), run.s_start.into(), run.rank.into()]);
                (count, rank) = (count + 1, rank + run.rank);
            }
        }
        None => fields.extend([Arg::from(Pointer::NULL); 2]),
    }
    fields.push(Arg::from(count));
    runs.resize(3 * MOST_RUNS, Arg::from(0_usize));
    fields.extend(runs);
    // SAFETY: the norm's weight has x.cols values, y the shape of x: `rms_norm::prepare`; the A of the runs lie in the
    // parameters, their columns in s, which has a row per row of x: `prepare_down` in mod.rs; there are at most
    // MOST_RUNS: `fits`.
    unsafe { device.launch_struct("lora_down_rows", dtype, Grid::new(rank.max(1), THREADS), &fields) }
}
