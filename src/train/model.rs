//! A loaded model with at most one adapter: what scripts hold.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::data::{MicroBatch, RowId};
use crate::engine::{AdapterTensor, Batch, LoraConfig, Matrix, Mode, Plan};
use crate::optim::LossScale;
use crate::tokenizer::Tokenizer;
use crate::weights::ModelConfig;

use super::glue::{self, Place, Tensor};
use super::optimizer::Skipped;
use super::runner::Runner;
use super::{Error, Result, Rows, Unpacked, learning_rate};

/// Memory a device may keep for a backward when a step's micro-batches are merged.
const KEPT_BYTES: usize = 512 << 20;
/// Bytes of a kept value on the processor.
const VALUE_BYTES: usize = 4;

/// A model on its device. Copies are the same model.
#[derive(Clone)]
pub struct Model(Arc<Shared>);

/// A model that somebody else keeps alive.
#[derive(Clone)]
pub struct WeakModel(Weak<Shared>);

struct Shared {
    runner: Mutex<Box<dyn Runner>>,
    config: ModelConfig,
    tokenizer: Tokenizer,
    tokenizer_json: Vec<u8>,
    origin: String,
    /// What a user should know about the choice of the device.
    remark: Option<String>,
    /// Tokens a text may have.
    limit: usize,
    unpacked: Unpacked,
    anchor: Tensor,
    /// Rows whose gradients lie in the buffer.
    rows: Mutex<Vec<String>>,
    /// Optimizer steps taken.
    steps: AtomicU64,
    /// Those of them since the adapter was put on.
    adapter_steps: AtomicU64,
    /// Those of them since the adapter was put on or saved.
    unsaved_steps: AtomicU64,
    /// Rises whenever an adapter is put on or taken off.
    adapter: AtomicU64,
    /// Of losses, where the device's dtype needs one.
    loss_scale: Mutex<Option<LossScale>>,
    place: Place,
}

/// The trained parameters of a model, for an optimizer.
#[derive(Clone, Debug)]
pub struct Parameters {
    pub(super) model: Model,
    /// The adapter they belong to.
    pub(super) adapter: u64,
}

/// What `Model::new` needs besides the engine.
pub(super) struct Parts {
    pub runner: Box<dyn Runner>,
    pub tokenizer: Tokenizer,
    /// The base's `tokenizer.json`, or the one that stands for a GGUF file's tokenizer.
    pub tokenizer_json: Vec<u8>,
    pub origin: String,
    pub max_seq_length: Option<usize>,
    pub unpacked: Unpacked,
    pub remark: Option<String>,
    pub loss_scale: Option<LossScale>,
    pub place: Place,
}

impl Model {
    pub(super) fn new(mut parts: Parts) -> Result<Self> {
        let config = parts.runner.config().clone();
        if let Some(scale) = &parts.loss_scale {
            parts.runner.set_loss_scale(scale.scale())?;
        }
        let positions = config.max_position_embeddings;
        Ok(Self(Arc::new(Shared {
            limit: parts.max_seq_length.map_or(positions, |length| length.min(positions)),
            unpacked: parts.unpacked,
            runner: Mutex::new(parts.runner),
            config,
            tokenizer: parts.tokenizer,
            tokenizer_json: parts.tokenizer_json,
            origin: parts.origin,
            remark: parts.remark,
            anchor: glue::anchor()?,
            rows: Mutex::default(),
            steps: AtomicU64::new(0),
            adapter_steps: AtomicU64::new(0),
            unsaved_steps: AtomicU64::new(0),
            adapter: AtomicU64::new(0),
            loss_scale: Mutex::new(parts.loss_scale),
            place: parts.place,
        })))
    }

    pub fn config(&self) -> &ModelConfig {
        &self.0.config
    }

    /// Keys the model's file does not give, with the value taken instead: `sliding_window = 4096`.
    pub fn defaulted(&self) -> &[String] {
        &self.0.config.defaulted
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    pub(super) fn tokenizer_json(&self) -> &[u8] {
        &self.0.tokenizer_json
    }

    /// The folder, file, hub id or built-in name the base came from.
    pub fn origin(&self) -> &str {
        &self.0.origin
    }

    /// The device's short name.
    pub fn device(&self) -> &'static str {
        self.runner().device()
    }

    /// Where scripts' own tensors are computed beside this model: on its GPU and its stream, in a program built with the
    /// feature `cuda`, else on the CPU. Losses are on the CPU, where their value is known.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Why the device is not the one that might be expected.
    pub fn remark(&self) -> Option<&str> {
        self.0.remark.as_deref()
    }

