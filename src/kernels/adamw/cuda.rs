//! `adamw` on the GPU: one launch for all segments.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::cuda::{Arg, Buffer, Device, Dtype, Full, Grid};
use crate::kernels::{AdamWStep, Result, StateSegment};

/// Parameters of a block of threads.
const BLOCK: usize = 256;

/// The segments on the device: which block of threads belongs to which.
#[derive(Debug)]
pub(crate) struct Table {
    segments: Vec<StateSegment>,
    blocks: usize,
    /// Four columns of as many i64 as there are segments: first block, offset, length, whether 8-bit.
    columns: Buffer,
}

impl Table {
    /// The table of `segments`: the one at hand, or a new one.
    pub(crate) fn current<'a>(
        device: &Device,
        table: &'a mut Option<Self>,
        segments: &[StateSegment],
    ) -> Result<&'a Self> {
        if !table.as_ref().is_some_and(|table| table.segments == segments) {
            *table = Some(Self::new(device, segments)?);
        }
        match table {
            Some(table) => Ok(table),
            None => unreachable!("made above"),
        }
    }

    fn new(device: &Device, segments: &[StateSegment]) -> Result<Self> {
        // an empty segment would share its first block with the next
        let there = segments.iter().filter(|segment| segment.len > 0);
        let mut blocks = 0;
        let mut columns: [Vec<i64>; 4] = Default::default();
        for segment in there {
            let row = [blocks as i64, segment.offset as i64, segment.len as i64, i64::from(segment.eight_bit)];
            for (column, value) in columns.iter_mut().zip(row) {
                column.push(value);
            }
            blocks += segment.len.div_ceil(BLOCK);
        }
        let columns = device.upload("adamw", &columns.concat())?;
        Ok(Self { segments: segments.to_vec(), blocks, columns })
    }

    fn rows(&self) -> usize {
        self.columns.len() / (4 * size_of::<i64>())
    }

    pub(crate) fn grid(&self) -> Grid {
        Grid::new(self.blocks, BLOCK as u32)
    }

    /// Pointers to the first `columns` columns, then the number of segments.
    pub(crate) fn args(&self, columns: usize) -> Vec<Arg> {
        let column = |index| self.columns.pointer().plus(index * self.rows() * size_of::<i64>()).into();
        (0..columns).map(column).chain([self.rows().into()]).collect()
    }
}

pub(crate) fn update(
    device: &Device,
    params: &mut Full,
    gradients: &Full,
    (m, v): (&mut Full, &mut Full),
    table: &Table,
    step: &AdamWStep,
) -> Result<()> {
    let correction1 = 1.0 - step.beta1.powf(step.step as f64);
    let correction2 = (1.0 - step.beta2.powf(step.step as f64)).sqrt();
    let factors = [
        step.beta1,
        step.beta2,
        1.0 - step.beta1,
        1.0 - step.beta2,
        1.0 - step.lr * step.weight_decay,
        step.lr / correction1,
        1.0 / correction2,
        step.eps,
        step.gradient_scale,
    ];
    let buffers = [params.arg(), gradients.arg(), m.arg(), v.arg()];
    let factors = factors.map(|factor| Arg::from(factor as f32));
    let args = [buffers.as_slice(), &table.args(3), &factors].concat();
    // SAFETY: every segment ends inside the four buffers and no two overlap: `check` in mod.rs.
    unsafe { device.launch("adamw", Dtype::F32, table.grid(), &args) }
}
