//! What the operations' tests share: seeded values, both backends, comparisons.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::io::Write;
use std::sync::OnceLock;

use pulp::Arch;

use super::cuda::{AttentionKind, Dtype};
use super::{Backend, Cpu, Cuda, Error, Reference};
pub(crate) use crate::quant::tests::levels;
use crate::quant::{StoredMatrix, StoredValues};

thread_local! {
    /// What the values of a case are rounded to, so that a GPU and the reference start from the same.
    static ROUNDING: Cell<Dtype> = const { Cell::new(Dtype::F32) };
}

fn rounded(values: &[f32]) -> Vec<f32> {
    let round = |value: &f32| match ROUNDING.get() {
        Dtype::F32 => *value,
        Dtype::F16 => half::f16::from_f32(*value).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(*value).to_f32(),
    };
    values.iter().map(round).collect()
}

/// The first GPU in f32, f16 and bf16, or none unless `UNSLOTHIFY_TEST_GPU=1` asks for it; then it must be there.
pub(crate) fn gpus() -> &'static [Cuda] {
    static GPUS: OnceLock<Vec<Cuda>> = OnceLock::new();
    GPUS.get_or_init(|| {
        if std::env::var("UNSLOTHIFY_TEST_GPU").as_deref() != Ok("1") {
            println!("not run: UNSLOTHIFY_TEST_GPU=1 runs it, on a machine with a GPU");
            return Vec::new();
        }
        let open = |dtype| Cuda::new(0, Some(dtype)).unwrap_or_else(|error| panic!("{error}"));
        let mut gpus = vec![open(Dtype::F32), open(Dtype::F16)];
        if gpus[0].device().capability() >= (8, 0) {
            gpus.push(open(Dtype::Bf16));
        }
        gpus
    })
}

/// As `gpus` with attention by cuDNN, in f16 and bf16; none, and a line that says so past the harness, without cuDNN or
/// on a GPU it is not used on.
pub(crate) fn cudnn_gpus() -> &'static [Cuda] {
    static GPUS: OnceLock<Vec<Cuda>> = OnceLock::new();
    GPUS.get_or_init(|| {
        if gpus().is_empty() {
            return Vec::new();
        }
        let open = |dtype| {
            let gpu = Cuda::new(0, Some(dtype)).unwrap_or_else(|error| panic!("{error}"));
            gpu.with_attention(AttentionKind::Cudnn)
        };
        match (open(Dtype::F16), open(Dtype::Bf16)) {
            (Ok(first), Ok(second)) => vec![first, second],
            (Err(error @ (Error::NoCudnn | Error::UnfitCudnn { .. })), _) => {
                let _ = writeln!(std::io::stderr(), "\nNOT RUN: the tests of attention by cuDNN, because {error}");
                Vec::new()
            }
            (Err(error), _) | (_, Err(error)) => panic!("{error}"),
        }
    })
}

/// What rounding to a dtype may move a value by, however small the value: half the spacing of the smallest numbers.
///
/// f16 has 10 stored bits and smallest normal number 2⁻¹⁴, so below 2⁻¹⁴ its numbers are 2⁻²⁴ apart and rounding to
/// nearest moves a value by up to 2⁻²⁵: no relative bound holds there, whatever computed the value. The inputs of a case
/// are rounded before it runs (`rounded`), on both sides alike, so they add nothing; the f32 arithmetic before the
/// rounding stays below the relative bound. bf16 and f32 share the exponents down to 2⁻¹²⁶, where no test goes.
fn spacing(dtype: Dtype) -> f64 {
    if dtype == Dtype::F16 { (-25_f64).exp2() } else { 0.0 }
}

/// Runs a case on the GPU in every dtype; `tolerance` holds for f32, `coarse` for bf16 and a quarter of it for f16.
pub(crate) fn check_gpu(case: &impl Case, tolerance: f64, coarse: f64) {
    for gpu in gpus() {
        let coarse = if gpu.dtype() == Dtype::F32 { tolerance } else { coarse };
        check_against(gpu, case, &Reference::new(), coarse, |_| ());
    }
}

/// Compares a case on a GPU with another backend, after its outputs were put in that one's order; `tolerance` holds for
/// f32 and bf16, a quarter of it for f16, there beyond what rounding does to the smallest numbers.
pub(crate) fn check_against<B: Backend>(
    gpu: &Cuda,
    case: &impl Case,
    other: &B,
    tolerance: f64,
    reorder: impl Fn(&mut [Vec<f32>]),
) {
    let allowed = if gpu.dtype() == Dtype::F16 { tolerance / 4.0 } else { tolerance };
    ROUNDING.set(gpu.dtype());
    let (mut got, wanted) = (case.run(gpu), case.run(other));
    ROUNDING.set(Dtype::F32);
    reorder(&mut got);
    assert_eq!(got.len(), wanted.len());
    for (index, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let difference = difference_beyond(spacing(gpu.dtype()), got, wanted);
        let dtype = gpu.dtype().name();
        assert!(
            difference <= allowed,
            "{dtype}: output {index} ({} values) differs by {difference:e}, allowed {allowed:e}",
            got.len()
        );
    }
}

/// Seeded values (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A value in -1..1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    pub(crate) fn index(&mut self, end: usize) -> u32 {
        (self.next() % end as u64) as u32
    }
}

