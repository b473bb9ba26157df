use std::path::Path;

use serde_json::{Map, Value};

use super::{Error, Result, RopeScaling};
use crate::io;

const SUPPORTED: &str = "MistralForCausalLM, LlamaForCausalLM";
/// A file of settings beside a config is no larger than this.
const LARGEST_JSON: u64 = 16 << 20;
/// No size of a model is larger than this; a larger one is a damaged file.
const LARGEST: usize = 1 << 24;

/// The sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `MistralForCausalLM` or `LlamaForCausalLM`.
    pub architecture: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    pub sliding_window: Option<usize>,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// The first is the one that training puts at the end of a text.
    pub eos_token_ids: Vec<u32>,
    /// Tokens that end a generated text besides `eos_token_ids`, as `generation_config.json` says.
    pub generation_eos_token_ids: Vec<u32>,
    /// What to call the model: what its file says, else the name of its file or folder.
    pub name: String,
    /// Keys the file does not give, with the value taken instead (the one transformers takes).
    pub defaulted: Vec<String>,
}

impl ModelConfig {
    /// The model a Hugging Face `config.json` describes, in the spelling of transformers 4 or 5.
    pub fn from_json(text: &str, origin: &str) -> Result<Self> {
        let map = object(text, origin)?;
        let mut keys = Keys { map: &map, origin, prefix: "", defaulted: Vec::new() };
        let architecture = keys.architecture()?;
        let is_mistral = architecture == "MistralForCausalLM";
        keys.refuse_what_is_not_implemented()?;

        let hidden_size = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let kv_heads = match map.get("num_key_value_heads") {
            Some(Value::Null) => heads,
            None if is_mistral => keys.default("num_key_value_heads", 8),
            None => keys.default("num_key_value_heads", heads),
            Some(_) => keys.size("num_key_value_heads")?,
        };
        let head_dim = match map.get("head_dim") {
            None | Some(Value::Null) if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None | Some(Value::Null) => {
                let wanted = format!("a multiple of the {heads} of `num_attention_heads`, or `head_dim` beside it");
                return Err(keys.wrong("hidden_size", wanted));
            }
            Some(_) => keys.size("head_dim")?,
        };
        let sliding_window = match map.get("sliding_window") {
            _ if !is_mistral => None,
            Some(Value::Null) => None,
            Some(_) => Some(keys.size("sliding_window")?),
            None => Some(keys.default("sliding_window", 4096)),
        };
        let (rope_theta, rope_scaling) = keys.rope()?;
        let config = Self {
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: keys.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: match map.get("max_position_embeddings") {
                None => keys.default("max_position_embeddings", if is_mistral { 131_072 } else { 2048 }),
                Some(_) => keys.size("max_position_embeddings")?,
            },
            rms_norm_eps: match keys.number("rms_norm_eps")? {
                Some(eps) => eps,
                None => keys.default("rms_norm_eps", 1e-6),
            },
            rope_theta,
            rope_scaling,
            sliding_window,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            bos_token_id: match map.get("bos_token_id") {
                None => Some(keys.default("bos_token_id", 1)),
                Some(Value::Null) => None,
                Some(value) => Some(keys.token("bos_token_id", value)?),
            },
            eos_token_ids: match map.get("eos_token_id") {
                None => vec![keys.default("eos_token_id", 2)],
                Some(ids) => keys.tokens("eos_token_id", ids)?,
            },
            generation_eos_token_ids: Vec::new(),
            name: match map.get("_name_or_path").and_then(Value::as_str) {
                Some(name) if !name.is_empty() => name.into(),
                _ => origin.into(),
            },
            architecture,
            defaulted: keys.defaulted,
        };
        config.check(origin)?;
        Ok(config)
    }

    /// Takes over what the folder's `generation_config.json`, if there is one, says about where a text ends.
    pub(super) fn read_generation_config(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join("generation_config.json");
        if !io::is_file(&path) {
            return Ok(());
        }
        let origin = path.display().to_string();
        let map = object(&io::read_text(&path, LARGEST_JSON)?, &origin)?;
        let keys = Keys { map: &map, origin: &origin, prefix: "", defaulted: Vec::new() };
        if let Some(ids) = map.get("eos_token_id") {
            self.generation_eos_token_ids = keys.tokens("eos_token_id", ids)?;
        }
        Ok(())
    }

