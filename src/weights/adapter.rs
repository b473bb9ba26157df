//! LoRA adapters as PEFT writes them: `adapter_config.json` beside `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use ::safetensors::tensor::{Dtype as WrittenDtype, TensorView};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::config::brief;
use super::safetensors::{self, Dtype};
use super::{Error, Result};
use crate::io;
use crate::quant::{bf16s, f16s, f32s};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.model.layers.";
/// The linear layers of a block, each with the part of the block it lies in.
const MODULES: [(&str, &str); 7] = [
    ("q_proj", "self_attn"),
    ("k_proj", "self_attn"),
    ("v_proj", "self_attn"),
    ("o_proj", "self_attn"),
    ("gate_proj", "mlp"),
    ("up_proj", "mlp"),
    ("down_proj", "mlp"),
];

/// What `adapter_config.json` says, as far as it changes what the adapter computes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    /// Names of linear layers, such as `q_proj`; a pattern in the file is resolved by the tensors beside it, which then
    /// give the layers, too.
    pub target_modules: Vec<String>,
    pub layers_to_transform: Option<Vec<usize>>,
    pub use_rslora: bool,
    pub base_model_name_or_path: Option<String>,
    /// Ranks and alphas of single modules by PEFT's patterns (the end of a module's path).
    pub rank_pattern: BTreeMap<String, usize>,
    pub alpha_pattern: BTreeMap<String, f64>,
}

/// One matrix of an adapter: `A` (rank, in) or `B` (out, rank), row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// The whole key in the file.
    pub name: String,
    pub shape: [usize; 2],
    pub values: Vec<f32>,
}

/// PEFT's key of matrix `A` or `B` of `module` in `layer`; `None` for a module a block does not have.
pub fn key(layer: usize, module: &str, matrix: char) -> Option<String> {
    let (_, part) = MODULES.iter().find(|(name, _)| *name == module)?;
    matches!(matrix, 'A' | 'B').then(|| format!("{PREFIX}{layer}.{part}.{module}.lora_{matrix}.weight"))
}

/// Layer, module and matrix of a PEFT key; `None` for anything but a LoRA matrix of a linear layer.
pub fn parse_key(name: &str) -> Option<(usize, &'static str, char)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('.');
    let layer = parts.next()?.parse().ok()?;
    let (within, module, matrix) = (parts.next()?, parts.next()?, parts.next()?);
    let (module, part) = MODULES.into_iter().find(|(name, _)| *name == module)?;
    let matrix = match matrix {
        "lora_A" => 'A',
        "lora_B" => 'B',
        _ => return None,
    };
    let is_whole = within == part && parts.next() == Some("weight") && parts.next().is_none();
    (is_whole && key(layer, module, matrix).as_deref() == Some(name)).then_some((layer, module, matrix))
}

/// Writes an adapter that every PEFT since 0.7 opens: the whole folder or nothing of it.
pub fn write(dir: &Path, config: &AdapterConfig, tensors: &[AdapterTensor]) -> Result<()> {
    let [weights, text] = files(dir, config, tensors)?;
    Ok(io::write_folder(dir, &[(weights.0, &weights.1), (text.0, &text.1)])?)
}

