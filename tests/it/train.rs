//! What a training loop calls: losses, gradients, optimizers, evaluation, adapters.

use std::ops::ControlFlow;

use unslothify::engine::Matrix;
use unslothify::optim::Settings;
use unslothify::train::{Algorithm, Device, Error, LoadSettings, Model, Optimizer, backward};

use super::tiny;

const CPU: Device = Device::Cpu { threads: Some(2) };

fn settings() -> Settings {
    Settings { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.1 }
}

/// The gradients of one step in `accumulate` micro-batches, every loss scaled by `scale`.
fn gradients(model: &Model, batch_size: usize, accumulate: usize, scale: f64) -> Vec<Vec<f32>> {
    for micro in tiny::micro(model, batch_size, accumulate) {
        let loss = model.loss(&micro).unwrap();
        backward(&(loss * scale).unwrap()).unwrap();
    }
    let found = model.gradients().unwrap().into_iter().map(|tensor| tensor.values).collect();
    Optimizer::new(&model.parameters().unwrap(), Algorithm::AdamW(settings())).unwrap().zero_grad().unwrap();
    found
}

/// The largest relative Frobenius distance of any tensor.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let one = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let difference = norm(&mut a.iter().zip(b).map(|(x, y)| f64::from(*x) - f64::from(*y)));
        difference / norm(&mut a.iter().map(|x| f64::from(*x))).max(1e-30)
    };
    a.iter().zip(b).map(one).fold(0.0, f64::max)
}

#[test]
fn a_scaled_loss_gives_scaled_gradients_and_a_sum_gives_their_sum() {
    let model = tiny::model(CPU);
    tiny::with_lora(&model);
    let whole = gradients(&model, 8, 1, 1.0);
    assert!(whole.iter().all(|tensor| tensor.iter().any(|v| *v != 0.0)), "a dead gradient");
    let half = gradients(&model, 8, 1, 0.5);
    let doubled: Vec<Vec<f32>> = half.iter().map(|t| t.iter().map(|v| 2.0 * v).collect()).collect();
    assert!(distance(&whole, &doubled) < 1e-6);
    let micro = tiny::micro(&model, 8, 1).swap_remove(0);
    let loss = model.loss(&micro).unwrap();
    backward(&(&loss + (&loss * 2.0).unwrap()).unwrap()).unwrap();
    let third: Vec<Vec<f32>> =
        model.gradients().unwrap().iter().map(|t| t.values.iter().map(|v| v / 3.0).collect()).collect();
    assert!(distance(&whole, &third) < 1e-6);
}

#[test]
fn every_split_of_eight_rows_gives_the_same_gradient() {
    for (device, bound) in [(Device::Reference, 1e-6), (CPU, 1e-5)] {
        let model = tiny::model(device);
        tiny::with_lora(&model);
        let whole = gradients(&model, 8, 1, 1.0);
        for (batch_size, accumulate) in [(1, 8), (2, 4), (4, 2), (3, 3), (5, 2)] {
            let split = gradients(&model, batch_size, accumulate, 1.0);
            let off = distance(&whole, &split);
            assert!(off < bound, "{device:?}: {batch_size} x {accumulate} is off by {off:e}");
        }
        let other = gradients(&model, 4, 1, 1.0);
        assert!(distance(&whole, &other) > 1e-2, "half the rows must not give the same gradient");
    }
}

#[test]
fn merged_micro_batches_give_the_same_gradient() {
    let model = tiny::model(CPU);
    tiny::with_lora(&model);
    let split = gradients(&model, 2, 4, 1.0);
    let step = tiny::batches(&model, 2, 4).epoch(0).swap_remove(0).merged(model.room().unwrap());
    assert_eq!(step.micro.len(), 1);
    backward(&model.loss(&step.micro[0]).unwrap()).unwrap();
    let merged: Vec<Vec<f32>> = model.gradients().unwrap().into_iter().map(|t| t.values).collect();
    assert!(distance(&split, &merged) < 1e-5);
}

#[test]
fn a_loss_gives_its_gradients_once() {
    let model = tiny::model(CPU);
    tiny::with_lora(&model);
    let micro = tiny::micro(&model, 2, 4);
    let loss = model.loss(&micro[0]).unwrap();
    let second = model.loss(&micro[1]).unwrap_err();
    assert!(second.to_string().contains("still waits for its `backward()`"), "{second}");
    backward(&loss).unwrap();
    let again = backward(&loss).unwrap_err();
    assert!(matches!(again, Error::Spent), "{again}");
    let dropped = model.loss(&micro[1]).unwrap();
    drop(dropped);
    drop(loss);
    backward(&model.loss(&micro[2]).unwrap()).unwrap();
}

