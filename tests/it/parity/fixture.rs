//! Reads a case of `tests/fixtures/parity` and puts it into an engine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use unslothify::data::{MicroBatch, RowId};
use unslothify::engine::{AdapterTensor, Batch, Engine, LoadOptions, LoraConfig, Matrix};
use unslothify::kernels::Backend;
use unslothify::train::{Device, LoadSettings, Model};
use unslothify::weights::{Checkpoint, adapter};

use crate::tiny;

/// The cases `make/parity.py` writes.
pub const CASES: [&str; 7] = ["untied", "window", "tied", "rslora", "q_and_v", "texts", "nf4"];

/// Cases of other ranks: logits, log-probabilities, loss and gradients alone.
pub const RANKS: [&str; 3] = ["r8", "r16", "r64"];

pub type Tensors = HashMap<String, Vec<f32>>;

#[derive(Clone, Deserialize)]
pub struct Text {
    pub ids: Vec<u32>,
    pub targets: Vec<i32>,
}

#[derive(Deserialize)]
pub struct StepFacts {
    pub loss: f64,
    pub grad_norm: f64,
    pub learning_rate: f64,
}

#[derive(Deserialize)]
pub struct Facts {
    pub base: String,
    pub batches: Vec<Vec<Text>>,
    pub loss: f64,
    pub steps: Vec<StepFacts>,
    pub prompt: Vec<u32>,
    pub generated: Vec<u32>,
    pub weight_decay: f64,
    pub max_norm: f64,
    pub warmup: usize,
    pub total: usize,
    pub peak: f64,
}

/// How far transformers, peft and torch in bf16 are from what they compute in f32 (`make/parity.py` says how they ran).
#[derive(Deserialize)]
pub struct Bf16 {
    /// Relative Frobenius error.
    pub logits: f64,
    /// Of the greatest difference.
    pub logits_max: f64,
    pub logp: f64,
    /// Of all gradients as one vector.
    pub gradient: f64,
    /// Of each: relative Frobenius error, one minus the cosine.
    pub gradients: HashMap<String, (f64, f64)>,
}

/// `tests/fixtures/parity` under `UNSLOTHIFY_TEST_ROOT`, which a test binary carried to another machine needs, or in the
/// repository.
pub fn root() -> PathBuf {
    let repository = std::env::var_os("UNSLOTHIFY_TEST_ROOT").map(PathBuf::from);
    repository.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("tests/fixtures/parity")
}

/// Every float tensor of a safetensors file, widened to f32.
pub fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found = Tensors::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::BF16 => {
                data.chunks_exact(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
            }
            Dtype::U8 => data.iter().map(|b| f32::from(*b)).collect(),
            other => panic!("{name} has dtype {other:?}"),
        };
        found.insert(name, values);
    }
    found
}

/// Rows of several texts, laid end to end.
pub struct Rows {
    pub ids: Vec<u32>,
    pub cu_seqlens: Vec<u32>,
    pub targets: Vec<i32>,
}

impl Rows {
    pub fn new(texts: &[Text]) -> Self {
        let mut rows = Self { ids: vec![], cu_seqlens: vec![0], targets: vec![] };
        for text in texts {
            rows.ids.extend(&text.ids);
            rows.targets.extend(&text.targets);
            rows.cu_seqlens.push(rows.ids.len() as u32);
        }
        rows
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch { ids: &self.ids, cu_seqlens: &self.cu_seqlens, targets: &self.targets }
    }

    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|target| **target >= 0).count()
    }
}

pub struct Case {
    pub name: &'static str,
    pub facts: Facts,
    pub expected: Tensors,
    /// config.json, model.safetensors and a tokenizer.json of letters, as a checkpoint has them.
    pub folder: tempfile::TempDir,
}

impl Case {
    pub fn open(name: &'static str) -> Self {
        Self::with_config(name, |config| config)
    }