/// The two files of an adapter that is to lie in `dir`, by name.
pub fn files(dir: &Path, config: &AdapterConfig, tensors: &[AdapterTensor]) -> Result<[(&'static str, Vec<u8>); 2]> {
    let origin = || dir.display().to_string();
    let problem = |problem: String| Error::Adapter { origin: origin(), problem };
    let mut bytes = Vec::with_capacity(tensors.len());
    for AdapterTensor { name, shape: [rows, cols], values } in tensors {
        if parse_key(name).is_none() || rows.checked_mul(*cols) != Some(values.len()) {
            let len = values.len();
            return Err(problem(format!("`{name}` of {rows} x {cols} with {len} values cannot be written")));
        }
        bytes.push(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        TensorView::new(WrittenDtype::F32, tensor.shape.to_vec(), bytes).map(|view| (tensor.name.as_str(), view))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(|error| problem(error.to_string()))?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let weights = ::safetensors::serialize(views, Some(metadata)).map_err(|error| problem(error.to_string()))?;
    Ok([(WEIGHTS, weights), (CONFIG, config.to_json().into_bytes())])
}

/// Reads an adapter; one that needs what is not implemented is an error that names it.
pub fn read(dir: &Path) -> Result<(AdapterConfig, Vec<AdapterTensor>)> {
    let (config_path, weights_path) = (dir.join(CONFIG), dir.join(WEIGHTS));
    if io::is_folder(dir) && io::is_file(&dir.join("adapter_model.bin")) && !io::is_file(&weights_path) {
        let problem = "`adapter_model.bin` is a pickle, which is never read; save it again with a newer PEFT";
        return Err(Error::Adapter { origin: dir.display().to_string(), problem: problem.into() });
    }
    let text = io::read_text(&config_path, 16 << 20)?;
    let mut config = AdapterConfig::from_json(&text, &config_path.display().to_string())?;
    let origin = weights_path.display().to_string();
    let tensors = read_tensors(&io::map(&weights_path)?, &origin)?;
    check_pairs(&tensors, &config, &origin)?;
    resolve_modules(&mut config, &tensors, &config_path)?;
    Ok((config, tensors))
}

/// Puts names of linear layers where the file has a pattern or paths, which choose layers, too: the tensors tell which.
fn resolve_modules(config: &mut AdapterConfig, tensors: &[AdapterTensor], path: &Path) -> Result<()> {
    let is_leaf = |module: &String| MODULES.iter().any(|(name, _)| name == module);
    let is_by_path = !config.target_modules.iter().all(is_leaf);
    if !is_by_path && !config.target_modules.is_empty() {
        return Ok(());
    }
    let mut found: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for (layer, module, _) in tensors.iter().filter_map(|tensor| parse_key(&tensor.name)) {
        found.entry(layer).or_default().insert(module);
    }
    let modules: BTreeSet<&str> = found.values().flatten().copied().collect();
    if is_by_path {
        if found.values().any(|of_layer| *of_layer != modules) {
            return Err(Error::Unsupported {
                origin: path.display().to_string(),
                key: "target_modules".into(),
                what: match config.target_modules.as_slice() {
                    [one] => brief(&json!(one)),
                    several => brief(&json!(several)),
                },
                advice: "adapters that train the same modules in each of their layers are",
            });
        }
        config.layers_to_transform.get_or_insert(found.into_keys().collect());
    }
    config.target_modules = modules.into_iter().map(String::from).collect();
    Ok(())
}

fn read_tensors(bytes: &[u8], origin: &str) -> Result<Vec<AdapterTensor>> {
    let entries = safetensors::read(bytes).map_err(|problem| Error::Broken {
        origin: origin.into(),
        format: "safetensors",
        problem: problem.to_string(),
    })?;
    let mut unknown: Vec<&str> = entries.keys().map(String::as_str).filter(|name| parse_key(name).is_none()).collect();
    unknown.sort_unstable();
    if let Some(first) = unknown.first() {
        let names = unknown.iter().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let names = if unknown.len() > 3 { format!("{names} …") } else { names };
        return Err(Error::AdapterNames { origin: origin.into(), count: unknown.len(), names, hint: hint(first) });
    }
    if entries.is_empty() {
        return Err(Error::Adapter { origin: origin.into(), problem: "it holds no tensors".into() });
    }
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let &[rows, cols] = entry.shape.as_slice() else {
            return Err(Error::Tensor { origin: origin.into(), name, problem: "it is no matrix".into() });
        };
        let bytes = bytes.get(entry.range).unwrap_or_default();
        let values: Vec<f32> = match entry.dtype {
            Dtype::F32 => f32s(bytes),
            Dtype::F16 => f16s(bytes).into_iter().map(f16::to_f32).collect(),
            Dtype::Bf16 => bf16s(bytes).into_iter().map(bf16::to_f32).collect(),
            other => {
                let got = other.name().into();
                return Err(Error::Storage { origin: origin.into(), name, got, supported: "F32, F16 and BF16" });
            }
        };
        if !values.iter().all(|value| value.is_finite()) {
            let problem = "it holds a value that is not finite".into();
            return Err(Error::Tensor { origin: origin.into(), name, problem });
        }
        tensors.push(AdapterTensor { name, shape: [rows, cols], values });
    }
    tensors.sort_by_cached_key(|tensor| {
        let (layer, module, matrix) = parse_key(&tensor.name).unwrap_or_default();
        (layer, MODULES.iter().position(|(name, _)| *name == module), matrix)
    });
    Ok(tensors)
}

/// What most likely went wrong with a name that is no PEFT key.
fn hint(name: &str) -> &'static str {
    if name.contains("lora_magnitude_vector") {
        "it was trained with DoRA, which is not supported"
    } else if name.contains("lora_embedding") {
        "it trains the embedding, which is not supported"
    } else if name.contains("lora_A.") || name.contains("lora_B.") {
        if name.starts_with(PREFIX) {
            "a file has no adapter name in its keys: `lora_A.weight`, not `lora_A.default.weight`"
        } else {
            "keys begin with `base_model.model.model.layers.` for Mistral and Llama models"
        }
    } else {
        "only `lora_A` and `lora_B` of q, k, v, o, gate, up and down are read"
    }
}

/// Every `A` has its `B`, and both have the rank the config gives.
fn check_pairs(tensors: &[AdapterTensor], config: &AdapterConfig, origin: &str) -> Result<()> {
    let shapes: HashMap<_, _> = tensors.iter().map(|t| (t.name.as_str(), t.shape)).collect();
    let partner = |name: &str| {
        let (layer, module, matrix) = parse_key(name)?;
        key(layer, module, if matrix == 'A' { 'B' } else { 'A' }).map(|other| (matrix, other))
    };
    let is_alone = |name: &&str| partner(name).is_some_and(|(_, other)| !shapes.contains_key(other.as_str()));
    let mut alone: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).filter(is_alone).collect();
    alone.sort_unstable();
    if let Some(first) = alone.first() {
        let names = alone.iter().take(3).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let names = if alone.len() > 3 { format!("{names} …") } else { names };
        let missing = partner(first).map(|(_, other)| other).unwrap_or_default();
        let problem = format!("these have no partner: {names}; `{missing}` is missing, was a key renamed?");
        return Err(Error::Adapter { origin: origin.into(), problem });
    }
    for tensor in tensors {
        let Some((matrix, other)) = partner(&tensor.name) else { continue };
        let Some(&other_shape) = shapes.get(other.as_str()) else { continue };
        let (rank, other_rank) = match matrix {
            'A' => (tensor.shape[0], other_shape[1]),
            _ => (tensor.shape[1], other_shape[0]),
        };
        let path = tensor.name.trim_start_matches("base_model.model.");
        let path = path.split(".lora_").next().unwrap_or(path);
        let wanted = config.rank_of(path);
        if rank != other_rank || rank != wanted {
            let problem = format!("its rank is {rank}, that of its partner {other_rank}, and `{CONFIG}` says {wanted}");
            return Err(Error::Tensor { origin: origin.into(), name: tensor.name.clone(), problem });
        }
    }
    Ok(())
}

