#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::kernels::testing::{
    Case, Random, act, assert_close, assert_same_bits, check, check_against, check_gpu, check_gradient, cudnn_gpus,
    difference, gpus, levels, read_full, wide,
};
use crate::kernels::{Attention, Backend, Cpu, Error, Reference, matrix::Matrix, matrix::Texts};

/// Texts of the given lengths under one geometry.
#[derive(Clone)]
struct Pass {
    lengths: Vec<usize>,
    attention: Attention,
    spread: f32,
}

fn geometry(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Attention {
    Attention { heads, kv_heads, head_dim, window }
}

fn prefix_sums(lengths: &[usize]) -> Vec<u32> {
    let mut sums = vec![0];
    for len in lengths {
        sums.push(sums[sums.len() - 1] + *len as u32);
    }
    sums
}

impl Pass {
    fn new(lengths: &[usize], attention: Attention) -> Self {
        Self { lengths: lengths.to_vec(), attention, spread: 1.0 }
    }
}

impl Case for Pass {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let mut random = Random::new(11);
        let rows: usize = self.lengths.iter().sum();
        let (width, o_width) = (self.attention.width(), self.attention.heads * self.attention.head_dim);
        let values: Vec<f32> = random.values(rows * width).iter().map(|v| v * self.spread).collect();
        let qkv = act(backend, rows, width, &values);
        let do_ = act(backend, rows, o_width, &random.values(rows * o_width));
        let segments = backend.segments(&prefix_sums(&self.lengths), 0).unwrap();
        let (mut o, mut lse, mut dqkv) = (backend.act(), backend.full(0).unwrap(), backend.act());
        backend.attention(&qkv, &segments, &self.attention, &mut o, &mut lse).unwrap();
        backend.attention_backward(&do_, &qkv, &o, &lse, &segments, &self.attention, &mut dqkv).unwrap();
        vec![backend.read_act(&o).unwrap(), read_full(backend, &lse), backend.read_act(&dqkv).unwrap()]
    }
}

#[test]
fn hand_computed_values() {
    let backend = Cpu::new(Some(1));
    let attention = geometry(1, 1, 1, None);
    // q, k, v; the second query sees scores 2·ln 2 and 0.
    let ln2 = std::f32::consts::LN_2;
    let qkv = act(&backend, 2, 3, &[5.0, ln2, 10.0, 2.0, 0.0, 20.0]);
    let segments = backend.segments(&[0, 2], 0).unwrap();
    let (mut o, mut lse) = (backend.act(), Vec::new());
    backend.attention(&qkv, &segments, &attention, &mut o, &mut lse).unwrap();
    assert_close(&o.values, &[10.0, (4.0 * 10.0 + 20.0) / 5.0], 1e-6);
    assert_close(&lse, &[5.0 * ln2, 5.0_f32.ln()], 1e-6);
    let alone = backend.segments(&[0, 1, 2], 0).unwrap();
    backend.attention(&qkv, &alone, &attention, &mut o, &mut lse).unwrap();
    assert_close(&o.values, &[10.0, 20.0], 1e-6);
}

#[test]
fn the_cpu_computes_what_the_reference_computes() {
    let lengths: [&[usize]; 6] = [&[1], &[17, 1, 0, 33], &[64], &[65], &[20, 63, 130], &[15, 16, 17, 48, 49]];
    let geometries = [(1, 1, 1), (2, 2, 16), (6, 2, 24), (8, 2, 32), (3, 1, 65)];
    for lengths in lengths {
        for (heads, kv_heads, head_dim) in geometries {
            for window in [None, Some(1), Some(7), Some(64), Some(100)] {
                check(&Pass::new(lengths, geometry(heads, kv_heads, head_dim, window)), 5e-6);
            }
        }
    }
}

#[test]
fn long_texts_are_split_without_a_trace() {
    for window in [None, Some(200)] {
        check(&Pass::new(&[1100, 70, 900], geometry(4, 2, 8, window)), 2e-5);
    }
}

#[test]
fn scores_of_hundreds_are_safe() {
    let pass = Pass { spread: 20.0, ..Pass::new(&[40, 130], geometry(2, 1, 16, None)) };
    let (got, wanted) = (pass.run(&Cpu::new(Some(2))), pass.run(&Reference::new()));
    assert_close(&got[0], &wanted[0], 1e-3);
    assert!(got.iter().flatten().all(|value| value.is_finite()));
}

