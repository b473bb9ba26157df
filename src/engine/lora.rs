//! Adapters: where each A and B lies in the flat parameter buffer, and what they hold at first.

use crate::kernels::{Backend, LoraGroup, LoraPart, StateSegment};
use crate::philox::Philox;
use crate::weights::ModelConfig;

use super::{Error, Result};

/// The linear layers of a decoder layer, in the order of their fused groups.
pub const MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Which modules share one matrix: q|k|v, o, gate|up, down.
pub(super) const GROUPS: [std::ops::Range<usize>; 4] = [0..3, 3..4, 4..6, 6..7];

/// Tensors start at multiples of this, so that 8-bit optimizer blocks never cross a border.
const ALIGNMENT: usize = 256;
/// bitsandbytes keeps full-precision optimizer state for tensors with fewer elements.
const EIGHT_BIT_FROM: usize = 4096;

/// What to train, by PEFT's names. `target_modules` holds leaf names, all of `MODULES` for "all-linear".
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub target_modules: Vec<String>,
    /// Only these layers; `None` is all.
    pub layers_to_transform: Option<Vec<usize>>,
    pub use_rslora: bool,
    pub seed: u64,
}

impl LoraConfig {
    /// `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    fn check(&self, layers: usize) -> Result<()> {
        if self.r == 0 {
            return Err(Error::Setting { field: "r", value: 0.0, wanted: "at least 1" });
        }
        if !self.lora_alpha.is_finite() {
            return Err(Error::Setting { field: "lora_alpha", value: self.lora_alpha, wanted: "a finite number" });
        }
        if self.target_modules.is_empty() {
            return Err(Error::Setting { field: "target_modules", value: 0.0, wanted: "at least one name" });
        }
        if let Some(name) = self.target_modules.iter().find(|name| !MODULES.contains(&name.as_str())) {
            return Err(Error::UnknownModule { name: name.clone() });
        }
        match self.layers_to_transform.iter().flatten().find(|&&layer| layer >= layers) {
            Some(&layer) => Err(Error::UnknownLayer { layer, layers }),
            None => Ok(()),
        }
    }

    fn adapts(&self, layer: usize, module: &str) -> bool {
        self.target_modules.iter().any(|name| name == module)
            && self.layers_to_transform.as_ref().is_none_or(|layers| layers.contains(&layer))
    }
}

/// `A` is (r, in), `B` is (out, r).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    A,
    B,
}

/// One tensor of an adapter with its values, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    pub layer: usize,
    pub module: &'static str,
    pub matrix: Matrix,
    pub shape: [usize; 2],
    pub values: Vec<f32>,
}

impl AdapterTensor {
    /// The tensor's key in a PEFT file.
    pub fn name(&self) -> String {
        name(self.layer, self.module, self.matrix)
    }
}

/// PEFT's key: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
fn name(layer: usize, module: &str, matrix: Matrix) -> String {
    let block = if matches!(module, "gate_proj" | "up_proj" | "down_proj") { "mlp" } else { "self_attn" };
    format!("base_model.model.model.layers.{layer}.{block}.{module}.lora_{matrix:?}.weight")
}

/// Where one tensor lies in the flat buffer.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub layer: usize,
    pub module: &'static str,
    pub matrix: Matrix,
    pub shape: [usize; 2],
    pub offset: usize,
}

impl Slot {
    pub fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    pub fn name(&self) -> String {
        name(self.layer, self.module, self.matrix)
    }

    pub fn tensor(&self, values: Vec<f32>) -> AdapterTensor {
        AdapterTensor { layer: self.layer, module: self.module, matrix: self.matrix, shape: self.shape, values }
    }
}

/// An adapter on the device: flat parameters and gradients, and the map of both.
#[derive(Debug)]
pub(super) struct Lora<B: Backend> {
    pub config: LoraConfig,
    pub slots: Vec<Slot>,
    pub segments: Vec<StateSegment>,
    /// Per layer, the group of each fused matrix that has adapters.
    pub groups: Vec<[Option<LoraGroup>; 4]>,
    pub params: B::Full,
    pub gradients: B::Full,
}

