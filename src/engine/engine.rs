//! The model on one device: base, adapter, and the pass between a loss and its backward.

use std::sync::Arc;

use crate::kernels::{Backend, StateSegment};
use crate::weights::{Checkpoint, ModelConfig};

use super::frozen::Source;
use super::head::HeadWork;
use super::kept::Kept;
use super::layer::{Layer, Saved, Work};
use super::lora::{self, Lora, Matrix, Slot};
use super::net::Net;
use super::plan::{Level, Memory, Plan};
use super::random::RandomBase;
use super::{AdapterTensor, Batch, BatchFault, Cancel, Error, LoadOptions, LoraConfig, Result};

/// Whether a backward follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Keeps what `backward` needs until `backward` or `discard`.
    Train,
    /// Keeps nothing and leaves a pending training pass alone.
    Evaluate,
}

/// The adapter's parameters as an optimizer reads them.
#[derive(Debug)]
pub struct Flat<'a, B: Backend> {
    pub params: &'a B::Full,
    pub gradients: &'a B::Full,
    pub segments: &'a [StateSegment],
}

/// The adapter's parameters as an optimizer changes them.
#[derive(Debug)]
pub struct FlatMut<'a, B: Backend> {
    pub backend: &'a B,
    pub params: &'a mut B::Full,
    pub gradients: &'a mut B::Full,
    pub segments: &'a [StateSegment],
}

/// A Mistral or Llama decoder with a frozen base and at most one LoRA adapter.
#[derive(Debug)]
pub struct Engine<B: Backend> {
    pub(super) net: Net<B>,
    pub(super) work: Work<B>,
    pub(super) head_work: HeadWork<B>,
    /// The state of the layer being computed.
    pub(super) scratch: Saved<B>,
    /// The layer whose state `scratch` still holds whole since the last training pass.
    pub(super) held: Option<usize>,
    pub(super) kept: Kept<B>,
    pub(super) memory: Memory,
    pub(super) plan: Option<Plan>,
    /// The peak of the last plan there was.
    pub(super) predicted: Option<usize>,
    /// The gradient at the last layer's output while a pass waits for its backward.
    pub(super) dx: B::Act,
    pending: Option<B::Segments>,
}

impl<B: Backend> Engine<B> {
    /// Reads the base onto the device.
    pub fn load(backend: B, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        Self::load_until(backend, checkpoint, options, Cancel::new())
    }

    /// As `load`; `cancel` stops it, and every later pass, within one layer.
    pub fn load_until(backend: B, checkpoint: &Checkpoint, options: &LoadOptions, cancel: Cancel) -> Result<Self> {
        Self::from_source(backend, checkpoint, options, cancel)
    }

    /// A base of the shape of `config` with random values, its linears in NF4 or bf16: to measure with, for no file is
    /// read.
    pub fn random(backend: B, config: ModelConfig, seed: u64, options: &LoadOptions) -> Result<Self> {
        let base = RandomBase::new(config, seed, options.load_in_4bit);
        Self::from_source(backend, &base, options, Cancel::new())
    }

    fn from_source(backend: B, checkpoint: &dyn Source, options: &LoadOptions, cancel: Cancel) -> Result<Self> {
        Ok(Self {
            work: Work::new(&backend)?,
            head_work: HeadWork::new(&backend)?,
            scratch: Saved::new(&backend)?,
            held: None,
            kept: Kept::new(),
            memory: options.memory,
            plan: None,
            predicted: None,
            dx: backend.act(),
            pending: None,
            net: Net::load(backend, checkpoint, options, cancel)?,
        })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.net.config
    }

    pub fn backend(&self) -> &B {
        &self.net.backend
    }

    /// The flag that stops a pass within one layer.
    pub fn cancel(&self) -> &Cancel {
        &self.net.cancel
    }

    /// Bytes of the frozen base on the device.
    pub fn weight_bytes(&self) -> usize {
        self.net.frozen.bytes(&*self.net.backend)
    }

    // ---- adapter -------------------------------------------------------------------------------------------

    /// Adds an adapter: A uniform within ±1/sqrt(in), B zero, so the model answers as before.
    pub fn add_lora(&mut self, config: &LoraConfig) -> Result<()> {
        self.free_for_adapter()?;
        self.forget_plan()?; // ranks and the lowest layer change, and the adapter needs room
        self.net.lora = Some(Lora::new(&*self.net.backend, &self.net.config, config.clone())?);
        self.net.adapter_enabled = true;
        Ok(())
    }

    /// Every A and B that `add_lora` would make room for, without values: what a file can be compared with first.
    pub fn plan_lora(&self, config: &LoraConfig) -> Result<Vec<AdapterTensor>> {
        self.free_for_adapter()?;
        Ok(lora::plan(&self.net.config, config)?.slots.iter().map(|slot| slot.tensor(Vec::new())).collect())
    }

    fn free_for_adapter(&self) -> Result<()> {
        self.free_for_change()?;
        if self.net.lora.is_some() { Err(Error::AdapterPresent) } else { Ok(()) }
    }

