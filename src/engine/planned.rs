//! The plan of an engine's training passes: when it is made, and the buffers it sizes.

use std::sync::Arc;

use crate::kernels::Backend;

use super::head::HeadWork;
use super::kept::Kept;
use super::layer::{Saved, Work};
use super::plan::{Level, Memory, Plan, Sizes};
use super::{Engine, Result};

/// Tokens beyond which a pass is no faster per token, and those the lean mode is content with.
const ROOM: usize = 4096;
const LEAN_ROOM: usize = 1024;
/// The rank of an adapter that is not there yet, and the bytes of one of its values: parameter, gradient, a copy in 16 bits
/// and the optimizer's 8-bit moments.
const USUAL_RANK: usize = 16;
const ADAPTER_BYTES: usize = 12;

impl<B: Backend> Engine<B> {
    /// Plans for training passes of up to `tokens` tokens and sizes every buffer; a plan for more tokens stays.
    pub fn plan_for(&mut self, tokens: usize) -> Result<&Plan> {
        self.free_for_change()?;
        self.fit_plan(tokens)?;
        match &self.plan {
            Some(plan) => Ok(plan),
            None => unreachable!("`fit_plan` made one"),
        }
    }

    /// What training passes keep, once one was made or `plan_for` was called.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Tokens a pass should have at most, on a device with memory of its own: more would not make it busier. `None` where
    /// memory is the process's own.
    ///
    /// Without an adapter it counts one of rank 16 on all linears. A plan that no pass is waiting for is given up.
    pub fn room(&mut self) -> Result<Option<usize>> {
        if self.net.backend.memory()?.is_none() {
            return Ok(None);
        }
        if !self.is_pending() {
            self.forget_plan()?;
            self.net.backend.settle_memory()?;
        }
        let backend = &*self.net.backend;
        let Some(memory) = backend.memory()? else { return Ok(None) };
        let mut sizes = self.sizes();
        let mut adapter = 0;
        if self.net.lora.is_none() {
            (sizes.lowest, sizes.ranks) = (0, [3, 1, 2, 1].map(|parts| parts * USUAL_RANK));
            // in and out of q, k and v, o, gate and up, down
            let ends = 10 * sizes.hidden + sizes.qkv + sizes.queries + 3 * sizes.wide;
            adapter = USUAL_RANK * ends * sizes.layers * ADAPTER_BYTES;
        }
        let used = memory.total - memory.free + adapter;
        let free = memory.free.saturating_sub(adapter);
        let mut tokens = if self.memory == Memory::Lean { LEAN_ROOM } else { ROOM };
        let fits = |tokens| Plan::choose(&sizes, tokens, self.memory, Some((used, free)), backend.has_host()).is_ok();
        while tokens > 1 && !fits(tokens) {
            tokens /= 2;
        }
        Ok(Some(tokens))
    }

    /// The bytes at the worst moment of a training pass that the last plan predicted, if the device counts them.
    pub fn predicted_bytes(&self) -> Option<usize> {
        self.predicted
    }

    /// The most bytes that were on the device since the plan was made, where it counts them.
    pub fn peak_bytes(&self) -> Result<Option<usize>> {
        Ok(self.net.backend.peak_bytes()?)
    }

    /// Rows of the MLP that passes without a backward compute at a time.
    pub(super) fn tile(&self) -> Option<usize> {
        self.plan.as_ref().and_then(|plan| plan.tile)
    }

    /// The first layer that needs a gradient; the number of layers when none does.
    pub(super) fn lowest(&self) -> usize {
        let lora = self.net.lora.as_ref().filter(|_| self.net.adapter_enabled);
        lora.and_then(|lora| lora.lowest()).map_or(self.net.layers(), |(layer, _)| layer)
    }

