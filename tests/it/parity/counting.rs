//! A backend that hands everything to another and writes down the matrix products it was asked for.

use std::sync::{Arc, Mutex};

use unslothify::kernels::{AdamWStep, Attention, Backend, DeviceMemory, LoraGroup, Result, StateSegment};
use unslothify::quant::StoredMatrix;

/// One operation on `rows` tokens; a product with a frozen matrix names its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub op: &'static str,
    pub rows: usize,
    /// (rows, columns) of the frozen matrix, or (rank, columns) of a LoRA group.
    pub matrix: (usize, usize),
}

#[derive(Debug)]
pub struct Counting<B> {
    inner: B,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// A frozen matrix and its shape.
#[derive(Debug)]
pub struct Shaped<W> {
    inner: W,
    shape: (usize, usize),
}

type Lora<'a, B> = Option<(&'a LoraGroup, &'a <B as Backend>::Full, &'a <B as Backend>::Act)>;

impl<B: Backend> Counting<B> {
    /// The backend and the list it writes to.
    pub fn new(inner: B) -> (Self, Arc<Mutex<Vec<Call>>>) {
        let calls = Arc::default();
        (Self { inner, calls: Arc::clone(&calls) }, calls)
    }

    fn note(&self, op: &'static str, act: &B::Act, matrix: (usize, usize)) {
        self.calls.lock().unwrap().push(Call { op, rows: self.inner.shape(act).0, matrix });
    }
}

/// Hands methods on as they are.
macro_rules! delegate {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        $(fn $name(&self, $($arg: $kind),*) -> $out { self.inner.$name($($arg),*) })*
    };
}

impl<B: Backend> Backend for Counting<B> {
    type Act = B::Act;
    type Full = B::Full;
    type Bytes = B::Bytes;
    type Index = B::Index;
    type Segments = B::Segments;
    type Weight = Shaped<B::Weight>;
    type Recording = B::Recording;
    type Host = B::Host;

    delegate! {
        name() -> &'static str;
        memory() -> Result<Option<DeviceMemory>>;
        reset_peak() -> Result<()>;
        peak_bytes() -> Result<Option<usize>>;
        value_bytes() -> (usize, usize);
        settle_memory() -> Result<()>;
        settle_full(full: &B::Full) -> Result<()>;
        has_host() -> bool;
        host(rows: usize, cols: usize) -> Result<B::Host>;
        offload(act: &B::Act, host: &mut B::Host) -> Result<()>;
        fetch(host: &mut B::Host, act: &mut B::Act) -> Result<()>;
        arrive(host: &B::Host) -> Result<()>;
        act() -> B::Act;
        resize(act: &mut B::Act, rows: usize, cols: usize) -> Result<()>;
        shape(act: &B::Act) -> (usize, usize);
        write_act(act: &mut B::Act, rows: usize, cols: usize, values: &[f32]) -> Result<()>;
        read_act(act: &B::Act) -> Result<Vec<f32>>;
        copy(from: &B::Act, to: &mut B::Act) -> Result<()>;
        copy_rows(from: &B::Act, first: usize, rows: usize, to: &mut B::Act, to_first: usize) -> Result<()>;
        zero_act(act: &mut B::Act, rows: usize, cols: usize) -> Result<()>;
        head_rows(vocabulary: usize) -> usize;
        scale(act: &mut B::Act, factor: f64) -> Result<()>;
        full(len: usize) -> Result<B::Full>;
        full_len(full: &B::Full) -> usize;
        write_full(full: &mut B::Full, offset: usize, values: &[f32]) -> Result<()>;
        read_full(full: &B::Full, offset: usize, values: &mut [f32]) -> Result<()>;
        zero_full(full: &mut B::Full) -> Result<()>;
        bytes(len: usize) -> Result<B::Bytes>;
        write_bytes(bytes: &mut B::Bytes, values: &[u8]) -> Result<()>;
        read_bytes(bytes: &B::Bytes) -> Result<Vec<u8>>;
        index(values: &[u32]) -> Result<B::Index>;
        rewrite(index: &mut B::Index, values: &[u32]) -> Result<()>;
        shift(segments: &mut B::Segments, first_position: usize) -> Result<()>;
        reserve(cache: &mut B::Act, rows: usize, cols: usize) -> Result<usize>;
        append(
            qkv: &B::Act, keys: &mut B::Act, values: &mut B::Act, cached: usize, attention: &Attention) -> Result<()>;
        segments(cu_seqlens: &[u32], first_position: usize) -> Result<B::Segments>;
        rms_norm(x: &B::Act, weight: &B::Full, eps: f64, y: &mut B::Act, rstd: &mut B::Full) -> Result<()>;
        rms_norm_backward_add(
            dy: &B::Act, x: &B::Act, weight: &B::Full, rstd: &B::Full, dx: &mut B::Act) -> Result<()>;
        rope(
            qkv: &mut B::Act, segments: &B::Segments, attention: &Attention, inverse_frequencies: &B::Full,
            sign: f64) -> Result<()>;
        attention_cached(
            qkv: &B::Act, keys: &mut B::Act, values: &mut B::Act, cached: usize, attention: &Attention,
            o: &mut B::Act) -> Result<()>;
        swiglu(gate_up: &B::Act, h: &mut B::Act) -> Result<()>;
        swiglu_backward(dh: &mut B::Act, gate_up: &mut B::Act) -> Result<()>;
        gather_rows(x: &B::Act, rows: &B::Index, y: &mut B::Act) -> Result<()>;
        scatter_rows(x: &B::Act, rows: &B::Index, y: &mut B::Act) -> Result<()>;
        log_probs(logits: &B::Act, targets: &B::Index) -> Result<Vec<f64>>;
        sum_squares(x: &B::Full) -> Result<f64>;
        scale_full(x: &mut B::Full, factor: f64) -> Result<()>;
        adamw(
            params: &mut B::Full, gradients: &B::Full, m: &mut B::Full, v: &mut B::Full, segments: &[StateSegment],
            step: &AdamWStep) -> Result<()>;
        adamw_8bit(
            params: &mut B::Full, gradients: &B::Full, codes: (&mut B::Bytes, &mut B::Bytes),
            absmax: (&mut B::Full, &mut B::Full), full: (&mut B::Full, &mut B::Full), segments: &[StateSegment],
            step: &AdamWStep) -> Result<()>;
    }