#[test]
fn a_text_gives_the_same_bits_alone_or_in_a_batch() {
    let backend = Cpu::new(Some(2));
    let attention = geometry(4, 2, 24, None);
    let (width, first, len) = (attention.width(), 30, 77);
    let values = Random::new(12).values(150 * width);
    let run = |cu: &[u32], values: &[f32]| {
        let qkv = act(&backend, values.len() / width, width, values);
        let (mut o, mut lse) = (backend.act(), Vec::new());
        backend.attention(&qkv, &backend.segments(cu, 0).unwrap(), &attention, &mut o, &mut lse).unwrap();
        o
    };
    let batch = run(&[0, 30, 107, 150], &values);
    let alone = run(&[0, 77], &values[first * width..(first + len) * width]);
    assert_same_bits(&alone.values, &batch.values[first * 96..(first + len) * 96]);
}

/// The outputs of a text read in five pieces.
fn steps<B: Backend>(backend: &B, values: &[f32], width: usize, attention: &Attention) -> Vec<f32> {
    let (mut keys, mut cached_values, mut all) = (backend.act(), backend.act(), Vec::new());
    let mut cached = 0;
    for new in [9, 1, 1, 10, 2] {
        let part = act(backend, new, width, &values[cached * width..(cached + new) * width]);
        let mut o = backend.act();
        backend.attention_cached(&part, &mut keys, &mut cached_values, cached, attention, &mut o).unwrap();
        cached += new;
        all.extend(backend.read_act(&o).unwrap());
    }
    all
}

#[test]
fn cached_steps_continue_a_text() {
    let mut random = Random::new(13);
    for (attention, tolerance) in [(geometry(6, 2, 24, None), 3e-6), (geometry(4, 4, 8, Some(5)), 3e-6)] {
        let (rows, width) = (23, attention.width());
        let values = random.values(rows * width);
        let reference = Reference::new();
        let whole = act(&reference, rows, width, &values);
        let (mut o, mut lse) = (Matrix::new(), Vec::new());
        let segments = reference.segments(&[0, rows as u32], 0).unwrap();
        reference.attention(&whole, &segments, &attention, &mut o, &mut lse).unwrap();
        let wanted = reference.read_act(&o).unwrap();
        let o_width = attention.heads * attention.head_dim;
        assert_close(&steps(&reference, &values, width, &attention), &wanted, 1e-6);
        for level in levels() {
            let cpu = |threads| Cpu::new(Some(threads)).with_arch(level);
            let got = steps(&cpu(1), &values, width, &attention);
            assert_close(&got, &wanted[..rows * o_width], tolerance);
            assert_same_bits(&steps(&cpu(3), &values, width, &attention), &got);
        }
    }
}

#[test]
fn a_wrong_window_is_detected() {
    let pass = |window| Pass::new(&[70], geometry(2, 1, 16, window));
    let (right, wrong) = (pass(Some(16)).run(&Reference::new()), pass(Some(17)).run(&Cpu::new(Some(2))));
    for (right, wrong) in right.iter().zip(&wrong) {
        assert!(difference(wrong, right) > 1e-3);
    }
}

#[test]
fn the_gradient_is_the_derivative() {
    for window in [None, Some(2)] {
        let attention = geometry(4, 2, 3, window);
        let texts = Texts::new(&[0, 4, 6], 0).unwrap();
        let (rows, width, o_width) = (6, attention.width(), 12);
        let mut random = Random::new(14);
        let qkv = wide(&random.values(rows * width));
        let do_ = Matrix { rows, cols: o_width, values: wide(&random.values(rows * o_width)) };
        let forward = |qkv: &[f64]| {
            let qkv = Matrix { rows, cols: width, values: qkv.to_vec() };
            let (mut o, mut lse) = (Matrix { values: vec![0.0; rows * o_width], ..do_.clone() }, vec![0.0; 4 * rows]);
            super::reference::forward(&qkv, &texts, &attention, &mut o, &mut lse);
            (qkv, o, lse)
        };
        let (matrix, o, lse) = forward(&qkv);
        let mut dqkv = matrix.clone();
        super::reference::backward(&do_, &matrix, &o, &lse, &texts, &attention, &mut dqkv);
        check_gradient(&qkv, &dqkv.values, |qkv| {
            forward(qkv).1.values.iter().zip(&do_.values).map(|(o, w)| o * w).sum()
        });
    }
}