#[test]
fn evaluation_and_generation_leave_a_pending_loss_alone() {
    let model = tiny::model(CPU);
    tiny::with_lora(&model);
    let expected = gradients(&model, 8, 1, 1.0);
    let micro = tiny::micro(&model, 8, 1).swap_remove(0);
    let loss = model.loss(&micro).unwrap();
    let found = model.evaluate(tiny::tokens(&model).examples()).unwrap();
    model
        .generate("Soak", &unslothify::generate::Options { max_new_tokens: 5, ..Default::default() }, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(model.probability("Soak the", " bread").unwrap() > 0.0);
    backward(&loss).unwrap();
    let got: Vec<Vec<f32>> = model.gradients().unwrap().into_iter().map(|t| t.values).collect();
    assert!(distance(&expected, &got) < 1e-7);
    let value = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((found.loss - value).abs() < 1e-5 * value, "{} {value}", found.loss);
    assert!((found.perplexity.ln() - found.loss).abs() < 1e-9);
    assert_eq!(found.tokens, tiny::tokens(&model).target_tokens());
    assert!(found.loss_without_eos != found.loss);
    assert!(matches!(model.evaluate(&[]), Err(Error::NothingToEvaluate)));
}

#[test]
fn evaluation_weighs_tokens_and_not_texts() {
    let model = tiny::model(Device::Reference);
    let examples = tiny::tokens(&model).examples().to_vec();
    let whole = model.evaluate(&examples).unwrap();
    let parts: Vec<_> = examples.iter().map(|e| model.evaluate(std::slice::from_ref(e)).unwrap()).collect();
    let tokens: usize = parts.iter().map(|p| p.tokens).sum();
    let mean = parts.iter().map(|p| p.loss * p.tokens as f64).sum::<f64>() / tokens as f64;
    assert!((mean - whole.loss).abs() < 1e-9);
    let others: f64 = parts.iter().map(|p| p.loss_without_eos * (p.tokens - 1) as f64).sum();
    assert!((others / (tokens - 8) as f64 - whole.loss_without_eos).abs() < 1e-9);
}

/// Trains some steps and returns the losses.
fn train(model: &Model, algorithm: Algorithm, steps: usize, lr: f64) -> Vec<f64> {
    let optimizer = Optimizer::new(&model.parameters().unwrap(), algorithm).unwrap();
    let batches = tiny::batches(model, 2, 2);
    let mut losses = Vec::new();
    for step in (0..).flat_map(|epoch| batches.epoch(epoch)).take(steps) {
        let mut sum = 0.0;
        for micro in &step.micro {
            let loss = model.loss(micro).unwrap();
            backward(&loss).unwrap();
            sum += f64::from(loss.to_scalar::<f32>().unwrap());
        }
        assert!(optimizer.clip_grad_norm(1.0).unwrap() > 0.0);
        optimizer.step(lr).unwrap();
        optimizer.zero_grad().unwrap();
        losses.push(sum);
    }
    losses
}

#[test]
fn both_optimizers_learn_and_every_tensor_gets_a_gradient() {
    for algorithm in [Algorithm::AdamW(settings()), Algorithm::AdamW8bit(settings())] {
        let model = tiny::model(CPU);
        model.add_lora(&tiny::lora()).unwrap();
        let losses = train(&model, algorithm, 40, 1e-2);
        assert!(losses[38] + losses[39] < 0.8 * (losses[0] + losses[1]), "{losses:?}");
        backward(&model.loss(&tiny::micro(&model, 8, 1)[0]).unwrap()).unwrap();
        for tensor in model.gradients().unwrap() {
            assert!(tensor.values.iter().all(|v| v.is_finite()), "{}", tensor.name());
            assert!(tensor.values.iter().any(|v| *v != 0.0), "{} is dead", tensor.name());
        }
    }
}

#[test]
fn one_and_two_threads_give_the_same_adapter_bytes() {
    let run = |threads| {
        let model = tiny::model(Device::Cpu { threads: Some(threads) });
        model.add_lora(&tiny::lora()).unwrap();
        train(&model, Algorithm::AdamW8bit(settings()), 6, 5e-3);
        let dir = tempfile::tempdir().unwrap();
        model.save_adapter(&dir.path().join("adapter")).unwrap();
        std::fs::read(dir.path().join("adapter/adapter_model.safetensors")).unwrap()
    };
    assert!(run(1) == run(2), "the bytes differ");
}

#[test]
fn a_saved_adapter_comes_back_bit_for_bit() {
    let model = tiny::model(CPU);
    tiny::with_lora(&model);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("adapter");
    let saved = model.save_adapter(&folder).unwrap();
    let ids = model.tokenizer().encode(tiny::TEXTS[1]).unwrap();
    let (tensors, logits) = (model.adapter_tensors().unwrap(), model.logits(&ids).unwrap());
    assert!(model.unload_adapter().unwrap());
    assert!(!model.unload_adapter().unwrap());
    assert_ne!(model.logits(&ids).unwrap(), logits, "the adapter did nothing");
    let loaded = model.load_adapter(&folder).unwrap();
    assert_eq!((loaded.tensors, saved.tensors), (tensors.len(), tensors.len()));
    assert_eq!(model.adapter_tensors().unwrap(), tensors);
    assert_eq!(model.logits(&ids).unwrap(), logits);
    assert!(unslothify::tokenizer::Tokenizer::open(&folder).unwrap().encode("Soak").unwrap().len() > 1);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_name_and_leaves_the_model_alone() {
    let model = tiny::model(CPU);
    tiny::with_lora(&model);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("adapter");
    model.save_adapter(&folder).unwrap();
    model.unload_adapter().unwrap();
    let weights = folder.join("adapter_model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let told = |model: &Model| {
        let error = model.load_adapter(&folder).unwrap_err().to_string();
        assert!(model.lora().is_none(), "half an adapter stays: {error}");
        error
    };
    let rename = |from: &[u8], to: &[u8]| {
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        std::fs::write(&weights, bytes).unwrap();
    };
    rename(b"layers.1.mlp.up_proj.lora_B", b"layers.7.mlp.up_proj.lora_B");
    let error = told(&model);
    assert!(error.contains("layers.7.mlp.up_proj.lora_B"), "{error}");
    rename(b"layers.1.mlp.up_proj.lora_B", b"layers.1.mlp.up_proj.lora_C");
    let error = told(&model);
    assert!(error.contains("lora_C"), "{error}");
    std::fs::write(&weights, &good[..good.len() / 2]).unwrap();
    assert!(told(&model).contains("adapter_model.safetensors"));
    std::fs::write(&weights, b"junk").unwrap();
    assert!(told(&model).contains("adapter_model.safetensors"));
    std::fs::write(folder.join("adapter_config.json"), "{").unwrap();
    assert!(told(&model).contains("adapter_config.json"));
    assert!(model.load_adapter(&dir.path().join("nowhere")).unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn a_number_that_is_not_finite_stops_with_its_rows() {
    let model = tiny::model(CPU);
    tiny::with_lora(&model);
    let optimizer = Optimizer::new(&model.parameters().unwrap(), Algorithm::AdamW(settings())).unwrap();
    let tensor = model.adapter_tensors().unwrap().into_iter().find(|t| t.matrix == Matrix::B).unwrap();
    let mut broken = tensor.values.clone();
    broken[0] = f32::NAN;
    model.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &broken).unwrap();
    let error = model.loss(&tiny::micro(&model, 2, 4)[1]).unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 0, .. }), "{error}");
    assert!(error.to_string().contains("line 3") && error.to_string().contains("line 4"), "{error}");
    // Nothing is pending: a good model goes on.
    model.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &tensor.values).unwrap();
    backward(&(model.loss(&tiny::micro(&model, 2, 4)[0]).unwrap() * f64::INFINITY).unwrap()).unwrap();
    for error in [optimizer.clip_grad_norm(1.0).unwrap_err(), optimizer.step(1e-3).unwrap_err()] {
        assert!(error.to_string().contains("the gradient's norm") && error.to_string().contains("line 1"), "{error}");
    }
}