impl AdapterConfig {
    /// The rank of the module at `path`, such as `model.layers.0.self_attn.q_proj`.
    pub fn rank_of(&self, path: &str) -> usize {
        pattern(&self.rank_pattern, path).unwrap_or(self.r)
    }

    /// The alpha of the module at `path`.
    pub fn alpha_of(&self, path: &str) -> f64 {
        pattern(&self.alpha_pattern, path).unwrap_or(self.lora_alpha)
    }

    fn to_json(&self) -> String {
        // Whole alphas are written as PEFT writes them: 16, not 16.0.
        let number = |value: f64| match value {
            whole if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
            value => json!(value),
        };
        let mut modules = self.target_modules.clone();
        modules.sort();
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let value = json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": self.rank_pattern,
            "revision": null,
            "target_modules": modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        });
        format!("{value:#}")
    }

    fn from_json(text: &str, origin: &str) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let map: Map<String, Value> =
            serde_json::from_str(text).map_err(|source| Error::Json { origin: origin.into(), source })?;
        let wrong = |key: &str, wanted: &str| Error::Key {
            origin: origin.into(),
            key: key.into(),
            got: map.get(key).map_or_else(|| "absent".into(), brief),
            wanted: wanted.into(),
        };
        refuse_unsupported(&map, origin)?;
        let given = |key: &str| map.get(key).filter(|value| !value.is_null());
        let flag =
            |key: &str| given(key).map_or(Some(false), Value::as_bool).ok_or_else(|| wrong(key, "true or false"));
        let whole = |value: &Value| value.as_u64().and_then(|value| usize::try_from(value).ok());
        let number = |key: &str, default: f64| match given(key) {
            None => Ok(default),
            Some(value) => value.as_f64().filter(|v| *v >= 0.0).ok_or_else(|| wrong(key, "a number of 0 or more")),
        };
        let names = |value: &Value| match value {
            Value::Array(names) => names.iter().map(|name| name.as_str().map(String::from)).collect(),
            Value::String(all) if all == "all-linear" => Some(Vec::new()), // the tensors tell
            Value::String(name) => Some(vec![name.clone()]),               // perhaps a pattern
            _ => None,
        };
        let layers = |value: &Value| match value {
            Value::Array(layers) => layers.iter().map(whole).collect(),
            value => whole(value).map(|layer| vec![layer]),
        };
        fn patterns<T>(value: Option<&Value>, read: impl Fn(&Value) -> Option<T>) -> Option<BTreeMap<String, T>> {
            match value {
                None => Some(BTreeMap::new()),
                Some(Value::Object(map)) => map.iter().map(|(k, v)| Some((k.clone(), read(v)?))).collect(),
                Some(_) => None,
            }
        }
        let r = whole(map.get("r").unwrap_or(&Value::Null)).filter(|r| (1..=1 << 16).contains(r));
        Ok(Self {
            r: r.ok_or_else(|| wrong("r", "a whole number above 0"))?,
            lora_alpha: number("lora_alpha", 8.0)?,
            lora_dropout: number("lora_dropout", 0.0)?,
            target_modules: given("target_modules")
                .map_or(Some(Vec::new()), names)
                .ok_or_else(|| wrong("target_modules", "a list of names, or a pattern"))?,
            layers_to_transform: given("layers_to_transform")
                .map(|value| layers(value).ok_or_else(|| wrong("layers_to_transform", "a list of layer numbers")))
                .transpose()?,
            use_rslora: flag("use_rslora")?,
            base_model_name_or_path: given("base_model_name_or_path").and_then(Value::as_str).map(String::from),
            rank_pattern: patterns(given("rank_pattern"), whole)
                .ok_or_else(|| wrong("rank_pattern", "a map of module names to ranks"))?,
            alpha_pattern: patterns(given("alpha_pattern"), Value::as_f64)
                .ok_or_else(|| wrong("alpha_pattern", "a map of module names to alphas"))?,
        })
    }
}

