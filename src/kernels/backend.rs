//! What a device must be able to do so that the engine can train on it.

use std::fmt::Debug;

use crate::quant::{FloatBytes, StoredMatrix};

use super::matrix::zeros;
use super::{Error, Result};

/// Geometry of one attention layer. A row of `qkv` is `[heads*head_dim | kv_heads*head_dim | kv_heads*head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Key `j` is visible to query `i` iff `i - window < j <= i`; `None` sees all earlier keys.
    pub window: Option<usize>,
}

/// The adapters of one fused linear (for example q, k and v in one matrix).
///
/// Their `A·x` lie side by side in a row `s` of `rank` columns; `B` is block-diagonal.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraGroup {
    /// Columns of `x`, which are the columns of every `A`.
    pub in_features: usize,
    /// Sum of the parts' ranks: columns of `s`.
    pub rank: usize,
    pub parts: Vec<LoraPart>,
}

/// One adapter: `A` is (rank, in_features), `B` is (out_len, rank), both row-major in the flat parameter buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPart {
    pub rank: usize,
    /// Offset of `A` in the flat buffer (same offset for its gradient).
    pub a: usize,
    /// Offset of `B` in the flat buffer.
    pub b: usize,
    /// First column of this part in `s`.
    pub s_start: usize,
    /// Columns `out_start .. out_start + out_len` of the fused output belong to this part.
    pub out_start: usize,
    pub out_len: usize,
    /// `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    pub scale: f64,
}

/// The constants of one AdamW update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// 1 for the first update.
    pub step: u64,
    /// Every gradient is multiplied by this (the clip factor).
    pub gradient_scale: f64,
}

/// One parameter tensor inside the flat buffer and how its optimizer state is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StateSegment {
    pub offset: usize,
    pub len: usize,
    /// 8-bit blockwise state (bitsandbytes: tensors of at least 4096 elements); else full precision.
    pub eight_bit: bool,
}

/// Memory of a device as its driver counts it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    pub free: usize,
    pub total: usize,
}

/// One linear layer of a decoding step, whole.
#[derive(Debug)]
pub struct StepLinear<'a, B: Backend> {
    pub x: &'a B::Act,
    /// `x` is normalised first, by this weight and eps.
    pub norm: Option<(&'a B::Full, f64)>,
    pub weight: &'a B::Weight,
    pub lora: Option<(&'a LoraGroup, &'a B::Full)>,
    pub residual: Option<&'a B::Act>,
    /// The weight is gate|up, and `swiglu` of the product is wanted.
    pub is_gate_up: bool,
}

/// What a `StepLinear` may write on the way.
#[derive(Debug)]
pub struct StepScratch<'a, B: Backend> {
    pub normed: &'a mut B::Act,
    pub rstd: &'a mut B::Full,
    pub s: &'a mut B::Act,
    pub gate_up: &'a mut B::Act,
}

