//! `Cpu`: every operation in f32 on all cores.

use std::sync::Arc;

use pulp::Arch;

use super::frozen::{Budget, Frozen};
use super::matrix::{Matrix, Texts, zeros};
use super::threads::Threads;
use super::{
    AdamWStep, Attention, Backend, Error, LoraGroup, Result, StateSegment, adamw, adamw_8bit, attention, cross_entropy,
    embed, gather, linear, lora, rms_norm, rope, same, scale, sum_squares, swiglu,
};
use crate::quant::StoredMatrix;

/// Bytes of packed weights a `Cpu` makes unless told otherwise: enough for models of a few hundred million parameters.
/// `train` says otherwise where it knows how much memory is free.
const DENSE_LIMIT: usize = 2 << 30;

/// The backend that ships for computers without a GPU.
#[derive(Debug)]
pub struct Cpu {
    threads: Threads,
    arch: Arch,
    budget: Arc<Budget>,
    rotations: rope::cpu::Table,
}

impl Cpu {
    /// With its own pool of `threads`; `None` takes all cores.
    pub fn new(threads: Option<usize>) -> Self {
        Self {
            threads: Threads::new(threads),
            arch: Arch::new(),
            budget: Arc::new(Budget::new(DENSE_LIMIT)),
            rotations: rope::cpu::Table::default(),
        }
    }

    /// Weights are packed as f32 while the total stays under `bytes`; others stay as they are stored.
    pub fn with_dense_limit(mut self, bytes: usize) -> Self {
        self.budget = Arc::new(Budget::new(bytes));
        self
    }

    /// Computes with the vector instructions of `arch` instead of the best there are.
    #[cfg(test)]
    pub(super) fn with_arch(mut self, arch: Arch) -> Self {
        self.arch = arch;
        self
    }

    fn device(&self) -> (&Threads, Arch) {
        (&self.threads, self.arch)
    }
}

