//! GGUF files of the architecture `llama` (what Mistral models are stored as).

mod reader;

use std::collections::HashMap;

use reader::{Header, Kind, Problem, Value};

use crate::quant::GgmlKind;

use super::{Error, GgufTokenizer, ModelConfig, Result, RopeScaling};

const FORMAT: &str = "GGUF";
/// Storage types that are read.
pub(super) const READ: &str = "F32, F16, BF16, Q8_0, Q4_0 and Q4_1";

/// The header of a GGUF file, with its tensors under their Hugging Face names.
#[derive(Debug)]
pub(super) struct Gguf {
    values: HashMap<String, Value>,
    /// Hugging Face name to entry.
    tensors: HashMap<String, Entry>,
}

/// Where a tensor lies and how its rows are ordered.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The name in the file.
    pub name: String,
    pub tensor: reader::Tensor,
}

impl Entry {
    pub fn kind(&self) -> Kind {
        reader::kind(self.tensor.kind)
    }
}

impl Gguf {
    pub fn read(bytes: &[u8], origin: &str) -> Result<Self> {
        let broken =
            |problem: Problem| Error::Broken { origin: origin.into(), format: FORMAT, problem: problem.to_string() };
        let header = Header::read(bytes).map_err(broken)?;
        let mut tensors: HashMap<String, Entry> = HashMap::with_capacity(header.tensors.len());
        for (name, tensor) in header.tensors {
            let key = hugging_face_name(&name).unwrap_or_else(|| name.clone());
            if let Some(other) = tensors.insert(key, Entry { name: name.clone(), tensor }) {
                // The table's order is lost; the names tell the same whichever came first.
                let (first, second) = if name > other.name { (name, other.name) } else { (other.name, name) };
                return Err(broken(Problem::Same { first, second }));
            }
        }
        Ok(Self { values: header.values, tensors })
    }

    pub fn tensors(&self) -> &HashMap<String, Entry> {
        &self.tensors
    }