    /// Fails on sizes no model has.
    pub(super) fn check(&self, origin: &str) -> Result<()> {
        let wrong = |key: &str, got: String, wanted: String| {
            Err(Error::Key { origin: origin.into(), key: key.into(), got, wanted })
        };
        if self.num_key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let wanted = format!("a divisor of the {} attention heads", self.num_attention_heads);
            return wrong("num_key_value_heads", self.num_key_value_heads.to_string(), wanted);
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", self.head_dim.to_string(), "an even number".into());
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return wrong("rms_norm_eps", self.rms_norm_eps.to_string(), "a number between 0 and 1".into());
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return wrong("rope_theta", self.rope_theta.to_string(), "a number above 0".into());
        }
        let limited = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("head_dim", self.head_dim),
            ("num_attention_heads * head_dim", self.num_attention_heads.saturating_mul(self.head_dim)),
        ];
        for (key, size) in limited {
            if size == 0 || size > LARGEST {
                return wrong(key, size.to_string(), format!("1 to {LARGEST}"));
            }
        }
        match self.checked_parameters() {
            Some(parameters) if parameters <= 1 << 50 => Ok(()),
            _ => Err(Error::Absurd { origin: origin.into() }),
        }
    }

    /// The number of weights, tied ones once.
    pub fn parameters(&self) -> usize {
        self.checked_parameters().unwrap_or(usize::MAX)
    }

    fn checked_parameters(&self) -> Option<usize> {
        let query = self.num_attention_heads.checked_mul(self.head_dim)?;
        let keys = self.num_key_value_heads.checked_mul(self.head_dim)?;
        let attention = query.checked_add(keys)?.checked_mul(2)?.checked_mul(self.hidden_size)?;
        let mlp = self.intermediate_size.checked_mul(3)?.checked_mul(self.hidden_size)?;
        let layer = attention.checked_add(mlp)?.checked_add(self.hidden_size.checked_mul(2)?)?;
        let table = self.vocab_size.checked_mul(self.hidden_size)?;
        let tables = if self.tie_word_embeddings { table } else { table.checked_mul(2)? };
        layer.checked_mul(self.num_hidden_layers)?.checked_add(tables)?.checked_add(self.hidden_size)
    }

    /// The shape of a tensor of this model by its Hugging Face name; `None` when the model has no such tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let hidden = self.hidden_size;
        let query = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        let shape = match name {
            "model.embed_tokens.weight" | "lm_head.weight" => vec![self.vocab_size, hidden],
            "model.norm.weight" => vec![hidden],
            _ => {
                let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
                let is_canonical = layer == "0" || !layer.starts_with(['0', '+']);
                if !is_canonical || layer.parse::<usize>().ok()? >= self.num_hidden_layers {
                    return None;
                }
                match part {
                    "self_attn.q_proj.weight" => vec![query, hidden],
                    "self_attn.k_proj.weight" | "self_attn.v_proj.weight" => vec![keys, hidden],
                    "self_attn.o_proj.weight" => vec![hidden, query],
                    "mlp.gate_proj.weight" | "mlp.up_proj.weight" => vec![self.intermediate_size, hidden],
                    "mlp.down_proj.weight" => vec![hidden, self.intermediate_size],
                    "input_layernorm.weight" | "post_attention_layernorm.weight" => vec![hidden],
                    _ => return None,
                }
            }
        };
        Some(shape)
    }

    /// The Hugging Face names of all tensors of this model, layer by layer; a tied head is not one of them.
    pub fn tensor_names(&self) -> impl Iterator<Item = String> {
        const PARTS: [&str; 9] = [
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ];
        let head = (!self.tie_word_embeddings).then_some("lm_head.weight");
        let layers = (0..self.num_hidden_layers)
            .flat_map(|layer| PARTS.iter().map(move |part| format!("model.layers.{layer}.{part}.weight")));
        ["model.embed_tokens.weight", "model.norm.weight"].into_iter().chain(head).map(String::from).chain(layers)
    }
}

