//! The plain loops of `attention`.
#![expect(clippy::needless_range_loop, reason = "written as the formulas are: one index for several arrays")]

use crate::kernels::Attention;
use crate::kernels::gemm::reference::dot;
use crate::kernels::matrix::{Matrix, Texts};

/// One query over its visible keys: adds `Σ_j softmax(s)[j]·v[j]` to `o` and returns `ln Σ exp(s)`.
fn attend<'a>(q: &[f64], keys_and_values: impl Iterator<Item = (&'a [f64], &'a [f64])> + Clone, o: &mut [f64]) -> f64 {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let scores = keys_and_values.clone().map(|(k, _)| scale * dot(q, k));
    let highest = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    let lse = highest + scores.clone().map(|s| (s - highest).exp()).sum::<f64>().ln();
    for ((_, v), s) in keys_and_values.zip(scores) {
        for (o, v) in o.iter_mut().zip(v) {
            *o += (s - lse).exp() * v;
        }
    }
    lse
}

pub(crate) fn forward(qkv: &Matrix<f64>, texts: &Texts, attention: &Attention, o: &mut Matrix<f64>, lse: &mut [f64]) {
    let dim = attention.head_dim;
    o.values.fill(0.0);
    for text in texts.rows() {
        for i in 0..text.len() {
            for head in 0..attention.heads {
                let (k, v) =
                    (attention.k_column(head / attention.group()), attention.v_column(head / attention.group()));
                let q = attention.q_column(head);
                let keys_and_values = attention.visible(i).map(|j| {
                    let row = qkv.row(text.start + j);
                    (&row[k..k + dim], &row[v..v + dim])
                });
                let query = &qkv.row(text.start + i)[q..q + dim];
                lse[head * qkv.rows + text.start + i] =
                    attend(query, keys_and_values, &mut o.row_mut(text.start + i)[q..q + dim]);
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    do_: &Matrix<f64>,
    qkv: &Matrix<f64>,
    o: &Matrix<f64>,
    lse: &[f64],
    texts: &Texts,
    attention: &Attention,
    dqkv: &mut Matrix<f64>,
) {
    let dim = attention.head_dim;
    let scale = 1.0 / (dim as f64).sqrt();
    dqkv.values.fill(0.0);
    for text in texts.rows() {
        for head in 0..attention.heads {
            let kv_head = head / attention.group();
            let (q, k, v) = (attention.q_column(head), attention.k_column(kv_head), attention.v_column(kv_head));
            for i in 0..text.len() {
                let row = text.start + i;
                let gradient = &do_.row(row)[q..q + dim];
                let mean = dot(gradient, &o.row(row)[q..q + dim]);
                for j in attention.visible(i).map(|j| text.start + j) {
                    let score = scale * dot(&qkv.row(row)[q..q + dim], &qkv.row(j)[k..k + dim]);
                    let p = (score - lse[head * qkv.rows + row]).exp();
                    let ds = p * (dot(gradient, &qkv.row(j)[v..v + dim]) - mean) * scale;
                    for d in 0..dim {
                        dqkv.row_mut(j)[v + d] += p * gradient[d];
                        dqkv.row_mut(row)[q + d] += ds * qkv.row(j)[k + d];
                        dqkv.row_mut(j)[k + d] += ds * qkv.row(row)[q + d];
                    }
                }
            }
        }
    }
}

/// `keys` and `values` already hold the new rows.
pub(crate) fn cached(
    qkv: &Matrix<f64>,
    keys: &Matrix<f64>,
    values: &Matrix<f64>,
    cached: usize,
    attention: &Attention,
    o: &mut Matrix<f64>,
) {
    let dim = attention.head_dim;
    o.values.fill(0.0);
    for row in 0..qkv.rows {
        for head in 0..attention.heads {
            let first = head / attention.group() * dim;
            let keys_and_values = attention
                .visible(cached + row)
                .map(|j| (&keys.row(j)[first..first + dim], &values.row(j)[first..first + dim]));
            let q = attention.q_column(head);
            attend(&qkv.row(row)[q..q + dim], keys_and_values, &mut o.row_mut(row)[q..q + dim]);
        }
    }
}