    /// The model the file's keys describe; `bytes` are the file's, for the frequency factors stored as a tensor.
    pub fn config(&self, bytes: &[u8], origin: &str) -> Result<ModelConfig> {
        let keys = Keys { values: &self.values, origin };
        match keys.text("general.architecture")? {
            Some("llama") => {}
            Some(other) => {
                let supported = "GGUF files of the architecture `llama`, which Mistral models use too";
                return Err(Error::Architecture { origin: origin.into(), got: other.into(), supported });
            }
            None => return Err(keys.missing("general.architecture")),
        }
        if keys.whole("llama.expert_count")?.is_some_and(|count| count > 0) {
            return Err(keys.unsupported("llama.expert_count", "a mixture of experts", "dense models are"));
        }
        let mut defaulted = Vec::new();
        let hidden_size = keys.size("llama.embedding_length")?;
        let heads = keys.size("llama.attention.head_count")?;
        let head_dim = match keys.whole("llama.attention.key_length")? {
            Some(_) => keys.size("llama.attention.key_length")?,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                return Err(keys.wrong("llama.embedding_length", format!("a multiple of the {heads} attention heads")));
            }
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if keys.whole(key)?.is_some_and(|length| length != head_dim) {
                return Err(keys.wrong(key, format!("{head_dim}, the size of a head")));
            }
        }
        let embedding = self.tensors.get("model.embed_tokens.weight").map(|entry| entry.tensor.shape.as_slice());
        let vocab_size = match (keys.whole("llama.vocab_size")?, embedding) {
            (Some(_), _) => keys.size("llama.vocab_size")?,
            (None, Some([rows, _])) => *rows,
            (None, _) => return Err(keys.missing("llama.vocab_size")),
        };
        let token = |key| -> Result<Option<u32>> {
            let id = keys.whole(key)?.map(u32::try_from);
            id.transpose().map_err(|_| keys.wrong(key, "a token id".into()))
        };
        let mut eos_token_ids = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
            eos_token_ids.extend(token(key)?.filter(|id| !eos_token_ids.contains(id)));
        }
        let config = ModelConfig {
            architecture: "LlamaForCausalLM".into(),
            vocab_size,
            hidden_size,
            intermediate_size: keys.size("llama.feed_forward_length")?,
            num_hidden_layers: keys.size("llama.block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: match keys.has("llama.attention.head_count_kv") {
                true => keys.size("llama.attention.head_count_kv")?,
                false => heads,
            },
            head_dim,
            max_position_embeddings: keys.size("llama.context_length")?,
            rms_norm_eps: match keys.number("llama.attention.layer_norm_rms_epsilon")? {
                // Stored as f32: its shortest decimal is what was meant (1e-5, not 9.99999974737875e-6).
                Some(eps) => shortest(eps),
                None => return Err(keys.missing("llama.attention.layer_norm_rms_epsilon")),
            },
            rope_theta: match keys.number("llama.rope.freq_base")? {
                Some(theta) => shortest(theta),
                None => {
                    defaulted.push("llama.rope.freq_base = 10000.0".into());
                    10_000.0
                }
            },
            rope_scaling: self.rope_scaling(&keys, bytes, head_dim)?,
            sliding_window: match keys.whole("llama.attention.sliding_window")? {
                None | Some(0) => None,
                window => window,
            },
            tie_word_embeddings: !self.tensors.contains_key("lm_head.weight"),
            bos_token_id: token("tokenizer.ggml.bos_token_id")?,
            eos_token_ids,
            generation_eos_token_ids: Vec::new(),
            name: keys.text("general.name")?.unwrap_or(origin).into(),
            defaulted,
        };
        config.check(origin)?;
        Ok(config)
    }

    fn rope_scaling(&self, keys: &Keys<'_>, bytes: &[u8], head_dim: usize) -> Result<Option<RopeScaling>> {
        if let Some(entry) = self.tensors.get("rope_freqs.weight") {
            let factors = entry.tensor.range().filter(|_| entry.tensor.kind == 0).and_then(|range| bytes.get(range));
            let factors: Vec<f32> =
                factors.unwrap_or_default().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            if factors.len() != head_dim / 2 || !factors.iter().all(|f| f.is_finite() && *f > 0.0) {
                return Err(Error::Tensor {
                    origin: keys.origin.into(),
                    name: "rope_freqs.weight".into(),
                    problem: format!("it should hold {} numbers above 0 as F32", head_dim / 2),
                });
            }
            return Ok(Some(RopeScaling::Factors(factors)));
        }
        let factor = keys.number("llama.rope.scaling.factor")?.map(shortest);
        let (key, advice) = ("llama.rope.scaling.type", "`none` and `linear` are");
        match (keys.text(key)?, factor) {
            (Some("none"), _) => Ok(None),
            (Some("linear"), Some(factor)) if factor.is_finite() && factor >= 1.0 => {
                Ok(Some(RopeScaling::Linear { factor }))
            }
            (Some("linear"), _) => Err(keys.wrong("llama.rope.scaling.factor", "a number of at least 1".into())),
            (Some(other), _) => Err(keys.unsupported(key, other, advice)),
            (None, _) => match keys.number("llama.rope.scale_linear")?.map(shortest) {
                None | Some(1.0) => Ok(None),
                Some(factor) if factor.is_finite() && factor > 1.0 => Ok(Some(RopeScaling::Linear { factor })),
                Some(_) => Err(keys.wrong("llama.rope.scale_linear", "a number of at least 1".into())),
            },
        }
    }

    pub fn tokenizer(&self, origin: &str) -> Result<GgufTokenizer> {
        let keys = Keys { values: &self.values, origin };
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let text = |name: &str| keys.text(&key(name)).map(|text| text.map(String::from));
        let flag = |name: &str| match self.values.get(&key(name)) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(keys.wrong(&key(name), "true or false".into())),
        };
        let texts = |name: &str| match self.values.get(&key(name)) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts.clone())),
            Some(_) => Err(keys.wrong(&key(name), "a list of texts".into())),
        };
        let Some(tokens) = texts("tokens")? else {
            return Err(Error::NoTokenizer {
                origin: origin.into(),
                found: "the key `tokenizer.ggml.tokens` is absent".into(),
                advice: "give a .gguf that has it",
            });
        };
        let token = |name: &str| match keys.whole(&key(name))? {
            None => Ok(None),
            Some(id) if id < tokens.len() => Ok(Some(id as u32)),
            Some(_) => Err(keys.wrong(&key(name), format!("the id of one of the {} tokens", tokens.len()))),
        };
        let scores = match self.values.get(&key("scores")) {
            None => Vec::new(),
            Some(Value::Floats(scores)) => scores.clone(),
            Some(_) => return Err(keys.wrong(&key("scores"), "a list of numbers".into())),
        };
        let token_types = match self.values.get(&key("token_type")) {
            None => Vec::new(),
            Some(Value::Ints(kinds)) => kinds.iter().map(|&kind| i32::try_from(kind).unwrap_or(0)).collect(),
            Some(_) => return Err(keys.wrong(&key("token_type"), "a list of whole numbers".into())),
        };
        for (name, len) in [("scores", scores.len()), ("token_type", token_types.len())] {
            if len != 0 && len != tokens.len() {
                return Err(keys.wrong(&key(name), format!("one per token: {}", tokens.len())));
            }
        }
        let (bos, eos, eot) = (token("bos_token_id")?, token("eos_token_id")?, token("eot_token_id")?);
        let (unk, pad) = (token("unknown_token_id")?, token("padding_token_id")?);
        Ok(GgufTokenizer {
            model: text("model")?.ok_or_else(|| keys.missing(&key("model")))?,
            pre: text("pre")?,
            scores,
            token_types,
            merges: texts("merges")?.unwrap_or_default(),
            bos,
            eos,
            eot,
            unk,
            pad,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            chat_template: keys.text("tokenizer.chat_template")?.map(String::from),
            tokens,
        })
    }
}

