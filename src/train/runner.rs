//! The engine behind one interface, whatever device it computes on.

use std::any::Any;

use crate::engine::{AdapterTensor, Batch, Engine, KvCache, LoraConfig, Matrix, Mode, Plan};
use crate::kernels::Backend;
use crate::weights::ModelConfig;

use super::optimizer::{Algorithm, Moments};
use super::{Error, Result};

/// A text's keys and values, of the device that made them.
pub(super) type Cache = Box<dyn Any + Send>;

/// What `train` asks of an engine; one implementation, generic over the device.
pub(super) trait Runner: Send {
    fn config(&self) -> &ModelConfig;
    fn device(&self) -> &'static str;
    fn weight_bytes(&self) -> usize;

    fn plan_lora(&self, config: &LoraConfig) -> Result<Vec<AdapterTensor>>;
    fn add_lora(&mut self, config: &LoraConfig) -> Result<()>;
    fn remove_lora(&mut self) -> Result<bool>;
    fn lora(&self) -> Option<&LoraConfig>;
    fn trainable_parameters(&self) -> usize;
    fn adapter_tensors(&self) -> Result<Vec<AdapterTensor>>;
    fn gradients(&self) -> Result<Vec<AdapterTensor>>;
    fn set_adapter_tensor(&mut self, layer: usize, module: &str, matrix: Matrix, values: &[f32]) -> Result<()>;

    fn plan_for(&mut self, tokens: usize) -> Result<Plan>;
    /// Tokens a step's micro-batches may be merged to; `None` where memory is the process's own.
    fn room(&mut self) -> Result<Option<usize>>;
    /// Bytes on the device at the worst moment, as predicted and as they were since, where it counts them and there is a
    /// plan.
    fn memory(&self) -> Result<Option<(usize, usize)>>;

    fn forward(&mut self, batch: &Batch<'_>, mode: Mode, normalizer: f64) -> Result<f64>;
    fn backward(&mut self, upstream: f64) -> Result<()>;
    fn discard(&mut self);
    fn is_pending(&self) -> bool;
    fn log_probs(&mut self, batch: &Batch<'_>) -> Result<Vec<f64>>;
    fn logits(&mut self, batch: &Batch<'_>) -> Result<Vec<f32>>;
    fn cache(&self) -> Cache;
    fn decode(&mut self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>>;

    fn needs_loss_scale(&self) -> bool;
    fn set_loss_scale(&mut self, scale: f64) -> Result<()>;
    fn zero_grad(&mut self) -> Result<()>;
    fn gradient_norm(&self) -> Result<f64>;
    fn scale_gradients(&mut self, factor: f64) -> Result<()>;
    fn moments(&self, algorithm: &Algorithm) -> Result<Box<dyn Any + Send>>;
    fn update(&mut self, moments: &mut (dyn Any + Send), lr: f64) -> Result<()>;
}

impl<B: Backend> Runner for Engine<B> {
    fn config(&self) -> &ModelConfig {
        Engine::config(self)
    }

    fn device(&self) -> &'static str {
        self.backend().name()
    }

    fn weight_bytes(&self) -> usize {
        Engine::weight_bytes(self)
    }

    fn plan_lora(&self, config: &LoraConfig) -> Result<Vec<AdapterTensor>> {
        Ok(Engine::plan_lora(self, config)?)
    }

    fn add_lora(&mut self, config: &LoraConfig) -> Result<()> {
        Ok(Engine::add_lora(self, config)?)
    }

    fn remove_lora(&mut self) -> Result<bool> {
        Ok(Engine::remove_lora(self)?)
    }

    fn lora(&self) -> Option<&LoraConfig> {
        Engine::lora(self)
    }

    fn trainable_parameters(&self) -> usize {
        Engine::trainable_parameters(self)
    }

    fn adapter_tensors(&self) -> Result<Vec<AdapterTensor>> {
        Ok(Engine::adapter_tensors(self)?)
    }

    fn gradients(&self) -> Result<Vec<AdapterTensor>> {
        Ok(Engine::gradients(self)?)
    }

    fn set_adapter_tensor(&mut self, layer: usize, module: &str, matrix: Matrix, values: &[f32]) -> Result<()> {
        Ok(Engine::set_adapter_tensor(self, layer, module, matrix, values)?)
    }

    fn plan_for(&mut self, tokens: usize) -> Result<Plan> {
        Ok(Engine::plan_for(self, tokens)?.clone())
    }

    fn room(&mut self) -> Result<Option<usize>> {
        Ok(Engine::room(self)?)
    }

    fn memory(&self) -> Result<Option<(usize, usize)>> {
        let Some(predicted) = self.predicted_bytes() else { return Ok(None) };
        Ok(Engine::peak_bytes(self)?.map(|peak| (predicted, peak)))
    }

    fn forward(&mut self, batch: &Batch<'_>, mode: Mode, normalizer: f64) -> Result<f64> {
        Ok(Engine::forward(self, batch, mode, normalizer)?)
    }

    fn backward(&mut self, upstream: f64) -> Result<()> {
        Ok(Engine::backward(self, upstream)?)
    }

    fn discard(&mut self) {
        Engine::discard(self);
    }

    fn is_pending(&self) -> bool {
        Engine::is_pending(self)
    }

    fn log_probs(&mut self, batch: &Batch<'_>) -> Result<Vec<f64>> {
        Ok(Engine::log_probs(self, batch)?)
    }

    fn logits(&mut self, batch: &Batch<'_>) -> Result<Vec<f32>> {
        Ok(Engine::logits(self, batch)?)
    }

    fn cache(&self) -> Cache {
        Box::new(Engine::cache(self))
    }

    fn decode(&mut self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        match cache.downcast_mut::<KvCache<B>>() {
            Some(cache) => Ok(Engine::decode(self, ids, cache)?),
            None => unreachable!("a cache is used only with the model that made it"),
        }
    }

    fn needs_loss_scale(&self) -> bool {
        Engine::needs_loss_scale(self)
    }

    fn set_loss_scale(&mut self, scale: f64) -> Result<()> {
        Ok(Engine::set_loss_scale(self, scale)?)
    }

    fn zero_grad(&mut self) -> Result<()> {
        Ok(Engine::zero_grad(self)?)
    }

    fn gradient_norm(&self) -> Result<f64> {
        let sum = self.backend().sum_squares(self.flat()?.gradients).map_err(crate::engine::Error::from)?;
        Ok(sum.sqrt() / self.loss_scale())
    }

    fn scale_gradients(&mut self, factor: f64) -> Result<()> {
        let flat = self.flat_mut()?;
        Ok(flat.backend.scale_full(flat.gradients, factor).map_err(crate::engine::Error::from)?)
    }

    fn moments(&self, algorithm: &Algorithm) -> Result<Box<dyn Any + Send>> {
        Ok(Box::new(Moments::<B>::new(self.backend(), self.flat()?, algorithm)?))
    }

    fn update(&mut self, moments: &mut (dyn Any + Send), lr: f64) -> Result<()> {
        match moments.downcast_mut::<Moments<B>>() {
            Some(moments) => {
                let unscale = 1.0 / self.loss_scale();
                moments.step(self.flat_mut()?, lr, unscale)
            }
            None => Err(Error::OtherAdapter),
        }
    }
}
