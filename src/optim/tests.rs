#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::kernels::{Backend, Cpu, Reference, StateSegment};

const LEN: usize = 6144;

/// Two 8-bit tensors and a small one in full precision, as a model's adapter is laid out.
fn segments() -> Vec<StateSegment> {
    vec![
        StateSegment { offset: 0, len: 5000, eight_bit: true },
        StateSegment { offset: 5120, len: 300, eight_bit: false },
        StateSegment { offset: 5632, len: 512, eight_bit: true },
    ]
}

fn full<B: Backend>(backend: &B, value: impl Fn(usize) -> f64) -> B::Full {
    let values: Vec<f32> = (0..LEN).map(|i| value(i) as f32).collect();
    let mut full = backend.full(LEN).unwrap();
    backend.write_full(&mut full, 0, &values).unwrap();
    full
}

fn values<B: Backend>(backend: &B, full: &B::Full) -> Vec<f32> {
    let mut values = vec![0.0; backend.full_len(full)];
    backend.read_full(full, 0, &mut values).unwrap();
    values
}

fn gradient<B: Backend>(backend: &B, step: u64) -> B::Full {
    full(backend, |i| 0.01 * (0.1 * i as f64 + step as f64).sin())
}

const SETTINGS: Settings = Settings { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 };

/// torch's update written out for one parameter.
fn torch(mut p: f64, index: usize, steps: u64, lr: f64, scale: f64) -> f64 {
    let (mut m, mut v) = (0.0, 0.0);
    for t in 1..=steps {
        let g = scale * 0.01 * (0.1 * index as f64 + t as f64).sin();
        p *= 1.0 - lr * 0.01;
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        let (a, b) = (1.0 - 0.9f64.powi(t as i32), 1.0 - 0.999f64.powi(t as i32));
        p -= lr / a * m / (v.sqrt() / b.sqrt() + 1e-8);
    }
    p
}

#[test]
fn adamw_counts_its_steps_and_updates_as_torch_does() {
    let backend = Reference::new();
    let mut params = full(&backend, |i| 0.1 * (i as f64).cos());
    let mut optimizer = AdamW::new(&backend, SETTINGS, &segments(), LEN).unwrap();
    for step in 1..=5 {
        optimizer.step(&backend, &mut params, &gradient(&backend, step), 1e-3, 0.5).unwrap();
    }
    assert_eq!(optimizer.steps(), 5);
    let params = values(&backend, &params);
    for index in [0, 1, 255, 256, 4999, 5120, 5419, 5632, 6143] {
        let wanted = torch(0.1 * (index as f64).cos(), index, 5, 1e-3, 0.5);
        assert!((f64::from(params[index]) - wanted).abs() < 1e-7, "{index}: {} {wanted}", params[index]);
    }
    // What lies between the segments is no parameter.
    for index in [5000, 5119, 5420, 5631] {
        assert_eq!(params[index], (0.1 * (index as f64).cos()) as f32);
    }
}

/// One step at rate 0.1 with decay 0.5 moves 1 by 0.1 against the gradient and by a twentieth towards zero: torch's
/// order gives 0.95 - 0.1, that of bitsandbytes' CUDA kernel (1 - 0.1)·0.95.
#[test]
fn adamw_decays_before_the_update_and_adamw_8bit_after_it() {
    fn run<B: Backend>(backend: &B) {
        let settings = Settings { weight_decay: 0.5, ..SETTINGS };
        let (mut first, mut last) = (full(backend, |_| 1.0), full(backend, |_| 1.0));
        let gradients = full(backend, |i| if i % 2 == 0 { 0.25 } else { -0.25 });
        let mut torch = AdamW::new(backend, settings, &segments(), LEN).unwrap();
        torch.step(backend, &mut first, &gradients, 0.1, 1.0).unwrap();
        let mut bitsandbytes = AdamW8bit::new(backend, settings, &segments(), LEN).unwrap();
        bitsandbytes.step(backend, &mut last, &gradients, 0.1, 1.0).unwrap();
        let (first, last) = (values(backend, &first), values(backend, &last));
        // In 8 bits and, from 5120 on, in full precision.
        for index in [0, 1, 256, 4999, 5120, 5121, 5419, 5632, 6143] {
            let step = if index % 2 == 0 { -0.1 } else { 0.1 };
            assert!((first[index] - (0.95 + step)).abs() < 1e-6, "{index}: {}", first[index]);
            assert!((last[index] - (1.0 + step) * 0.95).abs() < 1e-6, "{index}: {}", last[index]);
        }
    }
    run(&Reference::new());
    run(&Cpu::new(Some(2)));
}

