//! `attention` on the GPU: by cuDNN where it was chosen and takes the pass; else by the tensor cores (mma.cu) where dtype,
//! head_dim and chip allow; else by the plain kernels.
#![expect(unsafe_code, reason = "starts kernels")]

use super::cudnn::Fused;
use crate::kernels::cuda::{
    Act, Arg, Buffer, Device, Dtype, Full, Grid, QUERIES_FORWARD, ROWS_BACKWARD, Segments, Tiles,
};
use crate::kernels::{Attention, Error, Result};

/// Columns of a head the kernels have room for; `MOST_DIM` in kernel.cu.
const MOST_DIM: usize = 256;
const WARP: u32 = 32;
/// Threads that share one query when decoding.
const CACHED_THREADS: u32 = 256;

/// Checks what `attention::check_qkv` leaves open: the size of a head, and that numbers of heads fit 32 bits.
pub(crate) fn check(attention: &Attention) -> Result<()> {
    let op = "attention";
    if attention.head_dim > MOST_DIM {
        let what = "head_dim (the GPU's kernels go up to 256)";
        return Err(Error::Size { op, what, got: attention.head_dim, wanted: MOST_DIM });
    }
    match i32::try_from(attention.width()) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Index { op, index: attention.width(), len: i32::MAX as usize }),
    }
}

/// The kernels of mma.cu for one size of head.
struct TensorCores {
    forward: &'static str,
    backward_q: &'static str,
    backward_kv: &'static str,
}

/// Threads of a block of mma.cu, and the keys of a tile.
const TENSOR_THREADS: u32 = 128;
const KEYS: usize = 64;

fn tensor_cores(device: &Device, dtype: Dtype, attention: &Attention) -> Option<TensorCores> {
    let shared = shared_bytes(attention.head_dim, 2 * KEYS + 2 * ROWS_BACKWARD);
    if dtype == Dtype::F32 || device.capability() < (8, 0) || device.most_shared() < shared {
        return None;
    }
    match attention.head_dim {
        64 => Some(TensorCores {
            forward: "attention_mma_forward_64",
            backward_q: "attention_mma_backward_q_64",
            backward_kv: "attention_mma_backward_kv_64",
        }),
        128 => Some(TensorCores {
            forward: "attention_mma_forward_128",
            backward_q: "attention_mma_backward_q_128",
            backward_kv: "attention_mma_backward_kv_128",
        }),
        _ => None,
    }
}

/// Which of the own kernels compute this.
pub(crate) fn name(device: &Device, dtype: Dtype, attention: &Attention) -> &'static str {
    match tensor_cores(device, dtype, attention) {
        Some(_) => "own kernels (tensor cores)",
        None => "own kernels (plain)",
    }
}

/// Bytes of `rows` rows of a head in 16 bits.
fn shared_bytes(head_dim: usize, rows: usize) -> usize {
    rows * head_dim * 2
}

/// A block of mma.cu per tile and head.
fn tensor_grid(tiles: Tiles, heads: usize, head_dim: usize, rows: usize) -> Grid {
    Grid::new(tiles.count * heads, TENSOR_THREADS).with_shared(shared_bytes(head_dim, rows))
}

/// heads, kv_heads and window as the kernels of mma.cu take them; a window beyond 31 bits is none.
fn tensor_geometry(attention: &Attention) -> [Arg; 3] {
    let window = attention.window.filter(|&window| i32::try_from(window).is_ok()).unwrap_or(0);
    [attention.heads, attention.kv_heads, window].map(Arg::from)
}

/// heads, kv_heads, head_dim and window as the kernels take them.
fn geometry(attention: &Attention) -> [Arg; 4] {
    let window = attention.window.unwrap_or(0);
    [attention.heads, attention.kv_heads, attention.head_dim, window].map(Arg::from)
}