/// The JSON object that a file holds.
fn object(text: &str, origin: &str) -> Result<Map<String, Value>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::Key {
            origin: origin.into(),
            key: "the whole file".into(),
            got: brief(&other),
            wanted: "a JSON object".into(),
        }),
        Err(source) => Err(Error::Json { origin: origin.into(), source }),
    }
}

/// The keys of a JSON object, read with the file and the path to the object in every error.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    origin: &'a str,
    prefix: &'static str,
    defaulted: Vec<String>,
}

impl<'a> Keys<'a> {
    fn default<T: std::fmt::Debug>(&mut self, key: &str, value: T) -> T {
        self.defaulted.push(format!("{}{key} = {value:?}", self.prefix));
        value
    }

    fn wrong(&self, key: &str, wanted: String) -> Error {
        let got = self.map.get(key).map_or_else(|| "absent".into(), brief);
        Error::Key { origin: self.origin.into(), key: format!("{}{key}", self.prefix), got, wanted }
    }

    fn unsupported(&self, key: &str, advice: &'static str) -> Error {
        let what = self.map.get(key).map_or_else(|| "something".into(), brief);
        Error::Unsupported { origin: self.origin.into(), key: format!("{}{key}", self.prefix), what, advice }
    }

    fn size(&self, key: &str) -> Result<usize> {
        match self.map.get(key) {
            None => Err(Error::KeyMissing { origin: self.origin.into(), key: format!("{}{key}", self.prefix) }),
            Some(value) => {
                let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
                size.filter(|&size| size > 0).ok_or_else(|| self.wrong(key, "a whole number above 0".into()))
            }
        }
    }

