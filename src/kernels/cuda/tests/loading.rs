//! Weights from a file's bytes against those of the CPU, bit by bit.

use crate::kernels::Backend;
use crate::kernels::cuda::{Dtype, Storage};
use crate::kernels::testing::{Random, assert_same_bits, gpus};
use crate::quant::{FloatBytes, FloatType, Nf4Scales, StoredMatrix, StoredValues};

/// Values of a dtype as a file holds them: normal ones, and among them zeros, denormals and numbers at the ends.
fn bytes(count: usize, dtype: FloatType, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let special = [0.0, -0.0, 1e-40, -3e-39, 6e-8, 6e4, -3e38, f32::MIN_POSITIVE];
    let mut all = Vec::new();
    for index in 0..count {
        let value = match random.index(40) {
            at @ 0..8 => special[at as usize],
            // whole blocks of zeros, of denormals, and of one value
            _ if index / 64 % 9 == 4 => 0.0,
            _ if index / 64 % 9 == 5 => 1e-39 * random.value(),
            _ if index / 64 % 9 == 6 => 0.25,
            _ => 0.05 * random.value(),
        };
        match dtype {
            FloatType::F32 => all.extend(value.to_le_bytes()),
            FloatType::F16 => all.extend(half::f16::from_f32(value.clamp(-6e4, 6e4)).to_le_bytes()),
            FloatType::Bf16 => all.extend(half::bf16::from_f32(value).to_le_bytes()),
        }
    }
    all
}

/// Codes, scale codes, scales of scales and offset of the CPU.
fn parts(matrix: &StoredMatrix) -> (Vec<u8>, Vec<u8>, Vec<f32>, f32) {
    match &matrix.values {
        StoredValues::Nf4(values) => match &values.absmax {
            Nf4Scales::Nested { codes, absmax, offset, .. } => {
                (values.codes.clone(), codes.clone(), absmax.clone(), *offset)
            }
            Nf4Scales::Plain(_) => panic!("plain scales"),
        },
        _ => panic!("not NF4"),
    }
}

fn check(floats: &FloatBytes<'_>) {
    let wanted = parts(&floats.stored().quantize_nf4());
    for gpu in gpus() {
        let weight = gpu.weights_from(vec![vec![*floats]], true).unwrap().pop().unwrap();
        let [part] = weight.parts.as_slice() else { panic!("one part") };
        let Storage::Nf4(nf4) = &part.storage else { panic!("not NF4") };
        let (codes, scale_codes, absmax, offset) = nf4.read(gpu.device()).unwrap();
        let what = format!("{} x {} {:?}", floats.rows, floats.cols, floats.dtype);
        assert_eq!(offset.to_bits(), wanted.3.to_bits(), "{what}: offset {offset} {}", wanted.3);
        assert_eq!(codes, wanted.0, "{what}: codes");
        assert_same_bits(&absmax, &wanted.2);
        assert_eq!(scale_codes, wanted.1, "{what}: scale codes");
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_quantises_to_the_bits_of_the_cpu() {
    // whole blocks, a rest of one value, of 63, odd counts; scales that end inside a block of 256; several chunks
    let shapes =
        [(1, 1), (1, 64), (5, 13), (3, 65), (2, 127), (64, 64), (256, 65), (129, 511), (1000, 1024), (700, 8191)];
    for (rows, cols) in shapes {
        for dtype in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let bytes = bytes(rows * cols, dtype, (rows + cols) as u64);
            check(&FloatBytes { rows, cols, dtype, bytes: &bytes });
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn what_is_not_finite_is_quantised_as_on_the_cpu() {
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let (rows, cols) = (30, 640);
        let mut bytes = bytes(rows * cols, FloatType::Bf16, 3);
        bytes[2 * 1000..2 * 1001].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
        check(&FloatBytes { rows, cols, dtype: FloatType::Bf16, bytes: &bytes });
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn dense_weights_from_bytes_are_those_from_matrices() {
    for gpu in gpus() {
        for dtype in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let (first, second) = (bytes(7 * 33, dtype, 1), bytes(9 * 33, dtype, 2));
            let floats = |rows, bytes| FloatBytes { rows, cols: 33, dtype, bytes };
            let parts = vec![floats(7, &first), floats(9, &second)];
            let stored = parts.iter().map(FloatBytes::stored).collect();
            let weights = [gpu.weights_from(vec![parts], false).unwrap().pop().unwrap(), gpu.weight(stored).unwrap()];
            let ids = gpu.index(&(0..16).collect::<Vec<_>>()).unwrap();
            let [from_bytes, from_matrices] = weights.map(|weight| {
                assert_eq!(weight.parts.len(), 1);
                let mut x = gpu.act();
                gpu.embed(&weight, &ids, &mut x).unwrap();
                gpu.read_act(&x).unwrap()
            });
            assert_same_bits(&from_bytes, &from_matrices);
        }
        let wrong = FloatBytes { rows: 2, cols: 3, dtype: FloatType::F16, bytes: &[0; 11] };
        assert!(gpu.weights_from(vec![vec![wrong]], true).is_err());
    }
    assert_eq!(Dtype::F16.bytes(), FloatType::F16.bytes());
}
