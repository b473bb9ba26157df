//! `rope` on the GPU, with a table of sines and cosines that is made once for every position.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::cuda::{Act, Buffer, Device, Dtype, Full, Pointer, Segments};
use crate::kernels::{Attention, Result};

/// The rotations of the positions up to `positions`, for one set of frequencies.
#[derive(Debug)]
pub(crate) struct Table {
    frequencies: u64,
    positions: usize,
    values: Buffer,
}

impl Table {
    pub(crate) fn pointer(&self) -> Pointer {
        self.values.pointer()
    }
}

pub(crate) fn rotate(
    device: &Device,
    table: &mut Option<Table>,
    qkv: &mut Act,
    segments: &Segments,
    attention: &Attention,
    inverse_frequencies: &Full,
    sign: f64,
) -> Result<()> {
    let half = attention.head_dim / 2;
    let table = covering(device, table, inverse_frequencies, half, segments.texts().position_end())?;
    let heads = attention.heads + attention.kv_heads;
    let args = [
        qkv.arg(),
        segments.positions(),
        table.values.pointer().into(),
        qkv.rows.into(),
        heads.into(),
        half.into(),
        qkv.cols.into(),
        (sign as f32).into(),
    ];
    // a thread rotates one 16-byte pack of pairs where that fits
    let grid = device.over(qkv.rows * heads * half.div_ceil(16 / qkv.dtype.bytes()));
    // SAFETY: qkv has a row per position and (heads + 2 kv_heads) * head_dim columns, head_dim is even: `check` in
    // mod.rs; every position is below `position_end`, which the table covers.
    unsafe { device.launch("rope_forward", qkv.dtype, grid, &args) }
}

/// The table, made longer (by doubling) or anew where it does not serve.
pub(crate) fn covering<'a>(
    device: &Device,
    table: &'a mut Option<Table>,
    inverse_frequencies: &Full,
    half: usize,
    positions: usize,
) -> Result<&'a Table> {
    let frequencies = inverse_frequencies.version();
    let serves = |table: &Table| table.frequencies == frequencies && table.positions >= positions;
    if !table.as_ref().is_some_and(serves) {
        let positions = positions.next_power_of_two().max(64);
        let values = device.alloc("rope", positions * 2 * half * Dtype::F32.bytes())?;
        let args = [inverse_frequencies.arg(), half.into(), positions.into(), values.pointer().into()];
        // SAFETY: there are `half` frequencies: `check` in mod.rs; `values` was sized just above.
        unsafe { device.launch("rope_table", Dtype::F32, device.over(positions * half), &args)? };
        *table = Some(Table { frequencies, positions, values });
    }
    match table {
        Some(table) => Ok(table),
        None => unreachable!("made above"),
    }
}
