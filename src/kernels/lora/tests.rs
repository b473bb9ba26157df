#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{Case, Random, act, check, check_gpu, difference, full, read_full};
use crate::kernels::{Backend, Cpu, Error, LoraGroup, LoraPart, Reference};

/// Adapters on all of `outs` but the one of rank 0.
struct Pass {
    rows: usize,
    in_features: usize,
    outs: Vec<usize>,
    ranks: Vec<usize>,
    scale: f64,
}

impl Pass {
    fn group(&self) -> (LoraGroup, usize) {
        let (mut parts, mut offset, mut s_start, mut out_start) = (Vec::new(), 3, 0, 0);
        for (&out_len, &rank) in self.outs.iter().zip(&self.ranks) {
            if rank > 0 {
                // B before A for every other part: the order in the buffer is free.
                let (a, b) = match parts.len() % 2 {
                    0 => (offset, offset + rank * self.in_features),
                    _ => (offset + rank * out_len, offset),
                };
                parts.push(LoraPart { rank, a, b, s_start, out_start, out_len, scale: self.scale });
                offset += rank * (self.in_features + out_len);
                s_start += rank;
            }
            out_start += out_len;
        }
        (LoraGroup { in_features: self.in_features, rank: s_start, parts }, offset + 2)
    }
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let (group, len) = self.group();
        let out: usize = self.outs.iter().sum();
        let mut random = Random::new(41);
        let params = full(backend, &random.values(len));
        let mut gradients = full(backend, &random.values(len));
        let x = act(backend, self.rows, self.in_features, &random.values(self.rows * self.in_features));
        let dy = act(backend, self.rows, out, &random.values(self.rows * out));
        let (mut s, mut ds) = (backend.act(), backend.act());
        backend.lora_down(&x, &group, &params, &mut s).unwrap();
        backend.lora_up_backward(&dy, &group, &params, &mut ds).unwrap();
        backend.lora_gradients(&x, &s, &dy, &ds, &group, &mut gradients).unwrap();
        vec![backend.read_act(&s).unwrap(), backend.read_act(&ds).unwrap(), read_full(backend, &gradients)]
    }
}

fn pass(rows: usize, in_features: usize, outs: &[usize], ranks: &[usize], scale: f64) -> Pass {
    Pass { rows, in_features, outs: outs.to_vec(), ranks: ranks.to_vec(), scale }
}

#[test]
fn hand_computed_values() {
    let backend = Cpu::new(Some(1));
    let part = LoraPart { rank: 1, a: 0, b: 2, s_start: 0, out_start: 0, out_len: 2, scale: 0.5 };
    let group = LoraGroup { in_features: 2, rank: 1, parts: vec![part] };
    let params = full(&backend, &[1.0, 2.0, 3.0, 4.0]);
    let (x, dy) = (act(&backend, 1, 2, &[5.0, 6.0]), act(&backend, 1, 2, &[7.0, 8.0]));
    let (mut s, mut ds) = (backend.act(), backend.act());
    backend.lora_down(&x, &group, &params, &mut s).unwrap();
    assert_eq!(s.values, [17.0]);
    backend.lora_up_backward(&dy, &group, &params, &mut ds).unwrap();
    assert_eq!(ds.values, [26.5]);
    let mut gradients = full(&backend, &[1.0; 4]);
    backend.lora_gradients(&x, &s, &dy, &ds, &group, &mut gradients).unwrap();
    assert_eq!(gradients, [1.0 + 132.5, 1.0 + 159.0, 1.0 + 59.5, 1.0 + 68.0]);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    check(&pass(1, 1, &[1], &[1], 2.5), 2e-6);
    check(&pass(5, 65, &[33, 2, 64], &[8, 0, 3], 2.5), 2e-6);
    check(&pass(70, 130, &[256, 64, 65], &[16, 16, 16], 0.5), 3e-6);
    check(&pass(13, 96, &[40, 200], &[64, 40], 1.0), 3e-6);
    check(&pass(200, 256, &[520, 300], &[16, 16], 2.0), 5e-6);
}

#[test]
fn a_wrong_sign_is_detected() {
    let right = pass(5, 65, &[33], &[8], 0.01).run(&Reference::new());
    let wrong = pass(5, 65, &[33], &[8], -0.01).run(&Cpu::new(Some(2)));
    assert!(difference(&wrong[1], &right[1]) > 1e-2);
    assert!(difference(&wrong[2], &right[2]) > 1e-3);
}

#[test]
fn the_gradients_are_the_derivative() {
    // The loss Σ w·(x·Aᵀ·scale·Bᵀ) has dy = w; s and ds from the reference's own forward.
    use crate::kernels::matrix::Matrix;
    use crate::kernels::testing::{check_gradient, wide};
    let (group, len) = pass(3, 4, &[2, 3], &[2, 1], 1.5).group();
    let mut random = Random::new(42);
    let params = wide(&random.values(len));
    let x = Matrix { rows: 3, cols: 4, values: wide(&random.values(12)) };
    let dy = Matrix { rows: 3, cols: 5, values: wide(&random.values(15)) };
    let s_of = |params: &[f64]| {
        let mut s = Matrix { rows: 3, cols: group.rank, values: vec![0.0; 3 * group.rank] };
        super::reference::down(&x, &group, params, &mut s);
        s
    };
    let mut ds = Matrix { rows: 3, cols: group.rank, values: vec![0.0; 3 * group.rank] };
    super::reference::up_backward(&dy, &group, &params, &mut ds);
    let mut gradients = vec![0.0; len];
    super::reference::gradients(&x, &s_of(&params), &dy, &ds, &group, &mut gradients);
    let none = Matrix { rows: 5, cols: 4, values: vec![0.0; 20] };
    check_gradient(&params, &gradients, |params| {
        let mut y = Matrix { rows: 3, cols: 5, values: vec![0.0; 15] };
        let s = s_of(params);
        crate::kernels::linear::reference::forward(&x, &none, Some((&group, params, &s)), None, &mut y);
        y.values.iter().zip(&dy.values).map(|(y, dy)| y * dy).sum()
    });
}

#[test]
fn parts_outside_the_buffer_are_errors() {
    let backend = Cpu::new(Some(1));
    let (mut group, len) = pass(1, 4, &[2], &[2], 1.0).group();
    let x = act(&backend, 1, 4, &[0.0; 4]);
    let params = full(&backend, &vec![0.0; len]);
    group.parts[0].a = len;
    let result = backend.lora_down(&x, &group, &params, &mut backend.act());
    assert!(matches!(result, Err(Error::Index { op: "lora_down", .. })));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    check_gpu(&pass(1, 1, &[1], &[1], 2.5), 2e-6, 1e-2);
    check_gpu(&pass(5, 65, &[33, 2, 64], &[8, 0, 3], 2.5), 2e-6, 1e-2);
    check_gpu(&pass(70, 130, &[256, 64, 65], &[16, 16, 16], 0.5), 3e-6, 1e-2);
    check_gpu(&pass(13, 96, &[40, 200], &[64, 40], 1.0), 3e-6, 1e-2);
    check_gpu(&pass(200, 256, &[520, 300], &[16, 16], 2.0), 5e-6, 1e-2);
    check_gpu(&pass(4097, 512, &[512, 128, 128], &[16, 16, 16], 2.0), 1e-5, 1e-2);
}
