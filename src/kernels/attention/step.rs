//! `attention_step` on the GPU: rotation, caches and attention of a few new rows in one launch.
#![expect(unsafe_code, reason = "starts kernels")]

use std::sync::{Mutex, PoisonError};

use crate::kernels::cuda::{Act, Arg, Buffer, Device, Dtype, Grid, Pointer, Segments};
use crate::kernels::linear::MOST_ROWS;
use crate::kernels::{Attention, Result};

/// Cached rows of a block, and its threads; `STEP_KEYS` and 32 `STEP_WARPS` in step.cu.
const KEYS: usize = 64;
const THREADS: u32 = 128;
/// Key heads there are counters for, at the head of the scratch.
const MOST_KV_HEADS: usize = 1024;
const COUNTER_BYTES: usize = 4 * MOST_KV_HEADS;

fn kernel(head_dim: usize) -> Option<&'static str> {
    match head_dim {
        64 => Some("attention_step_64"),
        128 => Some("attention_step_128"),
        _ => None,
    }
}

/// Whether `step` has a kernel for this.
pub(crate) fn fits(rows: usize, attention: &Attention) -> bool {
    (1..=MOST_ROWS).contains(&rows) && attention.kv_heads <= MOST_KV_HEADS && kernel(attention.head_dim).is_some()
}

/// The new rows of `qkv`, not yet rotated, over the caches and themselves. Only for what `fits` allows.
///
/// `table` holds the rotations of as many positions as the caches have room for. How many blocks are started follows from
/// that room alone, and the position is read on the device.
#[allow(clippy::too_many_arguments)]
pub(crate) fn step(
    device: &Device,
    scratch: &Mutex<Buffer>,
    table: Pointer,
    qkv: &Act,
    (keys, values): (&mut Act, &mut Act),
    segments: &Segments,
    attention: &Attention,
    o: &mut Act,
) -> Result<()> {
    let Some(name) = kernel(attention.head_dim) else { unreachable!("the caller asked `fits`") };
    let splits = keys.capacity().min(values.capacity()).div_ceil(KEYS);
    let (pairs, width) = (splits * qkv.rows * attention.heads, attention.head_dim);
    let sums = pairs * (width + 2);
    let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = COUNTER_BYTES + sums * Dtype::F32.bytes();
    if scratch.len() < bytes {
        *scratch = Buffer::default();
        *scratch = device.alloc("attention_step", bytes)?;
        device.zero("attention_step", &mut scratch, COUNTER_BYTES)?;
    }
    let (counters, partial) = (scratch.pointer(), scratch.pointer().plus(COUNTER_BYTES));
    let stats = partial.plus(pairs * width * Dtype::F32.bytes());
    let window = attention.window.unwrap_or(0);
    let mut fields: Vec<Arg> = vec![qkv.arg(), segments.positions(), table.into(), keys.arg(), values.arg()];
    fields.extend([partial.into(), stats.into(), counters.into(), o.arg()]);
    fields.extend([qkv.rows, attention.heads, attention.kv_heads, window].map(Arg::from));
    let grid = Grid::new(splits * attention.kv_heads, THREADS);
    // SAFETY: qkv (T, (heads + 2 kv_heads) * head_dim), o (T, heads * head_dim), the caches with room for the new rows and
    // `splits` blocks of KEYS: `prepare_cached` in mod.rs and the lines above; the table covers that room: the caller;
    // the segments are one text of T rows: the caller; `partial` and the counters were sized above.
    unsafe { device.launch_struct(name, qkv.dtype, grid, &fields) }
}
