//! `Cuda` as a `Backend`: checks on shapes, sizes for the outputs, then the operation's kernels.

use std::sync::PoisonError;

use super::buffers::{Act, Bytes, Full, Index, Segments, Shape};
use super::host::Host;
use super::weight::Weight;
use super::{Cuda, Recording};
use crate::kernels::matrix::Texts;
use crate::kernels::{
    AdamWStep, Attention, Backend, DeviceMemory, Error, LoraGroup, Result, StateSegment, StepLinear, StepScratch,
    adamw, adamw_8bit, attention, check_rows, cross_entropy, embed, gather, linear, lora, rms_norm, rope, same, scale,
    sum_squares, swiglu,
};
use crate::quant::{FloatBytes, StoredMatrix};

impl Cuda {
    pub(super) fn fit(&self, act: &mut Act, shape: &Shape) -> Result<()> {
        act.fit(&self.device, shape.rows, shape.cols)
    }
}

/// Adapters as the checks read them.
macro_rules! shapes {
    ($lora:expr, $params:ident, $s:ident) => {
        let ($params, $s) = $lora.map(|(_, params, s)| (params.shape(), s.shape())).unwrap_or_default();
    };
}

impl Backend for Cuda {
    type Act = Act;
    type Full = Full;
    type Bytes = Bytes;
    type Index = Index;
    type Segments = Segments;
    type Weight = Weight;
    type Host = Host;
    type Recording = Recording;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn needs_loss_scale(&self) -> bool {
        // f16's smallest number is 6e-8; bf16 has f32's exponents
        self.dtype == super::Dtype::F16
    }

    fn memory(&self) -> Result<Option<DeviceMemory>> {
        self.device.memory().map(|(free, total)| Some(DeviceMemory { free, total }))
    }

    fn reset_peak(&self) -> Result<()> {
        self.device.reset_peak()
    }

    fn peak_bytes(&self) -> Result<Option<usize>> {
        self.device.peak_taken()
    }

    fn value_bytes(&self) -> (usize, usize) {
        (self.dtype.bytes(), super::Dtype::F32.bytes())
    }

    fn attention_bytes(&self, attention: &Attention) -> usize {
        if self.is_deterministic(attention) { 0 } else { attention::cudnn::backward_bytes(self.dtype, attention) }
    }

    fn settle_memory(&self) -> Result<()> {
        self.settle()
    }

    fn settle_full(&self, full: &Full) -> Result<()> {
        full.narrow(&self.device, self.dtype).map(|_| ())
    }

    fn has_host(&self) -> bool {
        true
    }

    fn host(&self, rows: usize, cols: usize) -> Result<Host> {
        self.device.host(rows, cols, self.dtype.bytes())
    }

    fn offload(&self, act: &Act, host: &mut Host) -> Result<()> {
        host.offload(&self.device, self.device.copies(), act)
    }

    fn fetch(&self, host: &mut Host, act: &mut Act) -> Result<()> {
        host.fetch(&self.device, self.device.copies(), act)
    }

    fn arrive(&self, host: &Host) -> Result<()> {
        host.arrive(&self.device)
    }

    fn repeat<E: From<Error>>(
        &self,
        recording: &mut Recording,
        shape: [usize; 2],
        params: Option<&Full>,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.repeat_recorded(recording, shape, params, work)
    }

    fn act(&self) -> Act {
        Act::new(self.dtype)
    }

    fn resize(&self, act: &mut Act, rows: usize, cols: usize) -> Result<()> {
        act.fit(&self.device, rows, cols)
    }

    fn shape(&self, act: &Act) -> (usize, usize) {
        (act.rows, act.cols)
    }

    fn write_act(&self, act: &mut Act, rows: usize, cols: usize, values: &[f32]) -> Result<()> {
        same("write_act", "the number of values", values.len(), rows * cols)?;
        act.fit(&self.device, rows, cols)?;
        self.device.write("write_act", &mut act.buffer, 0, &self.dtype.encode(values))
    }

