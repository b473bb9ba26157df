//! `attention` by cuDNN: which passes it takes, how a batch is told to it, and where everything lies.
//!
//! Texts of several lengths are told by their lengths and by where each starts, so that one plan serves all batches of at
//! most so many texts of at most such a length: both are rounded up to powers of two, and the texts that are missing have
//! length 0. Texts of one length, a multiple of `DENSE_STEP`, are told as a plain (texts, heads, length, head_dim) tensor,
//! which is about a tenth faster and needs a plan of its own for each shape. No plan depends on the number of tokens: so
//! `lse` lies (T, heads) in the first case and (texts, heads, length) in the second. The backward pass adds up dq in
//! whatever order its blocks finish: the last bits differ from run to run.
#![expect(unsafe_code, reason = "starts plans")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::graphs::{Backward, Forward, Layout, Shape};
use crate::kernels::cuda::cudnn::Cudnn;
use crate::kernels::cuda::{Act, Buffer, Device, Dtype, Full, Pointer, Segments};
use crate::kernels::{Attention, Error, Result};

/// The oldest cuDNN that is used: 9.11. Before 9.6 query heads could not share keys here, 9.10 has wrong gradients.
const OLDEST: usize = 91100;
/// Plans kept of each direction; a plan is some descriptors on the host.
const MOST_PLANS: usize = 256;
/// The least length that a plan for texts of several lengths is made for.
const SHORTEST: usize = 128;
/// Equal lengths are told as such where they are a multiple of this: it bounds the number of plans.
const DENSE_STEP: usize = 128;
/// Where a token's text is shorter than this in the mean, own kernels are faster: on an H100 they and cuDNN take the same
/// time for texts of about 330 (8192 tokens) to 430 (4096).
const WORTH: usize = 384;
/// Numbers of 4 bytes that fill the alignment of a tensor.
const LIST_STEP: usize = 4;

/// cuDNN and its plans.
pub(crate) struct Fused {
    forward: Plans<Forward>,
    backward: Plans<Backward>,
    cudnn: Cudnn,
    /// Also where own kernels are faster.
    is_insisted: bool,
}

impl std::fmt::Debug for Fused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fused").field("cudnn", &self.cudnn).finish_non_exhaustive()
    }
}

/// Plans by shape, made when they are first asked for.
struct Plans<P>(Mutex<HashMap<Shape, Arc<P>>>);

impl<P> Plans<P> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, shape: Shape, make: impl FnOnce() -> Result<P>) -> Result<Arc<P>> {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            return Ok(plan.clone());
        }
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        let plan = Arc::new(make()?);
        plans.insert(shape, plan.clone());
        Ok(plan)
    }
}

/// Why cuDNN is not asked for a pass of this kind; none where it is.
pub(crate) fn refusal(rows: usize, dtype: Dtype, attention: &Attention) -> Option<&'static str> {
    if dtype == Dtype::F32 {
        return Some("it has no f32");
    }
    if !attention.head_dim.is_multiple_of(16) || attention.head_dim > 128 {
        return Some("it wants a head_dim that is a multiple of 16 and at most 128");
    }
    let last = i32::try_from(rows.saturating_mul(attention.width()));
    last.is_err().then_some("the batch has more values than it can number with 32 bits")
}

/// Whether the text a token is in has at least `WORTH` tokens, in the mean over tokens.
fn is_worth(lengths: impl Iterator<Item = usize>) -> bool {
    let (tokens, squares) = lengths.fold((0, 0), |(tokens, squares), len| (tokens + len, squares + len * len));
    squares >= WORTH * tokens
}

/// Bytes the backward pass takes for every token, besides D: the sums of dq, what each query head adds to dk and dv, and
/// dk and dv beside each other. With texts of one length it is a quarter less.
pub(crate) fn backward_bytes(dtype: Dtype, attention: &Attention) -> usize {
    let &Attention { heads, kv_heads, head_dim, .. } = attention;
    let shared = if heads == kv_heads { 0 } else { 2 * (heads + kv_heads) * head_dim };
    attention.width() * size_of::<f32>() + shared * dtype.bytes()
}

