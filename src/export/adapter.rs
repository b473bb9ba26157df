//! PEFT adapter folders: the config, the tensors, the tokenizer beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::engine::{AdapterTensor, LoraConfig};
use crate::io;
use crate::weights::adapter::{self, AdapterConfig, AdapterTensor as StoredTensor};

use super::{Error, Result};

/// An adapter as the engine names its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub config: LoraConfig,
    /// The base it was trained on, as its file names it.
    pub base: Option<String>,
    pub tensors: Vec<AdapterTensor>,
}

/// Files an adapter folder may have; those of an earlier adapter never stay beside a later one.
const OWN: [&str; 5] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Writes a PEFT adapter folder with the files `beside`, reads it back, and fails unless every value is the same, bit
/// for bit.
///
/// At every moment the folder is the old one or the new one, whole. Keys are PEFT's:
/// `base_model.model.model.layers.{i}…lora_A.weight`.
pub fn write(dir: &Path, given: &Adapter, beside: &[(&str, Vec<u8>)]) -> Result<()> {
    if let Some(broken) = given.tensors.iter().find(|tensor| tensor.values.iter().any(|v| !v.is_finite())) {
        return Err(Error::NotFinite { dir: dir.into(), tensor: broken.name() });
    }
    let tensors: Vec<StoredTensor> = given
        .tensors
        .iter()
        .map(|tensor| StoredTensor { name: tensor.name(), shape: tensor.shape, values: tensor.values.clone() })
        .collect();
    let own = adapter::files(dir, &to_file(given), &tensors)?;
    let files: Vec<(&str, &[u8])> = own.iter().chain(beside).map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    io::replace_folder(dir, &files, &OWN, |fresh| {
        let (_, stored) = adapter::read(fresh)?;
        same(dir, &tensors, &stored)
    })
}

/// Fails unless what was read is what was written.
fn same(dir: &Path, written: &[StoredTensor], read: &[StoredTensor]) -> Result<()> {
    let read: BTreeMap<&str, &StoredTensor> = read.iter().map(|t| (t.name.as_str(), t)).collect();
    let is_same = |a: &StoredTensor, b: &StoredTensor| {
        a.shape == b.shape && a.values.iter().zip(&b.values).all(|(x, y)| x.to_bits() == y.to_bits())
    };
    match written.iter().find(|tensor| !read.get(tensor.name.as_str()).is_some_and(|read| is_same(tensor, read))) {
        Some(tensor) => Err(Error::ReadsBackDifferently { dir: dir.into(), tensor: tensor.name.clone() }),
        None => Ok(()),
    }
}

/// An adapter folder that has been read and not yet been put on a model.
#[derive(Debug)]
pub struct Stored {
    pub config: LoraConfig,
    /// The base it was trained on, as its file names it.
    pub base: Option<String>,
    tensors: Vec<StoredTensor>,
    dir: PathBuf,
}

/// Reads a PEFT adapter folder.
pub fn read(dir: &Path) -> Result<Stored> {
    let (file, tensors) = adapter::read(dir)?;
    if let Some(broken) = tensors.iter().find(|tensor| tensor.values.iter().any(|v| !v.is_finite())) {
        return Err(Error::NotFinite { dir: dir.into(), tensor: broken.name.clone() });
    }
    let base = file.base_model_name_or_path.clone();
    Ok(Stored { config: from_file(dir, &file)?, base, tensors, dir: dir.into() })
}

impl Stored {
    /// The stored values in the model's `places`, whose own values do not matter; every tensor must find its place and
    /// every place its tensor.
    pub fn fit(self, places: Vec<AdapterTensor>) -> Result<Vec<AdapterTensor>> {
        let dir = self.dir;
        let mut places: BTreeMap<String, AdapterTensor> = places.into_iter().map(|p| (p.name(), p)).collect();
        let mut unknown = Vec::new();
        let mut fitted = Vec::new();
        for tensor in self.tensors {
            let Some(place) = places.remove(&tensor.name) else {
                unknown.push(tensor.name);
                continue;
            };
            if tensor.shape != place.shape {
                let (got, wanted) = (tensor.shape, place.shape);
                return Err(Error::Shape { dir, tensor: tensor.name, got, wanted, base: self.base });
            }
            fitted.push(AdapterTensor { values: tensor.values, ..place });
        }
        let missing: Vec<String> = places.into_keys().collect();
        if unknown.is_empty() && missing.is_empty() { Ok(fitted) } else { Err(Error::Names { dir, unknown, missing }) }
    }
}

/// What PEFT reads.
fn to_file(given: &Adapter) -> AdapterConfig {
    let config = &given.config;
    AdapterConfig {
        r: config.r,
        lora_alpha: config.lora_alpha,
        target_modules: config.target_modules.clone(),
        layers_to_transform: config.layers_to_transform.clone(),
        use_rslora: config.use_rslora,
        base_model_name_or_path: given.base.clone(),
        ..AdapterConfig::default()
    }
}

/// What the engine adds; an adapter whose modules differ in rank or alpha is refused by name.
fn from_file(dir: &Path, file: &AdapterConfig) -> Result<LoraConfig> {
    let uneven = [("rank_pattern", file.rank_pattern.is_empty()), ("alpha_pattern", file.alpha_pattern.is_empty())];
    if let Some((key, _)) = uneven.into_iter().find(|(_, is_even)| !is_even) {
        return Err(Error::Uneven { dir: dir.into(), key });
    }
    Ok(LoraConfig {
        r: file.r,
        lora_alpha: file.lora_alpha,
        target_modules: file.target_modules.clone(),
        layers_to_transform: file.layers_to_transform.clone(),
        use_rslora: file.use_rslora,
        seed: 0,
    })
}
