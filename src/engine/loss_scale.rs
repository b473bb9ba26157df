//! A loss multiplied by a factor before its backward: for gradients that would be too small for 16 bits.
//!
//! The factor goes into the weight of every row's gradient of the logits, where gradients are smallest; from there on the
//! backward is linear, so the gradient buffer holds gradients times the factor, and whoever reads it divides.

use crate::kernels::Backend;

use super::{AdapterTensor, Engine, Error, Result};

impl<B: Backend> Engine<B> {
    /// Whether the device's dtype needs a scaled loss to train in.
    pub fn needs_loss_scale(&self) -> bool {
        self.net.backend.needs_loss_scale()
    }

    /// What losses are multiplied by before their backward, and the gradient buffer has in it; 1 changes nothing.
    pub fn loss_scale(&self) -> f64 {
        self.net.loss_scale
    }

    /// Takes another factor, a power of two times the old one; gradients that are there are brought to it.
    pub fn set_loss_scale(&mut self, scale: f64) -> Result<()> {
        if self.is_pending() {
            return Err(Error::PassPending);
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(Error::Setting { field: "loss_scale", value: scale, wanted: "a positive number" });
        }
        let factor = scale / self.net.loss_scale;
        if factor != 1.0
            && let Some(lora) = self.net.lora.as_mut()
        {
            self.net.backend.scale_full(&mut lora.gradients, factor)?;
        }
        self.net.loss_scale = scale;
        Ok(())
    }

    /// Gradients as they would be without the factor.
    pub(super) fn unscaled(&self, mut gradients: Vec<AdapterTensor>) -> Vec<AdapterTensor> {
        let factor = 1.0 / self.net.loss_scale;
        if factor != 1.0 {
            let values = gradients.iter_mut().flat_map(|tensor| &mut tensor.values);
            values.for_each(|value| *value = (f64::from(*value) * factor) as f32);
        }
        gradients
    }
}
