//! An optimizer's state as plain vectors, to save and to resume from.

use super::{Error, Result};

/// The values of one state vector.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    Floats(Vec<f32>),
    Bytes(Vec<u8>),
}

/// Everything a resumed optimizer needs to continue exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// `adamw` or `adamw_8bit`.
    pub optimizer: String,
    /// Updates done.
    pub steps: u64,
    pub vectors: Vec<(String, Values)>,
}

impl State {
    pub(super) fn check_optimizer(&self, wanted: &'static str) -> Result<()> {
        if self.optimizer == wanted {
            return Ok(());
        }
        Err(Error::OtherOptimizer { got: self.optimizer.clone(), wanted })
    }

    fn vector(&self, name: &'static str) -> Result<&Values> {
        let found = self.vectors.iter().find(|(known, _)| known == name);
        found.map(|(_, values)| values).ok_or(Error::NoVector { name })
    }

    /// The floats called `name`, if there are `wanted` of them.
    pub(super) fn floats(&self, name: &'static str, wanted: usize) -> Result<&[f32]> {
        match self.vector(name)? {
            Values::Floats(values) if values.len() == wanted => Ok(values),
            Values::Floats(values) => Err(Error::VectorSize { name, got: values.len(), wanted }),
            Values::Bytes(_) => Err(Error::VectorKind { name, got: "bytes", wanted: "floats" }),
        }
    }

    /// The bytes called `name`, if there are `wanted` of them.
    pub(super) fn bytes(&self, name: &'static str, wanted: usize) -> Result<&[u8]> {
        match self.vector(name)? {
            Values::Bytes(values) if values.len() == wanted => Ok(values),
            Values::Bytes(values) => Err(Error::VectorSize { name, got: values.len(), wanted }),
            Values::Floats(_) => Err(Error::VectorKind { name, got: "floats", wanted: "bytes" }),
        }
    }
}