/// PEFT's rule: the first pattern that is the module's path or the end of it after a dot.
fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Option<T> {
    patterns.iter().find_map(|(pattern, value)| {
        let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
        let before = path.strip_suffix(pattern)?;
        (before.is_empty() || before.ends_with('.')).then_some(*value)
    })
}

/// Fails on whatever changes what the adapter computes and is not implemented.
fn refuse_unsupported(map: &Map<String, Value>, origin: &str) -> Result<()> {
    const ADVICE: &str = "plain LoRA adapters are";
    /// Off when absent, null, false or empty.
    const OFF: [&str; 19] = [
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "megatron_config",
        "use_qalora",
        "use_bdlora",
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "lora_ga_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
        "loftq_config",
        "aurora_config",
    ];
    let unsupported = |key: &str, value: &Value| {
        Err(Error::Unsupported { origin: origin.into(), key: key.into(), what: brief(value), advice: ADVICE })
    };
    match map.get("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(value) => return unsupported("peft_type", value),
        None => return Err(Error::KeyMissing { origin: origin.into(), key: "peft_type".into() }),
    }
    for key in OFF {
        let is_off = match map.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        if let (false, Some(value)) = (is_off, map.get(key)) {
            return unsupported(key, value);
        }
    }
    if let Some(value) = map.get("bias").filter(|bias| !bias.is_null() && **bias != "none") {
        return unsupported("bias", value);
    }
    // These begin from a changed base model, so that the saved matrices do not fit the plain one.
    match map.get("init_lora_weights") {
        Some(value @ Value::String(init)) if !["gaussian", "eva", "orthogonal"].contains(&init.as_str()) => {
            unsupported("init_lora_weights", value)
        }
        _ => Ok(()),
    }
}
