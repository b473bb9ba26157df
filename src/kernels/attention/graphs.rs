//! The graphs that cuDNN computes attention by: the formulas of `mod.rs`, operation by operation.
//!
//! Dimensions are (texts, heads, length, head_dim). cuDNN recognises the whole graph and runs one fused kernel for it, so
//! operations and their order are what it looks for: scale, padding, causal mask, softmax by its maximum and sum.
//! Source: NVIDIA cudnn-frontend 3929da2e, node/scaled_dot_product_flash_attention.h, for what cuDNN recognises.

use crate::kernels::Result;
use crate::kernels::cuda::cudnn::{Cudnn, Four, Graph, Lengths, Plan, Pointwise as Op, Reduction, Tensor, Values};
use crate::kernels::cuda::{Dtype, Pointer};

/// How texts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Layout {
    /// All have the length.
    Dense,
    /// Each has its own, at most the length, and starts where a list says.
    Ragged,
}

/// What a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub texts: usize,
    pub length: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
    pub dtype: Dtype,
    pub layout: Layout,
}

impl Shape {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Columns of a row of qkv.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// What texts of several lengths are told by.
#[derive(Clone, Copy)]
struct Lists {
    lengths: Tensor,
    of_qkv: Tensor,
    of_o: Tensor,
    of_lse: Tensor,
    /// Backward alone, where dk and dv are not in dqkv.
    of_dkv: Option<Tensor>,
}

/// The tensors both directions have.
pub(super) struct Common {
    lists: Option<Lists>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
}

impl Common {
    /// The tensors with where they are.
    pub(super) fn given(
        &self,
        qkv: [Pointer; 3],
        o: Pointer,
        lse: Pointer,
        lists: Option<[Pointer; 5]>,
    ) -> Vec<(Tensor, Pointer)> {
        let [q, k, v] = qkv;
        let mut given = vec![(self.q, q), (self.k, k), (self.v, v), (self.o, o), (self.lse, lse)];
        if let (Some(tensors), Some(pointers)) = (&self.lists, lists) {
            let Lists { lengths, of_qkv, of_o, of_lse, of_dkv } = *tensors;
            // a list that the graph does not use is last
            given.extend([lengths, of_qkv, of_o, of_lse].into_iter().chain(of_dkv).zip(pointers));
        }
        given
    }
}

pub(super) struct Forward {
    pub plan: Plan,
    pub common: Common,
}

pub(super) struct Backward {
    pub plan: Plan,
    pub common: Common,
    pub do_: Tensor,
    /// As lse.
    pub delta: Tensor,
    pub dqkv: [Tensor; 3],
    /// What dq is added up in, f32: as far apart as dq for texts of several lengths, else (texts, heads, length, head_dim).
    pub sums: Tensor,
    /// What each query head adds to dk and dv where they are not its own, for texts of several lengths:
    /// (T, 2 * heads * head_dim), dk's before dv's; dk and dv are then (T, 2 * kv_heads * head_dim) likewise.
    pub per_head: Option<[Tensor; 2]>,
}

/// A graph with the shape of what it computes.
struct Builder<'a> {
    graph: Graph<'a>,
    shape: Shape,
    values: Values,
    lists: Option<Lists>,
}

fn whole(number: usize) -> i64 {
    number as i64
}

impl<'a> Builder<'a> {
    fn new(cudnn: &'a Cudnn, op: &'static str, shape: Shape, has_dkv: bool) -> Result<Self> {
        let mut graph = Graph::new(cudnn, op);
        let texts = whole(shape.texts);
        let lists = match shape.layout {
            Layout::Dense => None,
            Layout::Ragged => Some(Lists {
                lengths: graph.list(texts)?,
                of_qkv: graph.list(texts + 1)?,
                of_o: graph.list(texts + 1)?,
                of_lse: graph.list(texts + 1)?,
                of_dkv: if has_dkv { Some(graph.list(texts + 1)?) } else { None },
            }),
        };
        Ok(Self { graph, shape, values: shape.dtype.into(), lists })
    }

    /// (texts, heads, length, head_dim) of rows of `row` values.
    fn rows_shape(&self, heads: usize, row: usize) -> (Four, Four) {
        let Shape { texts, length, head_dim, .. } = self.shape;
        let dims = [texts, heads, length, head_dim].map(whole);
        (dims, [length * row, head_dim, row, 1].map(whole))
    }

    fn rows(&mut self, heads: usize, row: usize, values: Values, starts: Option<Tensor>) -> Result<Tensor> {
        let (dims, strides) = self.rows_shape(heads, row);
        self.graph.given(dims, strides, values, starts)
    }

    /// As `rows` with the last two dimensions exchanged.
    fn columns(&mut self, heads: usize, row: usize, starts: Option<Tensor>) -> Result<Tensor> {
        let ([a, b, c, d], [p, q, r, s]) = self.rows_shape(heads, row);
        self.graph.given([a, b, d, c], [p, q, s, r], self.values, starts)
    }