    /// Takes the adapter off; false when there was none.
    pub fn remove_lora(&mut self) -> Result<bool> {
        self.free_for_change()?;
        if self.net.lora.take().is_none() {
            return Ok(false);
        }
        self.forget_plan()?;
        Ok(true)
    }

    /// Computes with (true) or without the adapter until told otherwise; returns how it was.
    pub fn enable_adapter(&mut self, enabled: bool) -> Result<bool> {
        self.free_for_change()?;
        Ok(std::mem::replace(&mut self.net.adapter_enabled, enabled))
    }

    pub fn lora(&self) -> Option<&LoraConfig> {
        self.net.lora.as_ref().map(|lora| &lora.config)
    }

    /// Number of trained values.
    pub fn trainable_parameters(&self) -> usize {
        self.net.lora.iter().flat_map(|lora| &lora.slots).map(Slot::len).sum()
    }

    /// Every A and B, layer by layer.
    pub fn adapter_tensors(&self) -> Result<Vec<AdapterTensor>> {
        let lora = self.net.lora.as_ref().ok_or(Error::NoAdapter)?;
        self.read_slots(lora, &lora.params)
    }

    /// The gradients under the names of their parameters, without the loss scale that the buffer has in it.
    pub fn gradients(&self) -> Result<Vec<AdapterTensor>> {
        let lora = self.net.lora.as_ref().ok_or(Error::NoAdapter)?;
        Ok(self.unscaled(self.read_slots(lora, &lora.gradients)?))
    }

    fn read_slots(&self, lora: &Lora<B>, from: &B::Full) -> Result<Vec<AdapterTensor>> {
        let read = |slot: &Slot| {
            let mut values = vec![0.0; slot.len()];
            self.net.backend.read_full(from, slot.offset, &mut values)?;
            Ok(slot.tensor(values))
        };
        lora.slots.iter().map(read).collect()
    }

    /// Replaces one A or B.
    pub fn set_adapter_tensor(&mut self, layer: usize, module: &str, matrix: Matrix, values: &[f32]) -> Result<()> {
        let lora = self.net.lora.as_mut().ok_or(Error::NoAdapter)?;
        let is_it = |slot: &&Slot| slot.layer == layer && slot.module == module && slot.matrix == matrix;
        let Some(slot) = lora.slots.iter().find(is_it) else {
            return Err(Error::UnknownTensor { name: format!("layers.{layer}.{module}.lora_{matrix:?}") });
        };
        if values.len() != slot.len() {
            return Err(Error::TensorSize { name: slot.name(), got: values.len(), wanted: slot.len() });
        }
        Ok(self.net.backend.write_full(&mut lora.params, slot.offset, values)?)
    }

