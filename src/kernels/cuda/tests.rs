#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod loading;

use super::*;
use crate::kernels::Backend;
use crate::kernels::testing::{Random, assert_close, full, gpus, read_full};

#[test]
fn without_a_driver_the_error_says_what_to_do() {
    if !Cuda::is_driver_there() {
        let error = Cuda::new(0, None).unwrap_err().to_string();
        assert!(error.contains("no NVIDIA driver") && error.contains("--device cpu"), "{error}");
        assert!(matches!(Cuda::findings().driver, Err(Error::NoDriver)));
    }
}

#[test]
fn values_survive_encoding() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let values = [0.0, -1.5, 0.25, 96.0];
        assert_eq!(dtype.decode(&dtype.encode(&values)), values);
        assert_eq!(dtype.encode(&values).len(), 4 * dtype.bytes());
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn buffers_on_the_gpu_keep_what_is_written() {
    for gpu in gpus() {
        let values = gpu.dtype().decode(&gpu.dtype().encode(&Random::new(1).values(15)));
        let mut act = gpu.act();
        gpu.write_act(&mut act, 3, 5, &values).unwrap();
        let mut other = gpu.act();
        gpu.copy(&act, &mut other).unwrap();
        assert_eq!(gpu.read_act(&other).unwrap(), values);
        gpu.zero_act(&mut other, 2, 4).unwrap();
        assert_eq!((gpu.shape(&other), gpu.read_act(&other).unwrap()), ((2, 4), vec![0.0; 8]));
        let mut numbers = gpu.full(7).unwrap();
        gpu.write_full(&mut numbers, 2, &[1.0, 2.0]).unwrap();
        assert_eq!(read_full(gpu, &numbers), [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0]);
        assert!(gpu.write_full(&mut numbers, 6, &[1.0, 2.0]).is_err());
        let mut bytes = gpu.bytes(3).unwrap();
        gpu.write_bytes(&mut bytes, &[1, 2, 3]).unwrap();
        assert_eq!(gpu.read_bytes(&bytes).unwrap(), [1, 2, 3]);
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn a_product_on_the_gpu_uses_parameters_as_they_are_now() {
    use crate::kernels::{LoraGroup, LoraPart};
    for gpu in gpus() {
        let part = LoraPart { rank: 1, a: 0, b: 2, s_start: 0, out_start: 0, out_len: 1, scale: 1.0 };
        let group = LoraGroup { in_features: 2, rank: 1, parts: vec![part] };
        let (mut x, mut s) = (gpu.act(), gpu.act());
        gpu.write_act(&mut x, 1, 2, &[1.0, 2.0]).unwrap();
        let mut params = full(gpu, &[1.0, 1.0, 1.0]);
        for (change, wanted) in [(1.0, 3.0), (4.0, 6.0), (8.0, 10.0)] {
            gpu.write_full(&mut params, 0, &[change]).unwrap();
            gpu.lora_down(&x, &group, &params, &mut s).unwrap();
            assert_close(&gpu.read_act(&s).unwrap(), &[wanted], 0.0);
        }
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn operations_on_the_gpu_are_measured_when_asked() {
    for gpu in gpus().iter().take(1) {
        let mut act = gpu.act();
        gpu.write_act(&mut act, 64, 64, &[1.0; 4096]).unwrap();
        gpu.device().measure(true);
        gpu.scale(&mut act, 2.0).unwrap();
        gpu.scale(&mut act, 2.0).unwrap();
        let measured = gpu.device().measured().unwrap();
        gpu.device().measure(false);
        assert!(measured.iter().any(|(name, time, calls)| name == "scale" && *time > 0.0 && *calls >= 2));
        assert!(gpu.device().peak_bytes().unwrap() >= 4 * 4096);
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_plain_product_on_the_gpu_equals_cublaslt() {
    for gpu in gpus() {
        for (rows, cols, depth) in [(1, 1, 1), (17, 33, 65), (64, 48, 128)] {
            for (left_turned, right_turned) in [(false, false), (false, true), (true, false), (true, true)] {
                let write = |act: &mut Act, rows, cols, seed| {
                    gpu.write_act(act, rows, cols, &Random::new(seed).values(rows * cols)).unwrap();
                };
                let (mut left, mut right, mut start) = (gpu.act(), gpu.act(), gpu.act());
                let shape = |turned: bool, rows, cols| if turned { (cols, rows) } else { (rows, cols) };
                let (left_shape, right_shape) = (shape(left_turned, rows, depth), shape(right_turned, depth, cols));
                write(&mut left, left_shape.0, left_shape.1, 1);
                write(&mut right, right_shape.0, right_shape.1, 2);
                write(&mut start, rows, cols, 3);
                let outs = [(); 2].map(|()| {
                    let mut out = gpu.act();
                    gpu.resize(&mut out, rows, cols).unwrap();
                    out
                });
                for (out, is_plain) in outs.iter().zip([true, false]) {
                    let product = Product {
                        rows,
                        cols,
                        depth,
                        dtype: gpu.dtype(),
                        left: Operand { at: left.pointer(), stride: left_shape.1, transposed: left_turned },
                        right: Operand { at: right.pointer(), stride: right_shape.1, transposed: right_turned },
                        alpha: 1.5,
                        start: Some((start.pointer(), cols)),
                        out: (out.pointer(), cols),
                        out_dtype: gpu.dtype(),
                    };
                    let device = gpu.device();
                    // SAFETY: the matrices were written in these shapes just above, the output sized.
                    #[expect(unsafe_code, reason = "starts products")]
                    unsafe {
                        if is_plain {
                            crate::kernels::gemm::cuda::product(device, &product).unwrap();
                        } else {
                            gpu.blas.product(device, "test", &product).unwrap();
                        }
                    }
                }
                let [plain, library] = outs.map(|out| gpu.read_act(&out).unwrap());
                let tolerance = if gpu.dtype() == Dtype::F32 { 1e-5 } else { 1e-2 };
                assert_close(&plain, &library, tolerance);
            }
        }
    }
}
