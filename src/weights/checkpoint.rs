use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::Value;

use super::gguf::{self, Gguf, Stored, ggml_kind};
use super::safetensors::{self, Dtype};
use super::{Error, ModelConfig, Result, TokenizerSource, bnb};
use crate::io;
use crate::quant::{FloatBytes, FloatType, GgmlValues, StoredMatrix, StoredValues, bf16s, f16s, f32s};

const READ: &str = "F32, F16, BF16 and bitsandbytes' nf4";
/// `config.json` and the shard index are no larger than this.
const LARGEST_JSON: u64 = 64 << 20;
const LARGEST_TOKENIZER: u64 = 512 << 20;

/// A model's files, opened and checked: every tensor the config asks for is there with the right shape.
///
/// Tensors are read one at a time; their bytes stay in the file until then.
pub struct Checkpoint {
    config: ModelConfig,
    origin: String,
    files: Vec<File>,
    tensors: Tensors,
    tokenizer: Tokenizer,
}

/// One file of the checkpoint.
struct File {
    name: String,
    bytes: Bytes,
}

enum Bytes {
    Mapped(io::Mmap),
    Static(&'static [u8]),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

enum Tensors {
    Safetensors(HashMap<String, Entry>),
    Gguf(Gguf),
}

/// Where a safetensors tensor lies.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    file: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    range: Range<usize>,
}

enum Tokenizer {
    Folder(PathBuf),
    Static(&'static [u8]),
    Gguf,
}

impl Checkpoint {
    /// Opens a folder (`config.json` beside `model.safetensors`, whole or in shards) or one `.gguf` file.
    pub fn open(path: &Path) -> Result<Self> {
        if io::is_folder(path) { Self::open_folder(path) } else { Self::open_gguf(path) }
    }

    /// A checkpoint that is part of the program.
    pub fn from_bytes(config: &str, safetensors: &'static [u8], tokenizer: &'static [u8]) -> Result<Self> {
        Self::from_named_bytes("the built-in model", config, safetensors, tokenizer)
    }

    /// As `from_bytes`, under the name `origin`.
    pub fn from_named_bytes(
        origin: &str,
        config: &str,
        safetensors: &'static [u8],
        tokenizer: &'static [u8],
    ) -> Result<Self> {
        let mut config = ModelConfig::from_json(config, &format!("{origin}/config.json"))?;
        config.name = origin.into();
        let file = File { name: format!("{origin}/model.safetensors"), bytes: Bytes::Static(safetensors) };
        Self::from_files(config, origin.into(), vec![file], Tokenizer::Static(tokenizer))
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let config_path = folder.join("config.json");
        if !io::is_file(&config_path) {
            return Err(no_model(folder)?);
        }
        let text = io::read_text(&config_path, LARGEST_JSON)?;
        let mut config = ModelConfig::from_json(&text, &config_path.display().to_string())?;
        config.name = folder_name(folder);
        config.read_generation_config(folder)?;
        let mut files = Vec::new();
        for path in safetensors_files(folder)? {
            files.push(File { name: path.display().to_string(), bytes: Bytes::Mapped(io::map(&path)?) });
        }
        Self::from_files(config, folder.display().to_string(), files, Tokenizer::Folder(folder.into()))
    }