impl Backend for Cpu {
    type Act = Matrix<f32>;
    type Full = Vec<f32>;
    type Bytes = Vec<u8>;
    type Index = Vec<u32>;
    type Segments = Texts;
    type Recording = ();
    type Weight = Frozen;
    type Host = Matrix<f32>;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.run(work)
    }

    fn value_bytes(&self) -> (usize, usize) {
        (size_of::<f32>(), size_of::<f32>())
    }

    fn host(&self, rows: usize, cols: usize) -> Result<Matrix<f32>> {
        let mut host = Matrix::new();
        host.resize(rows, cols)?;
        Ok(host)
    }

    fn offload(&self, act: &Matrix<f32>, host: &mut Matrix<f32>) -> Result<()> {
        host.take(act)
    }

    fn fetch(&self, host: &mut Matrix<f32>, act: &mut Matrix<f32>) -> Result<()> {
        act.take(host)
    }

    fn act(&self) -> Matrix<f32> {
        Matrix::new()
    }

    fn resize(&self, act: &mut Matrix<f32>, rows: usize, cols: usize) -> Result<()> {
        act.resize(rows, cols)
    }

    fn shape(&self, act: &Matrix<f32>) -> (usize, usize) {
        (act.rows, act.cols)
    }

    fn write_act(&self, act: &mut Matrix<f32>, rows: usize, cols: usize, values: &[f32]) -> Result<()> {
        same("write_act", "the number of values", values.len(), rows * cols)?;
        act.resize(rows, cols)?;
        act.values.copy_from_slice(values);
        Ok(())
    }

    fn read_act(&self, act: &Matrix<f32>) -> Result<Vec<f32>> {
        Ok(act.values.clone())
    }

    fn copy(&self, from: &Matrix<f32>, to: &mut Matrix<f32>) -> Result<()> {
        to.take(from)
    }

    fn copy_rows(
        &self,
        from: &Matrix<f32>,
        first: usize,
        rows: usize,
        to: &mut Matrix<f32>,
        to_first: usize,
    ) -> Result<()> {
        from.copy_rows(first, rows, to, to_first)
    }

    fn scale(&self, act: &mut Matrix<f32>, factor: f64) -> Result<()> {
        scale::cpu::scale(self.device(), &mut act.values, factor);
        Ok(())
    }

    fn full(&self, len: usize) -> Result<Vec<f32>> {
        zeros("full", len)
    }

    fn full_len(&self, full: &Vec<f32>) -> usize {
        full.len()
    }

    fn write_full(&self, full: &mut Vec<f32>, offset: usize, values: &[f32]) -> Result<()> {
        let len = full.len();
        let to = full.get_mut(offset..offset + values.len());
        let to = to.ok_or(Error::Index { op: "write_full", index: offset + values.len(), len })?;
        to.copy_from_slice(values);
        Ok(())
    }

    fn read_full(&self, full: &Vec<f32>, offset: usize, values: &mut [f32]) -> Result<()> {
        let end = offset + values.len();
        let from = full.get(offset..end).ok_or(Error::Index { op: "read_full", index: end, len: full.len() })?;
        values.copy_from_slice(from);
        Ok(())
    }

    fn zero_full(&self, full: &mut Vec<f32>) -> Result<()> {
        full.fill(0.0);
        Ok(())
    }

    fn bytes(&self, len: usize) -> Result<Vec<u8>> {
        zeros("bytes", len)
    }

    fn write_bytes(&self, bytes: &mut Vec<u8>, values: &[u8]) -> Result<()> {
        same("write_bytes", "the number of values", values.len(), bytes.len())?;
        bytes.copy_from_slice(values);
        Ok(())
    }

    fn read_bytes(&self, bytes: &Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes.clone())
    }

    fn index(&self, values: &[u32]) -> Result<Vec<u32>> {
        Ok(values.to_vec())
    }

    fn rewrite(&self, index: &mut Vec<u32>, values: &[u32]) -> Result<()> {
        same("index", "the number of values", values.len(), index.len())?;
        index.copy_from_slice(values);
        Ok(())
    }

    fn shift(&self, segments: &mut Texts, first_position: usize) -> Result<()> {
        segments.shift(first_position);
        Ok(())
    }

    fn reserve(&self, _cache: &mut Matrix<f32>, rows: usize, _cols: usize) -> Result<usize> {
        // `append` makes the room
        Ok(rows)
    }

    fn segments(&self, cu_seqlens: &[u32], first_position: usize) -> Result<Texts> {
        Texts::new(cu_seqlens, first_position)
    }

    fn weight(&self, parts: Vec<StoredMatrix>) -> Result<Frozen> {
        Frozen::new(parts, Arc::clone(&self.budget))
    }

    fn weight_bytes(&self, weight: &Frozen) -> usize {
        weight.bytes()
    }

    fn linear(
        &self,
        x: &Matrix<f32>,
        w: &Frozen,
        lora: Option<(&LoraGroup, &Vec<f32>, &Matrix<f32>)>,
        residual: Option<&Matrix<f32>>,
        y: &mut Matrix<f32>,
    ) -> Result<()> {
        let adapters = lora.map(|(group, params, s)| (group, params.as_slice(), s));
        linear::prepare(x, (w.rows, w.cols), adapters, residual, y)?;
        linear::cpu::forward(self.device(), x, w, adapters, residual, y)
    }

    fn linear_backward(
        &self,
        dy: &Matrix<f32>,
        w: &Frozen,
        lora: Option<(&LoraGroup, &Vec<f32>, &Matrix<f32>)>,
        dx: &mut Matrix<f32>,
    ) -> Result<()> {
        let adapters = lora.map(|(group, params, ds)| (group, params.as_slice(), ds));
        linear::prepare_backward(dy, (w.rows, w.cols), adapters, dx)?;
        linear::cpu::backward(self.device(), dy, w, adapters, dx)
    }

    fn lora_down(&self, x: &Matrix<f32>, group: &LoraGroup, params: &Vec<f32>, s: &mut Matrix<f32>) -> Result<()> {
        lora::prepare_down(x, group, params, s)?;
        lora::cpu::down(self.device(), x, group, params, s)
    }

    fn lora_up_backward(
        &self,
        dy: &Matrix<f32>,
        group: &LoraGroup,
        params: &Vec<f32>,
        ds: &mut Matrix<f32>,
    ) -> Result<()> {
        lora::prepare_up_backward(dy, group, params, ds)?;
        lora::cpu::up_backward(self.device(), dy, group, params, ds);
        Ok(())
    }

    fn lora_gradients(
        &self,
        x: &Matrix<f32>,
        s: &Matrix<f32>,
        dy: &Matrix<f32>,
        ds: &Matrix<f32>,
        group: &LoraGroup,
        gradients: &mut Vec<f32>,
    ) -> Result<()> {
        lora::check_gradients(x, s, dy, ds, group, gradients)?;
        lora::cpu::gradients(self.device(), x, s, dy, ds, group, gradients)
    }

    fn embed(&self, table: &Frozen, ids: &Vec<u32>, x: &mut Matrix<f32>) -> Result<()> {
        embed::prepare((table.rows, table.cols), ids, x)?;
        embed::cpu::rows(&self.threads, table, ids, x);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &Matrix<f32>,
        weight: &Vec<f32>,
        eps: f64,
        y: &mut Matrix<f32>,
        rstd: &mut Vec<f32>,
    ) -> Result<()> {
        rms_norm::prepare(x, weight, y, rstd)?;
        rms_norm::cpu::forward(self.device(), x, weight, eps, y, rstd);
        Ok(())
    }

    fn rms_norm_backward_add(
        &self,
        dy: &Matrix<f32>,
        x: &Matrix<f32>,
        weight: &Vec<f32>,
        rstd: &Vec<f32>,
        dx: &mut Matrix<f32>,
    ) -> Result<()> {
        rms_norm::check_backward(dy, x, weight, rstd, dx)?;
        rms_norm::cpu::backward_add(self.device(), dy, x, weight, rstd, dx);
        Ok(())
    }

    fn rope(
        &self,
        qkv: &mut Matrix<f32>,
        segments: &Texts,
        attention: &Attention,
        inverse_frequencies: &Vec<f32>,
        sign: f64,
    ) -> Result<()> {
        rope::check(qkv, segments, attention, inverse_frequencies)?;
        rope::cpu::rotate(self.device(), &self.rotations, qkv, segments, attention, inverse_frequencies, sign);
        Ok(())
    }

    fn attention(
        &self,
        qkv: &Matrix<f32>,
        segments: &Texts,
        attention: &Attention,
        o: &mut Matrix<f32>,
        lse: &mut Vec<f32>,
    ) -> Result<()> {
        attention::prepare(qkv, segments, attention, o, lse)?;
        attention::cpu::forward(self.device(), qkv, segments, attention, o, lse)
    }

    fn attention_backward(
        &self,
        do_: &Matrix<f32>,
        qkv: &Matrix<f32>,
        o: &Matrix<f32>,
        lse: &Vec<f32>,
        segments: &Texts,
        attention: &Attention,
        dqkv: &mut Matrix<f32>,
    ) -> Result<()> {
        attention::prepare_backward(do_, qkv, o, lse, segments, attention, dqkv)?;
        attention::cpu::backward(self.device(), do_, qkv, o, lse, segments, attention, dqkv)
    }

    fn append(
        &self,
        qkv: &Matrix<f32>,
        keys: &mut Matrix<f32>,
        values: &mut Matrix<f32>,
        cached: usize,
        attention: &Attention,
    ) -> Result<()> {
        attention::append("append", qkv, keys, values, cached, attention)
    }

    fn attention_cached(
        &self,
        qkv: &Matrix<f32>,
        keys: &mut Matrix<f32>,
        values: &mut Matrix<f32>,
        cached: usize,
        attention: &Attention,
        o: &mut Matrix<f32>,
    ) -> Result<()> {
        attention::prepare_cached(qkv, keys, values, cached, attention, o)?;
        attention::cpu::cached(self.device(), qkv, (keys, values), cached, attention, o)
    }

    fn swiglu(&self, gate_up: &Matrix<f32>, h: &mut Matrix<f32>) -> Result<()> {
        swiglu::prepare(gate_up, h)?;
        swiglu::cpu::forward(self.device(), gate_up, h);
        Ok(())
    }

    fn swiglu_backward(&self, dh: &mut Matrix<f32>, gate_up: &mut Matrix<f32>) -> Result<()> {
        swiglu::check_backward(dh, gate_up)?;
        swiglu::cpu::backward(self.device(), dh, gate_up);
        Ok(())
    }

    fn gather_rows(&self, x: &Matrix<f32>, rows: &Vec<u32>, y: &mut Matrix<f32>) -> Result<()> {
        gather::prepare_gather(x, rows, y)?;
        gather::cpu::gather(&self.threads, x, rows, y);
        Ok(())
    }

    fn scatter_rows(&self, x: &Matrix<f32>, rows: &Vec<u32>, y: &mut Matrix<f32>) -> Result<()> {
        gather::check_scatter(x, rows, y)?;
        gather::cpu::scatter(x, rows, y);
        Ok(())
    }

    fn cross_entropy(&self, logits: &mut Matrix<f32>, targets: &Vec<u32>, weight: f64) -> Result<f64> {
        cross_entropy::check("cross_entropy", logits, targets)?;
        Ok(cross_entropy::cpu::loss_and_gradient(self.device(), logits, targets, weight))
    }

    fn log_probs(&self, logits: &Matrix<f32>, targets: &Vec<u32>) -> Result<Vec<f64>> {
        cross_entropy::check("log_probs", logits, targets)?;
        Ok(cross_entropy::cpu::log_probs(self.device(), logits, targets))
    }

    fn sum_squares(&self, x: &Vec<f32>) -> Result<f64> {
        Ok(sum_squares::cpu::sum_squares(self.device(), x))
    }

    fn scale_full(&self, x: &mut Vec<f32>, factor: f64) -> Result<()> {
        scale::cpu::scale(self.device(), x, factor);
        Ok(())
    }

    fn adamw(
        &self,
        params: &mut Vec<f32>,
        gradients: &Vec<f32>,
        m: &mut Vec<f32>,
        v: &mut Vec<f32>,
        segments: &[StateSegment],
        step: &AdamWStep,
    ) -> Result<()> {
        adamw::check(params, gradients, m, v, segments)?;
        adamw::cpu::update(self.device(), params, gradients, m, v, segments, step);
        Ok(())
    }

    fn adamw_8bit(
        &self,
        params: &mut Vec<f32>,
        gradients: &Vec<f32>,
        codes: (&mut Vec<u8>, &mut Vec<u8>),
        absmax: (&mut Vec<f32>, &mut Vec<f32>),
        full: (&mut Vec<f32>, &mut Vec<f32>),
        segments: &[StateSegment],
        step: &AdamWStep,
    ) -> Result<()> {
        let mut state = adamw_8bit::State {
            codes_m: codes.0,
            codes_v: codes.1,
            absmax_m: absmax.0,
            absmax_v: absmax.1,
            m: full.0,
            v: full.1,
        };
        adamw_8bit::check(params, gradients, &state, segments)?;
        adamw_8bit::cpu::update(self.device(), params, gradients, &mut state, segments, step);
        Ok(())
    }
}