pub(crate) fn forward(
    device: &Device,
    fused: Option<&Fused>,
    qkv: &Act,
    segments: &Segments,
    attention: &Attention,
    o: &mut Act,
    lse: &mut Full,
) -> Result<()> {
    if let Some(fused) = fused.filter(|fused| fused.takes(qkv, segments, attention)) {
        return fused.forward(device, qkv, segments, attention, o, lse);
    }
    if let Some(kernels) = tensor_cores(device, qkv.dtype, attention) {
        let tiles = segments.forward_tiles();
        let first = [qkv.arg(), tiles.list, qkv.rows.into()];
        let args = [first.as_slice(), &tensor_geometry(attention), &[o.arg(), lse.arg()]].concat();
        let grid = tensor_grid(tiles, attention.heads, attention.head_dim, QUERIES_FORWARD + 2 * KEYS);
        // SAFETY: qkv has a row per token and (heads + 2 kv_heads) * head_dim columns, o (T, heads * head_dim), lse
        // heads * T values: `prepare` in mod.rs; the tiles cover the texts and end with them: `Segments::new`.
        return unsafe { device.launch(kernels.forward, qkv.dtype, grid, &args) };
    }
    let args =
        [&[qkv.arg(), segments.starts(), qkv.rows.into()], geometry(attention).as_slice(), &[o.arg(), lse.arg()]]
            .concat();
    // SAFETY: qkv has a row per token and (heads + 2 kv_heads) * head_dim columns, o (T, heads * head_dim), lse heads * T
    // values: `prepare` in mod.rs; head_dim is at most MOST_DIM: `check`.
    unsafe { device.launch("attention_forward", qkv.dtype, Grid::new(qkv.rows * attention.heads, WARP), &args) }
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    device: &Device,
    fused: Option<&Fused>,
    do_: &Act,
    qkv: &Act,
    o: &Act,
    lse: &Full,
    segments: &Segments,
    attention: &Attention,
    dqkv: &mut Act,
) -> Result<()> {
    if let Some(fused) = fused.filter(|fused| fused.takes(qkv, segments, attention)) {
        return fused.backward(device, do_, qkv, o, lse, segments, attention, dqkv);
    }
    let pairs = qkv.rows * attention.heads;
    let delta = device.alloc("attention_backward", pairs * Dtype::F32.bytes())?;
    delta_rows(device, do_, o, attention, &delta)?;
    let delta: Arg = delta.pointer().into();
    if let Some(kernels) = tensor_cores(device, qkv.dtype, attention) {
        let dim = attention.head_dim;
        let args = |tiles: Tiles| {
            let first = [do_.arg(), qkv.arg(), lse.arg(), delta, tiles.list, qkv.rows.into()];
            [first.as_slice(), &tensor_geometry(attention), &[dqkv.arg()]].concat()
        };
        let (queries, keys) = (segments.query_tiles(), segments.key_tiles());
        let rows = 2 * KEYS + 2 * ROWS_BACKWARD;
        // SAFETY: do and o (T, heads * head_dim), lse heads * T values, dqkv the shape of qkv: `prepare_backward` in
        // mod.rs; the tiles cover the texts and end with them: `Segments::new`; the first kernel writes the q columns,
        // the second those of k and v.
        return unsafe {
            let grid = tensor_grid(queries, attention.heads, dim, rows);
            device.launch(kernels.backward_q, qkv.dtype, grid, &args(queries))?;
            let grid = tensor_grid(keys, attention.kv_heads, dim, rows);
            device.launch(kernels.backward_kv, qkv.dtype, grid, &args(keys))
        };
    }
    let args = |borders: Arg| {
        let first = [do_.arg(), qkv.arg(), lse.arg(), delta, borders, qkv.rows.into()];
        [first.as_slice(), &geometry(attention), &[dqkv.arg()]].concat()
    };
    // SAFETY: do and o (T, heads * head_dim), lse heads * T values, dqkv the shape of qkv: `prepare_backward` in mod.rs;
    // head_dim is at most MOST_DIM: `check`; the two kernels write the q columns and the k and v columns.
    unsafe {
        device.launch("attention_backward_q", qkv.dtype, Grid::new(pairs, WARP), &args(segments.starts()))?;
        let grid = Grid::new(qkv.rows * attention.kv_heads, WARP);
        device.launch("attention_backward_kv", qkv.dtype, grid, &args(segments.ends()))
    }
}

/// `D = Σ_d do·o` for every row and head, head-major.
fn delta_rows(device: &Device, do_: &Act, o: &Act, attention: &Attention, delta: &Buffer) -> Result<()> {
    let pairs = o.rows * attention.heads;
    let (heads, dim) = (attention.heads.into(), attention.head_dim.into());
    let args = [do_.arg(), o.arg(), o.rows.into(), heads, dim, delta.pointer().into()];
    // SAFETY: do and o are (T, heads * head_dim): `prepare_backward` in mod.rs; `delta` has heads * T values: the caller.
    unsafe { device.launch("attention_delta", o.dtype, Grid::new(pairs.div_ceil(8), 8 * WARP), &args) }
}

/// Writes the new rows behind the `cached` ones; `keys` and `values` have their new sizes.
pub(crate) fn append(
    device: &Device,
    qkv: &Act,
    (keys, values): (&mut Act, &mut Act),
    cached: usize,
    attention: &Attention,
) -> Result<()> {
    device.needs_host();
    let (q_width, kv_width) = (attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim);
    let sizes = [qkv.rows, cached, q_width, kv_width].map(Arg::from);
    let args = [&[qkv.arg()], sizes.as_slice(), &[keys.arg(), values.arg()]].concat();
    // SAFETY: the caches are (cached + qkv.rows, kv_heads * head_dim): `prepare_cached` in mod.rs.
    unsafe { device.launch("attention_append", qkv.dtype, device.over(qkv.rows * kv_width), &args) }
}

/// The new rows over the caches, to which they have been appended.
pub(crate) fn cached(
    device: &Device,
    qkv: &Act,
    (keys, values): (&Act, &Act),
    cached: usize,
    attention: &Attention,
    o: &mut Act,
) -> Result<()> {
    device.needs_host();
    let first = [qkv.arg(), keys.arg(), values.arg(), cached.into()];
    let args = [first.as_slice(), &geometry(attention), &[o.arg()]].concat();
    let threads = if qkv.rows == 1 { CACHED_THREADS } else { WARP };
    // SAFETY: as above, and o is (qkv.rows, heads * head_dim); head_dim is at most MOST_DIM: `check`.
    unsafe { device.launch("attention_cached", qkv.dtype, Grid::new(qkv.rows * attention.heads, threads), &args) }
}