    /// One value for every query and head, f32: lse and its like.
    fn statistics(&mut self) -> Result<Tensor> {
        let Shape { texts, heads, length, .. } = self.shape;
        let strides = match self.shape.layout {
            Layout::Dense => [heads * length, length, 1, 1],
            Layout::Ragged => [heads * length, 1, heads, 1],
        };
        let dims = [texts, heads, length, 1].map(whole);
        self.graph.given(dims, strides.map(whole), Values::F32, self.lists.map(|lists| lists.of_lse))
    }

    /// As `statistics`, between two operations.
    fn one_each(&mut self) -> Result<Tensor> {
        let Shape { texts, heads, length, .. } = self.shape;
        let dims = [texts, heads, length, 1].map(whole);
        self.graph.between(dims, [heads * length, length, 1, 1].map(whole), Values::F32)
    }

    /// (texts, heads, length, head_dim) one after the other.
    fn packed(&self) -> (Four, Four) {
        let Shape { texts, heads, length, head_dim, .. } = self.shape;
        let strides = [heads * length * head_dim, length * head_dim, head_dim, 1];
        ([texts, heads, length, head_dim].map(whole), strides.map(whole))
    }

    /// `left·right` for every query and key.
    fn scores(&mut self, left: Tensor, right: Tensor) -> Result<Tensor> {
        let Shape { texts, heads, length, .. } = self.shape;
        let strides = [heads * length * length, length * length, length, 1].map(whole);
        let out = self.graph.between([texts, heads, length, length].map(whole), strides, Values::F32)?;
        let length = self.lists.map(|lists| lists.lengths);
        self.graph.matmul(left, right, out, Lengths { rows: length, columns: length, depth: None })
    }

    /// A sum over a text's queries or keys.
    fn product(&mut self, left: Tensor, right: Tensor, out: Tensor) -> Result<Tensor> {
        let length = self.lists.map(|lists| lists.lengths);
        self.graph.matmul(left, right, out, Lengths { rows: length, columns: None, depth: length })
    }

    /// Minus infinity beyond a text's end, after the query, and where the window has passed.
    fn hidden(&mut self, scores: Tensor) -> Result<Tensor> {
        let graph = &mut self.graph;
        let mut scores = scores;
        if let Some(Lists { lengths, .. }) = self.lists {
            let (query, key) = (graph.index(scores, 2, Values::I32)?, graph.index(scores, 3, Values::I32)?);
            let is_query = graph.compare(Op::Less, query, lengths)?;
            let is_key = graph.compare(Op::Less, key, lengths)?;
            let is_both = graph.compare(Op::And, is_query, is_key)?;
            scores = graph.masked(scores, is_both)?;
        }
        let (query, key) = (graph.index(scores, 2, Values::F32)?, graph.index(scores, 3, Values::F32)?);
        let is_past = graph.compare(Op::GreaterOrEqual, query, key)?;
        scores = graph.masked(scores, is_past)?;
        if let Some(window) = self.shape.window {
            let (query, key) = (graph.index(scores, 2, Values::F32)?, graph.index(scores, 3, Values::F32)?);
            let end = graph.shifted(key, window as f32)?;
            let is_near = graph.compare(Op::Greater, end, query)?;
            scores = graph.masked(scores, is_near)?;
        }
        Ok(scores)
    }
}

impl Forward {
    pub(super) fn new(cudnn: &Cudnn, shape: Shape) -> Result<Self> {
        let mut b = Builder::new(cudnn, "attention", shape, false)?;
        let Shape { heads, kv_heads, head_dim, .. } = shape;
        let (of_qkv, of_o) = (b.lists.map(|lists| lists.of_qkv), b.lists.map(|lists| lists.of_o));
        let q = b.rows(heads, shape.width(), b.values, of_qkv)?;
        let k = b.columns(kv_heads, shape.width(), of_qkv)?;
        let v = b.rows(kv_heads, shape.width(), b.values, of_qkv)?;
        let o = b.rows(heads, heads * head_dim, b.values, of_o)?;
        let lse = b.statistics()?;

        let s = b.scores(q, k)?;
        let s = b.graph.scaled(s, shape.scale())?;
        let s = b.hidden(s)?;
        let (highest, sum) = (b.one_each()?, b.one_each()?);
        b.graph.reduce(Reduction::Max, s, highest)?;
        let below = b.graph.map(Op::Sub, &[s, highest], Values::F32)?;
        let e = b.graph.map(Op::Exp, &[below], Values::F32)?;
        b.graph.reduce(Reduction::Sum, e, sum)?;
        let ln = b.graph.map(Op::Log, &[sum], Values::F32)?;
        b.graph.pointwise(Op::Add, &[highest, ln], lse)?;
        let p = b.graph.map(Op::Div, &[e, sum], b.values)?;
        b.product(p, v, o)?;

        let common = Common { lists: b.lists, q, k, v, o, lse };
        Ok(Self { plan: b.graph.plan()?, common })
    }
}