#[test]
fn a_geometry_that_does_not_fit_is_an_error() {
    let backend = Cpu::new(Some(1));
    let segments = backend.segments(&[0, 1], 0).unwrap();
    let qkv = act(&backend, 1, 8, &[0.0; 8]);
    for attention in
        [geometry(3, 2, 1, None), geometry(1, 0, 8, None), geometry(1, 1, 3, None), geometry(6, 1, 1, Some(0))]
    {
        let result = backend.attention(&qkv, &segments, &attention, &mut backend.act(), &mut Vec::new());
        assert!(matches!(result, Err(Error::Size { op: "attention", .. })));
    }
    assert!(matches!(backend.segments(&[1, 2], 0), Err(Error::Size { .. })));
    assert!(matches!(backend.segments(&[0, 3, 2], 0), Err(Error::Size { .. })));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_computes_what_the_reference_computes() {
    let lengths: [&[usize]; 7] =
        [&[1], &[17, 1, 0, 33], &[64], &[65], &[20, 63, 130], &[15, 16, 17, 48, 49], &[128, 127, 129, 1, 300]];
    let geometries = [(1, 1, 1), (2, 2, 16), (6, 2, 24), (3, 1, 65), (8, 2, 64), (2, 1, 128), (1, 1, 256)];
    for lengths in lengths {
        for (heads, kv_heads, head_dim) in geometries {
            for window in [None, Some(1), Some(7), Some(64), Some(100)] {
                check_gpu(&Pass::new(lengths, geometry(heads, kv_heads, head_dim, window)), 5e-6, 1.5e-2);
            }
        }
    }
    // scores that reach far beyond what exp can hold without the running maximum
    check_gpu(&Pass { spread: 8.0, ..Pass::new(&[200], geometry(4, 2, 64, None)) }, 2e-5, 1.5e-2);
    let pass = |window| Pass::new(&[70], geometry(2, 1, 64, window));
    let right = pass(Some(16)).run(&Reference::new());
    for gpu in gpus() {
        for (right, wrong) in right.iter().zip(&pass(Some(17)).run(gpu)) {
            assert!(difference(wrong, right) > 1.5e-2);
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_gives_the_same_bits_again() {
    for gpu in gpus() {
        for pass in [Pass::new(&[300, 77], geometry(8, 2, 64, None)), Pass::new(&[200], geometry(4, 1, 128, Some(50)))]
        {
            for (first, second) in pass.run(gpu).iter().zip(&pass.run(gpu)) {
                assert_same_bits(first, second);
            }
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn cached_steps_continue_a_text_on_the_gpu() {
    for gpu in gpus() {
        let tolerance = if gpu.dtype() == crate::kernels::cuda::Dtype::F32 { 3e-6 } else { 1e-2 };
        for attention in [geometry(6, 2, 24, None), geometry(4, 4, 8, Some(5)), geometry(8, 2, 128, None)] {
            let values = Random::new(13).values(23 * attention.width());
            let narrow = gpu.dtype().decode(&gpu.dtype().encode(&values));
            let wanted = steps(&Reference::new(), &narrow, attention.width(), &attention);
            assert_close(&steps(gpu, &narrow, attention.width(), &attention), &wanted, tolerance);
        }
    }
}

/// Puts the lse of cuDNN's passes, by text or by token, in head-major order.
fn head_major(pass: &Pass, outputs: &mut [Vec<f32>]) {
    let lengths: Vec<usize> = pass.lengths.iter().copied().filter(|len| *len > 0).collect();
    let (heads, tokens) = (pass.attention.heads, lengths.iter().sum::<usize>());
    let lse = outputs[1].clone();
    for row in 0..tokens {
        for head in 0..heads {
            let from = if super::cudnn::is_dense(&lengths) {
                (row / lengths[0] * heads + head) * lengths[0] + row % lengths[0]
            } else {
                row * heads + head
            };
            outputs[1][head * tokens + row] = lse[from];
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn cudnn_on_the_gpu_computes_what_the_reference_computes() {
    let check = |pass: &Pass, gpu| {
        check_against(gpu, pass, &Reference::new(), 1.5e-2, |outputs| head_major(pass, outputs));
    };
    let lengths: [&[usize]; 8] =
        [&[1], &[17, 1, 0, 33], &[63], &[65, 64], &[300], &[128, 127, 129, 1, 300], &[128, 128, 128], &[256]];
    for gpu in cudnn_gpus() {
        for lengths in lengths {
            for (heads, kv_heads, head_dim) in [(8, 2, 64), (2, 1, 128), (3, 3, 64), (6, 2, 80)] {
                check(&Pass::new(lengths, geometry(heads, kv_heads, head_dim, None)), gpu);
            }
        }
        for head_dim in [16, 32, 48, 96, 112] {
            check(&Pass::new(&[65, 64], geometry(4, 2, head_dim, None)), gpu);
        }
        for window in [1, 7, 64, 100] {
            for lengths in [[128, 127, 129, 1, 300].as_slice(), &[256, 256]] {
                check(&Pass::new(lengths, geometry(8, 2, 64, Some(window))), gpu);
            }
        }
        check(&Pass { spread: 8.0, ..Pass::new(&[200], geometry(4, 2, 64, None)) }, gpu);
        for lengths in [[70], [128]] {
            let pass = |window| Pass::new(&lengths, geometry(2, 1, 64, window));
            let right = pass(Some(16)).run(&Reference::new());
            let mut wrong = pass(Some(17)).run(gpu);
            head_major(&pass(None), &mut wrong);
            for (right, wrong) in right.iter().zip(&wrong) {
                assert!(difference(wrong, right) > 1.5e-2);
            }
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn what_cudnn_does_not_take_is_named_and_computed_by_own_kernels_on_the_gpu() {
    for (cudnn, own) in cudnn_gpus().iter().zip(gpus().iter().skip(1)) {
        assert_eq!(cudnn.dtype(), own.dtype());
        let (fit, wide) = (geometry(8, 2, 64, None), geometry(2, 1, 256, Some(7)));
        assert!(cudnn.attention_name(&fit).starts_with("cuDNN 9."), "{}", cudnn.attention_name(&fit));
        assert_eq!(own.attention_name(&fit), "own kernels (tensor cores)");
        assert!(own.is_deterministic(&fit) && !cudnn.is_deterministic(&fit));
        let name = cudnn.attention_name(&wide);
        assert!(name.starts_with("own kernels (plain) (not by cuDNN: "), "{name}");
        let pass = Pass::new(&[20, 9], wide);
        for (first, second) in pass.run(cudnn).iter().zip(&pass.run(own)) {
            assert_same_bits(first, second);
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn cudnn_on_the_gpu_computes_long_texts_as_own_kernels_do_in_f32() {
    let attention = geometry(32, 8, 128, None);
    for lengths in [[1024, 1024].as_slice(), &[1500, 3, 540, 5]] {
        let pass = Pass::new(lengths, attention);
        for gpu in cudnn_gpus() {
            check_against(gpu, &pass, &gpus()[0], 1.5e-2, |outputs| head_major(&pass, outputs));
        }
    }
}

/// A text read in pieces, as decoding reads it: rotation, caches and attention in one operation.
struct Steps {
    pieces: Vec<usize>,
    attention: Attention,
}

impl Case for Steps {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>> {
        let (width, half) = (self.attention.width(), self.attention.head_dim / 2);
        let rows: usize = self.pieces.iter().sum();
        let values = Random::new(15).values(rows * width);
        let mut frequencies = backend.full(half).unwrap();
        let angles: Vec<f32> = (0..half).map(|j| 0.01_f32.powf(j as f32 / half as f32)).collect();
        backend.write_full(&mut frequencies, 0, &angles).unwrap();
        let (mut keys, mut cached_values, mut all) = (backend.act(), backend.act(), Vec::new());
        let mut cached = 0;
        for &new in &self.pieces {
            let mut part = act(backend, new, width, &values[cached * width..(cached + new) * width]);
            let segments = backend.segments(&[0, new as u32], cached).unwrap();
            let (mut o, caches) = (backend.act(), (&mut keys, &mut cached_values));
            let attention = &self.attention;
            backend.attention_step(&mut part, caches, cached, &segments, attention, &frequencies, &mut o).unwrap();
            cached += new;
            all.extend(backend.read_act(&o).unwrap());
        }
        vec![all, backend.read_act(&keys).unwrap(), backend.read_act(&cached_values).unwrap()]
    }
}

fn steps_of_a_text() -> Vec<Steps> {
    // pieces that end at, before and after the border of a block of 64 keys; a growing cache; more rows than a step takes
    let long = [vec![8; 7], vec![7, 1, 1, 5, 100], vec![1; 3], vec![8; 20], vec![3]].concat();
    let pieces = [vec![1], vec![5, 1, 1], long];
    let geometries = [(1, 1, 64), (8, 2, 128), (6, 1, 64), (3, 3, 128), (2, 1, 24)];
    let mut all = Vec::new();
    for pieces in &pieces {
        for (heads, kv_heads, head_dim) in geometries {
            for window in [None, Some(1), Some(70)] {
                all.push(Steps { pieces: pieces.clone(), attention: geometry(heads, kv_heads, head_dim, window) });
            }
        }
    }
    all
}

#[test]
fn steps_of_a_text_on_the_cpu_are_as_the_reference() {
    for case in steps_of_a_text().into_iter().filter(|case| case.pieces.len() < 9) {
        check(&case, 5e-6);
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn steps_of_a_text_on_the_gpu_are_as_the_reference() {
    for case in steps_of_a_text() {
        check_gpu(&case, 5e-6, 1e-2);
    }
    let case = |window| Steps { pieces: vec![8; 12], attention: geometry(4, 2, 64, Some(window)) };
    let right = case(70).run(&Reference::new());
    for gpu in gpus() {
        assert!(difference(&case(71).run(gpu)[0], &right[0]) > 1e-2);
        let (first, second) = (case(70).run(gpu), case(70).run(gpu));
        assert_same_bits(&first[0], &second[0]);
    }
}
