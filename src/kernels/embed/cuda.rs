//! `embed` on the GPU: the rows are dequantised straight from the stored table, a launch per part of it.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Act, Device, Index, Storage, Weight};

pub(crate) fn rows(device: &Device, table: &Weight, ids: &Index, x: &mut Act) -> Result<()> {
    for part in &table.parts {
        let place = [part.first, part.rows, x.cols].map(Into::into);
        let rest = [ids.arg(), ids.len().into(), x.arg()];
        let (name, first) = match &part.storage {
            Storage::Dense { dtype, values } => ("embed_rows", vec![values.pointer().into(), dtype.kind().into()]),
            Storage::Nf4(nf4) => ("embed_nf4", nf4.args().to_vec()),
        };
        let args = [first.as_slice(), &place, &rest].concat();
        // SAFETY: x has a row per id and the table's columns, every id is below the table's rows: `prepare` in mod.rs;
        // a part holds rows * cols values: `Weight::new`.
        unsafe { device.launch(name, x.dtype, device.over(x.len()), &args)? };
    }
    Ok(())
}
