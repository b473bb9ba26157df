//! The inside of a pass, for comparing with another implementation.

use crate::kernels::Backend;

use super::{Batch, Engine, Error, Result};

/// A named intermediate of one pass: (T, columns), row-major.
#[derive(Clone, Debug)]
pub struct Traced {
    /// `layers.0.x`, `layers.0.qkv` (after the rotation), `.o`, `.x_mid`, `.gate_up`, and `x` after the last layer.
    pub name: String,
    pub columns: usize,
    pub values: Vec<f32>,
}

impl<B: Backend> Engine<B> {
    /// Runs `batch` forward and returns what every layer kept. An error while a pass waits for its backward.
    pub fn trace(&mut self, batch: &Batch<'_>) -> Result<Vec<Traced>> {
        batch.check(self.net.config.vocab_size)?;
        if self.is_pending() {
            return Err(Error::PassPending);
        }
        self.forward_saving(batch)?;
        let backend = &*self.net.backend;
        let read = |name: String, act: &B::Act| -> Result<Traced> {
            let columns = backend.shape(act).1;
            Ok(Traced { name, columns, values: backend.read_act(act)? })
        };
        let mut all = Vec::new();
        for (index, saved) in self.saved().iter().enumerate() {
            let named = [
                ("x", &saved.x),
                ("qkv", &saved.qkv),
                ("o", &saved.o),
                ("x_mid", &saved.x_mid),
                ("gate_up", &saved.gate_up),
            ];
            for (name, act) in named {
                all.push(read(format!("layers.{index}.{name}"), act)?);
            }
        }
        all.push(read("x".to_owned(), &self.work.next)?);
        Ok(all)
    }
}