#[test]
fn an_optimizer_refuses_what_makes_no_sense() {
    let model = tiny::model(CPU);
    assert!(model.parameters().unwrap_err().to_string().contains("add_lora"));
    assert!(model.loss(&tiny::micro(&model, 2, 4)[0]).unwrap_err().to_string().contains("add_lora"));
    tiny::with_lora(&model);
    assert!(model.add_lora(&tiny::lora()).unwrap_err().to_string().contains("unload_adapter"));
    let optimizer = Optimizer::new(&model.parameters().unwrap(), Algorithm::AdamW8bit(settings())).unwrap();
    for lr in [-1e-3, f64::NAN, f64::INFINITY] {
        assert!(matches!(optimizer.step(lr), Err(Error::LearningRate { .. })), "{lr}");
    }
    let loss = model.loss(&tiny::micro(&model, 2, 4)[0]).unwrap();
    assert!(optimizer.step(1e-3).unwrap_err().to_string().contains("backward()"));
    assert!(model.unload_adapter().is_err(), "a pending loss needs its adapter");
    drop(loss);
    model.unload_adapter().unwrap();
    model.add_lora(&tiny::lora()).unwrap();
    assert!(matches!(optimizer.step(1e-3), Err(Error::OtherAdapter)));
}

#[test]
fn weights_are_unpacked_within_the_bytes_given_and_the_model_says_when_they_do_not_do() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let loaded = |unpacked_bytes| {
        let settings = LoadSettings { device: CPU, unpacked_bytes, ..LoadSettings::default() };
        Model::from_pretrained(".", dir.path(), &settings).unwrap()
    };
    let (free, short) = (loaded(None), loaded(Some(10_000)));
    assert!(!free.unpacked().is_short() && free.unpacked().limit > 1 << 20, "{:?}", free.unpacked());
    assert!(short.unpacked().is_short());
    let stored = short.weight_bytes();
    let steps = |model: &Model| {
        tiny::with_lora(model);
        let loss = model.loss(&tiny::micro(model, 8, 1)[0]).unwrap();
        backward(&loss).unwrap();
        (model.weight_bytes() - stored) as u64
    };
    let (all, some) = (steps(&free), steps(&short));
    let wanted = free.unpacked().wanted;
    // Panels are filled up with zeros, which is much where matrices are as small as these.
    assert!(all >= wanted && all < 2 * wanted, "{all} of {wanted}");
    assert!(some <= 10_000, "{some}");
    let gradients = |model: &Model| model.gradients().unwrap();
    assert!(gradients(&free) == gradients(&short), "memory must not change results");
}