    /// Bytes of the frozen base on the device.
    pub fn weight_bytes(&self) -> usize {
        self.runner().weight_bytes()
    }

    /// What the device keeps of the weights in the form its product reads.
    pub fn unpacked(&self) -> Unpacked {
        self.0.unpacked
    }

    /// Tokens a text may have: the model's own limit, or the smaller one it was loaded with.
    pub fn max_seq_length(&self) -> usize {
        self.0.limit
    }

    /// A good peak learning rate for this model's size.
    pub fn learning_rate(&self) -> f64 {
        learning_rate(&self.0.origin, self.0.config.hidden_size)
    }

    // ---- adapter -------------------------------------------------------------------------------------------

    /// Adds an adapter that changes nothing yet.
    pub fn add_lora(&self, config: &LoraConfig) -> Result<()> {
        self.runner().add_lora(config)?;
        self.adapter_changed();
        Ok(())
    }

    /// Takes the adapter off; false when there was none.
    pub fn unload_adapter(&self) -> Result<bool> {
        let was_on = self.runner().remove_lora()?;
        self.adapter_changed();
        Ok(was_on)
    }

    pub fn lora(&self) -> Option<LoraConfig> {
        self.runner().lora().cloned()
    }

    /// Every A and B, layer by layer.
    pub fn adapter_tensors(&self) -> Result<Vec<AdapterTensor>> {
        self.runner().adapter_tensors()
    }

    /// The gradients under the names of their parameters.
    pub fn gradients(&self) -> Result<Vec<AdapterTensor>> {
        self.runner().gradients()
    }

    /// Replaces one A or B.
    pub fn set_adapter_tensor(&self, layer: usize, module: &str, matrix: Matrix, values: &[f32]) -> Result<()> {
        self.runner().set_adapter_tensor(layer, module, matrix, values)
    }

    /// What an optimizer trains.
    pub fn parameters(&self) -> Result<Parameters> {
        if self.runner().lora().is_none() {
            return Err(crate::engine::Error::NoAdapter.into());
        }
        Ok(Parameters { model: self.clone(), adapter: self.adapter() })
    }

    /// Number of trained values.
    pub fn trainable_parameters(&self) -> usize {
        self.runner().trainable_parameters()
    }

    /// Optimizer steps that the adapter has had.
    pub fn adapter_steps(&self) -> u64 {
        self.0.adapter_steps.load(Ordering::Relaxed)
    }

    /// Optimizer steps that the adapter has had and that no folder holds.
    pub fn unsaved_steps(&self) -> u64 {
        self.0.unsaved_steps.load(Ordering::Relaxed)
    }

    pub(super) fn adapter_saved(&self) {
        self.0.unsaved_steps.store(0, Ordering::Relaxed);
    }

    fn adapter_changed(&self) {
        self.0.adapter.fetch_add(1, Ordering::Relaxed);
        self.0.adapter_steps.store(0, Ordering::Relaxed);
        self.adapter_saved();
        self.rows().clear();
    }

    /// Tokens of a micro-batch that this model has room for: on a GPU what keeps it busy and fits, else half a gibibyte
    /// of kept activations.
    pub fn room(&self) -> Result<usize> {
        if let Some(tokens) = self.runner().room()? {
            return Ok(tokens);
        }
        let c = self.config();
        let heads = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim;
        let attention = heads + c.num_attention_heads * (c.head_dim + 1);
        let per_layer = 4 * c.hidden_size + attention + 3 * c.intermediate_size;
        let per_token = VALUE_BYTES * per_layer * c.num_hidden_layers;
        Ok((KEPT_BYTES / per_token.max(1)).max(1))
    }

    /// Decides what training passes of up to `tokens` tokens keep, and takes the memory for it.
    pub fn plan_for(&self, tokens: usize) -> Result<Plan> {
        self.runner().plan_for(tokens)
    }

    /// Bytes on the device at the worst moment: of a training pass as the last plan predicted, and of everything since as
    /// measured, evaluation and generation included. `None` before a plan, or where the device counts none.
    pub fn memory(&self) -> Result<Option<(usize, usize)>> {
        self.runner().memory()
    }

    pub(super) fn adapter(&self) -> u64 {
        self.0.adapter.load(Ordering::Relaxed)
    }

    // ---- passes --------------------------------------------------------------------------------------------

