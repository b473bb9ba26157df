//! Generation: one text, its keys and values kept.

use std::sync::Arc;

use crate::kernels::Backend;

use super::layer::Cached;
use super::step::{Caches, MOST_TOKENS, Step};
use super::{Batch, BatchFault, Engine, Error, IGNORE, Result};

/// The keys and values of a text's tokens so far, per layer.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<Caches<B>>,
    len: usize,
    /// Made with the first step: a text that is only a prompt has none.
    step: Option<Box<Step<B>>>,
}

impl<B: Backend> KvCache<B> {
    /// Tokens read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<B: Backend> Engine<B> {
    /// An empty cache for one text.
    pub fn cache(&self) -> KvCache<B> {
        let layers = (0..self.net.layers()).map(|_| (self.net.backend.act(), self.net.backend.act())).collect();
        KvCache { layers, len: 0, step: None }
    }

    /// Reads `ids` after what `cache` holds and returns the logits (V) that follow the last of them.
    ///
    /// Leaves a pending training pass alone. After an error the cache must be thrown away.
    pub fn decode(&mut self, ids: &[u32], cache: &mut KvCache<B>) -> Result<Vec<f32>> {
        let device = Arc::clone(&self.net.backend);
        device.run(|| self.decode_here(ids, cache))
    }

    fn decode_here(&mut self, ids: &[u32], cache: &mut KvCache<B>) -> Result<Vec<f32>> {
        let new = u32::try_from(ids.len()).map_err(|_| Error::Batch(BatchFault::Borders { tokens: ids.len() }))?;
        Batch { ids, cu_seqlens: &[0, new], targets: &vec![IGNORE; ids.len()] }.check(self.net.config.vocab_size)?;
        self.held = None;
        let logits = if ids.len() <= MOST_TOKENS {
            let step = match &mut cache.step {
                Some(step) => step,
                none => none.insert(Box::new(Step::new(&*self.net.backend)?)),
            };
            step.read(&self.net, ids, &mut cache.layers, cache.len)?
        } else {
            self.read_many(ids, cache)?
        };
        cache.len += ids.len();
        Ok(logits)
    }

    /// As a pass over a batch of one text, with its keys and values kept.
    fn read_many(&mut self, ids: &[u32], cache: &mut KvCache<B>) -> Result<Vec<f32>> {
        let tile = self.tile();
        let backend = &*self.net.backend;
        let new = ids.len() as u32;
        let segments = backend.segments(&[0, new], cache.len)?;
        backend.embed(&self.net.frozen.embedding, &backend.index(ids)?, &mut self.work.next)?;
        for (index, (keys, values)) in cache.layers.iter_mut().enumerate() {
            std::mem::swap(&mut self.scratch.x, &mut self.work.next);
            let cached = Some(Cached { keys, values, len: cache.len });
            self.net.layer(index, tile)?.forward(&segments, &mut self.scratch, &mut self.work, cached)?;
        }
        self.net.head().read_logits(&self.work.next, &[new - 1], (&mut self.head_work, &mut self.work.h))
    }
}
