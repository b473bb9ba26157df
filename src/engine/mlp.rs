//! The second half of a decoder layer, on all rows at once or a tile of rows at a time.
//!
//! In tiles nothing as wide as the MLP is ever there for all rows; each tile's backward computes gate|up of its rows
//! again. The weights are then read once per tile.

use crate::kernels::Backend;

use super::Result;
use super::layer::{Layer, Saved, Work};

/// Buffers of one tile of rows.
#[derive(Debug)]
pub(super) struct Tile<B: Backend> {
    x_mid: B::Act,
    /// The tile's output, or in a backward the gradient at it.
    out: B::Act,
    dnormed: B::Act,
    rstd: B::Full,
    s_up: B::Act,
    s_down: B::Act,
}

impl<B: Backend> Tile<B> {
    pub fn new(backend: &B) -> Result<Self> {
        let act = || backend.act();
        Ok(Self { x_mid: act(), out: act(), dnormed: act(), rstd: backend.full(0)?, s_up: act(), s_down: act() })
    }

    /// Sizes the buffers for `rows` rows of `hidden` columns.
    pub fn resize(&mut self, backend: &B, rows: usize, hidden: usize, ranks: [usize; 2]) -> Result<()> {
        for act in [&mut self.x_mid, &mut self.out, &mut self.dnormed] {
            backend.resize(act, rows, hidden)?;
        }
        backend.resize(&mut self.s_up, rows, ranks[0])?;
        backend.resize(&mut self.s_down, rows, ranks[1])?;
        Ok(())
    }
}

impl<B: Backend> Layer<'_, B> {
    /// The tile, if these rows are more than one.
    pub(super) fn tile_of(&self, saved: &Saved<B>) -> Option<usize> {
        let rows = self.backend.shape(&saved.x).0;
        self.tile.filter(|&tile| rows > tile)
    }

    /// `saved.x_mid` -> `work.next`.
    pub(super) fn mlp(&self, saved: &mut Saved<B>, work: &mut Work<B>) -> Result<()> {
        let (b, w) = (self.backend, self.weights);
        let Some(tile) = self.tile_of(saved) else {
            let rstd = &mut saved.post_attention_rstd;
            b.rms_norm(&saved.x_mid, &w.post_attention_norm, self.eps, &mut work.normed, rstd)?;
            self.linear(2, &work.normed, &w.gate_up, &mut saved.s[2], None, &mut saved.gate_up)?;
            b.swiglu(&saved.gate_up, &mut work.h)?;
            return self.linear(3, &work.h, &w.down, &mut saved.s[3], Some(&saved.x_mid), &mut work.next);
        };
        let (rows, hidden) = b.shape(&saved.x_mid);
        b.resize(&mut work.next, rows, hidden)?;
        let t = &mut work.tile;
        for first in (0..rows).step_by(tile) {
            let len = tile.min(rows - first);
            b.resize(&mut t.x_mid, len, hidden)?;
            b.copy_rows(&saved.x_mid, first, len, &mut t.x_mid, 0)?;
            b.rms_norm(&t.x_mid, &w.post_attention_norm, self.eps, &mut work.normed, &mut t.rstd)?;
            self.linear(2, &work.normed, &w.gate_up, &mut t.s_up, None, &mut saved.gate_up)?;
            b.swiglu(&saved.gate_up, &mut work.h)?;
            self.linear(3, &work.h, &w.down, &mut t.s_down, Some(&t.x_mid), &mut t.out)?;
            b.copy_rows(&t.out, 0, len, &mut work.next, first)?;
        }
        Ok(())
    }

    /// Turns `dx`, the gradient at the layer's output, into the gradient at `saved.x_mid` and adds the adapters' of
    /// both linears. True: nothing below needs a gradient, so it ended early, as `last` says (see `backward`).
    pub(super) fn mlp_backward(
        &self,
        saved: &mut Saved<B>,
        work: &mut Work<B>,
        dx: &mut B::Act,
        gradients: &mut B::Full,
        last: Option<usize>,
    ) -> Result<bool> {
        let (b, w) = (self.backend, self.weights);
        let Some(tile) = self.tile_of(saved) else {
            // down: work.h receives dh, which swiglu_backward turns into h itself
            self.up_backward(3, dx, &mut work.ds)?;
            b.linear_backward(dx, &w.down, self.with(3, &work.ds), &mut work.h)?;
            b.swiglu_backward(&mut work.h, &mut saved.gate_up)?;
            self.gradients(3, &work.h, &saved.s[3], dx, &work.ds, gradients)?;
            if last == Some(3) {
                return Ok(true);
            }
            // gate|up
            self.up_backward(2, &saved.gate_up, &mut work.ds)?;
            if self.adapters(2).is_some() {
                b.rms_norm(&saved.x_mid, &w.post_attention_norm, self.eps, &mut work.normed, &mut work.rstd)?;
                self.gradients(2, &work.normed, &saved.s[2], &saved.gate_up, &work.ds, gradients)?;
            }
            if last == Some(2) {
                return Ok(true);
            }
            b.linear_backward(&saved.gate_up, &w.gate_up, self.with(2, &work.ds), &mut work.next)?;
            let rstd = &saved.post_attention_rstd;
            b.rms_norm_backward_add(&work.next, &saved.x_mid, &w.post_attention_norm, rstd, dx)?;
            return Ok(false);
        };
        let (rows, hidden) = b.shape(&saved.x_mid);
        let t = &mut work.tile;
        for first in (0..rows).step_by(tile) {
            let len = tile.min(rows - first);
            b.resize(&mut t.x_mid, len, hidden)?;
            b.resize(&mut t.out, len, hidden)?;
            b.copy_rows(&saved.x_mid, first, len, &mut t.x_mid, 0)?;
            b.copy_rows(dx, first, len, &mut t.out, 0)?;
            b.rms_norm(&t.x_mid, &w.post_attention_norm, self.eps, &mut work.normed, &mut t.rstd)?;
            self.linear(2, &work.normed, &w.gate_up, &mut t.s_up, None, &mut saved.gate_up)?;
            self.up_backward(3, &t.out, &mut work.ds)?;
            b.linear_backward(&t.out, &w.down, self.with(3, &work.ds), &mut work.h)?;
            b.swiglu_backward(&mut work.h, &mut saved.gate_up)?;
            if let Some((adapters, params)) = self.adapters(3) {
                b.lora_down(&work.h, adapters, params, &mut t.s_down)?;
            }
            self.gradients(3, &work.h, &t.s_down, &t.out, &work.ds, gradients)?;
            if last == Some(3) {
                continue;
            }
            self.up_backward(2, &saved.gate_up, &mut work.ds)?;
            self.gradients(2, &work.normed, &t.s_up, &saved.gate_up, &work.ds, gradients)?;
            if last == Some(2) {
                continue;
            }
            b.linear_backward(&saved.gate_up, &w.gate_up, self.with(2, &work.ds), &mut t.dnormed)?;
            b.rms_norm_backward_add(&t.dnormed, &t.x_mid, &w.post_attention_norm, &t.rstd, &mut t.out)?;
            b.copy_rows(&t.out, 0, len, dx, first)?;
        }
        Ok(matches!(last, Some(2 | 3)))
    }
}
