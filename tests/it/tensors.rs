//! Scripts' own tensors on a GPU: candle's, on the context and stream of the engine. Built with the feature `cuda` alone.

use candle_core::{DType, Device as Place, Result, Tensor, Var};
use unslothify::train::{Device, Dtype, LoadSettings, Model, backward};

use super::tiny;

/// The tiny model in f32 on GPU 0.
fn model() -> Model {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let settings =
        LoadSettings { device: Device::Cuda { index: 0 }, dtype: Some(Dtype::F32), ..LoadSettings::default() };
    let model = Model::from_pretrained(".", dir.path(), &settings).unwrap();
    tiny::with_lora(&model);
    model
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_device(&Place::Cpu).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

type Function = fn(&Tensor, &Tensor) -> Result<Tensor>;

/// What a script can do with tensors so far, as functions of a (3, 5) and a (5) tensor.
const FUNCTIONS: [(&str, Function); 15] = [
    ("a + b", |a, b| a.broadcast_add(b)),
    ("a - b", |a, b| a.broadcast_sub(b)),
    ("a * b", |a, b| a.broadcast_mul(b)),
    ("a / b", |a, b| a.broadcast_div(b)),
    ("a + 1.5", |a, _| a + 1.5),
    ("a - 1.5", |a, _| a - 1.5),
    ("a * 1.5", |a, _| a * 1.5),
    ("a / 1.5", |a, _| a / 1.5),
    ("1.5 + a", |a, _| 1.5 + a),
    ("1.5 - a", |a, _| a.neg()? + 1.5),
    ("1.5 * a", |a, _| 1.5 * a),
    ("1.5 / a", |a, _| a.recip()? * 1.5),
    ("-a", |a, _| a.neg()),
    ("a.sum()", |a, _| a.sum_all()),
    ("a.mean()", |a, _| a.mean_all()),
];

/// One number of a result that weighs every element differently.
fn weigh(result: &Tensor) -> Result<Tensor> {
    let count = result.elem_count();
    let weights: Vec<f64> = (0..count).map(|i| 0.3 + (i as f64 * 0.7).sin()).collect();
    let weights = Tensor::from_vec(weights, result.dims(), result.device())?;
    (result.sqr()? * weights)?.sum_all()
}

fn inputs(place: &Place) -> [Var; 2] {
    let value = |i: usize| 0.5 + ((i * i + 3 * i) % 11) as f64 / 7.0;
    let make = |shape: &[usize]| {
        let values: Vec<f64> = (0..shape.iter().product()).map(value).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, place).unwrap()).unwrap()
    };
    [make(&[3, 5]), make(&[5])]
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn every_tensor_function_on_the_gpu_passes_its_gradient_check() {
    let model = model();
    let place = model.place();
    assert!(place.is_cuda());
    for (name, function) in FUNCTIONS {
        let [a, b] = inputs(place);
        let loss = weigh(&function(&a, &b).unwrap()).unwrap();
        let gradients = loss.backward().unwrap();
        let [cpu_a, cpu_b] = inputs(&Place::Cpu);
        let on_cpu = weigh(&function(&cpu_a, &cpu_b).unwrap()).unwrap();
        assert!((values(&loss)[0] / values(&on_cpu)[0] - 1.0).abs() < 1e-12, "{name}");
        let mut checked = 0;
        for input in [&a, &b] {
            let Some(gradient) = gradients.get(input) else { continue };
            let (gradient, at) = (values(gradient), values(input));
            let scale = gradient.iter().fold(0.0_f64, |greatest, g| greatest.max(g.abs()));
            assert!(scale > 0.0, "{name}: no gradient");
            let loss_at = |values: Vec<f64>| {
                input.set(&Tensor::from_vec(values, input.dims(), place).unwrap()).unwrap();
                self::values(&weigh(&function(&a, &b).unwrap()).unwrap())[0]
            };
            for (i, gradient) in gradient.iter().enumerate() {
                let moved = |by: f64| at.iter().enumerate().map(|(j, v)| if i == j { v + by } else { *v }).collect();
                let wanted = (loss_at(moved(1e-5)) - loss_at(moved(-1e-5))) / 2e-5;
                assert!((gradient - wanted).abs() < 1e-6 * scale, "{name}: {gradient} against {wanted}");
                checked += 1;
            }
            loss_at(at);
        }
        assert!(checked >= 15, "{name}: {checked} values checked");
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn tensors_go_to_the_gpu_and_come_back_bit_for_bit() {
    let model = model();
    let numbers: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 3e4).collect();
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16, DType::U32, DType::U8] {
        let here = Tensor::from_slice(&numbers, (17, 59), &Place::Cpu).unwrap().abs().unwrap();
        let here = (here / 200.0).unwrap().to_dtype(dtype).unwrap();
        let there = here.to_device(model.place()).unwrap();
        assert!(there.device().is_cuda() && there.dtype() == dtype);
        assert_eq!(values(&there.to_device(&Place::Cpu).unwrap()), values(&here), "{dtype:?}");
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn a_loss_taken_to_the_gpu_gives_the_same_gradients() {
    let model = model();
    let micro = tiny::micro(&model, 8, 1).swap_remove(0);
    let gradients = |is_moved: bool| {
        let loss = model.loss(&micro).unwrap();
        let half = if is_moved { loss.to_device(model.place()).unwrap() * 0.5 } else { loss * 0.5 };
        backward(&half.unwrap()).unwrap();
        let found = model.gradients().unwrap();
        let settings = unslothify::optim::Settings::default();
        let algorithm = unslothify::train::Algorithm::AdamW(settings);
        let optimizer = unslothify::train::Optimizer::new(&model.parameters().unwrap(), algorithm).unwrap();
        optimizer.zero_grad().unwrap();
        found
    };
    assert!(gradients(false) == gradients(true));
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn ten_thousand_tensors_on_the_gpu_leave_free_memory_as_it_was() {
    let model = model();
    let place = model.place();
    let stream = place.as_cuda_device().unwrap().cuda_stream();
    let cycle = |i: usize| {
        let a = Tensor::zeros((64 + i % 64, 1024), DType::F32, place).unwrap();
        let b = ((a + 1.0).unwrap() * 2.0).unwrap().sum_all().unwrap();
        drop(b);
    };
    let free = || {
        stream.synchronize().unwrap();
        stream.context().mem_get_info().unwrap().0
    };
    (0..100).for_each(cycle);
    // Tests beside this one take memory too: a round they do not disturb must leave all of it, and a leak shows in each.
    let mut lost = Vec::new();
    while lost.len() < 5 {
        let before = free();
        (0..10_000).for_each(cycle);
        let after = free();
        if after == before {
            return;
        }
        lost.push(before as i64 - after as i64);
    }
    panic!("bytes lost in each round: {lost:?}");
}