/// A batch as a plan takes it.
struct Batch {
    shape: Shape,
    /// Lengths, then starts in rows of qkv, o, lse, and of dk beside dv; none where all lengths are the same.
    lists: Option<[Pointer; 5]>,
}

impl Batch {
    fn new(device: &Device, segments: &Segments, dtype: Dtype, attention: &Attention) -> Result<Self> {
        let lengths: Vec<usize> = segments.texts().rows().map(|rows| rows.len()).filter(|len| *len > 0).collect();
        let shape = bucket(&lengths, dtype, attention);
        if shape.layout == Layout::Dense {
            return Ok(Self { shape, lists: None });
        }
        let (texts, &Attention { heads, kv_heads, head_dim, .. }) = (shape.texts, attention);
        let step = (texts + 1).next_multiple_of(LIST_STEP);
        let widths = [attention.width(), heads * head_dim, heads, 2 * kv_heads * head_dim];
        let key = [texts, heads, kv_heads, head_dim];
        let first = segments.derived(device, key, || lists(&lengths, texts, step, widths))?;
        let lists = std::array::from_fn(|index| first.plus(index * step * size_of::<i32>()));
        Ok(Self { shape, lists: Some(lists) })
    }
}

/// The plan that serves texts of these lengths.
fn bucket(lengths: &[usize], dtype: Dtype, attention: &Attention) -> Shape {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let layout = if is_dense(lengths) { Layout::Dense } else { Layout::Ragged };
    let (texts, length) = match layout {
        Layout::Dense => (lengths.len(), longest),
        Layout::Ragged => (lengths.len().next_power_of_two(), longest.next_power_of_two().max(SHORTEST)),
    };
    let &Attention { heads, kv_heads, head_dim, .. } = attention;
    // a window that hides nothing needs no plan of its own
    let window = attention.window.filter(|window| *window < longest);
    Shape { texts, length, heads, kv_heads, head_dim, window, dtype, layout }
}

/// Whether texts of these lengths are told as a plain tensor.
pub(super) fn is_dense(lengths: &[usize]) -> bool {
    let first = lengths.first().copied().unwrap_or(0);
    first.is_multiple_of(DENSE_STEP) && lengths.iter().all(|len| *len == first)
}

/// The lists of a batch, each `step` numbers after the one before.
fn lists(lengths: &[usize], texts: usize, step: usize, widths: [usize; 4]) -> Result<Vec<i32>> {
    let mut padded = lengths.to_vec();
    padded.resize(texts, 0);
    let starts: Vec<usize> = std::iter::once(0)
        .chain(padded.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        }))
        .collect();
    let mut all = Vec::with_capacity(step * (1 + widths.len()));
    for list in std::iter::once(padded).chain(widths.map(|width| starts.iter().map(|start| start * width).collect())) {
        for value in &list {
            let number = i32::try_from(*value);
            all.push(number.map_err(|_| Error::Index { op: "attention", index: *value, len: i32::MAX as usize })?);
        }
        all.resize(all.len().next_multiple_of(step), 0);
    }
    Ok(all)
}

/// Where the columns of q, k and v start in the first row.
fn columns(act: &Act, attention: &Attention) -> [Pointer; 3] {
    [0, attention.k_column(0), attention.v_column(0)].map(|column| act.column(column))
}

impl Fused {
    /// Loads cuDNN for a device it is used on; `is_insisted`: for all it can compute, be it slower there.
    pub(crate) fn open(device: &Device, is_insisted: bool) -> Result<Self> {
        let (major, minor) = device.capability();
        // on 8.x and 12.x cuDNN's backward pass cannot take `lse` as it lies here
        if !matches!(major, 9 | 10) {
            let why = format!("this GPU has compute capability {major}.{minor}, wanted 9.x or 10.x");
            return Err(Error::UnfitCudnn { why });
        }
        let cudnn = Cudnn::open(device)?;
        if cudnn.version() < OLDEST {
            let why = format!("its version is {}, wanted at least {}", named(cudnn.version()), named(OLDEST));
            return Err(Error::UnfitCudnn { why });
        }
        Ok(Self { forward: Plans::new(), backward: Plans::new(), cudnn, is_insisted })
    }