    fn read_act(&self, act: &Act) -> Result<Vec<f32>> {
        let mut bytes = vec![0_u8; act.bytes()];
        self.device.read("read_act", &act.buffer, 0, &mut bytes)?;
        Ok(self.dtype.decode(&bytes))
    }

    fn copy(&self, from: &Act, to: &mut Act) -> Result<()> {
        to.fit(&self.device, from.rows, from.cols)?;
        self.device.copy("copy", &from.buffer, &mut to.buffer, from.bytes())
    }

    fn copy_rows(&self, from: &Act, first: usize, rows: usize, to: &mut Act, to_first: usize) -> Result<()> {
        check_rows((from.rows, from.cols), first, rows, (to.rows, to.cols), to_first)?;
        let row = from.cols * from.dtype.bytes();
        let (start, end) = (from.pointer().plus(first * row), to.pointer().plus(to_first * row));
        self.device.copy_bytes("copy_rows", start, end, rows * row)
    }

    fn zero_act(&self, act: &mut Act, rows: usize, cols: usize) -> Result<()> {
        act.fit(&self.device, rows, cols)?;
        act.clear(&self.device)
    }

    fn head_rows(&self, vocabulary: usize) -> usize {
        // 1024 rows of 32768 logits fill the largest GPU and take 64 MiB
        ((1 << 25) / vocabulary.max(1)).clamp(64, 1024)
    }

    fn scale(&self, act: &mut Act, factor: f64) -> Result<()> {
        scale::cuda::scale(&self.device, (act.pointer(), act.dtype), act.len(), factor)
    }

    fn full(&self, len: usize) -> Result<Full> {
        Full::new(&self.device, len)
    }

    fn full_len(&self, full: &Full) -> usize {
        full.len
    }

    fn write_full(&self, full: &mut Full, offset: usize, values: &[f32]) -> Result<()> {
        let (end, len) = (offset.saturating_add(values.len()), full.len);
        if end > len {
            return Err(Error::Index { op: "write_full", index: end, len });
        }
        full.changed();
        self.device.write("write_full", &mut full.buffer, 4 * offset, values)
    }

    fn read_full(&self, full: &Full, offset: usize, values: &mut [f32]) -> Result<()> {
        let (end, len) = (offset.saturating_add(values.len()), full.len);
        if end > len {
            return Err(Error::Index { op: "read_full", index: end, len });
        }
        self.device.read("read_full", &full.buffer, 4 * offset, values)
    }

    fn zero_full(&self, full: &mut Full) -> Result<()> {
        full.changed();
        let bytes = 4 * full.len;
        self.device.zero("zero_full", &mut full.buffer, bytes)
    }

    fn bytes(&self, len: usize) -> Result<Bytes> {
        let mut buffer = self.device.alloc("bytes", len)?;
        self.device.zero("bytes", &mut buffer, len)?;
        Ok(Bytes { len, buffer })
    }

    fn write_bytes(&self, bytes: &mut Bytes, values: &[u8]) -> Result<()> {
        same("write_bytes", "the number of values", values.len(), bytes.len)?;
        self.device.write("write_bytes", &mut bytes.buffer, 0, values)
    }

    fn read_bytes(&self, bytes: &Bytes) -> Result<Vec<u8>> {
        let mut values = vec![0; bytes.len];
        self.device.read("read_bytes", &bytes.buffer, 0, &mut values)?;
        Ok(values)
    }

    fn index(&self, values: &[u32]) -> Result<Index> {
        Ok(Index { host: values.to_vec(), buffer: self.device.upload("index", values)? })
    }

    fn rewrite(&self, index: &mut Index, values: &[u32]) -> Result<()> {
        index.rewrite(&self.device, values)
    }

    fn shift(&self, segments: &mut Segments, first_position: usize) -> Result<()> {
        segments.shift(&self.device, first_position)
    }

