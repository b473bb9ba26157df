//! The plain loops of `swiglu`.

use crate::kernels::matrix::Matrix;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn forward(gate_up: &Matrix<f64>, h: &mut Matrix<f64>) {
    let width = h.cols;
    for t in 0..h.rows {
        for j in 0..width {
            let (gate, up) = (gate_up.row(t)[j], gate_up.row(t)[width + j]);
            h.row_mut(t)[j] = gate * sigmoid(gate) * up;
        }
    }
}

pub(crate) fn backward(dh: &mut Matrix<f64>, gate_up: &mut Matrix<f64>) {
    let width = dh.cols;
    for t in 0..dh.rows {
        for j in 0..width {
            let (gate, up, gradient) = (gate_up.row(t)[j], gate_up.row(t)[width + j], dh.row(t)[j]);
            let p = sigmoid(gate);
            dh.row_mut(t)[j] = gate * p * up;
            gate_up.row_mut(t)[j] = gradient * up * p * (1.0 + gate * (1.0 - p));
            gate_up.row_mut(t)[width + j] = gradient * gate * p;
        }
    }
}