    fn from_files(config: ModelConfig, origin: String, files: Vec<File>, tokenizer: Tokenizer) -> Result<Self> {
        let mut tensors: HashMap<String, Entry> = HashMap::new();
        for (file, File { name: origin, bytes }) in files.iter().enumerate() {
            let entries = safetensors::read(bytes).map_err(|problem| Error::Broken {
                origin: origin.clone(),
                format: "safetensors",
                problem: problem.to_string(),
            })?;
            for (name, safetensors::Entry { dtype, shape, range }) in entries {
                if let Some(other) = tensors.get(&name) {
                    let other = files.get(other.file).map(|file| file.name.clone()).unwrap_or_default();
                    return Err(Error::Duplicate { name, origin: origin.clone(), other });
                }
                tensors.insert(name, Entry { file, dtype, shape, range });
            }
        }
        let checkpoint = Self { config, origin, files, tensors: Tensors::Safetensors(tensors), tokenizer };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let bytes = io::map(path)?;
        let origin = path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Err(Error::NoModel {
                folder: path.into(),
                found: "one safetensors file has no config".into(),
                advice: "give the folder that also has `config.json`",
            });
        }
        let gguf = Gguf::read(&bytes, &origin)?;
        let mut config = gguf.config(&bytes, &origin)?;
        if config.name == origin {
            config.name = folder_name(path);
        }
        let files = vec![File { name: origin.clone(), bytes: Bytes::Mapped(bytes) }];
        let checkpoint = Self { config, origin, files, tensors: Tensors::Gguf(gguf), tokenizer: Tokenizer::Gguf };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// The same checkpoint under another name: the hub id of a folder in a cache.
    pub fn named(mut self, origin: &str) -> Self {
        self.config.name = origin.into();
        self.origin = origin.into();
        self
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The path or name the model was opened by.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn is_gguf(&self) -> bool {
        matches!(self.tensors, Tensors::Gguf(_))
    }

    /// Whether the files hold this tensor (by its Hugging Face name); a tied head is not held.
    pub fn has(&self, name: &str) -> bool {
        match &self.tensors {
            Tensors::Safetensors(tensors) => tensors.contains_key(name),
            Tensors::Gguf(gguf) => gguf.tensors().contains_key(name),
        }
    }

    /// The Hugging Face names of the model's tensors.
    pub fn names(&self) -> Vec<String> {
        self.config.tensor_names().collect()
    }

    /// A weight matrix by its Hugging Face name, in the form the file stores it; a tied head is the embedding.
    pub fn matrix(&self, name: &str) -> Result<StoredMatrix> {
        let name = match name {
            "lm_head.weight" if self.config.tie_word_embeddings => "model.embed_tokens.weight",
            name => name,
        };
        let (rows, cols) = match self.config.shape(name).as_deref() {
            Some(&[rows, cols]) => (rows, cols),
            _ => return Err(self.missing(name)),
        };
        let values = match &self.tensors {
            Tensors::Safetensors(tensors) => match bnb::quant_state(self, tensors, name)? {
                Some(state) => bnb::values(self, tensors, name, &state)?,
                None => self.plain(tensors, name)?,
            },
            Tensors::Gguf(gguf) => self.gguf_values(gguf, name, rows)?,
        };
        StoredMatrix::new(rows, cols, values).map_err(|source| Error::Matrix {
            origin: self.file_of(name),
            name: name.into(),
            source,
        })
    }

    /// The numbers of a weight matrix where the file holds plain ones; else, and where something is wrong, nothing:
    /// `matrix` then tells.
    pub fn floats(&self, name: &str) -> Option<FloatBytes<'_>> {
        let name = match name {
            "lm_head.weight" if self.config.tie_word_embeddings => "model.embed_tokens.weight",
            name => name,
        };
        let Tensors::Safetensors(tensors) = &self.tensors else { return None };
        let (&[rows, cols], entry) = (self.config.shape(name)?.as_slice(), tensors.get(name)?) else { return None };
        if !matches!(bnb::quant_state(self, tensors, name), Ok(None)) {
            return None;
        }
        let dtype = match entry.dtype {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::Bf16 => FloatType::Bf16,
            Dtype::U8 | Dtype::Other(_) => return None,
        };
        let bytes = self.bytes(entry);
        let is_whole = rows.checked_mul(cols).and_then(|count| count.checked_mul(dtype.bytes())) == Some(bytes.len());
        is_whole.then_some(FloatBytes { rows, cols, dtype, bytes })
    }

    /// A norm's weights by their Hugging Face name.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let values = match &self.tensors {
            Tensors::Safetensors(tensors) => self.plain(tensors, name)?,
            Tensors::Gguf(gguf) => self.gguf_values(gguf, name, 1)?,
        };
        Ok(match values {
            StoredValues::F32(values) => values,
            StoredValues::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            StoredValues::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
            StoredValues::Nf4(_) | StoredValues::Ggml(_) => {
                return Err(self.storage(name, values_name(&values), "F32, F16 and BF16 for a vector"));
            }
        })
    }

    /// The tokenizer that comes with the model.
    pub fn tokenizer(&self) -> Result<TokenizerSource> {
        let folder = match (&self.tokenizer, &self.tensors) {
            (Tokenizer::Static(bytes), _) => return Ok(TokenizerSource::Json(bytes.to_vec())),
            (Tokenizer::Folder(folder), _) => folder,
            (Tokenizer::Gguf, Tensors::Gguf(gguf)) => return gguf.tokenizer(&self.origin).map(TokenizerSource::Gguf),
            (Tokenizer::Gguf, Tensors::Safetensors(_)) => unreachable!("a GGUF tokenizer comes from a GGUF file"),
        };
        let path = folder.join("tokenizer.json");
        if io::is_file(&path) {
            return Ok(TokenizerSource::Json(io::read_limited(&path, LARGEST_TOKENIZER)?));
        }
        let other =
            io::list(folder)?.into_iter().find(|name| name == "tekken.json" || name.contains("tokenizer.model"));
        let found = match other {
            Some(name) => format!("`tokenizer.json` is absent and `{name}` is not read"),
            None => "`tokenizer.json` is absent".into(),
        };
        let advice =
            "put the `tokenizer.json` of the model beside its config (transformers' save_pretrained writes it)";
        Err(Error::NoTokenizer { origin: self.origin.clone(), found, advice })
    }