pub(crate) fn act<B: Backend>(backend: &B, rows: usize, cols: usize, values: &[f32]) -> B::Act {
    let mut act = backend.act();
    backend.write_act(&mut act, rows, cols, &rounded(values)).unwrap();
    act
}

pub(crate) fn full<B: Backend>(backend: &B, values: &[f32]) -> B::Full {
    let mut full = backend.full(values.len()).unwrap();
    backend.write_full(&mut full, 0, &rounded(values)).unwrap();
    full
}

pub(crate) fn read_full<B: Backend>(backend: &B, full: &B::Full) -> Vec<f32> {
    let mut values = vec![0.0; backend.full_len(full)];
    backend.read_full(full, 0, &mut values).unwrap();
    values
}

pub(crate) fn stored(rows: usize, cols: usize, values: &[f32]) -> StoredMatrix {
    StoredMatrix { rows, cols, values: StoredValues::F32(rounded(values)) }
}

/// An operation to be run on any backend; returns everything it wrote.
pub(crate) trait Case {
    fn run<B: Backend>(&self, backend: &B) -> Vec<Vec<f32>>;
}

/// Runs a case on the reference and, on every level, on CPUs of 1, 2, 3 and 7 threads: those of a level must agree to
/// the bit among themselves, and so must the levels that fuse multiply and add.
pub(crate) fn check(case: &impl Case, tolerance: f64) {
    let wanted = case.run(&Reference::new());
    let mut fused: Option<Vec<Vec<f32>>> = None;
    for level in levels() {
        let cpu = |threads| Cpu::new(Some(threads)).with_arch(level);
        let got = case.run(&cpu(1));
        for (got, wanted) in got.iter().zip(&wanted) {
            let difference = difference(got, wanted);
            assert!(difference <= tolerance, "{level:?} differs by {difference:e}, allowed {tolerance:e}");
        }
        for threads in [2, 3, 7] {
            let again = case.run(&cpu(threads));
            for (got, again) in got.iter().zip(&again) {
                assert_same_bits(got, again);
            }
        }
        if !matches!(level, Arch::Scalar) {
            for (got, wanted) in got.iter().zip(fused.get_or_insert_with(|| got.clone())) {
                assert_same_bits(got, wanted);
            }
        }
    }
}

/// The greatest difference relative to the greatest wanted magnitude.
pub(crate) fn difference(got: &[f32], wanted: &[f32]) -> f64 {
    difference_beyond(0.0, got, wanted)
}

/// The same of the parts of the differences that are above `floor`.
fn difference_beyond(floor: f64, got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let scale = wanted.iter().fold(0.0_f64, |highest, v| highest.max(f64::from(v.abs()))).max(1e-30);
    let differences = got.iter().zip(wanted).map(|(got, wanted)| (f64::from(*got) - f64::from(*wanted)).abs());
    differences.fold(0.0, |highest: f64, d| if d.is_nan() { f64::INFINITY } else { highest.max(d - floor) }) / scale
}

pub(crate) fn assert_close(got: &[f32], wanted: &[f32], tolerance: f64) {
    let difference = difference(got, wanted);
    assert!(difference <= tolerance, "differs by {difference:e}, allowed {tolerance:e}");
}

pub(crate) fn assert_same_bits(got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len());
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert_eq!(got.to_bits(), wanted.to_bits(), "value {i}: {got} against {wanted}");
    }
}

/// Compares `gradient` with central differences of `loss` at `at`, relative to the greatest of the gradient.
pub(crate) fn check_gradient(at: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    assert_eq!(at.len(), gradient.len());
    let scale = gradient.iter().fold(0.0_f64, |highest, g| highest.max(g.abs()));
    assert!(scale > 0.0, "the gradient is zero");
    let step = 1e-5;
    let mut moved = at.to_vec();
    for i in 0..at.len() {
        moved[i] = at[i] + step;
        let above = loss(&moved);
        moved[i] = at[i] - step;
        let below = loss(&moved);
        moved[i] = at[i];
        let wanted = (above - below) / (2.0 * step);
        let difference = (gradient[i] - wanted).abs() / scale;
        assert!(difference < 1e-6, "value {i}: gradient {} against difference quotient {wanted}", gradient[i]);
    }
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn rounding_to_the_smallest_numbers_of_f16_is_no_error_and_more_is() {
    let rounded = |value: f64| half::f16::from_f64(value).to_f32();
    let step = (-24_f64).exp2();
    for at in [0.3, 0.5001, 1.49, 2.5, 100.4, 1023.7] {
        let wanted = [(at * step) as f32];
        assert!(difference_beyond(spacing(Dtype::F16), &[rounded(at * step)], &wanted) <= 1e-6, "{at} steps");
        assert!(
            difference_beyond(spacing(Dtype::F16), &[rounded((at + 1.0) * step)], &wanted) > 4e-4,
            "{at} + 1 steps"
        );
        assert!(difference(&[rounded(at * step)], &wanted) > 0.0);
    }
    assert_eq!(difference_beyond(spacing(Dtype::F16), &[f32::NAN, 1e-8], &[1e-8, 1e-8]), f64::INFINITY);
    assert_eq!((spacing(Dtype::Bf16), spacing(Dtype::F32)), (0.0, 0.0));
}