    pub fn flat(&self) -> Result<Flat<'_, B>> {
        let lora = self.net.lora.as_ref().ok_or(Error::NoAdapter)?;
        Ok(Flat { params: &lora.params, gradients: &lora.gradients, segments: &lora.segments })
    }

    pub fn flat_mut(&mut self) -> Result<FlatMut<'_, B>> {
        let lora = self.net.lora.as_mut().ok_or(Error::NoAdapter)?;
        let (params, gradients) = (&mut lora.params, &mut lora.gradients);
        Ok(FlatMut { backend: &*self.net.backend, params, gradients, segments: &lora.segments })
    }

    pub fn zero_grad(&mut self) -> Result<()> {
        let lora = self.net.lora.as_mut().ok_or(Error::NoAdapter)?;
        Ok(self.net.backend.zero_full(&mut lora.gradients)?)
    }

    /// An adapter must not change under a pass that waits for its backward.
    pub(super) fn free_for_change(&self) -> Result<()> {
        if self.pending.is_some() { Err(Error::PassPending) } else { Ok(()) }
    }

    // ---- passes --------------------------------------------------------------------------------------------

    /// Sum of the cross entropies over all rows with a target, divided by `normalizer`.
    pub fn forward(&mut self, batch: &Batch<'_>, mode: Mode, normalizer: f64) -> Result<f64> {
        let device = Arc::clone(&self.net.backend);
        device.run(|| self.forward_here(batch, mode, normalizer))
    }

    fn forward_here(&mut self, batch: &Batch<'_>, mode: Mode, normalizer: f64) -> Result<f64> {
        batch.check(self.net.config.vocab_size)?;
        let (rows, targets) = batch.target_rows();
        if rows.is_empty() {
            return Err(Error::Batch(BatchFault::NoTargets));
        }
        if !(normalizer.is_finite() && normalizer > 0.0) {
            return Err(Error::Setting { field: "normalizer", value: normalizer, wanted: "a positive number" });
        }
        if mode == Mode::Evaluate {
            self.hidden(batch)?;
            let buffers = (&mut self.head_work, &mut self.work.h);
            return self.net.head().loss(&self.work.next, (&rows, &targets), normalizer, None, buffers);
        }
        if self.net.lora.is_none() {
            return Err(Error::NoAdapter);
        }
        self.free_for_change()?;
        let segments = self.forward_saving(batch)?;
        let (dx, buffers) = (Some(&mut self.dx), (&mut self.head_work, &mut self.work.h));
        let loss = self.net.head().loss(&self.work.next, (&rows, &targets), normalizer, dx, buffers)?;
        self.pending = Some(segments);
        Ok(loss)
    }

    /// Adds the adapter's gradients of `upstream · loss`, and ends the pass.
    pub fn backward(&mut self, upstream: f64) -> Result<()> {
        let device = Arc::clone(&self.net.backend);
        device.run(|| self.backward_here(upstream))
    }

    fn backward_here(&mut self, upstream: f64) -> Result<()> {
        let segments = self.pending.take().ok_or(Error::NoForward)?;
        let net = &mut self.net;
        if upstream != 1.0 {
            net.backend.scale(&mut self.dx, upstream)?;
        }
        let lora = net.lora.as_mut().ok_or(Error::NoAdapter)?;
        let (Some((lowest, last)), Some(plan)) = (lora.lowest().filter(|_| net.adapter_enabled), &self.plan) else {
            return Ok(());
        };
        for index in (lowest..net.config.num_hidden_layers).rev() {
            net.cancel.check()?;
            let layer = Layer {
                backend: &*net.backend,
                weights: &net.frozen.layers[index],
                lora: Some((&lora.groups[index], &lora.params)),
                attention: &net.attention,
                inverse_frequencies: &net.frozen.inverse_frequencies,
                eps: net.config.rms_norm_eps,
                tile: plan.tile,
            };
            let last = (index == lowest).then_some(last);
            let level = if self.held.take() == Some(index) { Level::All } else { plan.levels[index] };
            let scratch = &mut self.scratch;
            self.kept.recall(layer.backend, index, plan, scratch)?;
            let done = layer.rebuild(level, &segments, scratch, &mut self.work).and_then(|()| {
                layer.backward(&segments, scratch, &mut self.work, &mut self.dx, &mut lora.gradients, last)
            });
            self.kept.end(index, plan, scratch);
            done?;
        }
        Ok(())
    }

    /// Forgets a pass whose backward will not come.
    pub fn discard(&mut self) {
        self.pending = None;
    }

    /// Whether a pass waits for its backward.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// The log-probability of every target, in row order.
    pub fn log_probs(&mut self, batch: &Batch<'_>) -> Result<Vec<f64>> {
        let device = Arc::clone(&self.net.backend);
        device.run(|| self.log_probs_here(batch))
    }

    fn log_probs_here(&mut self, batch: &Batch<'_>) -> Result<Vec<f64>> {
        batch.check(self.net.config.vocab_size)?;
        let (rows, targets) = batch.target_rows();
        self.hidden(batch)?;
        let buffers = (&mut self.head_work, &mut self.work.h);
        self.net.head().log_probs(&self.work.next, (&rows, &targets), buffers)
    }

    /// The logits of every row, (T, V) row-major. For short texts: they are all in memory at once.
    pub fn logits(&mut self, batch: &Batch<'_>) -> Result<Vec<f32>> {
        batch.check(self.net.config.vocab_size)?;
        self.hidden(batch)?;
        let rows: Vec<u32> = (0..batch.ids.len() as u32).collect();
        self.net.head().read_logits(&self.work.next, &rows, (&mut self.head_work, &mut self.work.h))
    }

    /// Runs all layers and leaves their output in `work.next`, keeping nothing.
    fn hidden(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.held = None;
        let segments = self.embed(batch)?;
        for index in 0..self.net.layers() {
            std::mem::swap(&mut self.scratch.x, &mut self.work.next);
            self.net.layer(index, self.tile())?.forward(&segments, &mut self.scratch, &mut self.work, None)?;
        }
        Ok(())
    }

    /// The same, keeping what the plan says.
    pub(super) fn forward_saving(&mut self, batch: &Batch<'_>) -> Result<B::Segments> {
        let lowest = self.lowest();
        self.fit_plan(batch.ids.len())?;
        self.held = None;
        let segments = self.embed(batch)?;
        let Some(plan) = &self.plan else { unreachable!("`fit_plan` made one") };
        for index in 0..self.net.layers() {
            let layer = self.net.layer(index, plan.tile)?;
            if index < lowest {
                std::mem::swap(&mut self.scratch.x, &mut self.work.next);
                layer.forward(&segments, &mut self.scratch, &mut self.work, None)?;
                continue;
            }
            let (scratch, next) = (&mut self.scratch, &mut self.work.next);
            let begun = self.kept.begin(layer.backend, index, plan, scratch, next);
            let done = begun.and_then(|()| layer.forward(&segments, scratch, &mut self.work, None));
            self.kept.end(index, plan, scratch);
            done?;
        }
        self.held = self.net.layers().checked_sub(1);
        Ok(segments)
    }

    fn embed(&mut self, batch: &Batch<'_>) -> Result<B::Segments> {
        let backend = &*self.net.backend;
        let ids = backend.index(batch.ids)?;
        backend.embed(&self.net.frozen.embedding, &ids, &mut self.work.next)?;
        Ok(backend.segments(batch.cu_seqlens, 0)?)
    }
}