    /// As `cuDNN 9.19.0`, and what it leaves to own kernels.
    pub(crate) fn name(&self) -> String {
        let rest = if self.is_insisted { "" } else { ", short texts by own kernels" };
        format!("cuDNN {}{rest}", named(self.cudnn.version()))
    }

    /// Whether it computes both directions of a batch.
    pub(crate) fn takes(&self, qkv: &Act, segments: &Segments, attention: &Attention) -> bool {
        let lengths = segments.texts().rows().map(|rows| rows.len());
        let is_worth = self.is_insisted || is_worth(lengths);
        qkv.rows > 0 && is_worth && refusal(qkv.rows, qkv.dtype, attention).is_none()
    }

    /// `refusal` has none; o is (T, heads * head_dim), lse has heads * T values.
    pub(crate) fn forward(
        &self,
        device: &Device,
        qkv: &Act,
        segments: &Segments,
        attention: &Attention,
        o: &mut Act,
        lse: &mut Full,
    ) -> Result<()> {
        device.bind()?;
        let batch = Batch::new(device, segments, qkv.dtype, attention)?;
        let pass = self.forward.get(batch.shape, || Forward::new(&self.cudnn, batch.shape))?;
        let workspace = device.alloc("attention", pass.plan.workspace)?;
        let given = pass.common.given(columns(qkv, attention), o.pointer(), lse.pointer(), batch.lists);
        // SAFETY: qkv has a row per token and (heads + 2 kv_heads) * head_dim columns, o (T, heads * head_dim), lse
        // heads * T values: `prepare` in mod.rs; columns start at multiples of 16 bytes: `refusal`; lengths and starts
        // are those of the texts, which end with the rows.
        unsafe { pass.plan.run(&self.cudnn, device, "attention_cudnn", &given, workspace.pointer()) }
    }

    /// As `forward`, and dqkv has the shape of qkv.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn backward(
        &self,
        device: &Device,
        do_: &Act,
        qkv: &Act,
        o: &Act,
        lse: &Full,
        segments: &Segments,
        attention: &Attention,
        dqkv: &mut Act,
    ) -> Result<()> {
        let name = "attention_cudnn_backward";
        device.bind()?;
        let batch = Batch::new(device, segments, qkv.dtype, attention)?;
        let pass = self.backward.get(batch.shape, || Backward::new(&self.cudnn, batch.shape))?;
        let &Attention { heads, kv_heads, head_dim, .. } = attention;
        let (rows, bytes) = (qkv.rows, qkv.dtype.bytes());
        let alloc = |values: usize, bytes: usize| device.alloc(name, rows * values * bytes);
        let workspace = device.alloc(name, pass.plan.workspace)?;
        let delta = alloc(heads, size_of::<f32>())?;
        let row = if batch.lists.is_some() { attention.width() } else { heads * head_dim };
        let sums = alloc(row, size_of::<f32>())?;
        let mut given = pass.common.given(columns(qkv, attention), o.pointer(), lse.pointer(), batch.lists);
        given.extend([(pass.do_, do_.pointer()), (pass.delta, delta.pointer()), (pass.sums, sums.pointer())]);
        let mut to = columns(dqkv, attention);
        // cuDNN writes what each query head adds to dk and dv as far apart as dk and dv themselves are, times the heads
        // of a group: beside q in dqkv that would be four times as much memory
        let beside: Option<[Buffer; 2]> = match pass.per_head {
            None => None,
            Some(_) => Some([alloc(2 * kv_heads * head_dim, bytes)?, alloc(2 * heads * head_dim, bytes)?]),
        };
        if let (Some([both, per_head]), Some(tensors)) = (&beside, pass.per_head) {
            to[1..].copy_from_slice(&[both.pointer(), both.pointer().plus(kv_heads * head_dim * bytes)]);
            let second = per_head.pointer().plus(heads * head_dim * bytes);
            given.extend([(tensors[0], per_head.pointer()), (tensors[1], second)]);
        }
        given.extend(pass.dqkv.into_iter().zip(to));
        // SAFETY: as in `forward`; do and dqkv have the shapes of o and qkv: `prepare_backward` in mod.rs; the others were
        // sized above as `graphs.rs` describes them.
        unsafe { pass.plan.run(&self.cudnn, device, name, &given, workspace.pointer())? };
        match &beside {
            None => Ok(()),
            Some([both, _]) => {
                let width = 2 * kv_heads * head_dim * bytes;
                let to = (dqkv.column(attention.k_column(0)), attention.width() * bytes);
                // SAFETY: `both` has `rows` rows of `width` bytes, and dqkv has as many from the columns of k on.
                unsafe { device.copy_columns(name, (both.pointer(), width), to, width, rows) }
            }
        }
    }
}