    fn weight(&self, parts: Vec<StoredMatrix>) -> Result<Self::Weight> {
        let shape = (parts.iter().map(|part| part.rows).sum(), parts[0].cols);
        Ok(Shaped { inner: self.inner.weight(parts)?, shape })
    }

    fn weight_on_host(&self, parts: Vec<StoredMatrix>) -> Result<Self::Weight> {
        let shape = (parts.iter().map(|part| part.rows).sum(), parts[0].cols);
        Ok(Shaped { inner: self.inner.weight_on_host(parts)?, shape })
    }

    fn weight_bytes(&self, weight: &Self::Weight) -> usize {
        self.inner.weight_bytes(&weight.inner)
    }

    fn linear(
        &self,
        x: &B::Act,
        w: &Self::Weight,
        lora: Lora<'_, B>,
        residual: Option<&B::Act>,
        y: &mut B::Act,
    ) -> Result<()> {
        self.note("linear", x, w.shape);
        self.inner.linear(x, &w.inner, lora, residual, y)
    }

    fn linear_backward(&self, dy: &B::Act, w: &Self::Weight, lora: Lora<'_, B>, dx: &mut B::Act) -> Result<()> {
        self.note("linear_backward", dy, w.shape);
        self.inner.linear_backward(dy, &w.inner, lora, dx)
    }

    fn lora_down(&self, x: &B::Act, group: &LoraGroup, params: &B::Full, s: &mut B::Act) -> Result<()> {
        self.note("lora_down", x, (group.rank, group.in_features));
        self.inner.lora_down(x, group, params, s)
    }

    fn lora_up_backward(&self, dy: &B::Act, group: &LoraGroup, params: &B::Full, ds: &mut B::Act) -> Result<()> {
        self.note("lora_up_backward", dy, (group.rank, group.in_features));
        self.inner.lora_up_backward(dy, group, params, ds)
    }

    fn lora_gradients(
        &self,
        x: &B::Act,
        s: &B::Act,
        dy: &B::Act,
        ds: &B::Act,
        group: &LoraGroup,
        gradients: &mut B::Full,
    ) -> Result<()> {
        self.note("lora_gradients", x, (group.rank, group.in_features));
        self.inner.lora_gradients(x, s, dy, ds, group, gradients)
    }

    fn embed(&self, table: &Self::Weight, ids: &B::Index, x: &mut B::Act) -> Result<()> {
        self.inner.embed(&table.inner, ids, x)?;
        self.note("embed", x, table.shape);
        Ok(())
    }

    fn attention(
        &self,
        qkv: &B::Act,
        segments: &B::Segments,
        attention: &Attention,
        o: &mut B::Act,
        lse: &mut B::Full,
    ) -> Result<()> {
        self.note("attention", qkv, (0, 0));
        self.inner.attention(qkv, segments, attention, o, lse)
    }

    fn attention_backward(
        &self,
        do_: &B::Act,
        qkv: &B::Act,
        o: &B::Act,
        lse: &B::Full,
        segments: &B::Segments,
        attention: &Attention,
        dqkv: &mut B::Act,
    ) -> Result<()> {
        self.note("attention_backward", do_, (0, 0));
        self.inner.attention_backward(do_, qkv, o, lse, segments, attention, dqkv)
    }

    fn cross_entropy(&self, logits: &mut B::Act, targets: &B::Index, weight: f64) -> Result<f64> {
        self.note("cross_entropy", logits, (0, 0));
        self.inner.cross_entropy(logits, targets, weight)
    }
}