/// The golden run of bitsandbytes' order: 512 parameters, three steps; the golden values were made in f32.
#[test]
fn adamw_8bit_gives_the_golden_parameters() {
    let backend = Reference::new();
    let segment = [StateSegment { offset: 0, len: 512, eight_bit: true }];
    let flat = |value: &dyn Fn(usize) -> f64| {
        let mut full = backend.full(512).unwrap();
        backend.write_full(&mut full, 0, &(0..512).map(|i| value(i) as f32).collect::<Vec<_>>()).unwrap();
        full
    };
    let mut params = flat(&|i| 0.1 * (i as f64).cos());
    let mut optimizer = AdamW8bit::new(&backend, SETTINGS, &segment, 512).unwrap();
    let golden = [
        ([0.09899901, 0.05302970, -0.04261426, -0.09999825], 0.095120),
        ([0.09799853, 0.05202780, -0.04360975, -0.10098408], 0.086039),
        ([0.09715817, 0.05123025, -0.04435292, -0.10165814], 0.080724),
    ];
    for (t, (first, sum)) in golden.into_iter().enumerate() {
        let gradients = flat(&|i| 0.01 * (0.1 * i as f64 + (t + 1) as f64).sin());
        optimizer.step(&backend, &mut params, &gradients, 1e-3, 1.0).unwrap();
        let got = values(&backend, &params);
        for (got, wanted) in got.iter().zip(first) {
            // Decay before the update lies 1e-8 away per step.
            assert!((f64::from(*got) - wanted).abs() < 1.5e-8, "step {}: {got} {wanted}", t + 1);
        }
        let total: f64 = got.iter().map(|p| f64::from(*p)).sum();
        assert!((total - sum).abs() < 2e-6, "step {}: {total}", t + 1);
    }
}

/// Three steps, saved, restored into a new optimizer, two more: the same bits as five steps.
#[test]
fn a_restored_optimizer_continues_exactly() {
    fn run<B: Backend, O>(
        backend: &B,
        new: impl Fn() -> O,
        step: impl Fn(&mut O, &mut B::Full, &B::Full),
        state: impl Fn(&O) -> State,
        restore: impl Fn(&mut O, &State),
    ) {
        let start = || full(backend, |i| 0.1 * (i as f64).cos());
        let (mut straight, mut params) = (new(), start());
        for t in 1..=5 {
            step(&mut straight, &mut params, &gradient(backend, t));
        }
        let (mut first, mut again) = (new(), start());
        for t in 1..=3 {
            step(&mut first, &mut again, &gradient(backend, t));
        }
        let mut second = new();
        restore(&mut second, &state(&first));
        for t in 4..=5 {
            step(&mut second, &mut again, &gradient(backend, t));
        }
        assert_eq!(values(backend, &again), values(backend, &params));
        assert_eq!(state(&second), state(&straight));
        assert_eq!(state(&second).steps, 5);
    }
    let cpu = Cpu::new(Some(2));
    run(
        &cpu,
        || AdamW::new(&cpu, SETTINGS, &segments(), LEN).unwrap(),
        |o, p, g| o.step(&cpu, p, g, 1e-3, 1.0).unwrap(),
        |o| o.state(&cpu).unwrap(),
        |o, state| o.restore(&cpu, state).unwrap(),
    );
    run(
        &cpu,
        || AdamW8bit::new(&cpu, SETTINGS, &segments(), LEN).unwrap(),
        |o, p, g| o.step(&cpu, p, g, 1e-3, 1.0).unwrap(),
        |o| o.state(&cpu).unwrap(),
        |o, state| o.restore(&cpu, state).unwrap(),
    );
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let cpu = Cpu::new(Some(1));
    let mut optimizer = AdamW8bit::new(&cpu, SETTINGS, &segments(), LEN).unwrap();
    let mut params = full(&cpu, |_| 1.0);
    optimizer.step(&cpu, &mut params, &gradient(&cpu, 1), 1e-3, 1.0).unwrap();
    let before = optimizer.state(&cpu).unwrap();
    let other = AdamW::new(&cpu, SETTINGS, &segments(), LEN).unwrap().state(&cpu).unwrap();
    assert!(matches!(optimizer.restore(&cpu, &other), Err(Error::OtherOptimizer { .. })));
    for (index, (name, _)) in before.vectors.iter().enumerate() {
        let mut missing = before.clone();
        missing.vectors.remove(index);
        let error = optimizer.restore(&cpu, &missing).unwrap_err().to_string();
        assert_eq!(error, format!("the saved state has no `{name}`"));
        let mut short = before.clone();
        short.vectors[index].1 = match &before.vectors[index].1 {
            Values::Floats(v) => Values::Floats(v[1..].to_vec()),
            Values::Bytes(v) => Values::Bytes(v[1..].to_vec()),
        };
        assert!(matches!(optimizer.restore(&cpu, &short), Err(Error::VectorSize { .. })));
        short.vectors[index].1 = match &before.vectors[index].1 {
            Values::Floats(_) => Values::Bytes(Vec::new()),
            Values::Bytes(_) => Values::Floats(Vec::new()),
        };
        assert!(matches!(optimizer.restore(&cpu, &short), Err(Error::VectorKind { .. })));
        assert_eq!(optimizer.state(&cpu).unwrap(), before);
    }
}

