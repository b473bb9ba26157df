//! A scaled loss changes nothing but the range of the gradients on their way, and a step that overflows is left out.

use unslothify::engine::{Engine, Mode};
use unslothify::kernels::Cpu;
use unslothify::optim::Settings;
use unslothify::train::{Algorithm, Device, Error, LoadSettings, Model, Optimizer, Skipped, Step, backward};
use unslothify::weights::Checkpoint;

use super::tiny;

const CPU: Device = Device::Cpu { threads: Some(2) };

fn model(loss_scale: Option<f64>) -> Model {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let settings = LoadSettings { device: CPU, loss_scale, ..LoadSettings::default() };
    let model = Model::from_pretrained(".", dir.path(), &settings).unwrap();
    tiny::with_lora(&model);
    model
}

fn optimizer(model: &Model, algorithm: fn(Settings) -> Algorithm) -> Optimizer {
    let settings = Settings { weight_decay: 0.1, ..Settings::default() };
    Optimizer::new(&model.parameters().unwrap(), algorithm(settings)).unwrap()
}

/// One step on the first four texts, its loss multiplied by `factor`.
fn step(model: &Model, optimizer: &Optimizer, factor: f64) -> (f64, f64, Step) {
    let mut sum = 0.0;
    for micro in tiny::micro(model, 2, 2) {
        let loss = (model.loss(&micro).unwrap() * factor).unwrap();
        backward(&loss).unwrap();
        sum += f64::from(loss.to_scalar::<f32>().unwrap());
    }
    let norm = optimizer.clip_grad_norm(1.0).unwrap();
    let step = optimizer.step(5e-3).unwrap();
    optimizer.zero_grad().unwrap();
    (sum, norm, step)
}

#[test]
fn a_scaled_loss_trains_to_the_same_bits() {
    for algorithm in [Algorithm::AdamW, Algorithm::AdamW8bit] {
        let (plain, scaled) = (model(None), model(Some(65_536.0)));
        let optimizers = (optimizer(&plain, algorithm), optimizer(&scaled, algorithm));
        backward(&plain.loss(&tiny::micro(&plain, 8, 1)[0]).unwrap()).unwrap();
        backward(&scaled.loss(&tiny::micro(&scaled, 8, 1)[0]).unwrap()).unwrap();
        assert!(plain.gradients().unwrap() == scaled.gradients().unwrap(), "gradients carry the scale");
        optimizers.0.zero_grad().unwrap();
        optimizers.1.zero_grad().unwrap();
        for _ in 0..6 {
            assert_eq!(step(&plain, &optimizers.0, 1.0), step(&scaled, &optimizers.1, 1.0));
        }
        assert!(plain.adapter_tensors().unwrap() == scaled.adapter_tensors().unwrap());
        assert_eq!((scaled.adapter_steps(), scaled.skipped_steps()), (6, 0));
    }
}

#[test]
fn a_step_that_overflows_is_left_out_and_halves_the_scale() {
    let model = model(Some(65_536.0));
    let optimizer = optimizer(&model, Algorithm::AdamW);
    let before = model.adapter_tensors().unwrap();
    let (_, norm, skipped) = step(&model, &optimizer, f64::INFINITY);
    assert_eq!(norm, f64::INFINITY);
    assert_eq!(skipped, Step::Skipped(Skipped { scale: 65_536.0, next_scale: 32_768.0, skipped: 1 }));
    assert!(model.adapter_tensors().unwrap() == before, "a step that was left out changed parameters");
    assert_eq!((model.adapter_steps(), model.unsaved_steps(), model.skipped_steps()), (0, 0, 1));
    // The next step is the first one of a model whose gradients never overflowed.
    let other = self::model(None);
    let its_optimizer = self::optimizer(&other, Algorithm::AdamW);
    assert_eq!(step(&model, &optimizer, 1.0), step(&other, &its_optimizer, 1.0));
    assert!(model.adapter_tensors().unwrap() == other.adapter_tensors().unwrap());
    assert_eq!((model.adapter_steps(), model.skipped_steps()), (1, 1));
}

#[test]
fn gradients_that_no_scale_makes_finite_are_an_error() {
    let model = model(Some(4.0));
    let optimizer = optimizer(&model, Algorithm::AdamW);
    for scale in [4.0, 2.0] {
        let Step::Skipped(skipped) = step(&model, &optimizer, f64::INFINITY).2 else { panic!("updated") };
        assert_eq!((skipped.scale, skipped.next_scale), (scale, scale / 2.0));
    }
    backward(&(model.loss(&tiny::micro(&model, 2, 4)[0]).unwrap() * f64::INFINITY).unwrap()).unwrap();
    for error in [optimizer.clip_grad_norm(1.0).unwrap_err(), optimizer.step(1e-3).unwrap_err()] {
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert!(error.to_string().contains("the gradient's norm") && error.to_string().contains("line 1"), "{error}");
    }
}

#[test]
fn gradients_survive_a_change_of_the_scale() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut engine = Engine::load(Cpu::new(Some(1)), &checkpoint, &Default::default()).unwrap();
    engine.add_lora(&tiny::lora()).unwrap();
    assert!(!engine.needs_loss_scale());
    let model = tiny::model(CPU);
    let micro = tiny::micro(&model, 8, 1).swap_remove(0);
    let batch = unslothify::engine::Batch { ids: &micro.ids, cu_seqlens: &micro.cu_seqlens, targets: &micro.targets };
    let pass = |engine: &mut Engine<Cpu>, scale: f64| {
        engine.set_loss_scale(scale).unwrap();
        engine.forward(&batch, Mode::Train, 100.0).unwrap();
        assert!(engine.set_loss_scale(1.0).unwrap_err().to_string().contains("backward()"));
        engine.backward(1.0).unwrap();
        engine.gradients().unwrap()
    };
    let once = pass(&mut engine, 1.0);
    let twice = pass(&mut engine, 1.0);
    engine.zero_grad().unwrap();
    assert!(once == pass(&mut engine, 4096.0));
    assert!(twice == pass(&mut engine, 8192.0));
    assert!(once != twice);
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(engine.set_loss_scale(scale).is_err(), "{scale}");
    }
}

#[test]
fn a_scale_below_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let settings = LoadSettings { device: CPU, loss_scale: Some(0.5), ..LoadSettings::default() };
    let error = Model::from_pretrained(".", dir.path(), &settings).unwrap_err().to_string();
    assert!(error.contains("`loss_scale` is 0.5, wanted a finite number of at least 1"), "{error}");
}