/// 91900 as `9.19.0`.
fn named(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MISTRAL: Attention = Attention { heads: 32, kv_heads: 8, head_dim: 128, window: None };

    #[test]
    fn batches_share_plans() {
        let plan = |lengths: &[usize], window| bucket(lengths, Dtype::Bf16, &Attention { window, ..MISTRAL });
        assert_eq!(plan(&[300, 1, 63], None), plan(&[511, 300, 129, 7], None));
        assert_ne!(plan(&[300, 1, 63], None), plan(&[513, 1, 63], None));
        assert_ne!(plan(&[300, 1, 63], None), plan(&[300, 1, 63, 5, 5], None));
        let of = |shape: Shape| (shape.texts, shape.length, shape.layout);
        assert_eq!(of(plan(&[1], None)), (1, 128, Layout::Ragged));
        assert_eq!(of(plan(&[2048, 2048], None)), (2, 2048, Layout::Dense));
        assert_eq!(of(plan(&[384; 3], None)), (3, 384, Layout::Dense));
        assert_eq!(of(plan(&[100, 100], None)), (2, 128, Layout::Ragged));
        assert_eq!(of(plan(&[2048, 2047], None)), (2, 2048, Layout::Ragged));
        // 4096 keys back is all of a text of 2048
        assert_eq!(plan(&[2048], Some(4096)), plan(&[2048], None));
        assert_ne!(plan(&[2048], Some(2047)), plan(&[2048], None));
    }

    #[test]
    fn short_texts_are_left_to_own_kernels() {
        assert!(is_worth([384].into_iter()) && !is_worth([383].into_iter()));
        assert!(is_worth([512; 8].into_iter()) && !is_worth([90; 45].into_iter()));
        // most tokens are in the long text
        assert!(is_worth([1000, 20, 30, 40].into_iter()));
        assert!(!is_worth([400, 300, 20, 30, 40].into_iter()));
    }

    #[test]
    fn lists_say_lengths_and_starts() {
        let all = lists(&[3, 1, 2], 4, 8, [10, 4, 2, 6]).unwrap();
        let wanted: [[i32; 5]; 5] =
            [[3, 1, 2, 0, 0], [0, 30, 40, 60, 60], [0, 12, 16, 24, 24], [0, 6, 8, 12, 12], [0, 18, 24, 36, 36]];
        for (list, wanted) in all.chunks(8).zip(&wanted) {
            assert_eq!(list, [wanted.as_slice(), &[0; 3]].concat());
        }
        assert_eq!(all.len(), 40);
        assert!(matches!(lists(&[1 << 20], 1, 4, [6144, 4096, 32, 2048]), Err(Error::Index { .. })));
    }

    #[test]
    fn what_cudnn_does_not_take_has_a_reason() {
        assert_eq!(refusal(4096, Dtype::Bf16, &MISTRAL), None);
        assert_eq!(refusal(4096, Dtype::F16, &Attention { head_dim: 80, ..MISTRAL }), None);
        assert!(refusal(4096, Dtype::F32, &MISTRAL).is_some());
        assert!(refusal(4096, Dtype::Bf16, &Attention { head_dim: 256, ..MISTRAL }).is_some());
        assert!(refusal(4096, Dtype::Bf16, &Attention { head_dim: 72, ..MISTRAL }).is_some());
        assert!(refusal(400_000, Dtype::Bf16, &MISTRAL).is_some());
        assert_eq!(named(91900), "9.19.0");
    }
}
