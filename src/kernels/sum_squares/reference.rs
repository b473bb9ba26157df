//! The plain loop of `sum_squares`.

pub(crate) fn sum_squares(x: &[f64]) -> f64 {
    x.iter().map(|value| value * value).sum()
}
