//! One decoder layer: forward, and the backward written by hand.

use crate::kernels::{Attention, Backend, LoraGroup};

use super::Result;
use super::frozen::LayerWeights;
use super::mlp::Tile;
use super::plan::Level;

/// What a layer's backward reads of its forward.
///
/// The normalised inputs and the product `silu(gate)·up` are not in it: both are one elementwise pass to rebuild.
#[derive(Debug)]
pub(super) struct Saved<B: Backend> {
    /// The layer's input, (T, D).
    pub x: B::Act,
    pub input_rstd: B::Full,
    /// q|k|v after the rotation.
    pub qkv: B::Act,
    pub o: B::Act,
    pub lse: B::Full,
    /// The residual stream between attention and MLP.
    pub x_mid: B::Act,
    pub post_attention_rstd: B::Full,
    pub gate_up: B::Act,
    /// `x·Aᵀ` of the four groups.
    pub s: [B::Act; 4],
}

impl<B: Backend> Saved<B> {
    pub fn new(backend: &B) -> Result<Self> {
        let act = || backend.act();
        Ok(Self {
            x: act(),
            input_rstd: backend.full(0)?,
            qkv: act(),
            o: act(),
            lse: backend.full(0)?,
            x_mid: act(),
            post_attention_rstd: backend.full(0)?,
            gate_up: act(),
            s: [act(), act(), act(), act()],
        })
    }

    /// Exchanges what a layer at `level` keeps, but for its input.
    pub fn swap(&mut self, other: &mut Self, level: Level) {
        use std::mem::swap;
        swap(&mut self.input_rstd, &mut other.input_rstd);
        swap(&mut self.post_attention_rstd, &mut other.post_attention_rstd);
        swap(&mut self.s, &mut other.s);
        if level >= Level::Attention {
            swap(&mut self.qkv, &mut other.qkv);
            swap(&mut self.o, &mut other.o);
            swap(&mut self.lse, &mut other.lse);
        }
        if level >= Level::Middle {
            swap(&mut self.x_mid, &mut other.x_mid);
        }
        if level >= Level::All {
            swap(&mut self.gate_up, &mut other.gate_up);
        }
    }
}

/// Buffers that live for one layer only; all layers share them.
#[derive(Debug)]
pub(super) struct Work<B: Backend> {
    /// A layer's output, (T, D). In a backward pass, the gradient at a norm's output or at attention's.
    pub next: B::Act,
    pub normed: B::Act,
    pub h: B::Act,
    pub ds: B::Act,
    pub dqkv: B::Act,
    pub rstd: B::Full,
    pub tile: Tile<B>,
}

impl<B: Backend> Work<B> {
    pub fn new(backend: &B) -> Result<Self> {
        let act = || backend.act();
        Ok(Self {
            next: act(),
            normed: act(),
            h: act(),
            ds: act(),
            dqkv: act(),
            rstd: backend.full(0)?,
            tile: Tile::new(backend)?,
        })
    }
}

/// One layer with its adapters, on one batch.
#[derive(Debug)]
pub(super) struct Layer<'a, B: Backend> {
    pub backend: &'a B,
    pub weights: &'a LayerWeights<B>,
    pub lora: Option<(&'a [Option<LoraGroup>; 4], &'a B::Full)>,
    pub attention: &'a Attention,
    pub inverse_frequencies: &'a B::Full,
    pub eps: f64,
    /// Rows of the MLP computed at a time; `None` is all.
    pub tile: Option<usize>,
}

/// The keys and values of earlier tokens, for decoding.
pub(super) struct Cached<'a, B: Backend> {
    pub keys: &'a mut B::Act,
    pub values: &'a mut B::Act,
    pub len: usize,
}