/// An f32 widened to the f64 that its shortest decimal names.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

fn hugging_face_name(name: &str) -> Option<String> {
    let fixed = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => {
            let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
            let (part, kind) = part.rsplit_once('.')?;
            let part = match part {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return None,
            };
            return Some(format!("model.layers.{layer}.{part}.{kind}"));
        }
    };
    Some(fixed.into())
}

/// The rows of q or k in Hugging Face order (halves) from the file's order (neighbouring pairs).
///
/// Row `(head, half, j)` here is row `(head, j, half)` there; whole rows of bytes move, whatever their storage.
pub(super) fn unpermute(bytes: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..rows / head_dim.max(1) {
        for half in 0..2 {
            for j in 0..head_dim / 2 {
                let start = (head * head_dim + 2 * j + half) * row_bytes;
                out.extend_from_slice(bytes.get(start..start + row_bytes).unwrap_or_default());
            }
        }
    }
    out
}

struct Keys<'a> {
    values: &'a HashMap<String, Value>,
    origin: &'a str,
}

impl<'a> Keys<'a> {
    fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    fn missing(&self, key: &str) -> Error {
        Error::KeyMissing { origin: self.origin.into(), key: key.into() }
    }

    fn wrong(&self, key: &str, wanted: String) -> Error {
        let got = match self.values.get(key) {
            None => "absent".into(),
            Some(Value::Int(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Text(text)) => format!("`{}`", text.chars().take(60).collect::<String>()),
            Some(Value::Ints(list)) => format!("a list of {} whole numbers", list.len()),
            Some(Value::Floats(list)) => format!("a list of {} numbers", list.len()),
            Some(Value::Texts(list)) => format!("a list of {} texts", list.len()),
            Some(Value::Other(len)) => format!("a list of {len}"),
        };
        Error::Key { origin: self.origin.into(), key: key.into(), got, wanted }
    }

    fn unsupported(&self, key: &str, what: &str, advice: &'static str) -> Error {
        let what = what.chars().take(60).collect();
        Error::Unsupported { origin: self.origin.into(), key: key.into(), what, advice }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text".into())),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(Value::Int(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.wrong(key, "a number".into())),
        }
    }

    /// A whole number of 0 or more; a list of equal ones (one per layer) counts as that number.
    fn whole(&self, key: &str) -> Result<Option<usize>> {
        let value = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Int(value)) => usize::try_from(*value).ok(),
            Some(Value::Ints(list)) => match list.split_first() {
                Some((first, rest)) if rest.iter().all(|value| value == first) => usize::try_from(*first).ok(),
                _ => None,
            },
            Some(_) => None,
        };
        value.map(Some).ok_or_else(|| self.wrong(key, "one whole number".into()))
    }

    fn size(&self, key: &str) -> Result<usize> {
        match self.whole(key)? {
            Some(0) => Err(self.wrong(key, "a whole number above 0".into())),
            Some(size) => Ok(size),
            None => Err(self.missing(key)),
        }
    }
}

/// How a GGUF file stores a tensor, of the ways that are read.
pub(super) enum Stored {
    F32,
    F16,
    Bf16,
    Blocks(GgmlKind),
}

/// By GGUF's number.
pub(super) fn ggml_kind(number: u32) -> Option<Stored> {
    Some(match number {
        0 => Stored::F32,
        1 => Stored::F16,
        30 => Stored::Bf16,
        2 => Stored::Blocks(GgmlKind::Q4_0),
        3 => Stored::Blocks(GgmlKind::Q4_1),
        8 => Stored::Blocks(GgmlKind::Q8_0),
        _ => return None,
    })
}
