//! `linear` for a few rows of x: the weight is read once, as it is stored.
#![expect(unsafe_code, reason = "starts kernels")]

use super::cuda::Adapters;
use crate::kernels::LoraGroup;
use crate::kernels::Result;
use crate::kernels::cuda::{Act, Arg, Device, Dtype, Full, Grid, Part, Pointer, Storage, Weight};
use crate::kernels::lora;

/// Rows of x these kernels have room for; `ROWS_MOST` in rows.cu.
pub(crate) const MOST_ROWS: usize = 8;
/// Parts of a weight, and adapters, a launch has room for; `ROWS_PARTS`.
const MOST_PARTS: usize = 3;
/// Rows of W of a tile; `ROWS_TILE`.
const TILE: usize = 16;
const THREADS: u32 = 256;
/// Blocks of a kernel that a multiprocessor holds at once.
const BLOCKS: usize = 2;
const BLOCKS_OF_ONE_ROW: usize = 3;
/// Bytes of a normalised row a block has room for.
const MOST_NORMED: usize = 10 << 10;
/// `KIND_NF4`.
const KIND_NF4: usize = 3;

/// Computes `linear` and says true, or says false where x has too many rows.
pub(crate) fn forward(
    device: &Device,
    x: &Act,
    w: &Weight,
    adapters: Adapters<'_>,
    residual: Option<&Act>,
    y: &mut Act,
) -> Result<bool> {
    if !fits(x, adapters) {
        return Ok(false);
    }
    let residual = residual.map_or(Pointer::NULL, Act::pointer);
    let run = Run { device, x, w, adapters, half: 0, residual, y: y.pointer(), begin: None };
    if let Some((name, blocks)) = tensor_cores(device, x, w) {
        run.start(name, w.rows.div_ceil(TILE).min(blocks * device.multiprocessors()), &w.parts)?;
        return Ok(true);
    }
    for part in &w.parts {
        let blocks = part.rows.div_ceil(THREADS as usize / 32).min(8 * device.multiprocessors());
        run.start("linear_rows_plain", blocks, std::slice::from_ref(part))?;
    }
    Ok(true)
}

/// Computes `silu(gate)·up` of `gate|up = linear` into `h` and says true, or says false where no kernel does.
pub(crate) fn swiglu(device: &Device, x: &Act, w: &Weight, adapters: Adapters<'_>, h: &mut Act) -> Result<bool> {
    let Some((name, blocks)) = tensor_cores(device, x, w).filter(|_| fits(x, adapters)) else { return Ok(false) };
    let run = Run { device, x, w, adapters, half: h.cols, residual: Pointer::NULL, y: h.pointer(), begin: None };
    run.start(name, h.cols.div_ceil(TILE / 2).min(blocks * device.multiprocessors()), &w.parts)?;
    Ok(true)
}

/// What a launch does before the product: `norm` normalises x, and the adapters' first products are made under the counters
/// `arrived`.
#[derive(Clone, Copy)]
pub(crate) struct Begin<'a> {
    pub norm: Option<(&'a Full, f64)>,
    pub arrived: Pointer,
}

