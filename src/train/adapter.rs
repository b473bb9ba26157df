//! Adapters between the model and the disk.

use std::path::{Path, PathBuf};

use crate::engine::AdapterTensor;
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
        let (config, base) = (stored.config.clone(), stored.base.clone());
        // The rank is a number in a file: no memory is taken for it before the file's tensors have that rank, too.
        let places = self.runner().plan_lora(&config)?;
        let tensors = stored.fit(places)?;
        self.add_lora(&config)?;
        let put = |tensor: &AdapterTensor| {
            self.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &tensor.values)
        };
        if let Err(error) = tensors.iter().try_for_each(put) {
            let _ = self.unload_adapter();
            return Err(error);
        }
        Ok(LoadedAdapter { dir: dir.to_owned(), tensors: tensors.len(), base })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::train::LoadSettings;
    use crate::weights::adapter::{self, AdapterConfig, AdapterTensor};

    #[test]
    fn an_adapter_that_does_not_fit_is_refused_before_room_is_made_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let r = 1 << 16;
        let target_modules = vec!["q_proj".to_owned()];
        let layers_to_transform = Some(vec![0]);
        let config = AdapterConfig { r, target_modules, layers_to_transform, ..AdapterConfig::default() };
        let tensor = |matrix, shape| {
            let name = adapter::key(0, "q_proj", matrix).unwrap();
            AdapterTensor { name, shape, values: vec![0.0; r] }
        };
        adapter::write(dir.path(), &config, &[tensor('A', [r, 1]), tensor('B', [1, r])]).unwrap();
        let model = Model::from_pretrained("builtin:tiny-mistral", dir.path(), &LoadSettings::default()).unwrap();
        let error = model.load_adapter(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is 65536 x 1, this model needs 65536 x 256"), "{error}");
        assert_eq!(model.adapter(), 0, "no adapter was put on and taken off again");
    }
}