    /// Runs the forward pass that a backward follows.
    pub(super) fn engine_forward(&self, batch: &MicroBatch) -> Result<f64> {
        self.check_lengths(&batch.cu_seqlens)?;
        let view = Batch { ids: &batch.ids, cu_seqlens: &batch.cu_seqlens, targets: &batch.targets };
        let value = self.runner().forward(&view, Mode::Train, batch.step_targets as f64)?;
        if !value.is_finite() {
            self.discard();
            return Err(self.not_finite("the loss", value, Rows(batch.rows.iter().map(ToString::to_string).collect())));
        }
        Ok(value)
    }

    /// Adds the gradients of the pending forward pass over the texts `rows`.
    pub(super) fn engine_backward(&self, upstream: f64, rows: &[RowId]) -> Result<()> {
        self.rows().extend(rows.iter().map(ToString::to_string));
        self.runner().backward(upstream)
    }

    /// Forgets a forward pass whose backward will not come.
    pub(super) fn discard(&self) {
        self.runner().discard();
    }

    /// The log-probability of every target, in row order; keeps no gradient and leaves a pending loss alone.
    pub fn log_probs(&self, batch: &Batch<'_>) -> Result<Vec<f64>> {
        self.check_lengths(batch.cu_seqlens)?;
        self.runner().log_probs(batch)
    }

    /// The logits of every row of one text, (T, V) row-major.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let borders = [0, u32::try_from(ids.len()).unwrap_or(u32::MAX)];
        self.check_lengths(&borders)?;
        let targets = vec![crate::engine::IGNORE; ids.len()];
        self.runner().logits(&Batch { ids, cu_seqlens: &borders, targets: &targets })
    }

    fn check_lengths(&self, cu_seqlens: &[u32]) -> Result<()> {
        let lengths = cu_seqlens.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as usize);
        match lengths.max() {
            Some(got) if got > self.0.limit => Err(Error::TooLong { got, limit: self.0.limit }),
            _ => Ok(()),
        }
    }

    // ---- for the optimizer ---------------------------------------------------------------------------------

    pub(super) fn zero_grad(&self) -> Result<()> {
        self.rows().clear();
        self.runner().zero_grad()
    }

    /// The norm of all gradients together. One that is not finite is an error that names the rows that made it, except
    /// where it may be the loss scale's.
    pub(super) fn gradient_norm(&self) -> Result<f64> {
        let norm = self.runner().gradient_norm()?;
        if norm.is_finite() || self.loss_scale().as_ref().is_some_and(LossScale::may_overflow) {
            return Ok(norm);
        }
        let rows = Rows(self.rows().clone());
        Err(self.not_finite("the gradient's norm", norm, rows))
    }

    /// The parameters were updated.
    pub(super) fn count_step(&self) -> Result<()> {
        for count in [&self.0.steps, &self.0.adapter_steps, &self.0.unsaved_steps] {
            count.fetch_add(1, Ordering::Relaxed);
        }
        match self.loss_scale().as_mut() {
            Some(scale) => {
                scale.updated();
                self.runner().set_loss_scale(scale.scale())
            }
            None => Ok(()),
        }
    }

    /// The gradients have overflowed: their step is left out.
    pub(super) fn skip_step(&self) -> Result<Skipped> {
        let mut state = self.loss_scale();
        let Some(state) = state.as_mut() else { unreachable!("`gradient_norm` fails without a loss scale") };
        let scale = state.scale();
        state.overflowed();
        self.runner().set_loss_scale(state.scale())?;
        Ok(Skipped { scale, next_scale: state.scale(), skipped: state.skipped() })
    }

    /// Optimizer steps that were left out because their gradients had overflowed under the scaled loss.
    pub fn skipped_steps(&self) -> u64 {
        self.loss_scale().as_ref().map_or(0, LossScale::skipped)
    }

    fn loss_scale(&self) -> MutexGuard<'_, Option<LossScale>> {
        self.0.loss_scale.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_finite(&self, what: &'static str, value: f64, rows: Rows) -> Error {
        Error::NotFinite { what, value, step: self.0.steps.load(Ordering::Relaxed), rows }
    }

    pub(super) fn anchor(&self) -> &Tensor {
        &self.0.anchor
    }

    pub(super) fn runner(&self) -> MutexGuard<'_, Box<dyn Runner>> {
        self.0.runner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether both are the same model.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The same model, not kept alive.
    pub fn downgrade(&self) -> WeakModel {
        WeakModel(Arc::downgrade(&self.0))
    }
}

impl WeakModel {
    /// The model, if it is still there.
    pub fn upgrade(&self) -> Option<Model> {
        self.0.upgrade().map(Model)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("origin", &self.0.origin).finish_non_exhaustive()
    }
}