impl<B: Backend> Layer<'_, B> {
    /// `saved.x` -> `work.next`. With `cached`, attention also sees the cached rows and appends the new ones.
    pub fn forward(
        &self,
        segments: &B::Segments,
        saved: &mut Saved<B>,
        work: &mut Work<B>,
        cached: Option<Cached<'_, B>>,
    ) -> Result<()> {
        let (b, w) = (self.backend, self.weights);
        b.rms_norm(&saved.x, &w.input_norm, self.eps, &mut work.normed, &mut saved.input_rstd)?;
        self.linear(0, &work.normed, &w.qkv, &mut saved.s[0], None, &mut saved.qkv)?;
        b.rope(&mut saved.qkv, segments, self.attention, self.inverse_frequencies, 1.0)?;
        match cached {
            None => b.attention(&saved.qkv, segments, self.attention, &mut saved.o, &mut saved.lse)?,
            // nothing earlier to see: the kernels for whole texts
            Some(c) if c.len == 0 => {
                b.attention(&saved.qkv, segments, self.attention, &mut saved.o, &mut saved.lse)?;
                b.append(&saved.qkv, c.keys, c.values, 0, self.attention)?;
            }
            Some(c) => b.attention_cached(&saved.qkv, c.keys, c.values, c.len, self.attention, &mut saved.o)?,
        }
        self.linear(1, &saved.o, &w.o, &mut saved.s[1], Some(&saved.x), &mut saved.x_mid)?;
        self.mlp(saved, work)
    }

    /// Computes again what a layer at `level` did not keep of its forward, from `saved.x` and `saved.s`; `work.next` is
    /// left alone. gate|up of a tiled MLP is the tiles' own affair.
    pub fn rebuild(
        &self,
        level: Level,
        segments: &B::Segments,
        saved: &mut Saved<B>,
        work: &mut Work<B>,
    ) -> Result<()> {
        let (b, w) = (self.backend, self.weights);
        if level < Level::Attention {
            b.rms_norm(&saved.x, &w.input_norm, self.eps, &mut work.normed, &mut saved.input_rstd)?;
            b.linear(&work.normed, &w.qkv, self.with(0, &saved.s[0]), None, &mut saved.qkv)?;
            b.rope(&mut saved.qkv, segments, self.attention, self.inverse_frequencies, 1.0)?;
            b.attention(&saved.qkv, segments, self.attention, &mut saved.o, &mut saved.lse)?;
        }
        if level < Level::Middle {
            b.linear(&saved.o, &w.o, self.with(1, &saved.s[1]), Some(&saved.x), &mut saved.x_mid)?;
        }
        if level < Level::All && self.tile_of(saved).is_none() {
            let rstd = &mut saved.post_attention_rstd;
            b.rms_norm(&saved.x_mid, &w.post_attention_norm, self.eps, &mut work.normed, rstd)?;
            b.linear(&work.normed, &w.gate_up, self.with(2, &saved.s[2]), None, &mut saved.gate_up)?;
        }
        Ok(())
    }

    /// `y = x·Wᵀ` with the adapters of `group`, plus `residual`.
    pub(super) fn linear(
        &self,
        group: usize,
        x: &B::Act,
        weight: &B::Weight,
        s: &mut B::Act,
        residual: Option<&B::Act>,
        y: &mut B::Act,
    ) -> Result<()> {
        let lora = match self.adapters(group) {
            Some((adapters, params)) => {
                self.backend.lora_down(x, adapters, params, s)?;
                Some((adapters, params, &*s))
            }
            None => None,
        };
        Ok(self.backend.linear(x, weight, lora, residual, y)?)
    }

    /// Turns `dx`, the gradient at the layer's output, into the gradient at its input and adds the adapters'.
    ///
    /// `saved.gate_up` is used up. `last` is the first adapted group of the lowest adapted layer: once its gradients
    /// are there nothing below needs any, and `dx` is left as it is.
    pub fn backward(
        &self,
        segments: &B::Segments,
        saved: &mut Saved<B>,
        work: &mut Work<B>,
        dx: &mut B::Act,
        gradients: &mut B::Full,
        last: Option<usize>,
    ) -> Result<()> {
        let (b, w) = (self.backend, self.weights);
        if self.mlp_backward(saved, work, dx, gradients, last)? {
            return Ok(());
        }
        // o
        self.up_backward(1, dx, &mut work.ds)?;
        self.gradients(1, &saved.o, &saved.s[1], dx, &work.ds, gradients)?;
        if last == Some(1) {
            return Ok(());
        }
        b.linear_backward(dx, &w.o, self.with(1, &work.ds), &mut work.next)?;
        let (qkv, o, lse) = (&saved.qkv, &saved.o, &saved.lse);
        b.attention_backward(&work.next, qkv, o, lse, segments, self.attention, &mut work.dqkv)?;
        b.rope(&mut work.dqkv, segments, self.attention, self.inverse_frequencies, -1.0)?;
        // q|k|v
        self.up_backward(0, &work.dqkv, &mut work.ds)?;
        if self.adapters(0).is_some() {
            b.rms_norm(&saved.x, &w.input_norm, self.eps, &mut work.normed, &mut work.rstd)?;
            self.gradients(0, &work.normed, &saved.s[0], &work.dqkv, &work.ds, gradients)?;
        }
        if last == Some(0) {
            return Ok(());
        }
        b.linear_backward(&work.dqkv, &w.qkv, self.with(0, &work.ds), &mut work.next)?;
        Ok(b.rms_norm_backward_add(&work.next, &saved.x, &w.input_norm, &saved.input_rstd, dx)?)
    }

    pub(super) fn adapters(&self, group: usize) -> Option<(&LoraGroup, &B::Full)> {
        let (groups, params) = self.lora?;
        groups[group].as_ref().map(|adapters| (adapters, params))
    }

    pub(super) fn with<'s>(&'s self, group: usize, s: &'s B::Act) -> Option<(&'s LoraGroup, &'s B::Full, &'s B::Act)> {
        self.adapters(group).map(|(adapters, params)| (adapters, params, s))
    }

    pub(super) fn up_backward(&self, group: usize, dy: &B::Act, ds: &mut B::Act) -> Result<()> {
        match self.adapters(group) {
            Some((adapters, params)) => Ok(self.backend.lora_up_backward(dy, adapters, params, ds)?),
            None => Ok(()),
        }
    }

    pub(super) fn gradients(
        &self,
        group: usize,
        x: &B::Act,
        s: &B::Act,
        dy: &B::Act,
        ds: &B::Act,
        gradients: &mut B::Full,
    ) -> Result<()> {
        match self.adapters(group) {
            Some((adapters, _)) => Ok(self.backend.lora_gradients(x, s, dy, ds, adapters, gradients)?),
            None => Ok(()),
        }
    }
}
