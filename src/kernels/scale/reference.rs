//! The plain loop of `scale`.

pub(crate) fn scale(x: &mut [f64], factor: f64) {
    for value in x {
        *value *= factor;
    }
}
