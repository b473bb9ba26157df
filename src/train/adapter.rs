//! Adapters between the model and the disk.

use std::path::{Path, PathBuf};

use crate::export::{self, Adapter};

use super::{Error, Model, Result};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedAdapter {
    pub dir: PathBuf,
    pub tensors: usize,
}

/// What was read, every tensor of it in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedAdapter {
    pub dir: PathBuf,
    pub tensors: usize,
    /// The base the adapter was trained on, as its file names it.
    pub base: Option<String>,
}

impl Model {
    /// Writes the adapter and the tokenizer as a PEFT folder and reads it back; at every moment
    /// the folder is the old one or the new one, whole.
    pub fn save_adapter(&self, dir: &Path) -> Result<SavedAdapter> {
        let config = self.lora().ok_or(crate::engine::Error::NoAdapter)?;
        let adapter = Adapter { config, base: Some(self.origin().to_owned()), tensors: self.adapter_tensors()? };
        let length = self.config().max_position_embeddings;
        let tokenizer = export::tokenizer_files(self.tokenizer_json(), self.tokenizer(), length);
        export::write(dir, &adapter, &tokenizer)?;
        self.adapter_saved();
        Ok(SavedAdapter { dir: dir.to_owned(), tensors: adapter.tensors.len() })
    }

    /// Puts the adapter of a PEFT folder on the model. Fails, and leaves the model as it was, unless every tensor of
    /// the folder finds its place and every place its tensor.
    pub fn load_adapter(&self, dir: &Path) -> Result<LoadedAdapter> {
        let stored = export::read(dir)?;
        let base = stored.base.clone();
        self.add_lora(&stored.config)?;
        let fitted = self.adapter_tensors().and_then(|places| Ok(stored.fit(places)?)).and_then(|tensors| {
            for tensor in &tensors {
                self.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &tensor.values)?;
            }
            Ok(tensors.len())
        });
        match fitted {
            Ok(tensors) => Ok(LoadedAdapter { dir: dir.to_owned(), tensors, base }),
            Err(error) => {
                self.unload_adapter()?;
                Err(error)
            }
        }
    }

    /// One line: how many values are trained, of how many.
    pub fn trainable_summary(&self) -> Result<String> {
        let Some(lora) = self.lora() else {
            return Err(Error::Engine(crate::engine::Error::NoAdapter));
        };
        let trained = self.trainable_parameters();
        let all = self.config().parameters() + trained;
        let share = 100.0 * trained as f64 / all.max(1) as f64;
        let modules = lora.target_modules.join(", ");
        Ok(format!("{trained} of {all} parameters are trained ({share:.2} %): LoRA r={} on {modules}", lora.r))
    }
}