    fn reserve(&self, cache: &mut Act, rows: usize, cols: usize) -> Result<usize> {
        cache.reserve(&self.device, rows, cols)
    }

    fn segments(&self, cu_seqlens: &[u32], first_position: usize) -> Result<Segments> {
        Segments::new(&self.device, Texts::new(cu_seqlens, first_position)?)
    }

    fn weight(&self, parts: Vec<StoredMatrix>) -> Result<Weight> {
        self.weight_in(parts, false)
    }

    fn weight_on_host(&self, parts: Vec<StoredMatrix>) -> Result<Weight> {
        self.weight_in(parts, true)
    }

    fn weights_from(&self, matrices: Vec<Vec<FloatBytes<'_>>>, in_nf4: bool) -> Result<Vec<Weight>> {
        self.load(&matrices, in_nf4)
    }

    fn weight_bytes(&self, weight: &Weight) -> usize {
        weight.bytes()
    }

    fn linear(
        &self,
        x: &Act,
        w: &Weight,
        adapters: Option<(&LoraGroup, &Full, &Act)>,
        residual: Option<&Act>,
        y: &mut Act,
    ) -> Result<()> {
        let mut out = Shape::new();
        shapes!(adapters, params, s);
        let shapes = adapters.map(|(group, ..)| (group, params.as_slice(), &s));
        let added = residual.map(Act::shape);
        linear::prepare(&x.shape(), (w.rows, w.cols), shapes, added.as_ref(), &mut out)?;
        self.fit(y, &out)?;
        linear::cuda::forward(self.products(), x, w, adapters, residual, y)
    }

    fn step_linear(&self, step: &StepLinear<'_, Self>, scratch: &mut StepScratch<'_, Self>, y: &mut Act) -> Result<()> {
        self.step_whole(step, scratch, y)
    }

    fn linear_backward(
        &self,
        dy: &Act,
        w: &Weight,
        adapters: Option<(&LoraGroup, &Full, &Act)>,
        dx: &mut Act,
    ) -> Result<()> {
        let mut out = Shape::new();
        shapes!(adapters, params, ds);
        let shapes = adapters.map(|(group, ..)| (group, params.as_slice(), &ds));
        linear::prepare_backward(&dy.shape(), (w.rows, w.cols), shapes, &mut out)?;
        self.fit(dx, &out)?;
        linear::cuda::backward(self.products(), dy, w, adapters, dx)
    }

    fn lora_down(&self, x: &Act, group: &LoraGroup, params: &Full, s: &mut Act) -> Result<()> {
        let mut out = Shape::new();
        lora::prepare_down(&x.shape(), group, &params.shape(), &mut out)?;
        self.fit(s, &out)?;
        lora::cuda::down(self.products(), x, group, params, s)
    }

    fn norm_down(
        &self,
        x: &Act,
        weight: &Full,
        eps: f64,
        lora: Option<(&LoraGroup, &Full)>,
        y: &mut Act,
        rstd: &mut Full,
        s: &mut Act,
    ) -> Result<()> {
        self.step_norm_down(x, (weight, eps), lora, y, rstd, s)
    }

    fn lora_up_backward(&self, dy: &Act, group: &LoraGroup, params: &Full, ds: &mut Act) -> Result<()> {
        let mut out = Shape::new();
        lora::prepare_up_backward(&dy.shape(), group, &params.shape(), &mut out)?;
        self.fit(ds, &out)?;
        lora::cuda::up_backward(self.products(), dy, group, params, ds)
    }

    fn lora_gradients(
        &self,
        x: &Act,
        s: &Act,
        dy: &Act,
        ds: &Act,
        group: &LoraGroup,
        gradients: &mut Full,
    ) -> Result<()> {
        lora::check_gradients(&x.shape(), &s.shape(), &dy.shape(), &ds.shape(), group, &gradients.shape())?;
        gradients.changed();
        lora::cuda::gradients(self.products(), x, s, dy, ds, group, gradients)
    }