#[test]
fn nonsense_settings_and_steps_are_errors() {
    let cpu = Cpu::new(Some(1));
    let new = |settings| AdamW::new(&cpu, settings, &segments(), LEN).map(|_| ());
    for bad in [f64::NAN, f64::INFINITY, -0.1] {
        for settings in [
            Settings { betas: (bad, 0.9), ..SETTINGS },
            Settings { betas: (0.9, bad), ..SETTINGS },
            Settings { eps: bad, ..SETTINGS },
            Settings { weight_decay: bad, ..SETTINGS },
        ] {
            assert!(matches!(new(settings), Err(Error::Option { .. })), "{settings:?}");
        }
    }
    assert!(new(Settings { betas: (1.0, 0.999), ..SETTINGS }).is_err());
    assert!(new(Settings { eps: 0.0, ..SETTINGS }).is_err());
    assert!(new(Settings::default()).is_ok());

    let mut optimizer = AdamW::new(&cpu, SETTINGS, &segments(), LEN).unwrap();
    let (mut params, gradients) = (full(&cpu, |_| 1.0), gradient(&cpu, 1));
    for (lr, scale) in [(-1e-3, 1.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0), (1e-3, f64::NAN), (1e-3, f64::INFINITY)] {
        let error = optimizer.step(&cpu, &mut params, &gradients, lr, scale).unwrap_err();
        assert!(matches!(error, Error::Option { option: "lr" | "gradient_scale", .. }));
    }
    let mut short = cpu.full(LEN - 1).unwrap();
    assert!(matches!(optimizer.step(&cpu, &mut short, &gradients, 1e-3, 1.0), Err(Error::Size { .. })));
    assert!(matches!(optimizer.step(&cpu, &mut params, &short, 1e-3, 1.0), Err(Error::Size { .. })));
    assert_eq!(optimizer.steps(), 0);
    assert!(values(&cpu, &params).iter().all(|p| *p == 1.0));

    let segment = |offset, len, eight_bit| StateSegment { offset, len, eight_bit };
    assert!(matches!(AdamW::new(&cpu, SETTINGS, &[], LEN), Err(Error::Nothing)));
    let bad = [
        vec![segment(0, LEN + 1, false)],
        vec![segment(0, 10, false), segment(5, 10, false)],
        vec![segment(7, usize::MAX, false)],
    ];
    for segments in bad {
        assert!(matches!(AdamW::new(&cpu, SETTINGS, &segments, LEN), Err(Error::Segment { .. })));
    }
    assert!(matches!(AdamW8bit::new(&cpu, SETTINGS, &[segment(100, 5000, true)], LEN), Err(Error::Segment { .. })));
}

#[test]
fn the_clip_factor_is_torchs() {
    assert_eq!(clip_factor(0.5, 1.0).unwrap(), 1.0);
    assert_eq!(clip_factor(4.0, 1.0).unwrap(), 1.0 / 4.000001);
    assert_eq!(clip_factor(0.0, 1.0).unwrap(), 1.0);
    assert!(clip_factor(1.0, 1.0).unwrap() < 1.0);
    for off in [0.0, -1.0, f64::NEG_INFINITY, f64::INFINITY] {
        assert_eq!(clip_factor(1e9, off).unwrap(), 1.0);
    }
    for norm in [f64::NAN, f64::INFINITY] {
        assert!(matches!(clip_factor(norm, 0.0), Err(Error::NotFinite { .. })));
    }
    assert!(matches!(clip_factor(1.0, f64::NAN), Err(Error::Option { option: "max_norm", .. })));
}

#[test]
fn the_loss_scale_doubles_after_two_thousand_updates_in_a_row_and_halves_at_an_overflow() {
    let mut scale = LossScale::default();
    assert_eq!(scale.scale(), 65_536.0);
    scale.overflowed();
    assert_eq!((scale.scale(), scale.skipped()), (32_768.0, 1));
    (0..1999).for_each(|_| scale.updated());
    assert_eq!(scale.scale(), 32_768.0);
    scale.updated();
    assert_eq!(scale.scale(), 65_536.0);
    // an overflow begins the count anew
    (0..1999).for_each(|_| scale.updated());
    scale.overflowed();
    (0..1999).for_each(|_| scale.updated());
    assert_eq!((scale.scale(), scale.skipped()), (32_768.0, 2));
    scale.updated();
    assert_eq!(scale.scale(), 65_536.0);
}

#[test]
fn the_loss_scale_neither_leaves_f32_nor_goes_below_one() {
    let mut scale = LossScale::new(2_f64.powi(127)).unwrap();
    (0..2000).for_each(|_| scale.updated());
    assert_eq!(scale.scale(), 2_f64.powi(127));
    let mut scale = LossScale::new(2.0).unwrap();
    assert!(scale.may_overflow());
    scale.overflowed();
    assert!(!scale.may_overflow());
    for wrong in [0.99, f64::NAN, f64::INFINITY] {
        assert!(LossScale::new(wrong).is_err(), "{wrong}");
    }
}