/// Computes a whole linear layer of one row and says true, or says false where no kernel does. `half`: columns of h where W
/// is gate|up, else 0. `s` of the adapters has its size; its values are made here.
pub(crate) fn whole(
    device: &Device,
    x: &Act,
    w: &Weight,
    adapters: Adapters<'_>,
    begin: Begin<'_>,
    (residual, half): (Option<&Act>, usize),
    y: &mut Act,
) -> Result<bool> {
    let has_room = begin.norm.is_none() || x.cols * x.dtype.bytes() <= MOST_NORMED;
    // packs of 16 bytes of A
    let is_aligned = |group: &LoraGroup| group.parts.iter().all(|part| part.a.is_multiple_of(8));
    let group = adapters.map(|(group, ..)| group);
    let fits = fits(x, adapters) && lora::rows::fits(x, group) && group.is_none_or(is_aligned) && has_room;
    match tensor_cores(device, x, w).filter(|_| fits && x.rows == 1) {
        Some((name @ "linear_row_nf4", blocks)) => {
            let residual = residual.map_or(Pointer::NULL, Act::pointer);
            let run = Run { device, x, w, adapters, half, residual, y: y.pointer(), begin: Some(begin) };
            let tiles = if half > 0 { half.div_ceil(TILE / 2) } else { w.rows.div_ceil(TILE) };
            // all blocks run at once: some wait for others
            run.start(name, tiles.min(blocks * device.multiprocessors()), &w.parts)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn fits(x: &Act, adapters: Adapters<'_>) -> bool {
    (1..=MOST_ROWS).contains(&x.rows) && adapters.is_none_or(|(group, ..)| group.parts.len() <= MOST_PARTS)
}

/// The kernel for all of `w` where dtypes, depth and chip allow, and its blocks per multiprocessor.
fn tensor_cores(device: &Device, x: &Act, w: &Weight) -> Option<(&'static str, usize)> {
    // rows and blocks of 64 are counted in 32 bits
    let is_small = w.rows.saturating_mul(w.cols) < 1 << 37 && w.rows.max(w.cols) < 1 << 30;
    let dtype = x.dtype;
    if dtype == Dtype::F32 || device.capability() < (8, 0) || w.parts.len() > MOST_PARTS || !is_small {
        return None;
    }
    // a value that is rounded to the other 16-bit dtype on the way is rounded twice: linear_rows_plain does
    let is_nf4 = |part: &Part| match &part.storage {
        Storage::Nf4(nf4) => nf4.rounding() == Dtype::F32 || nf4.rounding() == dtype,
        Storage::Dense { .. } => false,
    };
    match w.parts.as_slice() {
        [Part { storage: Storage::Dense { dtype: stored, .. }, .. }]
            if *stored == dtype && w.cols.is_multiple_of(8) =>
        {
            Some(("linear_rows_dense", BLOCKS))
        }
        parts if parts.iter().all(is_nf4) && is_uniform(parts) && w.cols.is_multiple_of(64) => Some(match x.rows {
            1 => ("linear_row_nf4", BLOCKS_OF_ONE_ROW),
            _ => ("linear_rows_nf4", BLOCKS),
        }),
        _ => None,
    }
}

/// Whether all scales are nested, or none.
fn is_uniform(parts: &[Part]) -> bool {
    let is_nested = |part: &Part| match &part.storage {
        Storage::Nf4(nf4) => nf4.is_nested(),
        Storage::Dense { .. } => false,
    };
    parts.windows(2).all(|pair| is_nested(&pair[0]) == is_nested(&pair[1]))
}

struct Run<'a> {
    device: &'a Device,
    x: &'a Act,
    w: &'a Weight,
    adapters: Adapters<'a>,
    /// Columns of h where W is gate|up, else 0.
    half: usize,
    residual: Pointer,
    y: Pointer,
    begin: Option<Begin<'a>>,
}

impl Run<'_> {
    fn start(&self, name: &'static str, blocks: usize, parts: &[Part]) -> Result<()> {
        let dtype = self.x.dtype;
        let (mut s, mut s_cols, mut ups) = (Pointer::NULL, 0, Vec::new());
        if let Some((group, params, rows)) = self.adapters {
            let params = params.narrow(self.device, dtype)?;
            (s, s_cols) = (rows.pointer(), rows.cols);
            for part in &group.parts {
                ups.extend([Arg::from(params.plus(part.b * dtype.bytes())), part.out_start.into()]);
                ups.extend([part.out_len, part.rank, part.s_start].map(Arg::from));
                ups.push((part.scale as f32).into());
            }
        }
        let up_count = self.adapters.map_or(0, |(group, ..)| group.parts.len());
        let mut fields: Vec<Arg> = vec![self.x.arg()];
        fields.extend([self.x.rows, self.w.cols, self.w.rows, self.half].map(Arg::from));
        fields.extend([Arg::from(s), s_cols.into(), self.residual.into(), self.y.into()]);
        fields.extend([parts.len(), up_count].map(Arg::from));
        for index in 0..MOST_PARTS {
            fields.extend(parts.get(index).map_or([Arg::from(0_usize); 9], describe));
        }
        ups.resize(6 * MOST_PARTS, Arg::from(0_usize));
        fields.extend(ups);
        fields.extend(self.begin()?);
        let normed = self.begin.is_some_and(|begin| begin.norm.is_some());
        let shared = if normed { self.x.cols * dtype.bytes() } else { 0 };
        // SAFETY: x (T, K), W (N, K), residual and y (T, N) or, for gate|up, y (T, N / 2): `prepare` in mod.rs; every
        // part holds rows * K values: `Weight::new`; the adapters' B lie in the parameters and their columns in s and y:
        // `check_group`; their number and the parts' is at most MOST_PARTS: the callers.
        unsafe { self.device.launch_struct(name, dtype, Grid::new(blocks, THREADS).with_shared(shared), &fields) }
    }
}

impl Run<'_> {
    /// The last fields of `RowsArgs`.
    fn begin(&self) -> Result<Vec<Arg>> {
        let mut fields = vec![Arg::from(0_usize); BEGIN_FIELDS];
        let Some(begin) = self.begin else { return Ok(fields) };
        if let Some((weight, eps)) = begin.norm {
            (fields[0], fields[1]) = (weight.arg(), (eps as f32).into());
        }
        if let Some((group, params, _)) = self.adapters {
            let (dtype, runs) = (self.x.dtype, lora::cuda::stacked(group));
            let params = params.narrow(self.device, dtype)?;
            let rank: usize = runs.iter().map(|run| run.rank).sum();
            (fields[2], fields[3], fields[4]) = (begin.arrived.into(), rank.into(), runs.len().into());
            for (run, fields) in runs.iter().zip(fields[5..].chunks_exact_mut(3)) {
                fields.copy_from_slice(&[
                    params.plus(run.a * dtype.bytes()).into(),
                    run.s_start.into(),
                    run.rank.into(),
                ]);
            }
        }
        Ok(fields)
    }
}

/// Fields of `RowsArgs` from `norm` on.
const BEGIN_FIELDS: usize = 5 + 3 * MOST_PARTS;

/// A `RowsPart`.
fn describe(part: &Part) -> [Arg; 9] {
    let zero = Arg::from(0_usize);
    let (first, rows) = (part.first.into(), part.rows.into());
    match &part.storage {
        Storage::Dense { dtype, values } => {
            [values.pointer().into(), zero, zero, zero, zero, zero, first, rows, dtype.kind().into()]
        }
        Storage::Nf4(nf4) => {
            let [codes, scale_codes, absmax, map, offset, rounding] = nf4.args();
            [codes, scale_codes, absmax, map, offset, rounding, first, rows, KIND_NF4.into()]
        }
    }
}