    fn embed(&self, table: &Weight, ids: &Index, x: &mut Act) -> Result<()> {
        let mut out = Shape::new();
        embed::prepare((table.rows, table.cols), &ids.host, &mut out)?;
        self.fit(x, &out)?;
        embed::cuda::rows(&self.device, table, ids, x)
    }

    fn rms_norm(&self, x: &Act, weight: &Full, eps: f64, y: &mut Act, rstd: &mut Full) -> Result<()> {
        let (mut out, mut rows) = (Shape::new(), Vec::new());
        rms_norm::prepare(&x.shape(), &weight.shape(), &mut out, &mut rows)?;
        self.fit(y, &out)?;
        rstd.fit(&self.device, rows.len())?;
        rms_norm::cuda::forward(&self.device, x, weight, eps, y, rstd)
    }

    fn rms_norm_backward_add(&self, dy: &Act, x: &Act, weight: &Full, rstd: &Full, dx: &mut Act) -> Result<()> {
        rms_norm::check_backward(&dy.shape(), &x.shape(), &weight.shape(), &rstd.shape(), &dx.shape())?;
        rms_norm::cuda::backward_add(&self.device, dy, x, weight, rstd, dx)
    }

    fn rope(
        &self,
        qkv: &mut Act,
        segments: &Segments,
        attention: &Attention,
        inverse_frequencies: &Full,
        sign: f64,
    ) -> Result<()> {
        rope::check(&qkv.shape(), &segments.texts, attention, &inverse_frequencies.shape())?;
        let mut table = self.rotations.lock().unwrap_or_else(PoisonError::into_inner);
        rope::cuda::rotate(&self.device, &mut table, qkv, segments, attention, inverse_frequencies, sign)
    }

    fn attention(
        &self,
        qkv: &Act,
        segments: &Segments,
        attention: &Attention,
        o: &mut Act,
        lse: &mut Full,
    ) -> Result<()> {
        let (mut out, mut rows) = (Shape::new(), Vec::new());
        attention::prepare(&qkv.shape(), &segments.texts, attention, &mut out, &mut rows)?;
        attention::cuda::check(attention)?;
        self.fit(o, &out)?;
        lse.fit(&self.device, rows.len())?;
        attention::cuda::forward(&self.device, self.fused.as_ref(), qkv, segments, attention, o, lse)
    }

    fn attention_backward(
        &self,
        do_: &Act,
        qkv: &Act,
        o: &Act,
        lse: &Full,
        segments: &Segments,
        attention: &Attention,
        dqkv: &mut Act,
    ) -> Result<()> {
        let mut out = Shape::new();
        let (texts, lse_shape) = (&segments.texts, lse.shape());
        let (do_shape, qkv_shape, o_shape) = (do_.shape(), qkv.shape(), o.shape());
        attention::prepare_backward(&do_shape, &qkv_shape, &o_shape, &lse_shape, texts, attention, &mut out)?;
        attention::cuda::check(attention)?;
        self.fit(dqkv, &out)?;
        let fused = self.fused.as_ref();
        attention::cuda::backward(&self.device, fused, do_, qkv, o, lse, segments, attention, dqkv)
    }

    fn append(&self, qkv: &Act, keys: &mut Act, values: &mut Act, cached: usize, attention: &Attention) -> Result<()> {
        self.append_rows(qkv, keys, values, cached, attention)
    }

    fn attention_cached(
        &self,
        qkv: &Act,
        keys: &mut Act,
        values: &mut Act,
        cached: usize,
        attention: &Attention,
        o: &mut Act,
    ) -> Result<()> {
        self.attend_cached(qkv, (keys, values), cached, attention, o)
    }

    fn attention_step(
        &self,
        qkv: &mut Act,
        (keys, values): (&mut Act, &mut Act),
        cached: usize,
        segments: &Segments,
        attention: &Attention,
        inverse_frequencies: &Full,
        o: &mut Act,
    ) -> Result<()> {
        self.step_attention(qkv, (keys, values), cached, segments, attention, inverse_frequencies, o)
    }