#[test]
fn too_long_a_text_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let settings = LoadSettings { max_seq_length: Some(20), device: CPU, ..LoadSettings::default() };
    let model = Model::from_pretrained(".", dir.path(), &settings).unwrap();
    tiny::with_lora(&model);
    let error = model.loss(&tiny::micro(&model, 2, 4)[0]).unwrap_err();
    assert!(matches!(error, Error::TooLong { limit: 20, .. }), "{error}");
}

#[test]
fn a_set_flag_stops_a_pass() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let settings = LoadSettings { device: CPU, ..LoadSettings::default() };
    let model = Model::from_pretrained(".", dir.path(), &settings).unwrap();
    settings.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(model.evaluate(tiny::tokens(&model).examples()).unwrap_err().is_cancelled());
    let text = model.generate("Soak", &unslothify::generate::Options::default(), &mut |_| ControlFlow::Continue(()));
    assert!(text.unwrap_err().is_cancelled());
}

#[test]
fn the_probability_of_a_word_is_the_product_over_its_tokens() {
    let model = tiny::model(Device::Reference);
    let ids = model.tokenizer().encode("Soak the bread").unwrap();
    let ahead = model.tokenizer().encode("Soak the").unwrap().len();
    let logits = model.logits(&ids).unwrap();
    let vocabulary = model.config().vocab_size;
    let log_prob = |row: usize, id: u32| {
        let row: Vec<f64> = logits[row * vocabulary..(row + 1) * vocabulary].iter().map(|v| f64::from(*v)).collect();
        row[id as usize] - row.iter().map(|v| v.exp()).sum::<f64>().ln()
    };
    let expected: f64 = (ahead..ids.len()).map(|at| log_prob(at - 1, ids[at])).sum();
    for (prompt, word) in [("Soak the", " bread"), ("Soak the", "bread"), ("Soak the ", "bread")] {
        let got = model.probability(prompt, word).unwrap();
        assert!((got.ln() - expected).abs() < 1e-4, "{prompt:?} {word:?}: {} {expected}", got.ln());
    }
    assert!(matches!(model.probability("Soak the", ""), Err(Error::NoWord)));
}
