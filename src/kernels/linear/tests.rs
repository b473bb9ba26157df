#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use pulp::Arch;

use crate::kernels::testing::{
    Case, Random, act, assert_close, assert_same_bits, check, check_gpu, check_gradient, difference, full, gpus,
    levels, stored, wide,
};
use crate::kernels::{Backend, Cpu, Error, LoraGroup, LoraPart, Reference, StepLinear, StepScratch, matrix::Matrix};

/// A weight of three parts with adapters on the first and the last.
struct Pass {
    rows: usize,
    in_features: usize,
    parts: [usize; 3],
    rank: usize,
    scale: f64,
}

impl Pass {
    fn group(&self) -> LoraGroup {
        let [first, middle, last] = self.parts;
        let (k, r, scale) = (self.in_features, self.rank, self.scale);
        let b_first = r * k;
        let a_last = b_first + first * r + 5;
        let parts = vec![
            LoraPart { rank: r, a: 0, b: b_first, s_start: 0, out_start: 0, out_len: first, scale },
            LoraPart {
                rank: r,
                a: a_last,
                b: a_last + r * k,
                s_start: r,
                out_start: first + middle,
                out_len: last,
                scale: 2.0 * scale,
            },
        ];
        LoraGroup { in_features: k, rank: 2 * r, parts }
    }

    fn params(&self) -> usize {
        self.rank * (2 * self.in_features + self.parts[0] + self.parts[2]) + 5
    }

    fn out(&self) -> usize {
        self.parts.iter().sum()
    }
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut random = Random::new(5);
        let (t, k, n) = (self.rows, self.in_features, self.out());
        let weight = self.parts.map(|rows| stored(rows, k, &random.values(rows * k))).to_vec();
        let weight = backend.weight(weight).unwrap();
        let group = self.group();
        let params = full(backend, &random.values(self.params()));
        let x = act(backend, t, k, &random.values(t * k));
        let s = act(backend, t, group.rank, &random.values(t * group.rank));
        let residual = act(backend, t, n, &random.values(t * n));
        let dy = act(backend, t, n, &random.values(t * n));
        let (mut plain, mut y, mut dx) = (backend.act(), backend.act(), backend.act());
        backend.linear(&x, &weight, None, None, &mut plain).unwrap();
        backend.linear(&x, &weight, Some((&group, &params, &s)), Some(&residual), &mut y).unwrap();
        backend.linear_backward(&dy, &weight, Some((&group, &params, &s)), &mut dx).unwrap();
        [&plain, &y, &dx].map(|act| backend.read_act(act).unwrap()).to_vec()
    }
}

/// The same, with no weight packed.
struct Stored(Pass);

impl Stored {
    fn run_twice(&self, level: Arch) -> [Vec<Vec<f32>>; 2] {
        [usize::MAX, 0].map(|limit| self.0.run(&Cpu::new(Some(2)).with_arch(level).with_dense_limit(limit)))
    }
}

fn passes() -> impl Iterator<Item = Pass> {
    let shapes = [
        (1, 1, [1, 1, 1], 1),
        (1, 65, [64, 32, 33], 8),
        (7, 64, [40, 24, 64], 4),
        (13, 129, [130, 1, 62], 16),
        (160, 256, [256, 64, 64], 16),
        (200, 1100, [65, 10, 55], 3),
    ];
    shapes.into_iter().map(|(rows, in_features, parts, rank)| Pass { rows, in_features, parts, rank, scale: 1.5 })
}

#[test]
fn hand_computed_values() {
    let backend = Cpu::new(Some(1));
    let weight = backend.weight(vec![stored(2, 2, &[1.0, 2.0, 3.0, 4.0]), stored(1, 2, &[5.0, 6.0])]).unwrap();
    let x = act(&backend, 1, 2, &[1.0, 10.0]);
    let part = LoraPart { rank: 1, a: 0, b: 2, s_start: 0, out_start: 1, out_len: 2, scale: 0.5 };
    let group = LoraGroup { in_features: 2, rank: 1, parts: vec![part] };
    let params = full(&backend, &[7.0, 8.0, 2.0, 4.0]);
    let s = act(&backend, 1, 1, &[3.0]);
    let residual = act(&backend, 1, 3, &[0.5, 0.25, 0.0]);
    let mut y = backend.act();
    backend.linear(&x, &weight, Some((&group, &params, &s)), Some(&residual), &mut y).unwrap();
    assert_eq!(y.values, [21.5, 43.0 + 3.0 + 0.25, 65.0 + 6.0]);
    let dy = act(&backend, 1, 3, &[1.0, 0.0, 2.0]);
    let mut dx = backend.act();
    backend.linear_backward(&dy, &weight, Some((&group, &params, &s)), &mut dx).unwrap();
    assert_eq!(dx.values, [11.0 + 21.0, 14.0 + 24.0]);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    for pass in passes() {
        check(&pass, 3e-6);
    }
}

