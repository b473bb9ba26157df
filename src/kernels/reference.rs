//! `Reference`: every operation in f64 with plain loops, to be read and to be compared with.

use super::matrix::{Matrix, Texts, zeros};
use super::{
    AdamWStep, Attention, Backend, Error, LoraGroup, Result, StateSegment, adamw, adamw_8bit, attention, cross_entropy,
    embed, gather, linear, lora, rms_norm, rope, same, scale, sum_squares, swiglu,
};
use crate::quant::StoredMatrix;

/// The backend that proves the others: f64, one thread, no tricks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Reference {
    pub fn new() -> Self {
        Self
    }
}

impl Backend for Reference {
    type Act = Matrix<f64>;
    type Full = Vec<f64>;
    type Bytes = Vec<u8>;
    type Index = Vec<u32>;
    type Segments = Texts;
    type Recording = ();
    type Weight = Matrix<f64>;
    type Host = Matrix<f64>;

    fn name(&self) -> &'static str {
        "reference"
    }

    fn value_bytes(&self) -> (usize, usize) {
        (size_of::<f64>(), size_of::<f64>())
    }

    fn host(&self, rows: usize, cols: usize) -> Result<Matrix<f64>> {
        let mut host = Matrix::new();
        host.resize(rows, cols)?;
        Ok(host)
    }

    fn offload(&self, act: &Matrix<f64>, host: &mut Matrix<f64>) -> Result<()> {
        host.take(act)
    }

    fn fetch(&self, host: &mut Matrix<f64>, act: &mut Matrix<f64>) -> Result<()> {
        act.take(host)
    }

    fn act(&self) -> Matrix<f64> {
        Matrix::new()
    }

    fn resize(&self, act: &mut Matrix<f64>, rows: usize, cols: usize) -> Result<()> {
        act.resize(rows, cols)
    }

    fn shape(&self, act: &Matrix<f64>) -> (usize, usize) {
        (act.rows, act.cols)
    }

    fn write_act(&self, act: &mut Matrix<f64>, rows: usize, cols: usize, values: &[f32]) -> Result<()> {
        same("write_act", "the number of values", values.len(), rows * cols)?;
        act.resize(rows, cols)?;
        for (to, from) in act.values.iter_mut().zip(values) {
            *to = f64::from(*from);
        }
        Ok(())
    }

    fn read_act(&self, act: &Matrix<f64>) -> Result<Vec<f32>> {
        Ok(act.values.iter().map(|&v| v as f32).collect())
    }

    fn copy(&self, from: &Matrix<f64>, to: &mut Matrix<f64>) -> Result<()> {
        to.take(from)
    }

    fn copy_rows(
        &self,
        from: &Matrix<f64>,
        first: usize,
        rows: usize,
        to: &mut Matrix<f64>,
        to_first: usize,
    ) -> Result<()> {
        from.copy_rows(first, rows, to, to_first)
    }

    fn scale(&self, act: &mut Matrix<f64>, factor: f64) -> Result<()> {
        scale::reference::scale(&mut act.values, factor);
        Ok(())
    }

    fn full(&self, len: usize) -> Result<Vec<f64>> {
        zeros("full", len)
    }

    fn full_len(&self, full: &Vec<f64>) -> usize {
        full.len()
    }

    fn write_full(&self, full: &mut Vec<f64>, offset: usize, values: &[f32]) -> Result<()> {
        let len = full.len();
        let to = full.get_mut(offset..offset + values.len());
        let to = to.ok_or(Error::Index { op: "write_full", index: offset + values.len(), len })?;
        for (to, from) in to.iter_mut().zip(values) {
            *to = f64::from(*from);
        }
        Ok(())
    }

    fn read_full(&self, full: &Vec<f64>, offset: usize, values: &mut [f32]) -> Result<()> {
        let end = offset + values.len();
        let from = full.get(offset..end).ok_or(Error::Index { op: "read_full", index: end, len: full.len() })?;
        for (to, from) in values.iter_mut().zip(from) {
            *to = *from as f32;
        }
        Ok(())
    }

    fn zero_full(&self, full: &mut Vec<f64>) -> Result<()> {
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

    fn reserve(&self, _cache: &mut Matrix<f64>, rows: usize, _cols: usize) -> Result<usize> {
        // `append` makes the room
        Ok(rows)
    }

    fn segments(&self, cu_seqlens: &[u32], first_position: usize) -> Result<Texts> {
        Texts::new(cu_seqlens, first_position)
    }

    fn weight(&self, parts: Vec<StoredMatrix>) -> Result<Matrix<f64>> {
        let cols = parts.first().map_or(0, |part| part.cols);
        let mut weight = Matrix::new();
        weight.resize(parts.iter().map(|part| part.rows).sum(), cols)?;
        let mut first = 0;
        for part in parts {
            same("weight", "the columns of a part", part.cols, cols)?;
            let mut values = zeros::<f32>("weight", part.rows * cols)?;
            part.dequantize_rows(0..part.rows, &mut values);
            for (to, from) in weight.values[first..].iter_mut().zip(&values) {
                *to = f64::from(*from);
            }
            first += values.len();
        }
        Ok(weight)
    }

    fn weight_bytes(&self, weight: &Matrix<f64>) -> usize {
        size_of_val(weight.values.as_slice())
    }

    fn linear(
        &self,
        x: &Matrix<f64>,
        w: &Matrix<f64>,
        lora: Option<(&LoraGroup, &Vec<f64>, &Matrix<f64>)>,
        residual: Option<&Matrix<f64>>,
        y: &mut Matrix<f64>,
    ) -> Result<()> {
        let adapters = lora.map(|(group, params, s)| (group, params.as_slice(), s));
        linear::prepare(x, (w.rows, w.cols), adapters, residual, y)?;
        linear::reference::forward(x, w, adapters, residual, y);
        Ok(())
    }

    fn linear_backward(
        &self,
        dy: &Matrix<f64>,
        w: &Matrix<f64>,
        lora: Option<(&LoraGroup, &Vec<f64>, &Matrix<f64>)>,
        dx: &mut Matrix<f64>,
    ) -> Result<()> {
        let adapters = lora.map(|(group, params, ds)| (group, params.as_slice(), ds));
        linear::prepare_backward(dy, (w.rows, w.cols), adapters, dx)?;
        linear::reference::backward(dy, w, adapters, dx);
        Ok(())
    }

    fn lora_down(&self, x: &Matrix<f64>, group: &LoraGroup, params: &Vec<f64>, s: &mut Matrix<f64>) -> Result<()> {
        lora::prepare_down(x, group, params, s)?;
        lora::reference::down(x, group, params, s);
        Ok(())
    }

    fn lora_up_backward(
        &self,
        dy: &Matrix<f64>,
        group: &LoraGroup,
        params: &Vec<f64>,
        ds: &mut Matrix<f64>,
    ) -> Result<()> {
        lora::prepare_up_backward(dy, group, params, ds)?;
        lora::reference::up_backward(dy, group, params, ds);
        Ok(())
    }

    fn lora_gradients(
        &self,
        x: &Matrix<f64>,
        s: &Matrix<f64>,
        dy: &Matrix<f64>,
        ds: &Matrix<f64>,
        group: &LoraGroup,
        gradients: &mut Vec<f64>,
    ) -> Result<()> {
        lora::check_gradients(x, s, dy, ds, group, gradients)?;
        lora::reference::gradients(x, s, dy, ds, group, gradients);
        Ok(())
    }

    fn embed(&self, table: &Matrix<f64>, ids: &Vec<u32>, x: &mut Matrix<f64>) -> Result<()> {
        embed::prepare((table.rows, table.cols), ids, x)?;
        embed::reference::rows(table, ids, x);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &Matrix<f64>,
        weight: &Vec<f64>,
        eps: f64,
        y: &mut Matrix<f64>,
        rstd: &mut Vec<f64>,
    ) -> Result<()> {
        rms_norm::prepare(x, weight, y, rstd)?;
        rms_norm::reference::forward(x, weight, eps, y, rstd);
        Ok(())
    }

    fn rms_norm_backward_add(
        &self,
        dy: &Matrix<f64>,
        x: &Matrix<f64>,
        weight: &Vec<f64>,
        rstd: &Vec<f64>,
        dx: &mut Matrix<f64>,
    ) -> Result<()> {
        rms_norm::check_backward(dy, x, weight, rstd, dx)?;
        rms_norm::reference::backward_add(dy, x, weight, rstd, dx);
        Ok(())
    }

    fn rope(
        &self,
        qkv: &mut Matrix<f64>,
        segments: &Texts,
        attention: &Attention,
        inverse_frequencies: &Vec<f64>,
        sign: f64,
    ) -> Result<()> {
        rope::check(qkv, segments, attention, inverse_frequencies)?;
        rope::reference::rotate(qkv, segments, attention, inverse_frequencies, sign);
        Ok(())
    }

    fn attention(
        &self,
        qkv: &Matrix<f64>,
        segments: &Texts,
        attention: &Attention,
        o: &mut Matrix<f64>,
        lse: &mut Vec<f64>,
    ) -> Result<()> {
        attention::prepare(qkv, segments, attention, o, lse)?;
        attention::reference::forward(qkv, segments, attention, o, lse);
        Ok(())
    }

    fn attention_backward(
        &self,
        do_: &Matrix<f64>,
        qkv: &Matrix<f64>,
        o: &Matrix<f64>,
        lse: &Vec<f64>,
        segments: &Texts,
        attention: &Attention,
        dqkv: &mut Matrix<f64>,
    ) -> Result<()> {
        attention::prepare_backward(do_, qkv, o, lse, segments, attention, dqkv)?;
        attention::reference::backward(do_, qkv, o, lse, segments, attention, dqkv);
        Ok(())
    }

    fn append(
        &self,
        qkv: &Matrix<f64>,
        keys: &mut Matrix<f64>,
        values: &mut Matrix<f64>,
        cached: usize,
        attention: &Attention,
    ) -> Result<()> {
        attention::append("append", qkv, keys, values, cached, attention)
    }

    fn attention_cached(
        &self,
        qkv: &Matrix<f64>,
        keys: &mut Matrix<f64>,
        values: &mut Matrix<f64>,
        cached: usize,
        attention: &Attention,
        o: &mut Matrix<f64>,
    ) -> Result<()> {
        attention::prepare_cached(qkv, keys, values, cached, attention, o)?;
        attention::reference::cached(qkv, keys, values, cached, attention, o);
        Ok(())
    }

    fn swiglu(&self, gate_up: &Matrix<f64>, h: &mut Matrix<f64>) -> Result<()> {
        swiglu::prepare(gate_up, h)?;
        swiglu::reference::forward(gate_up, h);
        Ok(())
    }

    fn swiglu_backward(&self, dh: &mut Matrix<f64>, gate_up: &mut Matrix<f64>) -> Result<()> {
        swiglu::check_backward(dh, gate_up)?;
        swiglu::reference::backward(dh, gate_up);
        Ok(())
    }

    fn gather_rows(&self, x: &Matrix<f64>, rows: &Vec<u32>, y: &mut Matrix<f64>) -> Result<()> {
        gather::prepare_gather(x, rows, y)?;
        gather::reference::gather(x, rows, y);
        Ok(())
    }

    fn scatter_rows(&self, x: &Matrix<f64>, rows: &Vec<u32>, y: &mut Matrix<f64>) -> Result<()> {
        gather::check_scatter(x, rows, y)?;
        gather::reference::scatter(x, rows, y);
        Ok(())
    }

    fn cross_entropy(&self, logits: &mut Matrix<f64>, targets: &Vec<u32>, weight: f64) -> Result<f64> {
        cross_entropy::check("cross_entropy", logits, targets)?;
        Ok(cross_entropy::reference::loss_and_gradient(logits, targets, weight))
    }

    fn log_probs(&self, logits: &Matrix<f64>, targets: &Vec<u32>) -> Result<Vec<f64>> {
        cross_entropy::check("log_probs", logits, targets)?;
        Ok(cross_entropy::reference::log_probs(logits, targets))
    }

    fn sum_squares(&self, x: &Vec<f64>) -> Result<f64> {
        Ok(sum_squares::reference::sum_squares(x))
    }

    fn scale_full(&self, x: &mut Vec<f64>, factor: f64) -> Result<()> {
        scale::reference::scale(x, factor);
        Ok(())
    }

    fn adamw(
        &self,
        params: &mut Vec<f64>,
        gradients: &Vec<f64>,
        m: &mut Vec<f64>,
        v: &mut Vec<f64>,
        segments: &[StateSegment],
        step: &AdamWStep,
    ) -> Result<()> {
        adamw::check(params, gradients, m, v, segments)?;
        adamw::reference::update(params, gradients, m, v, segments, step);
        Ok(())
    }

    fn adamw_8bit(
        &self,
        params: &mut Vec<f64>,
        gradients: &Vec<f64>,
        codes: (&mut Vec<u8>, &mut Vec<u8>),
        absmax: (&mut Vec<f64>, &mut Vec<f64>),
        full: (&mut Vec<f64>, &mut Vec<f64>),
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
        adamw_8bit::reference::update(params, gradients, &mut state, segments, step);
        Ok(())
    }
}
