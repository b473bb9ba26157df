//! The frozen base on the device.

use std::sync::Arc;

use crate::kernels::Backend;
use crate::quant::{FloatBytes, StoredMatrix, StoredValues};
use crate::weights::{Checkpoint, ModelConfig};

use super::plan::Memory;
use super::{Cancel, Error, Result};

/// How the base is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Linear layers in NF4 with double quantisation. What a file holds quantised already stays as it is.
    pub load_in_4bit: bool,
    /// How much memory training may take later; `Lean` keeps the embedding out of the device's.
    pub memory: Memory,
}

/// One decoder layer's weights; matrices that read the same input are one.
#[derive(Debug)]
pub(super) struct LayerWeights<B: Backend> {
    pub input_norm: B::Full,
    pub post_attention_norm: B::Full,
    pub qkv: B::Weight,
    pub o: B::Weight,
    pub gate_up: B::Weight,
    pub down: B::Weight,
}

/// Everything that is never trained.
#[derive(Debug)]
pub(super) struct Frozen<B: Backend> {
    pub embedding: Arc<B::Weight>,
    pub layers: Vec<LayerWeights<B>>,
    pub norm: B::Full,
    /// The embedding itself when the two are tied.
    pub head: Arc<B::Weight>,
    pub inverse_frequencies: B::Full,
}

/// Where the tensors of a base come from, by the names of a checkpoint.
pub(super) trait Source {
    fn config(&self) -> &ModelConfig;
    fn matrix(&self, name: &str) -> Result<StoredMatrix>;
    fn vector(&self, name: &str) -> Result<Vec<f32>>;
    /// A matrix as the file's own bytes, where it holds plain numbers.
    fn floats(&self, _name: &str) -> Option<FloatBytes<'_>> {
        None
    }
}

impl Source for Checkpoint {
    fn config(&self) -> &ModelConfig {
        Self::config(self)
    }

    fn matrix(&self, name: &str) -> Result<StoredMatrix> {
        Ok(Self::matrix(self, name)?)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        Ok(Self::vector(self, name)?)
    }

    fn floats(&self, name: &str) -> Option<FloatBytes<'_>> {
        Self::floats(self, name)
    }
}

impl<B: Backend> Frozen<B> {
    pub fn load(backend: &B, checkpoint: &dyn Source, options: &LoadOptions, cancel: &Cancel) -> Result<Self> {
        let config = checkpoint.config();
        let loader = Loader { backend, checkpoint, config, options };
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let is_lean = options.memory == Memory::Lean && !config.tie_word_embeddings;
        let table = "model.embed_tokens.weight";
        let embedding = Arc::new(if is_lean {
            let part = Shaped { name: table.to_owned(), rows: vocabulary, cols: hidden };
            backend.weight_on_host(vec![loader.kept(&part)?])?
        } else {
            loader.whole(table, vocabulary, hidden)?
        });
        let head = if config.tie_word_embeddings {
            Arc::clone(&embedding)
        } else {
            Arc::new(loader.whole("lm_head.weight", vocabulary, hidden)?)
        };
        let layer = |index| {
            cancel.check()?;
            loader.layer(index)
        };
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?;
        let norm = loader.vector("model.norm.weight")?;
        let frequencies = config.inverse_frequencies();
        let mut inverse_frequencies = backend.full(frequencies.len())?;
        backend.write_full(&mut inverse_frequencies, 0, &frequencies)?;
        Ok(Self { embedding, layers, norm, head, inverse_frequencies })
    }

    /// Bytes on the device, tied matrices counted once.
    pub fn bytes(&self, backend: &B) -> usize {
        let layer = |w: &LayerWeights<B>| {
            [&w.qkv, &w.o, &w.gate_up, &w.down].iter().map(|matrix| backend.weight_bytes(matrix)).sum::<usize>()
        };
        let head = if Arc::ptr_eq(&self.embedding, &self.head) { 0 } else { backend.weight_bytes(&self.head) };
        self.layers.iter().map(layer).sum::<usize>() + backend.weight_bytes(&self.embedding) + head
    }
}