impl Backward {
    pub(super) fn new(cudnn: &Cudnn, shape: Shape) -> Result<Self> {
        let Shape { heads, kv_heads, head_dim, .. } = shape;
        let is_shared = heads != kv_heads;
        let mut b = Builder::new(cudnn, "attention_backward", shape, is_shared)?;
        let (width, values) = (shape.width(), b.values);
        let (of_qkv, of_o) = (b.lists.map(|lists| lists.of_qkv), b.lists.map(|lists| lists.of_o));
        let q = b.rows(heads, width, values, of_qkv)?;
        let k = b.columns(kv_heads, width, of_qkv)?;
        let v = b.columns(kv_heads, width, of_qkv)?;
        let o = b.rows(heads, heads * head_dim, values, of_o)?;
        let do_ = b.rows(heads, heads * head_dim, values, of_o)?;
        let (lse, delta) = (b.statistics()?, b.statistics()?);
        let dq = b.rows(heads, width, values, of_qkv)?;
        let of_dkv = b.lists.map(|lists| lists.of_dkv.unwrap_or(lists.of_qkv));
        let row = if is_shared && b.lists.is_some() { 2 * kv_heads * head_dim } else { width };
        let (dk, dv) = (b.rows(kv_heads, row, values, of_dkv)?, b.rows(kv_heads, row, values, of_dkv)?);
        let sums = match of_qkv {
            Some(_) => b.rows(heads, width, Values::F32, of_qkv)?,
            None => {
                let (dims, strides) = b.packed();
                b.graph.given(dims, strides, Values::F32, None)?
            }
        };

        // D = Σ_d do·o
        let (dims, strides) = b.rows_shape(heads, heads * head_dim);
        let products = b.graph.between(dims, strides, Values::F32)?;
        b.graph.pointwise(Op::Mul, &[do_, o], products)?;
        let sum = b.one_each()?;
        b.graph.reduce(Reduction::Sum, products, sum)?;
        b.graph.scaled_into(sum, 1.0, delta)?;

        // p = exp(s − lse), dv = pᵀ·do
        let s = b.scores(q, k)?;
        let s = b.graph.scaled(s, shape.scale())?;
        let s = b.graph.map(Op::Sub, &[s, lse], Values::F32)?;
        let s = b.hidden(s)?;
        let p = b.graph.map(Op::Exp, &[s], Values::F32)?;
        let of_v = b.gradient_of_shared(p, do_, dv, is_shared, row, of_dkv)?;

        // ds = p·(do·v − D)/sqrt(head_dim), dk = dsᵀ·q
        let dp = b.scores(do_, v)?;
        let ds = b.graph.map(Op::Sub, &[dp, delta], Values::F32)?;
        let ds = b.graph.map(Op::Mul, &[ds, p], Values::F32)?;
        let ds = b.graph.scaled(ds, shape.scale())?;
        let of_k = b.gradient_of_shared(ds, q, dk, is_shared, row, of_dkv)?;

        // dq = ds·k
        let k_rows = b.graph.transposed(k, values, of_qkv)?;
        b.product(ds, k_rows, sums)?;
        b.graph.pointwise(Op::Identity, &[sums], dq)?;

        let common = Common { lists: b.lists, q, k, v, o, lse };
        let per_head = of_k.zip(of_v).map(|(k, v)| [k, v]);
        Ok(Self { plan: b.graph.plan()?, common, do_, delta, dqkv: [dq, dk, dv], sums, per_head })
    }
}

impl Builder<'_> {
    /// `out = weightsᵀ·right`, summed over the query heads of a group where they share keys; gives the tensor of what each
    /// head adds, where that is not between two operations.
    fn gradient_of_shared(
        &mut self,
        weights: Tensor,
        right: Tensor,
        out: Tensor,
        is_shared: bool,
        row: usize,
        starts: Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        let turned = self.graph.transposed(weights, self.values, None)?;
        if !is_shared {
            return self.product(turned, right, out).map(|_| None);
        }
        let Shape { heads, kv_heads, .. } = self.shape;
        let each = match starts {
            // cuDNN takes the starts times the heads of a group
            Some(_) => self.rows(heads, row * (heads / kv_heads), self.values, starts)?,
            None => {
                let (dims, strides) = self.packed();
                self.graph.between(dims, strides, self.values)?
            }
        };
        self.product(turned, right, each)?;
        self.graph.reduce(Reduction::Sum, each, out)?;
        Ok(starts.map(|_| each))
    }
}
