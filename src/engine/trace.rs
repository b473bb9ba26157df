//! The inside of a pass, for comparing with another implementation.

use crate::kernels::Backend;

use super::plan::Plan;
use super::{Batch, Engine, Error, Result};

/// A named intermediate of one pass: (T, columns), row-major.
#[derive(Clone, Debug)]
pub struct Traced {
    /// `layers.0.input`, `.norm1`, `.qkv` (after the rotation), `.attention`, `.o`, `.middle`, `.norm2`, `.gate_up`,
    /// `.h`, `.down`, and `final_norm` of all rows.
    pub name: String,
    pub columns: usize,
    pub values: Vec<f32>,
}

impl<B: Backend> Engine<B> {
    /// Runs `batch` forward and returns what every layer kept and what its backward rebuilds from that.
    ///
    /// `o` and `down` are the differences of the residual stream around them. An error while a pass waits for its
    /// backward.
    pub fn trace(&mut self, batch: &Batch<'_>) -> Result<Vec<Traced>> {
        batch.check(self.net.config.vocab_size)?;
        if self.is_pending() {
            return Err(Error::PassPending);
        }
        let sizes = self.sizes();
        self.plan = Some(Plan::everything(&sizes, batch.ids.len()));
        let plan = Plan::everything(&sizes, batch.ids.len());
        let ready = self.kept.prepare(&*self.net.backend, &sizes, &plan, false);
        let done = ready.and_then(|()| self.forward_saving(batch));
        self.plan = None;
        done?;
        let (b, eps) = (&*self.net.backend, self.net.config.rms_norm_eps);
        let (mut made, mut rstd, mut all) = (b.act(), b.full(0)?, Vec::new());
        let saved = self.kept.layers();
        for (index, (layer, w)) in saved.iter().zip(&self.net.frozen.layers).enumerate() {
            let next = saved.get(index + 1).map_or(&self.work.next, |next| &next.x);
            let mut keep = |name: &str, act: &B::Act| -> Result<()> {
                all.push(read(b, format!("layers.{index}.{name}"), act)?);
                Ok(())
            };
            keep("input", &layer.x)?;
            b.rms_norm(&layer.x, &w.input_norm, eps, &mut made, &mut rstd)?;
            keep("norm1", &made)?;
            keep("qkv", &layer.qkv)?;
            keep("attention", &layer.o)?;
            keep("middle", &layer.x_mid)?;
            b.rms_norm(&layer.x_mid, &w.post_attention_norm, eps, &mut made, &mut rstd)?;
            keep("norm2", &made)?;
            keep("gate_up", &layer.gate_up)?;
            b.swiglu(&layer.gate_up, &mut made)?;
            keep("h", &made)?;
            all.push(added(b, format!("layers.{index}.o"), &layer.x, &layer.x_mid)?);
            all.push(added(b, format!("layers.{index}.down"), &layer.x_mid, next)?);
        }
        b.rms_norm(&self.work.next, &self.net.frozen.norm, eps, &mut made, &mut rstd)?;
        all.push(read(b, "final_norm".to_owned(), &made)?);
        Ok(all)
    }
}

fn read<B: Backend>(backend: &B, name: String, act: &B::Act) -> Result<Traced> {
    Ok(Traced { name, columns: backend.shape(act).1, values: backend.read_act(act)? })
}

/// What was added to `before` to give `after`.
fn added<B: Backend>(backend: &B, name: String, before: &B::Act, after: &B::Act) -> Result<Traced> {
    let mut traced = read(backend, name, after)?;
    for (value, before) in traced.values.iter_mut().zip(backend.read_act(before)?) {
        *value -= before;
    }
    Ok(traced)
}