    /// A number, or nothing where the key is absent or null.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number".into())),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false".into())),
        }
    }

    fn token(&self, key: &str, value: &Value) -> Result<u32> {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.wrong(key, "a token id (0 or above), or a list of them".into()))
    }

    /// One token id or a list of them; null is none.
    fn tokens(&self, key: &str, value: &Value) -> Result<Vec<u32>> {
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(ids) => ids.iter().map(|id| self.token(key, id)).collect(),
            id => Ok(vec![self.token(key, id)?]),
        }
    }

    fn architecture(&self) -> Result<String> {
        let unknown = |got: String| Error::Architecture { origin: self.origin.into(), got, supported: SUPPORTED };
        match self.map.get("architectures") {
            Some(Value::Array(names)) if !names.is_empty() => match names[0].as_str() {
                Some(name @ ("MistralForCausalLM" | "LlamaForCausalLM")) => Ok(name.into()),
                Some(name) => Err(unknown(name.into())),
                None => Err(self.wrong("architectures", format!("a list with one of {SUPPORTED}"))),
            },
            None | Some(Value::Null | Value::Array(_)) => match self.map.get("model_type").and_then(Value::as_str) {
                Some("mistral") => Ok("MistralForCausalLM".into()),
                Some("llama") => Ok("LlamaForCausalLM".into()),
                Some(other) => Err(unknown(other.into())),
                None => Err(Error::KeyMissing { origin: self.origin.into(), key: "architectures".into() }),
            },
            Some(_) => Err(self.wrong("architectures", format!("a list with one of {SUPPORTED}"))),
        }
    }

    fn refuse_what_is_not_implemented(&self) -> Result<()> {
        match self.map.get("hidden_act") {
            None => {}
            Some(value) if value == "silu" || value == "swish" => {}
            Some(_) => return Err(self.unsupported("hidden_act", "`silu` is")),
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? == Some(true) {
                return Err(self.unsupported(key, "models without biases are"));
            }
        }
        if self.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(self.unsupported("partial_rotary_factor", "models that rotate whole heads are"));
        }
        match self.map.get("quantization_config") {
            None | Some(Value::Null) => Ok(()),
            Some(Value::Object(map)) => {
                let keys = Keys { map, origin: self.origin, prefix: "quantization_config.", defaulted: Vec::new() };
                let advice = "give the 16-bit model, a bitsandbytes 4-bit (nf4) one, or a .gguf";
                let is_bitsandbytes = map.get("quant_method").is_none_or(|method| method == "bitsandbytes");
                if !is_bitsandbytes {
                    return Err(keys.unsupported("quant_method", advice));
                }
                if keys.flag("load_in_8bit")? == Some(true) {
                    return Err(keys.unsupported("load_in_8bit", advice));
                }
                if map.get("bnb_4bit_quant_type").is_some_and(|kind| kind != "nf4") {
                    return Err(keys.unsupported("bnb_4bit_quant_type", advice));
                }
                Ok(())
            }
            Some(_) => Err(self.wrong("quantization_config", "an object".into())),
        }
    }

    /// `rope_theta` and `rope_scaling` (transformers 4), or both in `rope_parameters` (transformers 5).
    fn rope(&mut self) -> Result<(f64, Option<RopeScaling>)> {
        let (prefix, rules) = match (self.map.get("rope_parameters"), self.map.get("rope_scaling")) {
            (Some(Value::Object(rules)), _) => ("rope_parameters.", Some(rules)),
            (None | Some(Value::Null), Some(Value::Object(rules))) => ("rope_scaling.", Some(rules)),
            (None | Some(Value::Null), None | Some(Value::Null)) => ("", None),
            (None | Some(Value::Null), Some(_)) => return Err(self.wrong("rope_scaling", "an object or null".into())),
            (Some(_), _) => return Err(self.wrong("rope_parameters", "an object or null".into())),
        };
        let Some(rules) = rules else {
            let theta = match self.number("rope_theta")? {
                Some(theta) => theta,
                None => self.default("rope_theta", 10_000.0),
            };
            return Ok((theta, None));
        };
        let keys = Keys { map: rules, origin: self.origin, prefix, defaulted: Vec::new() };
        let theta = match (keys.number("rope_theta")?, self.number("rope_theta")?) {
            (Some(theta), _) | (None, Some(theta)) => theta,
            (None, None) => self.default("rope_theta", 10_000.0),
        };
        if keys.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(keys.unsupported("partial_rotary_factor", "models that rotate whole heads are"));
        }
        let kind = if rules.contains_key("rope_type") { "rope_type" } else { "type" };
        let scaling = match rules.get(kind) {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_str() {
                Some("default") => None,
                Some("linear") => Some(RopeScaling::Linear { factor: keys.factor("factor", 1.0)? }),
                Some("llama3") => {
                    let low_freq_factor = keys.factor("low_freq_factor", 0.0)?;
                    let high_freq_factor = keys.factor("high_freq_factor", 0.0)?;
                    if high_freq_factor <= low_freq_factor || low_freq_factor == 0.0 {
                        return Err(
                            keys.wrong("high_freq_factor", "more than `low_freq_factor`, which is above 0".into())
                        );
                    }
                    Some(RopeScaling::Llama3 {
                        factor: keys.factor("factor", 1.0)?,
                        low_freq_factor,
                        high_freq_factor,
                        original_max_position_embeddings: match rules.get("original_max_position_embeddings") {
                            None => self.size("original_max_position_embeddings")?,
                            Some(_) => keys.size("original_max_position_embeddings")?,
                        },
                    })
                }
                _ => return Err(keys.unsupported(kind, "`default`, `linear` and `llama3` are")),
            },
        };
        Ok((theta, scaling))
    }

    fn factor(&self, key: &str, least: f64) -> Result<f64> {
        match self.number(key)? {
            Some(factor) if factor.is_finite() && factor >= least => Ok(factor),
            None => Err(Error::KeyMissing { origin: self.origin.into(), key: format!("{}{key}", self.prefix) }),
            Some(_) => Err(self.wrong(key, format!("a number of at least {least}"))),
        }
    }
}

/// A JSON value in few characters, for messages.
pub(super) fn brief(value: &Value) -> String {
    let mut text: String = value.to_string().chars().take(61).collect();
    if text.chars().count() > 60 {
        text.pop();
        text.push('…');
    }
    format!("`{text}`")
}