    /// Fails on the first tensor that the config asks for and the files lack, hold in another shape or storage, or
    /// hold although the config does not ask for it.
    fn check(&self) -> Result<()> {
        let missing: Vec<String> = self.config.tensor_names().filter(|name| !self.has(name)).take(1000).collect();
        if let Some(name) = missing.first() {
            return Err(Error::TensorMissing {
                origin: self.origin.clone(),
                name: name.clone(),
                more: and_others(missing.len()),
            });
        }
        for name in self.config.tensor_names() {
            let wanted = self.config.shape(&name).unwrap_or_default();
            let got: Cow<'_, [usize]> = match &self.tensors {
                Tensors::Gguf(gguf) => match gguf.tensors().get(&name) {
                    Some(entry) => {
                        let kind = entry.kind();
                        if entry.tensor.range().is_none() || ggml_kind(entry.tensor.kind).is_none() {
                            return Err(self.storage(&entry.name, kind.name, gguf::READ));
                        }
                        Cow::Borrowed(&entry.tensor.shape)
                    }
                    None => continue,
                },
                Tensors::Safetensors(tensors) => match (bnb::quant_state(self, tensors, &name)?, tensors.get(&name)) {
                    (Some(state), _) => Cow::Owned(state.shape),
                    (None, Some(Entry { dtype: Dtype::F32 | Dtype::F16 | Dtype::Bf16, shape, .. })) => {
                        Cow::Borrowed(shape)
                    }
                    (None, Some(entry)) => return Err(self.storage(&name, entry.dtype.name(), READ)),
                    (None, None) => continue,
                },
            };
            if *got != *wanted {
                return Err(Error::Shape { origin: self.file_of(&name), name, got: got.into_owned(), wanted });
            }
        }
        let held: Vec<&String> = match &self.tensors {
            Tensors::Safetensors(tensors) => tensors.keys().collect(),
            Tensors::Gguf(gguf) => gguf.tensors().keys().collect(),
        };
        let mut extra: Vec<&String> = held.into_iter().filter(|name| !self.is_expected(name)).collect();
        extra.sort();
        match extra.first() {
            None => Ok(()),
            Some(name) => Err(Error::TensorExtra {
                origin: self.file_of(name),
                name: (*name).clone(),
                more: and_others(extra.len()),
                architecture: self.config.architecture.clone(),
                layers: self.config.num_hidden_layers,
            }),
        }
    }

    fn is_expected(&self, name: &str) -> bool {
        // Computed from the config by every reader; older files still hold it.
        let is_derived = name.ends_with("rotary_emb.inv_freq") || name == "rope_freqs.weight";
        let name = bnb::tensor_of_part(name).unwrap_or(name);
        is_derived || self.config.shape(name).is_some()
    }

    /// The bytes of a part of this checkpoint's tensors.
    pub(super) fn bytes(&self, entry: &Entry) -> &[u8] {
        let file = self.files.get(entry.file).map(|file| &*file.bytes).unwrap_or_default();
        file.get(entry.range.clone()).unwrap_or_default()
    }

    fn plain(&self, tensors: &HashMap<String, Entry>, name: &str) -> Result<StoredValues> {
        let entry = tensors.get(name).ok_or_else(|| self.missing(name))?;
        let bytes = self.bytes(entry);
        Ok(match entry.dtype {
            Dtype::F32 => StoredValues::F32(f32s(bytes)),
            Dtype::F16 => StoredValues::F16(f16s(bytes)),
            Dtype::Bf16 => StoredValues::Bf16(bf16s(bytes)),
            Dtype::U8 | Dtype::Other(_) => return Err(self.storage(name, entry.dtype.name(), READ)),
        })
    }

    fn gguf_values(&self, gguf: &Gguf, name: &str, rows: usize) -> Result<StoredValues> {
        let entry = gguf.tensors().get(name).ok_or_else(|| self.missing(name))?;
        let file = self.files.first().map(|file| &*file.bytes).unwrap_or_default();
        let bytes = entry.tensor.range().and_then(|range| file.get(range));
        let (Some(bytes), Some(kind)) = (bytes, ggml_kind(entry.tensor.kind)) else {
            return Err(self.storage(&entry.name, entry.kind().name, gguf::READ));
        };
        let is_permuted = name.ends_with(".q_proj.weight") || name.ends_with(".k_proj.weight");
        let bytes = match is_permuted {
            true => Cow::Owned(gguf::unpermute(bytes, rows, self.config.head_dim)),
            false => Cow::Borrowed(bytes),
        };
        Ok(match kind {
            Stored::F32 => StoredValues::F32(f32s(&bytes)),
            Stored::F16 => StoredValues::F16(f16s(&bytes)),
            Stored::Bf16 => StoredValues::Bf16(bf16s(&bytes)),
            Stored::Blocks(kind) => StoredValues::Ggml(GgmlValues { kind, bytes: bytes.into_owned() }),
        })
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        Error::TensorMissing { origin: self.origin.clone(), name: name.into(), more: String::new() }
    }

    pub(super) fn storage(&self, name: &str, got: impl Into<String>, supported: &'static str) -> Error {
        Error::Storage { origin: self.file_of(name), name: name.into(), got: got.into(), supported }
    }

    pub(super) fn damaged(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::Tensor { origin: self.file_of(name), name: name.into(), problem: problem.into() }
    }

    /// The name of the file that holds a tensor; the checkpoint's own when none does.
    fn file_of(&self, name: &str) -> String {
        let file = match &self.tensors {
            Tensors::Safetensors(tensors) => tensors.get(name).map(|entry| entry.file),
            Tensors::Gguf(_) => Some(0),
        };
        file.and_then(|file| self.files.get(file)).map_or_else(|| self.origin.clone(), |file| file.name.clone())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("origin", &self.origin).field("config", &self.config).finish_non_exhaustive()
    }
}