impl<B: Backend> Lora<B> {
    pub fn new(backend: &B, model: &ModelConfig, config: LoraConfig) -> Result<Self> {
        let Plan { groups, slots, end: len, .. } = plan(model, &config)?;
        let segments = slots
            .iter()
            .map(|slot| StateSegment { offset: slot.offset, len: slot.len(), eight_bit: slot.len() >= EIGHT_BIT_FROM })
            .collect();
        let mut params = backend.full(len)?;
        for slot in slots.iter().filter(|slot| slot.matrix == Matrix::A) {
            backend.write_full(&mut params, slot.offset, &kaiming_uniform(slot, config.seed))?;
        }
        let gradients = backend.full(len)?;
        Ok(Self { config, slots, segments, groups, params, gradients })
    }

    /// The lowest layer with an adapter and its first adapted group: the backward pass ends there.
    pub fn lowest(&self) -> Option<(usize, usize)> {
        self.groups
            .iter()
            .enumerate()
            .find_map(|(layer, groups)| groups.iter().position(Option::is_some).map(|group| (layer, group)))
    }
}

/// (out, in) of every module.
fn shapes(model: &ModelConfig) -> [(usize, usize); 7] {
    let hidden = model.hidden_size;
    let queries = model.num_attention_heads * model.head_dim;
    let keys = model.num_key_value_heads * model.head_dim;
    let wide = model.intermediate_size;
    [
        (queries, hidden),
        (keys, hidden),
        (keys, hidden),
        (hidden, queries),
        (wide, hidden),
        (wide, hidden),
        (hidden, wide),
    ]
}

/// PEFT's initial A: uniform within ±1/sqrt(in) (`kaiming_uniform` with a = sqrt(5)).
fn kaiming_uniform(slot: &Slot, seed: u64) -> Vec<f32> {
    let module = MODULES.iter().position(|name| *name == slot.module).unwrap_or_default();
    let stream = Philox::new(seed, (slot.layer * MODULES.len() + module) as u64);
    let bound = 1.0 / (slot.shape[1] as f64).sqrt();
    (0..slot.len() as u64).map(|i| ((2.0 * stream.uniform_at(i) - 1.0) * bound) as f32).collect()
}

/// The places of an adapter in the flat buffer, layer by layer: the A of a group, then its B. Takes no memory for them.
pub(super) fn plan<'a>(model: &ModelConfig, config: &'a LoraConfig) -> Result<Plan<'a>> {
    config.check(model.num_hidden_layers)?;
    let mut plan = Plan { config, groups: Vec::new(), slots: Vec::new(), end: 0 };
    for layer in 0..model.num_hidden_layers {
        let groups = GROUPS.map(|group| plan.group(layer, group, &shapes(model)));
        plan.groups.push(groups);
    }
    Ok(plan)
}

pub(super) struct Plan<'a> {
    config: &'a LoraConfig,
    groups: Vec<[Option<LoraGroup>; 4]>,
    pub slots: Vec<Slot>,
    /// Length of the flat buffer.
    end: usize,
}

impl Plan<'_> {
    fn group(
        &mut self,
        layer: usize,
        modules: std::ops::Range<usize>,
        shapes: &[(usize, usize); 7],
    ) -> Option<LoraGroup> {
        let r = self.config.r;
        let in_features = shapes[modules.start].1;
        let mut parts = Vec::new();
        let mut out_start = 0;
        for module in modules {
            let out_len = shapes[module].0;
            if self.config.adapts(layer, MODULES[module]) {
                let s_start = parts.len() * r;
                let part = LoraPart { rank: r, a: 0, b: 0, s_start, out_start, out_len, scale: self.config.scale() };
                parts.push((module, part));
            }
            out_start += out_len;
        }
        for (module, part) in &mut parts {
            part.a = self.slot(layer, *module, Matrix::A, [r, in_features]);
        }
        for (module, part) in &mut parts {
            part.b = self.slot(layer, *module, Matrix::B, [part.out_len, r]);
        }
        let parts: Vec<LoraPart> = parts.into_iter().map(|(_, part)| part).collect();
        (!parts.is_empty()).then(|| LoraGroup { in_features, rank: parts.len() * r, parts })
    }

    fn slot(&mut self, layer: usize, module: usize, matrix: Matrix, shape: [usize; 2]) -> usize {
        let offset = self.end;
        self.slots.push(Slot { layer, module: MODULES[module], matrix, shape, offset });
        self.end = (offset + shape[0] * shape[1]).next_multiple_of(ALIGNMENT);
        offset
    }
}
