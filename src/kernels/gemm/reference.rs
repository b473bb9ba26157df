//! The plain loops of the matrix product.

/// `Σ_k a[k]·b[k]`
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