    pub(super) fn sizes(&self) -> Sizes {
        let (c, backend) = (&self.net.config, &*self.net.backend);
        let (act, full) = backend.value_bytes();
        let groups = self.net.lora.iter().flat_map(|lora| &lora.groups);
        let rank = |group: usize| {
            groups.clone().filter_map(|groups| groups[group].as_ref()).map(|group| group.rank).max().unwrap_or(0)
        };
        Sizes {
            layers: c.num_hidden_layers,
            lowest: self
                .net
                .lora
                .as_ref()
                .and_then(|lora| lora.lowest())
                .map_or(c.num_hidden_layers, |(layer, _)| layer),
            hidden: c.hidden_size,
            wide: c.intermediate_size,
            heads: c.num_attention_heads,
            queries: c.num_attention_heads * c.head_dim,
            qkv: (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim,
            head_rows: backend.head_rows(c.vocab_size),
            vocabulary: c.vocab_size,
            ranks: [rank(0), rank(1), rank(2), rank(3)],
            attention: backend.attention_bytes(&self.net.attention),
            act,
            full,
        }
    }

    /// Has a plan for `tokens` tokens.
    pub(super) fn fit_plan(&mut self, tokens: usize) -> Result<()> {
        if self.plan.as_ref().is_some_and(|plan| plan.tokens >= tokens) {
            return Ok(());
        }
        let sizes = self.sizes();
        let device = Arc::clone(&self.net.backend);
        let backend = &*device;
        // what earlier passes took is given back first, so that the device's own count is of what stays
        self.forget_plan()?;
        if let Some(lora) = &self.net.lora {
            backend.settle_full(&lora.params)?;
        }
        backend.settle_memory()?;
        backend.reset_peak()?;
        let device = backend.memory()?;
        let bytes = device.map(|memory| (memory.total - memory.free, memory.free));
        let plan = Plan::choose(&sizes, tokens, self.memory, bytes, backend.has_host())?;
        self.take_plan(plan, &sizes, device.is_some())
    }

    /// Gives back what passes took; the next one makes a plan again.
    pub(super) fn forget_plan(&mut self) -> Result<()> {
        let device = Arc::clone(&self.net.backend);
        let backend = &*device;
        self.plan = None;
        self.held = None;
        // a copy may still be reading what is dropped here
        backend.settle_memory()?;
        self.work = Work::new(backend)?;
        self.head_work = HeadWork::new(backend)?;
        self.scratch = Saved::new(backend)?;
        self.kept = Kept::new();
        self.dx = backend.act();
        Ok(())
    }

    /// Follows `plan` from now on.
    pub(super) fn take_plan(&mut self, plan: Plan, sizes: &Sizes, is_reserved: bool) -> Result<()> {
        let backend = &*self.net.backend;
        self.kept.prepare(backend, sizes, &plan, is_reserved)?;
        if is_reserved {
            let (rows, hidden) = (plan.tokens, sizes.hidden);
            let tile = plan.tile.map_or(rows, |tile| tile.min(rows));
            for act in [&mut self.work.next, &mut self.work.normed, &mut self.scratch.x, &mut self.dx] {
                backend.resize(act, rows, hidden)?;
            }
            backend.resize(&mut self.work.dqkv, rows, sizes.qkv)?;
            // the head's logits share the buffer of the MLP's widest product
            let head_rows = sizes.head_rows.min(rows);
            backend.resize(&mut self.work.h, head_rows, sizes.vocabulary)?;
            backend.resize(&mut self.work.h, tile, sizes.wide)?;
            backend.resize(&mut self.work.ds, rows, sizes.ranks.iter().max().copied().unwrap_or(0))?;
            if plan.tile.is_some() {
                self.work.tile.resize(backend, tile, hidden, [sizes.ranks[2], sizes.ranks[3]])?;
            }
            self.scratch.reserve(backend, sizes, &plan, Level::All)?;
            self.head_work.reserve(backend, head_rows, hidden)?;
        }
        self.predicted = plan.peak();
        self.plan = Some(plan);
        Ok(())
    }
}

impl<B: Backend> Saved<B> {
    /// Sizes what a layer at `level` keeps beside its input.
    pub(super) fn reserve(&mut self, backend: &B, sizes: &Sizes, plan: &Plan, level: Level) -> Result<()> {
        let rows = plan.tokens;
        let groups = if plan.tile.is_some() { 2 } else { 4 };
        for (s, &rank) in self.s.iter_mut().zip(&sizes.ranks).take(groups) {
            backend.resize(s, rows, rank)?;
        }
        self.input_rstd = backend.full(rows)?;
        self.post_attention_rstd = backend.full(rows)?;
        if level >= Level::Attention {
            backend.resize(&mut self.qkv, rows, sizes.qkv)?;
            backend.resize(&mut self.o, rows, sizes.queries)?;
            self.lse = backend.full(rows * sizes.heads)?;
        }
        if level >= Level::Middle {
            backend.resize(&mut self.x_mid, rows, sizes.hidden)?;
        }
        if level >= Level::All {
            let tile = plan.tile.map_or(rows, |tile| tile.min(rows));
            backend.resize(&mut self.gate_up, tile, 2 * sizes.wide)?;
        }
        Ok(())
    }
}