    /// The case with its config.json changed by `edit`.
    pub fn with_config(name: &'static str, edit: impl Fn(String) -> String) -> Self {
        let at = root().join(name);
        let facts: Facts = serde_json::from_str(&std::fs::read_to_string(at.join("case.json")).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = edit(std::fs::read_to_string(at.join("config.json")).unwrap());
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let base = root().join("bases").join(format!("{}.safetensors", facts.base));
        std::fs::copy(base, folder.path().join("model.safetensors")).unwrap();
        let letters = ["<unk>", "<s>", "</s>", "▁"].map(String::from).into_iter().chain(('a'..='z').map(String::from));
        let mut tokenizer = tiny::tokenizer(&letters.collect::<Vec<_>>());
        tokenizer["model"]["byte_fallback"] = false.into();
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        Self { name, facts, expected: tensors(&at.join("expected.safetensors")), folder }
    }

    pub fn bf16(&self) -> Bf16 {
        let path = root().join(self.name).join("bf16.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(self.folder.path()).unwrap()
    }

    pub fn adapter_folder(&self) -> PathBuf {
        root().join(self.name).join("adapter")
    }

    /// The base without an adapter.
    pub fn base<B: Backend>(&self, backend: B) -> Engine<B> {
        Engine::load(backend, &self.checkpoint(), &LoadOptions::default()).unwrap()
    }

    /// The base as a recipe holds it.
    pub fn model(&self, device: Device) -> Model {
        let settings = LoadSettings { device, ..LoadSettings::default() };
        Model::from_pretrained(".", self.folder.path(), &settings).unwrap()
    }

    /// The base with the adapter PEFT wrote, as a recipe holds it.
    pub fn adapted_model(&self, device: Device) -> Model {
        let model = self.model(device);
        let loaded = model.load_adapter(&self.adapter_folder()).unwrap();
        assert_eq!(loaded.base.as_deref(), Some("tiny-mistral"));
        model
    }

    /// A whole step as a data set gives it.
    pub fn micro(&self, batch: usize) -> MicroBatch {
        let rows = self.rows(batch);
        let texts = 1..rows.cu_seqlens.len();
        MicroBatch {
            step_targets: rows.target_count(),
            rows: texts.map(|line| RowId { file: self.name.into(), line }).collect(),
            ids: rows.ids,
            cu_seqlens: rows.cu_seqlens,
            targets: rows.targets,
        }
    }

    /// The base with the adapter PEFT wrote.
    pub fn engine<B: Backend>(&self, backend: B) -> Engine<B> {
        let mut engine = self.base(backend);
        put_adapter(&mut engine, &self.adapter_folder(), |config| config);
        engine
    }

    pub fn rows(&self, batch: usize) -> Rows {
        Rows::new(&self.facts.batches[batch % self.facts.batches.len()])
    }

    pub fn expect(&self, name: &str) -> &[f32] {
        self.expected.get(name).unwrap_or_else(|| panic!("{} has no `{name}`", self.name))
    }
}

/// Adds a PEFT adapter folder to an engine; `edit` may change the configuration read.
pub fn put_adapter<B: Backend>(engine: &mut Engine<B>, folder: &Path, edit: impl Fn(LoraConfig) -> LoraConfig) {
    let (config, values) = adapter::read(folder).unwrap();
    let lora = LoraConfig {
        r: config.r,
        lora_alpha: config.lora_alpha,
        target_modules: config.target_modules.clone(),
        layers_to_transform: config.layers_to_transform.clone(),
        use_rslora: config.use_rslora,
        seed: 0,
    };
    engine.add_lora(&edit(lora)).unwrap();
    for tensor in values {
        let (layer, module, matrix) = place(&tensor.name);
        engine.set_adapter_tensor(layer, module, matrix, &tensor.values).unwrap();
    }
}

/// `base_model.model.model.layers.3.mlp.up_proj.lora_B.weight` is layer 3's `up_proj` B.
pub fn place(name: &str) -> (usize, &str, Matrix) {
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.iter().position(|part| *part == "layers").unwrap();
    let matrix = if parts[at + 4] == "lora_A" { Matrix::A } else { Matrix::B };
    (parts[at + 1].parse().unwrap(), parts[at + 3], matrix)
}

/// Compares adapter tensors with the expected ones whose names start with `prefix`; all of them must be there.
pub fn compare(case: &Case, prefix: &str, got: &[AdapterTensor]) -> Worst {
    let mut worst = Worst::default();
    let wanted = case.expected.keys().filter(|name| name.starts_with(&format!("{prefix}.base_model"))).count();
    assert_eq!(wanted, got.len(), "{}: tensors of {prefix}", case.name);
    for tensor in got {
        let name = format!("{prefix}.{}", tensor.name());
        worst.see(&name, frobenius_error(&tensor.values, case.expect(&name)));
    }
    worst
}

/// Largest difference as a part of the largest expected value.
pub fn max_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "sizes differ");
    let scale = want.iter().fold(0f64, |most, w| most.max(f64::from(w.abs())));
    let worst = got.iter().zip(want).fold(0f64, |most, (g, w)| {
        let difference = (f64::from(*g) - f64::from(*w)).abs();
        if difference.is_nan() { f64::INFINITY } else { most.max(difference) }
    });
    if worst == 0.0 { 0.0 } else { worst / scale }
}

/// Norm of the difference as a part of the norm of what was expected.
pub fn frobenius_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "sizes differ");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = square(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w)));
    let error = if difference == 0.0 { 0.0 } else { difference / square(&mut want.iter().map(|w| f64::from(*w))) };
    if error.is_nan() { f64::INFINITY } else { error }
}

/// The worst error seen over many tensors, and where.
#[derive(Default)]
pub struct Worst {
    pub error: f64,
    pub at: String,
    pub compared: usize,
}

impl Worst {
    pub fn see(&mut self, at: impl Into<String>, error: f64) {
        self.compared += 1;
        if error >= self.error {
            (self.error, self.at) = (error, at.into());
        }
    }

    /// Fails above `tolerance`, and when nothing was compared.
    pub fn within(&self, what: &str, tolerance: f64) {
        assert!(self.compared > 0, "{what}: nothing compared");
        println!("{what}: {:.2e} at {} ({} compared, allowed {tolerance:.0e})", self.error, self.at, self.compared);
        assert!(self.error <= tolerance, "{what}: error {:.3e} at {} above {tolerance:.0e}", self.error, self.at);
    }
}