#[test]
fn a_weight_gives_the_same_bits_packed_or_as_stored() {
    for pass in passes() {
        let pass = Stored(pass);
        for level in levels() {
            let [packed, stored] = pass.run_twice(level);
            for (packed, stored) in packed.iter().zip(&stored) {
                assert_same_bits(packed, stored);
            }
        }
    }
}

#[test]
fn a_row_gives_the_same_bits_alone_or_in_a_batch() {
    let backend = Cpu::new(Some(2));
    let (t, k, n) = (100, 300, 200);
    let mut random = Random::new(6);
    let weight = backend.weight(vec![stored(n, k, &random.values(n * k))]).unwrap();
    let x = random.values(t * k);
    let mut batch = backend.act();
    backend.linear(&act(&backend, t, k, &x), &weight, None, None, &mut batch).unwrap();
    let mut alone = backend.act();
    for row in [0, 57, 99] {
        backend.linear(&act(&backend, 1, k, &x[row * k..(row + 1) * k]), &weight, None, None, &mut alone).unwrap();
        assert_same_bits(&alone.values, batch.row(row));
    }
}

#[test]
fn a_wrong_sign_is_detected() {
    let pass = |scale| Pass { rows: 13, in_features: 65, parts: [30, 2, 40], rank: 4, scale };
    let (right, wrong) = (pass(1e-3).run(&Reference::new()), pass(-1e-3).run(&Cpu::new(Some(2))));
    assert!(difference(&wrong[1], &right[1]) > 3e-5);
}

#[test]
fn the_gradient_is_the_derivative() {
    let (rows, k, n) = (2, 3, 4);
    let mut random = Random::new(7);
    let x = wide(&random.values(rows * k));
    let w = Matrix { rows: n, cols: k, values: wide(&random.values(n * k)) };
    let dy = Matrix { rows, cols: n, values: wide(&random.values(rows * n)) };
    let mut dx = Matrix { rows, cols: k, values: vec![0.0; rows * k] };
    super::reference::backward(&dy, &w, None, &mut dx);
    check_gradient(&x, &dx.values, |x| {
        let x = Matrix { rows, cols: k, values: x.to_vec() };
        let mut y = Matrix { rows, cols: n, values: vec![0.0; rows * n] };
        super::reference::forward(&x, &w, None, None, &mut y);
        y.values.iter().zip(&dy.values).map(|(y, dy)| y * dy).sum()
    });
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let backend = Cpu::new(Some(1));
    let weight = backend.weight(vec![stored(2, 3, &[0.0; 6])]).unwrap();
    let x = act(&backend, 1, 2, &[0.0; 2]);
    let result = backend.linear(&x, &weight, None, None, &mut backend.act());
    assert!(matches!(result, Err(Error::Size { op: "linear", what: "columns of x", got: 2, wanted: 3 })));
    let x = act(&backend, 1, 3, &[0.0; 3]);
    let part = LoraPart { rank: 1, a: 0, b: 3, s_start: 0, out_start: 0, out_len: 2, scale: 1.0 };
    let group = LoraGroup { in_features: 3, rank: 1, parts: vec![part] };
    let s = act(&backend, 1, 1, &[0.0]);
    let params = full(&backend, &[0.0; 4]);
    let result = backend.linear(&x, &weight, Some((&group, &params, &s)), None, &mut backend.act());
    assert!(matches!(result, Err(Error::Index { index: 5, len: 4, .. })));
}