/// A matrix by its name in the checkpoint, and the shape it must have.
struct Shaped {
    name: String,
    rows: usize,
    cols: usize,
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    checkpoint: &'a dyn Source,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&self, index: usize) -> Result<LayerWeights<B>> {
        let c = self.config;
        let (hidden, wide) = (c.hidden_size, c.intermediate_size);
        let (queries, keys) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let part = |name: &str, rows, cols| Shaped { name: format!("model.layers.{index}.{name}.weight"), rows, cols };
        let qkv = vec![
            part("self_attn.q_proj", queries, hidden),
            part("self_attn.k_proj", keys, hidden),
            part("self_attn.v_proj", keys, hidden),
        ];
        let o = vec![part("self_attn.o_proj", hidden, queries)];
        let gate_up = vec![part("mlp.gate_proj", wide, hidden), part("mlp.up_proj", wide, hidden)];
        let down = vec![part("mlp.down_proj", hidden, wide)];
        let [qkv, o, gate_up, down] = self.linears([qkv, o, gate_up, down])?;
        Ok(LayerWeights {
            input_norm: self.vector(&format!("model.layers.{index}.input_layernorm.weight"))?,
            post_attention_norm: self.vector(&format!("model.layers.{index}.post_attention_layernorm.weight"))?,
            qkv,
            o,
            gate_up,
            down,
        })
    }

    /// The matrices of a layer: all at once from the file's bytes where it holds plain numbers, else one by one.
    fn linears<const N: usize>(&self, matrices: [Vec<Shaped>; N]) -> Result<[B::Weight; N]> {
        let floats = |parts: &Vec<Shaped>| parts.iter().map(|part| self.floats(part)).collect::<Option<Vec<_>>>();
        if let Some(matrices) = matrices.iter().map(floats).collect::<Option<Vec<_>>>() {
            let weights = self.backend.weights_from(matrices, self.options.load_in_4bit)?;
            return match <[B::Weight; N]>::try_from(weights) {
                Ok(weights) => Ok(weights),
                Err(_) => unreachable!("a weight for each matrix"),
            };
        }
        let mut weights = Vec::with_capacity(N);
        for parts in &matrices {
            let parts = parts.iter().map(|part| self.linear(part)).collect::<Result<_>>()?;
            weights.push(self.backend.weight(parts)?);
        }
        match <[B::Weight; N]>::try_from(weights) {
            Ok(weights) => Ok(weights),
            Err(_) => unreachable!("a weight for each matrix"),
        }
    }

    /// An embedding or an output matrix, which is never quantised here.
    fn whole(&self, name: &str, rows: usize, cols: usize) -> Result<B::Weight> {
        let part = Shaped { name: name.to_owned(), rows, cols };
        if let Some(floats) = self.floats(&part)
            && let Some(weight) = self.backend.weights_from(vec![vec![floats]], false)?.pop()
        {
            return Ok(weight);
        }
        Ok(self.backend.weight(vec![self.kept(&part)?])?)
    }

    fn floats(&self, part: &Shaped) -> Option<FloatBytes<'_>> {
        let floats = self.checkpoint.floats(&part.name)?;
        ((floats.rows, floats.cols) == (part.rows, part.cols)).then_some(floats)
    }

    /// A linear layer: quantised to NF4 when asked and still in 16 or 32 bits.
    fn linear(&self, part: &Shaped) -> Result<StoredMatrix> {
        let matrix = self.kept(part)?;
        let whole = matches!(matrix.values, StoredValues::F32(_) | StoredValues::F16(_) | StoredValues::Bf16(_));
        Ok(if self.options.load_in_4bit && whole { matrix.quantize_nf4() } else { matrix })
    }

    /// A matrix as the file holds it.
    fn kept(&self, part: &Shaped) -> Result<StoredMatrix> {
        let &Shaped { ref name, rows, cols } = part;
        let matrix = self.checkpoint.matrix(name)?;
        if (matrix.rows, matrix.cols) != (rows, cols) {
            let (got_rows, got_cols) = (matrix.rows, matrix.cols);
            return Err(Error::Shape { name: name.clone(), got_rows, got_cols, rows, cols });
        }
        Ok(matrix)
    }

    fn vector(&self, name: &str) -> Result<B::Full> {
        let values = self.checkpoint.vector(name)?;
        if values.len() != self.config.hidden_size {
            let (got_cols, cols) = (values.len(), self.config.hidden_size);
            return Err(Error::Shape { name: name.to_owned(), got_rows: 1, got_cols, rows: 1, cols });
        }
        let mut full = self.backend.full(values.len())?;
        self.backend.write_full(&mut full, 0, &values)?;
        Ok(full)
    }
}
