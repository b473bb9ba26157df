//! Everything a pass reads and none changes: device, base, adapter.

use std::sync::Arc;

use crate::kernels::{Attention, Backend};
use crate::weights::ModelConfig;

use super::frozen::{Frozen, Source};
use super::head::Head;
use super::layer::Layer;
use super::lora::Lora;
use super::{Cancel, LoadOptions, Result};

/// The model apart from the buffers of its passes.
#[derive(Debug)]
pub(super) struct Net<B: Backend> {
    /// Shared, so that a pass can run on the device's threads while it changes its own buffers.
    pub backend: Arc<B>,
    pub config: ModelConfig,
    pub frozen: Frozen<B>,
    pub attention: Attention,
    pub lora: Option<Lora<B>>,
    pub adapter_enabled: bool,
    /// What a loss is multiplied by before its backward.
    pub loss_scale: f64,
    pub cancel: Cancel,
}

/// The geometry of a model's attention, the same in every layer.
pub fn attention_of(config: &ModelConfig) -> Attention {
    Attention {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        window: config.sliding_window,
    }
}

impl<B: Backend> Net<B> {
    pub fn load(backend: B, checkpoint: &dyn Source, options: &LoadOptions, cancel: Cancel) -> Result<Self> {
        let config = checkpoint.config().clone();
        let attention = attention_of(&config);
        let frozen = Frozen::load(&backend, checkpoint, options, &cancel)?;
        let backend = Arc::new(backend);
        Ok(Self { backend, config, frozen, attention, lora: None, adapter_enabled: true, loss_scale: 1.0, cancel })
    }

    pub fn layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// Layer `index` with its adapters, unless the run was asked to stop; its MLP in tiles of so many rows.
    pub fn layer(&self, index: usize, tile: Option<usize>) -> Result<Layer<'_, B>> {
        self.cancel.check()?;
        let lora = self.lora.as_ref().filter(|_| self.adapter_enabled);
        Ok(Layer {
            backend: &*self.backend,
            weights: &self.frozen.layers[index],
            lora: lora.map(|lora| (&lora.groups[index], &lora.params)),
            attention: &self.attention,
            inverse_frequencies: &self.frozen.inverse_frequencies,
            eps: self.config.rms_norm_eps,
            tile,
        })
    }

    pub fn head(&self) -> Head<'_, B> {
        Head {
            backend: &*self.backend,
            weight: &self.frozen.head,
            norm: &self.frozen.norm,
            eps: self.config.rms_norm_eps,
            vocabulary: self.config.vocab_size,
            loss_scale: self.loss_scale,
            cancel: &self.cancel,
        }
    }
}
