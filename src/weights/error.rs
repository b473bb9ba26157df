use std::path::PathBuf;

use crate::{io, quant};

/// What can be wrong with the files of a model or an adapter. `origin` is the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("`{origin}` is not valid JSON: {source}; download it again if it was cut")]
    Json { origin: String, source: serde_json::Error },
    #[error("`{origin}` lacks `{key}`; it is not a whole model config")]
    KeyMissing { origin: String, key: String },
    #[error("`{key}` in `{origin}` is {got}; wanted {wanted}")]
    Key { origin: String, key: String, got: String, wanted: String },
    #[error("`{origin}` is a `{got}` model; supported: {supported}")]
    Architecture { origin: String, got: String, supported: &'static str },
    #[error("`{key}` in `{origin}` asks for {what}, which is not supported; {advice}")]
    Unsupported { origin: String, key: String, what: String, advice: &'static str },
    #[error("`{origin}` describes a model of more than 2^50 parameters; a size in it is wrong")]
    Absurd { origin: String },

    #[error("`{folder}` holds no model: {found}; {advice}")]
    NoModel { folder: PathBuf, found: String, advice: &'static str },
    #[error("`{index}` names `{shard}`, which is not beside it; download it too")]
    ShardMissing { index: String, shard: String },
    #[error("`{origin}` is cut or no {format} file: {problem}; download it again")]
    Broken { origin: String, format: &'static str, problem: String },
    #[error("`{name}` is in `{origin}` and in `{other}`; remove one of the files")]
    Duplicate { name: String, origin: String, other: String },
    #[error("`{origin}` lacks the tensor `{name}`{more}; it does not belong to its config")]
    TensorMissing { origin: String, name: String, more: String },
    #[error(
        "`{origin}` holds the tensor `{name}`{more}, which a `{architecture}` model of {layers} layers does not have"
    )]
    TensorExtra { origin: String, name: String, more: String, architecture: String, layers: usize },
    #[error("`{name}` in `{origin}` has shape {got:?}; its config asks for {wanted:?}")]
    Shape { origin: String, name: String, got: Vec<usize>, wanted: Vec<usize> },
    #[error("`{name}` in `{origin}` is stored as {got}; read are {supported}")]
    Storage { origin: String, name: String, got: String, supported: &'static str },
    #[error("`{name}` in `{origin}` is damaged: {problem}")]
    Tensor { origin: String, name: String, problem: String },
    #[error("`{name}` in `{origin}` is damaged: {source}")]
    Matrix { origin: String, name: String, source: quant::Error },
    #[error("`{origin}` holds no tokenizer: {found}; {advice}")]
    NoTokenizer { origin: String, found: String, advice: &'static str },

    #[error("`{origin}` is no adapter: {problem}")]
    Adapter { origin: String, problem: String },
    #[error("`{origin}` holds {count} tensors whose names do not fit a LoRA adapter: {names}; {hint}")]
    AdapterNames { origin: String, count: usize, names: String, hint: &'static str },
}

pub type Result<T> = std::result::Result<T, Error>;