    fn swiglu(&self, gate_up: &Act, h: &mut Act) -> Result<()> {
        let mut out = Shape::new();
        swiglu::prepare(&gate_up.shape(), &mut out)?;
        self.fit(h, &out)?;
        swiglu::cuda::forward(&self.device, gate_up, h)
    }

    fn swiglu_backward(&self, dh: &mut Act, gate_up: &mut Act) -> Result<()> {
        swiglu::check_backward(&dh.shape(), &gate_up.shape())?;
        swiglu::cuda::backward(&self.device, dh, gate_up)
    }

    fn gather_rows(&self, x: &Act, rows: &Index, y: &mut Act) -> Result<()> {
        let mut out = Shape::new();
        gather::prepare_gather(&x.shape(), &rows.host, &mut out)?;
        self.fit(y, &out)?;
        gather::cuda::gather(&self.device, x, rows, y)
    }

    fn scatter_rows(&self, x: &Act, rows: &Index, y: &mut Act) -> Result<()> {
        gather::check_scatter(&x.shape(), &rows.host, &y.shape())?;
        gather::cuda::scatter(&self.device, x, rows, y)
    }

    fn cross_entropy(&self, logits: &mut Act, targets: &Index, weight: f64) -> Result<f64> {
        cross_entropy::check("cross_entropy", &logits.shape(), &targets.host)?;
        cross_entropy::cuda::loss_and_gradient(&self.device, logits, targets, weight)
    }

    fn log_probs(&self, logits: &Act, targets: &Index) -> Result<Vec<f64>> {
        cross_entropy::check("log_probs", &logits.shape(), &targets.host)?;
        cross_entropy::cuda::log_probs(&self.device, logits, targets)
    }

    fn sum_squares(&self, x: &Full) -> Result<f64> {
        sum_squares::cuda::sum_squares(&self.device, x)
    }

    fn scale_full(&self, x: &mut Full, factor: f64) -> Result<()> {
        x.changed();
        scale::cuda::scale(&self.device, (x.pointer(), super::Dtype::F32), x.len, factor)
    }

    fn adamw(
        &self,
        params: &mut Full,
        gradients: &Full,
        m: &mut Full,
        v: &mut Full,
        segments: &[StateSegment],
        step: &AdamWStep,
    ) -> Result<()> {
        adamw::check(&params.shape(), &gradients.shape(), &m.shape(), &v.shape(), segments)?;
        [&mut *params, &mut *m, &mut *v].into_iter().for_each(Full::changed);
        let mut table = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        let table = adamw::cuda::Table::current(&self.device, &mut table, segments)?;
        adamw::cuda::update(&self.device, params, gradients, (m, v), table, step)
    }

    fn adamw_8bit(
        &self,
        params: &mut Full,
        gradients: &Full,
        codes: (&mut Bytes, &mut Bytes),
        absmax: (&mut Full, &mut Full),
        full: (&mut Full, &mut Full),
        segments: &[StateSegment],
        step: &AdamWStep,
    ) -> Result<()> {
        let lens = adamw_8bit::Lens {
            params: params.len,
            gradients: gradients.len,
            codes: codes.0.len.min(codes.1.len),
            absmax: absmax.0.len.min(absmax.1.len),
            full: full.0.len.min(full.1.len),
        };
        adamw_8bit::check_lens(&lens, segments)?;
        [&mut *params, &mut *absmax.0, &mut *absmax.1, &mut *full.0, &mut *full.1].into_iter().for_each(Full::changed);
        let mut table = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        let table = adamw::cuda::Table::current(&self.device, &mut table, segments)?;
        let state = adamw_8bit::cuda::State { codes, absmax, full, maps: &self.maps };
        adamw_8bit::cuda::update(&self.device, params, gradients, state, table, step)
    }
}