/// The safetensors files of a folder: those its index names, or `model.safetensors`.
fn safetensors_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let whole = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if io::is_file(&whole) {
        return Ok(vec![whole]);
    }
    if !io::is_file(&index) {
        return Err(no_model(folder)?);
    }
    let origin = index.display().to_string();
    let text = io::read_text(&index, LARGEST_JSON)?;
    let json: Value = serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(&text))
        .map_err(|source| Error::Json { origin: origin.clone(), source })?;
    let Some(Value::Object(map)) = json.get("weight_map") else {
        return Err(Error::KeyMissing { origin, key: "weight_map".into() });
    };
    let mut shards = BTreeMap::new();
    for (name, shard) in map {
        // A shard is a bare file name: an index may not reach outside its folder.
        let shard = shard.as_str().filter(|shard| !shard.is_empty() && !shard.contains(['/', '\\']) && *shard != "..");
        let Some(shard) = shard else {
            return Err(Error::Key {
                origin,
                key: format!("weight_map.{name}"),
                got: map.get(name).map(super::config::brief).unwrap_or_default(),
                wanted: "the name of a file beside it".into(),
            });
        };
        shards.insert(shard, folder.join(shard));
    }
    for (shard, path) in &shards {
        if !io::exists(path) {
            return Err(Error::ShardMissing { index: origin, shard: (*shard).into() });
        }
    }
    Ok(shards.into_values().collect())
}

/// Why a folder is no model.
fn no_model(folder: &Path) -> Result<Error> {
    let names = io::list(folder)?;
    let has = |name: &str| names.iter().any(|other| other == name);
    let pickle = names.iter().find(|n| n.ends_with(".bin") || n.ends_with(".pth") || n.ends_with(".pt"));
    let gguf = names.iter().find(|name| name.ends_with(".gguf"));
    let (found, advice) = if has("adapter_config.json") && !has("config.json") {
        ("it is a LoRA adapter".into(), "give its base model, and the adapter to `model.load_adapter`")
    } else if let Some(name) = gguf {
        (format!("it has `{name}`"), "give the path of that file")
    } else if has("consolidated.safetensors") || has("params.json") {
        let advice = "give the Hugging Face form: `config.json`, `model.safetensors`, `tokenizer.json`";
        ("it has Mistral's own layout".into(), advice)
    } else if let Some(name) = pickle {
        let advice =
            "convert it to safetensors (transformers: from_pretrained, then save_pretrained); a pickle can run code";
        (format!("`{name}` is a pickle, which is never read"), advice)
    } else if has("config.json") {
        ("`model.safetensors` is absent".into(), "download it, or its shards and their index")
    } else {
        ("`config.json` is absent".into(), "give the folder that has `config.json` and `model.safetensors`")
    };
    Ok(Error::NoModel { folder: folder.into(), found, advice })
}

fn folder_name(path: &Path) -> String {
    let full = io::canonical(path).unwrap_or_else(|_| path.into());
    full.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn and_others(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        2 => " and one more".into(),
        1000 => " and 999 or more others".into(),
        count => format!(" and {} others", count - 1),
    }
}

fn values_name(values: &StoredValues) -> &'static str {
    match values {
        StoredValues::F32(_) => "F32",
        StoredValues::F16(_) => "F16",
        StoredValues::Bf16(_) => "BF16",
        StoredValues::Nf4(_) => "nf4",
        StoredValues::Ggml(values) => values.kind.name(),
    }
}