/// A device the engine trains on. All matrices are row-major, one row per token.
///
/// Outputs are resized by the operation; sizes are checked before any arithmetic and a mismatch is an `Error`.
/// `Act` holds activations in the backend's compute dtype, `Full` parameters, gradients, optimizer moments and
/// statistics in full precision (f32 on `Cpu`, f64 on `Reference`).
pub trait Backend: Send + Sync + Debug + 'static {
    type Act: Send + Sync + Debug;
    type Full: Send + Sync + Debug;
    type Bytes: Send + Sync + Debug;
    type Index: Send + Sync + Debug;
    /// Where the texts of a batch begin and end, and the position of every token in its text.
    type Segments: Send + Sync + Debug;
    /// A frozen matrix on the device, in whatever storage the device prefers.
    type Weight: Send + Sync + Debug;
    /// Room for an activation outside the device's memory.
    type Host: Send + Sync + Debug;
    /// What a device keeps of work that it repeats.
    type Recording: Send + Sync + Debug + Default;

    /// A short name for logs: `cpu`, `reference`.
    fn name(&self) -> &'static str;
    /// Whether gradients of a mean over thousands of tokens can be too small for `Act`, so that a loss must be multiplied
    /// by a large number before its backward.
    fn needs_loss_scale(&self) -> bool {
        false
    }
    /// Runs `work` on the device's own threads: operations inside hand their parts over without waking a thread first.
    /// Wrap a whole pass in it; the results are the same without.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }
    /// Does `work`, or what it asked for the last time: a device that can record it starts it as one.
    ///
    /// What changes from time to time is `shape`, `params`, and the contents of buffers that stay where they are; `work`
    /// reads the position of its rows from the `Segments` that `shift` changes.
    fn repeat<E: From<Error>>(
        &self,
        _recording: &mut Self::Recording,
        _shape: [usize; 2],
        _params: Option<&Self::Full>,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        work()
    }

    // ---- memory --------------------------------------------------------------------------------------------
    /// Memory that is the device's alone; `None` where it is the process's own.
    fn memory(&self) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }
    /// Starts counting `peak_bytes` anew.
    fn reset_peak(&self) -> Result<()> {
        Ok(())
    }
    /// The most bytes of `memory().total` that were taken since `reset_peak`: others' as they are now.
    fn peak_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }
    /// Bytes of a value of an activation and of a `Full`.
    fn value_bytes(&self) -> (usize, usize);
    /// Bytes that `attention_backward` takes for every token while it runs, besides a number for every head.
    fn attention_bytes(&self, _attention: &Attention) -> usize {
        0
    }
    /// Makes what products with the weights there are need besides their operands, and gives back to the driver what is
    /// not in use: `memory` tells the truth after it.
    fn settle_memory(&self) -> Result<()> {
        Ok(())
    }
    /// Makes what products with the values of `full` need.
    fn settle_full(&self, _full: &Self::Full) -> Result<()> {
        Ok(())
    }
    /// Whether `offload` takes an activation out of memory that is scarcer than where it goes.
    fn has_host(&self) -> bool {
        false
    }
    /// Room for `rows x cols` values outside the device.
    fn host(&self, rows: usize, cols: usize) -> Result<Self::Host>;
    /// Starts copying `act` to `host`. Until `arrive(host)` nothing may write to `act`.
    fn offload(&self, act: &Self::Act, host: &mut Self::Host) -> Result<()>;
    /// Starts copying `host` back. Until `arrive(host)` nothing may touch `act`.
    fn fetch(&self, host: &mut Self::Host, act: &mut Self::Act) -> Result<()>;
    /// Operations from now on come after the copy that `host` is in.
    fn arrive(&self, _host: &Self::Host) -> Result<()> {
        Ok(())
    }

    // ---- buffers -------------------------------------------------------------------------------------------
    /// An empty activation buffer; operations size it.
    fn act(&self) -> Self::Act;
    fn resize(&self, act: &mut Self::Act, rows: usize, cols: usize) -> Result<()>;
    fn shape(&self, act: &Self::Act) -> (usize, usize);
    fn write_act(&self, act: &mut Self::Act, rows: usize, cols: usize, values: &[f32]) -> Result<()>;
    fn read_act(&self, act: &Self::Act) -> Result<Vec<f32>>;
    fn copy(&self, from: &Self::Act, to: &mut Self::Act) -> Result<()>;
    /// Rows `first .. first + rows` of `from` become the rows of `to` from `to_first` on; `to` has its shape already.
    fn copy_rows(&self, from: &Self::Act, first: usize, rows: usize, to: &mut Self::Act, to_first: usize)
    -> Result<()>;
    /// `act` becomes (rows, cols) zeros.
    fn zero_act(&self, act: &mut Self::Act, rows: usize, cols: usize) -> Result<()> {
        self.write_act(act, rows, cols, &zeros("zero_act", rows.saturating_mul(cols))?)
    }
    /// Rows of logits the head computes at a time: bounds its memory to `rows * vocabulary`.
    fn head_rows(&self, vocabulary: usize) -> usize {
        ((1 << 22) / vocabulary.max(1)).clamp(64, 1024)
    }
    /// `act *= factor`
    fn scale(&self, act: &mut Self::Act, factor: f64) -> Result<()>;
    /// Zeros.
    fn full(&self, len: usize) -> Result<Self::Full>;
    fn full_len(&self, full: &Self::Full) -> usize;
    fn write_full(&self, full: &mut Self::Full, offset: usize, values: &[f32]) -> Result<()>;
    fn read_full(&self, full: &Self::Full, offset: usize, values: &mut [f32]) -> Result<()>;
    fn zero_full(&self, full: &mut Self::Full) -> Result<()>;
    fn bytes(&self, len: usize) -> Result<Self::Bytes>;
    fn write_bytes(&self, bytes: &mut Self::Bytes, values: &[u8]) -> Result<()>;
    fn read_bytes(&self, bytes: &Self::Bytes) -> Result<Vec<u8>>;
    fn index(&self, values: &[u32]) -> Result<Self::Index>;
    /// Other values, as many, in the same place.
    fn rewrite(&self, index: &mut Self::Index, values: &[u32]) -> Result<()>;
    /// `cu_seqlens` = prefix sums from 0 to the number of tokens; every text starts at position `first_position`.
    fn segments(&self, cu_seqlens: &[u32], first_position: usize) -> Result<Self::Segments>;
    /// The same texts from another position on, in the same place.
    fn shift(&self, segments: &mut Self::Segments, first_position: usize) -> Result<()>;
    /// Makes room for `rows` rows of a cache before they are appended; returns how many there is room for.
    fn reserve(&self, cache: &mut Self::Act, rows: usize, cols: usize) -> Result<usize>;
    /// The row-wise concatenation of `parts` (all with the same number of columns) as one frozen matrix.
    fn weight(&self, parts: Vec<StoredMatrix>) -> Result<Self::Weight>;
    /// The same, for a matrix of which only rows are read: outside the device's memory, if the device can read it there.
    fn weight_on_host(&self, parts: Vec<StoredMatrix>) -> Result<Self::Weight> {
        self.weight(parts)
    }
    /// Matrices of the numbers of a file, each the row-wise concatenation of its parts; `in_nf4`: quantised on the way, as
    /// `StoredMatrix::quantize_nf4` does it.
    fn weights_from(&self, matrices: Vec<Vec<FloatBytes<'_>>>, in_nf4: bool) -> Result<Vec<Self::Weight>> {
        let stored = |part: &FloatBytes<'_>| if in_nf4 { part.stored().quantize_nf4() } else { part.stored() };
        matrices.iter().map(|parts| self.weight(parts.iter().map(stored).collect())).collect()
    }
    /// Bytes the weight occupies on the device.
    fn weight_bytes(&self, weight: &Self::Weight) -> usize;

    // ---- frozen matrix products ----------------------------------------------------------------------------
    /// `y = x·Wᵀ [+ s·blockdiag(scale·B)ᵀ] [+ residual]`; x (T, K), W (N, K), y (T, N).
    fn linear(
        &self,
        x: &Self::Act,
        w: &Self::Weight,
        lora: Option<(&LoraGroup, &Self::Full, &Self::Act)>,
        residual: Option<&Self::Act>,
        y: &mut Self::Act,
    ) -> Result<()>;
    /// `dx = dy·W [+ ds·A]`; ds already carries the scale.
    fn linear_backward(
        &self,
        dy: &Self::Act,
        w: &Self::Weight,
        lora: Option<(&LoraGroup, &Self::Full, &Self::Act)>,
        dx: &mut Self::Act,
    ) -> Result<()>;

    /// `linear` for gate|up, then `swiglu` into `h`; `gate_up` is scratch.
    fn linear_swiglu(
        &self,
        x: &Self::Act,
        w: &Self::Weight,
        lora: Option<(&LoraGroup, &Self::Full, &Self::Act)>,
        gate_up: &mut Self::Act,
        h: &mut Self::Act,
    ) -> Result<()> {
        self.linear(x, w, lora, None, gate_up)?;
        self.swiglu(gate_up, h)
    }

    /// Norm, adapters, product and what follows it.
    fn step_linear(
        &self,
        step: &StepLinear<'_, Self>,
        scratch: &mut StepScratch<'_, Self>,
        y: &mut Self::Act,
    ) -> Result<()>
    where
        Self: Sized,
    {
        let StepScratch { normed, rstd, s, gate_up } = scratch;
        let x = match (step.norm, step.lora) {
            (Some((weight, eps)), lora) => {
                self.norm_down(step.x, weight, eps, lora, normed, rstd, s)?;
                &**normed
            }
            (None, Some((group, params))) => {
                self.lora_down(step.x, group, params, s)?;
                step.x
            }
            (None, None) => step.x,
        };
        let lora = step.lora.map(|(group, params)| (group, params, &**s));
        match step.is_gate_up {
            true => self.linear_swiglu(x, step.weight, lora, gate_up, y),
            false => self.linear(x, step.weight, lora, step.residual, y),
        }
    }

    // ---- LoRA ----------------------------------------------------------------------------------------------
    /// `s = x·Aᵀ` for every part; s (T, group.rank).
    fn lora_down(&self, x: &Self::Act, group: &LoraGroup, params: &Self::Full, s: &mut Self::Act) -> Result<()>;
    /// `y = rms_norm(x)`, then `s = y·Aᵀ` where there are adapters; `rstd` is scratch.
    #[allow(clippy::too_many_arguments)]
    fn norm_down(
        &self,
        x: &Self::Act,
        weight: &Self::Full,
        eps: f64,
        lora: Option<(&LoraGroup, &Self::Full)>,
        y: &mut Self::Act,
        rstd: &mut Self::Full,
        s: &mut Self::Act,
    ) -> Result<()> {
        self.rms_norm(x, weight, eps, y, rstd)?;
        lora.map_or(Ok(()), |(group, params)| self.lora_down(y, group, params, s))
    }
    /// `ds = dy·blockdiag(scale·B)`; ds (T, group.rank).
    fn lora_up_backward(
        &self,
        dy: &Self::Act,
        group: &LoraGroup,
        params: &Self::Full,
        ds: &mut Self::Act,
    ) -> Result<()>;
    /// `dA += dsᵀ·x` and `dB += scale·dyᵀ·s` into the flat gradient buffer.
    fn lora_gradients(
        &self,
        x: &Self::Act,
        s: &Self::Act,
        dy: &Self::Act,
        ds: &Self::Act,
        group: &LoraGroup,
        gradients: &mut Self::Full,
    ) -> Result<()>;

    // ---- the other layers ----------------------------------------------------------------------------------
    /// Rows `ids` of `table`.
    fn embed(&self, table: &Self::Weight, ids: &Self::Index, x: &mut Self::Act) -> Result<()>;
    /// `y = x·rstd·weight`, `rstd[t] = 1/sqrt(mean(x[t]²) + eps)`.
    fn rms_norm(
        &self,
        x: &Self::Act,
        weight: &Self::Full,
        eps: f64,
        y: &mut Self::Act,
        rstd: &mut Self::Full,
    ) -> Result<()>;
    /// `dx += rms_norm's gradient` at `dy`. `dx` enters with the gradient of the residual branch.
    fn rms_norm_backward_add(
        &self,
        dy: &Self::Act,
        x: &Self::Act,
        weight: &Self::Full,
        rstd: &Self::Full,
        dx: &mut Self::Act,
    ) -> Result<()>;
    /// Rotates the q and k columns of `qkv` in place by `sign`·position·theta^(-2j/head_dim) (half-split pairs).
    /// `inverse_frequencies` (head_dim/2) are the model's, after any scaling rule.
    fn rope(
        &self,
        qkv: &mut Self::Act,
        segments: &Self::Segments,
        attention: &Attention,
        inverse_frequencies: &Self::Full,
        sign: f64,
    ) -> Result<()>;
    /// Causal attention inside every text; o (T, heads*head_dim), lse (heads*T, in the order that
    /// `attention_backward` of the same backend and texts wants: head-major, but by cuDNN).
    fn attention(
        &self,
        qkv: &Self::Act,
        segments: &Self::Segments,
        attention: &Attention,
        o: &mut Self::Act,
        lse: &mut Self::Full,
    ) -> Result<()>;
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        do_: &Self::Act,
        qkv: &Self::Act,
        o: &Self::Act,
        lse: &Self::Full,
        segments: &Self::Segments,
        attention: &Attention,
        dqkv: &mut Self::Act,
    ) -> Result<()>;
    /// Attention of the new rows of `qkv` (already rotated) over `cached` earlier rows in `keys`/`values`
    /// (cached, kv_heads*head_dim) and themselves; appends the new keys and values to the caches.
    fn attention_cached(
        &self,
        qkv: &Self::Act,
        keys: &mut Self::Act,
        values: &mut Self::Act,
        cached: usize,
        attention: &Attention,
        o: &mut Self::Act,
    ) -> Result<()>;
    /// Appends the keys and values of `qkv` (rotated) to the caches, which hold `cached` rows.
    fn append(
        &self,
        qkv: &Self::Act,
        keys: &mut Self::Act,
        values: &mut Self::Act,
        cached: usize,
        attention: &Attention,
    ) -> Result<()>;
    /// `rope`, then `attention_cached`, of the rows of one text that starts at position `cached`. `qkv` is used up.
    #[allow(clippy::too_many_arguments)]
    fn attention_step(
        &self,
        qkv: &mut Self::Act,
        (keys, values): (&mut Self::Act, &mut Self::Act),
        cached: usize,
        segments: &Self::Segments,
        attention: &Attention,
        inverse_frequencies: &Self::Full,
        o: &mut Self::Act,
    ) -> Result<()> {
        self.rope(qkv, segments, attention, inverse_frequencies, 1.0)?;
        self.attention_cached(qkv, keys, values, cached, attention, o)
    }
    /// `h = silu(gate)·up`; a row of `gate_up` is `[gate | up]`.
    fn swiglu(&self, gate_up: &Self::Act, h: &mut Self::Act) -> Result<()>;
    /// In place: `dh` becomes h, `gate_up` becomes `[dgate | dup]`.
    fn swiglu_backward(&self, dh: &mut Self::Act, gate_up: &mut Self::Act) -> Result<()>;
    /// `y = x[rows]`
    fn gather_rows(&self, x: &Self::Act, rows: &Self::Index, y: &mut Self::Act) -> Result<()>;
    /// `y[rows] = x`, other rows of y untouched; rows are distinct.
    fn scatter_rows(&self, x: &Self::Act, rows: &Self::Index, y: &mut Self::Act) -> Result<()>;

    // ---- loss ----------------------------------------------------------------------------------------------
    /// Cross entropy of each row of `logits` against `targets`; `logits` becomes `weight·(softmax - onehot)`.
    /// Returns the sum of the rows' losses (not multiplied by `weight`).
    fn cross_entropy(&self, logits: &mut Self::Act, targets: &Self::Index, weight: f64) -> Result<f64>;
    /// Log-probability of each row's target; `logits` is left as it is.
    fn log_probs(&self, logits: &Self::Act, targets: &Self::Index) -> Result<Vec<f64>>;

    // ---- optimizer -----------------------------------------------------------------------------------------
    /// Sum of squares in full precision, in an order that does not depend on the number of threads.
    fn sum_squares(&self, x: &Self::Full) -> Result<f64>;
    fn scale_full(&self, x: &mut Self::Full, factor: f64) -> Result<()>;
    /// torch's AdamW on `offset .. offset + len`: decay, moments, update.
    #[allow(clippy::too_many_arguments)]
    fn adamw(
        &self,
        params: &mut Self::Full,
        gradients: &Self::Full,
        m: &mut Self::Full,
        v: &mut Self::Full,
        segments: &[StateSegment],
        step: &AdamWStep,
    ) -> Result<()>;
    /// bitsandbytes' AdamW with blockwise 8-bit moments: update, then decay; blocks of 256 from a segment's start.
    /// `codes_*` have one byte and `absmax_*` 1/256 value per parameter; segments start at multiples of 256.
    /// Segments that are not `eight_bit` keep their moments in `m`, `v` (which are as long as `params`, or as the
    /// highest end of such a segment).
    #[allow(clippy::too_many_arguments)]
    fn adamw_8bit(
        &self,
        params: &mut Self::Full,
        gradients: &Self::Full,
        codes: (&mut Self::Bytes, &mut Self::Bytes),
        absmax: (&mut Self::Full, &mut Self::Full),
        full: (&mut Self::Full, &mut Self::Full),
        segments: &[StateSegment],
        step: &AdamWStep,
    ) -> Result<()>;
}

/// Checks the rows of `copy_rows`; the shapes are (rows, columns).
pub(crate) fn check_rows(
    from: (usize, usize),
    first: usize,
    rows: usize,
    to: (usize, usize),
    to_first: usize,
) -> Result<()> {
    let op = "copy_rows";
    same(op, "the columns", to.1, from.1)?;
    for (end, len) in [(first.saturating_add(rows), from.0), (to_first.saturating_add(rows), to.0)] {
        if end > len {
            return Err(Error::Index { op, index: end, len });
        }
    }
    Ok(())
}

/// Fails with the operation's name when two sizes differ.
pub(crate) fn same(op: &'static str, what: &'static str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted { Ok(()) } else { Err(Error::Size { op, what, got, wanted }) }
}