#[test]
fn packed_weights_stay_within_the_limit() {
    let backend = Cpu::new(Some(1)).with_dense_limit(64 * 64 * 4);
    let weight = backend.weight(vec![stored(64, 64, &[1.0; 64 * 64])]).unwrap();
    let x = act(&backend, 1, 64, &[1.0; 64]);
    let mut y = backend.act();
    backend.linear(&x, &weight, None, None, &mut y).unwrap();
    let mut dx = backend.act();
    backend.linear_backward(&y, &weight, None, &mut dx).unwrap();
    assert_eq!(backend.weight_bytes(&weight), 2 * 64 * 64 * 4);
    assert_close(&dx.values, &[4096.0; 64], 0.0);
    drop(weight);
    let weight = backend.weight(vec![stored(64, 64, &[1.0; 64 * 64])]).unwrap();
    backend.linear(&x, &weight, None, None, &mut y).unwrap();
    assert_eq!(backend.weight_bytes(&weight), 2 * 64 * 64 * 4);
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    for pass in passes() {
        check_gpu(&pass, 5e-6, 1e-2);
    }
    let pass = |scale| Pass { rows: 7, in_features: 64, parts: [40, 24, 64], rank: 4, scale };
    let right = pass(1.5).run(&Reference::new());
    for gpu in gpus().iter().take(1) {
        assert!(difference(&pass(1.6).run(gpu)[1], &right[1]) > 1e-3);
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_dequantises_to_the_bits_of_the_cpu() {
    use crate::quant::{FloatType, Nf4Scales, StoredMatrix, StoredValues, nf4};
    // whole blocks; rows that end inside one; an odd number of values, which puts the second part off its alignment
    for (rows, cols) in [(3, 64), (5, 72), (9, 65), (260, 256), (1, 7)] {
        for dtype in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            for is_nested in [true, false] {
                let part = |seed| {
                    let (codes, absmax) = nf4::quantize(&Random::new(seed).values(rows * cols));
                    let absmax = if is_nested { nf4::quantize_scales(&absmax) } else { Nf4Scales::Plain(absmax) };
                    let values = StoredValues::Nf4(crate::quant::Nf4Values { codes, absmax, dtype });
                    StoredMatrix::new(rows, cols, values).unwrap()
                };
                let parts = vec![part(1), stored(2, cols, &Random::new(2).values(2 * cols)), part(3)];
                for gpu in gpus() {
                    let narrow = |value: &f32| gpu.dtype().decode(&gpu.dtype().encode(&[*value]))[0];
                    let wanted: Vec<f32> =
                        parts.iter().flat_map(StoredMatrix::dequantize).map(|value| narrow(&value)).collect();
                    let weight = gpu.weight(parts.clone()).unwrap();
                    let all = 2 * rows + 2;
                    let ids: Vec<u32> = (0..all as u32).collect();
                    let mut x = gpu.act();
                    gpu.embed(&weight, &gpu.index(&ids).unwrap(), &mut x).unwrap();
                    assert_same_bits(&gpu.read_act(&x).unwrap(), &wanted);
                    // dy = 1 picks the rows of the scratch one by one
                    let mut one = vec![0.0; all * all];
                    one.iter_mut().step_by(all + 1).for_each(|value| *value = 1.0);
                    gpu.linear_backward(&act(gpu, all, all, &one), &weight, None, &mut x).unwrap();
                    assert_close(&gpu.read_act(&x).unwrap(), &wanted, 0.0);
                }
            }
        }
    }
}

/// A few rows with a weight that is stored as it would be: some parts in NF4, or all in f32.
struct Few {
    rows: usize,
    in_features: usize,
    parts: Vec<usize>,
    rank: usize,
    is_nf4: bool,
}

impl Case for Few {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        use crate::quant::{FloatType, StoredMatrix, StoredValues};
        let mut random = Random::new(8);
        let (t, k, n) = (self.rows, self.in_features, self.parts.iter().sum());
        let matrices = self.parts.iter().map(|&rows| {
            let plain = stored(rows, k, &random.values(rows * k));
            match plain.quantize_nf4().values {
                StoredValues::Nf4(mut values) if self.is_nf4 => {
                    values.dtype = FloatType::Bf16;
                    StoredMatrix { rows, cols: k, values: StoredValues::Nf4(values) }
                }
                _ => plain,
            }
        });
        let weight = backend.weight(matrices.collect()).unwrap();
        // an adapter on every part but the second, all A first, with a gap before each B
        let (mut parts, mut end, mut out_start) = (Vec::new(), 0, 0);
        for (index, &out_len) in self.parts.iter().enumerate() {
            if index != 1 {
                let (rank, s_start) = (self.rank, self.rank * parts.len());
                parts.push(LoraPart { rank, a: end, b: 0, s_start, out_start, out_len, scale: 0.5 + index as f64 });
                end += rank * k;
            }
            out_start += out_len;
        }
        for part in &mut parts {
            part.b = end + 3;
            end = part.b + part.rank * part.out_len;
        }
        let group = LoraGroup { in_features: k, rank: self.rank * parts.len(), parts };
        let params: Vec<f32> = random.values(end).iter().map(|value| 0.25 * value).collect();
        let params = full(backend, &params);
        let x = act(backend, t, k, &random.values(t * k));
        let residual = act(backend, t, n, &random.values(t * n));
        let norm = full(backend, &random.values(k));
        let acts = || backend.act();
        let (mut s, mut plain, mut y, mut gate_up, mut h) = (acts(), acts(), acts(), acts(), acts());
        let (mut normed, mut s_normed, mut rstd) = (acts(), acts(), backend.full(0).unwrap());
        backend.lora_down(&x, &group, &params, &mut s).unwrap();
        backend.linear(&x, &weight, None, None, &mut plain).unwrap();
        let lora = Some((&group, &params, &s));
        backend.linear(&x, &weight, lora, Some(&residual), &mut y).unwrap();
        let lora = Some((&group, &params));
        backend.norm_down(&x, &norm, 1e-5, lora, &mut normed, &mut rstd, &mut s_normed).unwrap();
        let mut made = vec![&s, &plain, &y, &normed, &s_normed];
        if n % 2 == 0 {
            let lora = Some((&group, &params, &s));
            backend.linear_swiglu(&x, &weight, lora, &mut gate_up, &mut h).unwrap();
            made.push(&h);
        }
        // the same in one operation, with and without the norm
        let (mut wholes, lora) = (Vec::new(), Some((&group, &params)));
        for norm in [None, Some((&norm, 1e-5))] {
            for is_gate_up in [false, true].into_iter().take(1 + usize::from(n % 2 == 0)) {
                let residual = (!is_gate_up).then_some(&residual);
                let step = StepLinear { x: &x, norm, weight: &weight, lora, residual, is_gate_up };
                let (mut normed, mut s, mut gate_up, mut y) = (acts(), acts(), acts(), acts());
                let rstd = &mut backend.full(0).unwrap();
                let mut scratch = StepScratch { normed: &mut normed, rstd, s: &mut s, gate_up: &mut gate_up };
                backend.step_linear(&step, &mut scratch, &mut y).unwrap();
                wholes.push(y);
            }
        }
        made.into_iter().chain(&wholes).map(|act| backend.read_act(act).unwrap()).collect()
    }
}

