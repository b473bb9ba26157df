//! Final norm, output matrix and loss, a chunk of rows at a time, over the rows that have a target.

use crate::kernels::Backend;

use super::{Cancel, Result};

/// The output end of the model.
#[derive(Debug)]
pub(super) struct Head<'a, B: Backend> {
    pub backend: &'a B,
    pub weight: &'a B::Weight,
    pub norm: &'a B::Full,
    pub eps: f64,
    pub vocabulary: usize,
    /// What gradients are multiplied by.
    pub loss_scale: f64,
    pub cancel: &'a Cancel,
}

/// Buffers of one chunk: their size is bounded by `Backend::head_rows`, whatever the batch.
///
/// The largest of all, the logits, goes into a buffer of the caller's: no layer is at work while the head is.
#[derive(Debug)]
pub(super) struct HeadWork<B: Backend> {
    rows: B::Act,
    normed: B::Act,
    dnormed: B::Act,
    drows: B::Act,
    rstd: B::Full,
}

impl<B: Backend> HeadWork<B> {
    pub fn new(backend: &B) -> Result<Self> {
        let act = || backend.act();
        Ok(Self { rows: act(), normed: act(), dnormed: act(), drows: act(), rstd: backend.full(0)? })
    }

    /// Sizes the buffers for `rows` rows.
    pub fn reserve(&mut self, backend: &B, rows: usize, hidden: usize) -> Result<()> {
        for act in [&mut self.rows, &mut self.normed, &mut self.dnormed, &mut self.drows] {
            backend.resize(act, rows, hidden)?;
        }
        Ok(())
    }
}

impl<B: Backend> Head<'_, B> {
    /// Sum of the cross entropies of `rows` of `x`, divided by `normalizer`; its gradient, times the loss
    /// scale, goes into those rows of `dx`.
    ///
    /// The gradient comes with the forward, so logits are computed once and never kept. `dx` is sized and zeroed here.
    pub fn loss(
        &self,
        x: &B::Act,
        (rows, targets): (&[u32], &[u32]),
        normalizer: f64,
        mut dx: Option<&mut B::Act>,
        (work, logits): (&mut HeadWork<B>, &mut B::Act),
    ) -> Result<f64> {
        let b = self.backend;
        let (tokens, hidden) = b.shape(x);
        if let Some(dx) = dx.as_deref_mut() {
            b.zero_act(dx, tokens, hidden)?;
        }
        let mut sum = 0.0;
        let chunk = b.head_rows(self.vocabulary);
        for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
            let index = self.logits(x, rows, work, logits)?;
            sum += b.cross_entropy(logits, &b.index(targets)?, self.loss_scale / normalizer)?;
            if let Some(dx) = dx.as_deref_mut() {
                b.linear_backward(logits, self.weight, None, &mut work.dnormed)?;
                b.zero_act(&mut work.drows, rows.len(), hidden)?;
                b.rms_norm_backward_add(&work.dnormed, &work.rows, self.norm, &work.rstd, &mut work.drows)?;
                b.scatter_rows(&work.drows, &index, dx)?;
            }
        }
        Ok(sum / normalizer)
    }

    /// The log-probability of each row's target.
    pub fn log_probs(
        &self,
        x: &B::Act,
        (rows, targets): (&[u32], &[u32]),
        (work, logits): (&mut HeadWork<B>, &mut B::Act),
    ) -> Result<Vec<f64>> {
        let chunk = self.backend.head_rows(self.vocabulary);
        let mut all = Vec::with_capacity(rows.len());
        for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
            self.logits(x, rows, work, logits)?;
            all.extend(self.backend.log_probs(logits, &self.backend.index(targets)?)?);
        }
        Ok(all)
    }

    /// The logits of `rows`, (rows, V), on the host.
    pub fn read_logits(
        &self,
        x: &B::Act,
        rows: &[u32],
        (work, logits): (&mut HeadWork<B>, &mut B::Act),
    ) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(rows.len() * self.vocabulary);
        for rows in rows.chunks(self.backend.head_rows(self.vocabulary)) {
            self.logits(x, rows, work, logits)?;
            all.extend(self.backend.read_act(logits)?);
        }
        Ok(all)
    }

    fn logits(&self, x: &B::Act, rows: &[u32], work: &mut HeadWork<B>, logits: &mut B::Act) -> Result<B::Index> {
        self.cancel.check()?;
        let b = self.backend;
        let index = b.index(rows)?;
        b.gather_rows(x, &index, &mut work.rows)?;
        b.rms_norm(&work.rows, self.norm, self.eps, &mut work.normed, &mut work.rstd)?;
        b.linear(&work.normed, self.weight, None, None, logits)?;
        Ok(index)
    }
}