fn few() -> Vec<Few> {
    let mut cases = Vec::new();
    // one tile and one over, depths inside a lane's load, a step, a warp's round, with rests; parts that end in a tile
    let shapes: [(&[usize], usize); 9] = [
        (&[3], 64),
        (&[16, 1, 3], 128),
        (&[40, 24, 64], 192),
        (&[17], 576),
        (&[33, 31], 4096 + 64),
        (&[700, 68], 256),
        (&[5, 4], 72),
        (&[20, 2], 65),
        (&[4, 4, 4, 4], 64),
    ];
    for (index, (parts, in_features)) in shapes.into_iter().enumerate() {
        for rows in [1, 2, 3 + index % 5, 8] {
            for is_nf4 in [true, false] {
                let rank = [5, 16, 20, 33][(index + rows) % 4];
                cases.push(Few { rows, in_features, parts: parts.to_vec(), rank, is_nf4 });
            }
        }
    }
    cases
}

#[test]
fn a_few_rows_are_the_same_operation() {
    for case in few().into_iter().filter(|case| case.in_features < 600) {
        check(&case, 1e-5);
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn a_few_rows_on_the_gpu_are_as_the_reference() {
    for case in few() {
        check_gpu(&case, 5e-6, 1e-2);
    }
    let case = |rank| Few { rows: 3, in_features: 128, parts: vec![40, 24], rank, is_nf4: true };
    let right = case(5).run(&Reference::new());
    for gpu in gpus() {
        for (wrong, right) in case(4).run(gpu).iter().zip(&right).skip(2).step_by(3) {
            assert!(difference(wrong, right) > 1e-2);
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn a_few_rows_on_the_gpu_multiply_the_dequantised_bits() {
    use crate::quant::{FloatType, Nf4Scales, Nf4Values, StoredMatrix, StoredValues, nf4};
    for (rows, cols) in [(3, 64), (40, 192), (9, 65), (17, 1088)] {
        for dtype in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            for is_nested in [true, false] {
                let part = |seed| {
                    let (codes, absmax) = nf4::quantize(&Random::new(seed).values(rows * cols));
                    let absmax = if is_nested { nf4::quantize_scales(&absmax) } else { Nf4Scales::Plain(absmax) };
                    let values = StoredValues::Nf4(Nf4Values { codes, absmax, dtype });
                    StoredMatrix::new(rows, cols, values).unwrap()
                };
                let parts = [part(1), part(2)];
                for gpu in gpus() {
                    let weight = gpu.weight(parts.to_vec()).unwrap();
                    let values: Vec<f32> = parts.iter().flat_map(StoredMatrix::dequantize).collect();
                    let values = gpu.dtype().decode(&gpu.dtype().encode(&values));
                    for first in (0..cols).step_by(8) {
                        // rows of x that each pick one column
                        let columns: Vec<usize> = (first..cols.min(first + 8)).collect();
                        let mut one = vec![0.0; columns.len() * cols];
                        for (row, column) in columns.iter().enumerate() {
                            one[row * cols + column] = 1.0;
                        }
                        let mut y = gpu.act();
                        gpu.linear(&act(gpu, columns.len(), cols, &one), &weight, None, None, &mut y).unwrap();
                        let wanted = columns.iter().flat_map(|column| values.iter().skip(*column).step_by(cols));
                        assert_same_bits(&gpu.read_act(&y).unwrap(), &wanted.copied().collect::<Vec<_>>());
                    }
                }
            }
        }
    }
}
