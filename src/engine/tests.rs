#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use safetensors::tensor::{Dtype, TensorView};

mod plan;

use super::*;
use crate::kernels::{Cpu, Reference};
use crate::philox::Philox;
use crate::weights::Checkpoint;

/// The shape of a test model; head_dim need not be hidden / heads.
#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    wide: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    window: Option<usize>,
    tied: bool,
}

const SMALL: Shape = Shape {
    hidden: 24,
    wide: 40,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    vocabulary: 50,
    window: Some(3),
    tied: false,
};

fn checkpoint(shape: Shape) -> Checkpoint {
    let window = shape.window.map_or("null".to_owned(), |w| w.to_string());
    let config = format!(
        r#"{{"architectures":["MistralForCausalLM"],"model_type":"mistral","vocab_size":{},"hidden_size":{},
        "intermediate_size":{},"num_hidden_layers":{},"num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},
        "rms_norm_eps":1e-5,"rope_theta":10000.0,"sliding_window":{window},"max_position_embeddings":512,
        "hidden_act":"silu","tie_word_embeddings":{},"bos_token_id":1,"eos_token_id":2}}"#,
        shape.vocabulary,
        shape.hidden,
        shape.wide,
        shape.layers,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.tied
    );
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![shape.vocabulary, shape.hidden]),
        ("model.norm.weight".into(), vec![shape.hidden]),
    ];
    if !shape.tied {
        tensors.push(("lm_head.weight".into(), vec![shape.vocabulary, shape.hidden]));
    }
    for layer in 0..shape.layers {
        let named = [
            ("input_layernorm", vec![shape.hidden]),
            ("post_attention_layernorm", vec![shape.hidden]),
            ("self_attn.q_proj", vec![queries, shape.hidden]),
            ("self_attn.k_proj", vec![keys, shape.hidden]),
            ("self_attn.v_proj", vec![keys, shape.hidden]),
            ("self_attn.o_proj", vec![shape.hidden, queries]),
            ("mlp.gate_proj", vec![shape.wide, shape.hidden]),
            ("mlp.up_proj", vec![shape.wide, shape.hidden]),
            ("mlp.down_proj", vec![shape.hidden, shape.wide]),
        ];
        tensors.extend(named.map(|(name, dims)| (format!("model.layers.{layer}.{name}.weight"), dims)));
    }
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .enumerate()
        .map(|(stream, (name, dims))| {
            let n: usize = dims.iter().product();
            let random = Philox::new(5, stream as u64);
            let (centre, spread) = if dims.len() == 1 { (1.0, 0.2) } else { (0.0, 0.6) };
            let values = (0..n as u64).map(|i| (centre + spread * (random.uniform_at(i) - 0.5)) as f32);
            (name, dims, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views: HashMap<&str, TensorView<'_>> = bytes
        .iter()
        .map(|(name, dims, data)| (name.as_str(), TensorView::new(Dtype::F32, dims.clone(), data).unwrap()))
        .collect();
    let file: &'static [u8] = safetensors::serialize(views, None).unwrap().leak();
    Checkpoint::from_bytes(&config, file, b"{}").unwrap()
}

fn lora(modules: &[&str]) -> LoraConfig {
    LoraConfig {
        r: 3,
        lora_alpha: 7.5,
        target_modules: modules.iter().map(|name| (*name).to_owned()).collect(),
        layers_to_transform: None,
        use_rslora: false,
        seed: 11,
    }
}

fn engine<B: crate::kernels::Backend>(backend: B, shape: Shape, config: &LoraConfig) -> Engine<B> {
    let mut engine = Engine::load(backend, &checkpoint(shape), &LoadOptions::default()).unwrap();
    engine.add_lora(config).unwrap();
    // B starts at zero, which would hide every error in A's gradient
    for (stream, tensor) in engine.adapter_tensors().unwrap().into_iter().enumerate() {
        let random = Philox::new(17, stream as u64);
        let values: Vec<f32> = (0..tensor.values.len() as u64).map(|i| on_grid(random.uniform_at(i) - 0.5)).collect();
        engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &values).unwrap();
    }
    engine
}

/// A multiple of 1/1024, so that steps of 1/1024 are exact in f32.
fn on_grid(value: f64) -> f32 {
    ((value * 1024.0).round() / 1024.0) as f32
}

/// Three texts of 7, 1 and 5 tokens; one row in the middle and every text's last row have no target.
struct Texts {
    ids: Vec<u32>,
    cu_seqlens: Vec<u32>,
    targets: Vec<i32>,
}

fn texts() -> Texts {
    let ids: Vec<u32> = (0..13u32).map(|i| (i * 7 + 3) % 50).collect();
    let cu_seqlens = vec![0, 7, 8, 13];
    let mut targets: Vec<i32> = (0..13).map(|t| ids.get(t + 1).map_or(IGNORE, |id| *id as i32)).collect();
    for last in [2, 6, 12] {
        targets[last] = IGNORE;
    }
    targets[7] = 4;
    Texts { ids, cu_seqlens, targets }
}

impl Texts {
    fn batch(&self) -> Batch<'_> {
        Batch { ids: &self.ids, cu_seqlens: &self.cu_seqlens, targets: &self.targets }
    }
}

fn flatten(tensors: &[AdapterTensor]) -> Vec<f32> {
    tensors.iter().flat_map(|tensor| tensor.values.clone()).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>().sqrt();
    sum(&|i| f64::from(a[i] - b[i]).powi(2)) / sum(&|i| f64::from(b[i]).powi(2)).max(1e-30)
}

/// Central differences of the f64 engine over a few values of every A and B.
fn check_gradients(shape: Shape, config: &LoraConfig) {
    let texts = texts();
    let mut engine = engine(Reference::new(), shape, config);
    engine.forward(&texts.batch(), Mode::Train, 4.0).unwrap();
    engine.backward(1.0).unwrap();
    let gradients = engine.gradients().unwrap();
    let step = 1.0f32 / 1024.0;
    let mut checked = 0;
    for tensor in engine.adapter_tensors().unwrap() {
        let gradient = gradients.iter().find(|g| g.name() == tensor.name()).unwrap();
        for pick in [0, tensor.values.len() / 2, tensor.values.len() - 1] {
            // fourth-order central difference
            let mut at = |factor: f32| {
                let mut values = tensor.values.clone();
                values[pick] += factor * step;
                engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &values).unwrap();
                engine.forward(&texts.batch(), Mode::Evaluate, 4.0).unwrap()
            };
            let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(step));
            engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &tensor.values).unwrap();
            let got = f64::from(gradient.values[pick]);
            assert!((got - slope).abs() <= 1e-6 * slope.abs().max(1e-3), "{}[{pick}]: {got} vs {slope}", tensor.name());
            checked += 1;
        }
    }
    assert!(checked >= 6);
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    check_gradients(SMALL, &lora(&MODULES));
    check_gradients(Shape { window: None, tied: true, head_dim: 6, kv_heads: 1, ..SMALL }, &lora(&MODULES));
}

#[test]
fn gradients_are_right_for_some_modules_and_some_layers() {
    check_gradients(SMALL, &lora(&["q_proj", "v_proj"]));
    check_gradients(SMALL, &lora(&["o_proj", "up_proj"]));
    let shape = Shape { layers: 3, ..SMALL };
    check_gradients(shape, &LoraConfig { layers_to_transform: Some(vec![1]), ..lora(&["gate_proj", "k_proj"]) });
    check_gradients(
        shape,
        &LoraConfig { layers_to_transform: Some(vec![2]), use_rslora: true, ..lora(&["down_proj"]) },
    );
}

#[test]
fn cpu_and_reference_agree() {
    for shape in [SMALL, Shape { head_dim: 6, heads: 9, kv_heads: 3, window: None, ..SMALL }] {
        let texts = texts();
        let mut cpu = engine(Cpu::new(None), shape, &lora(&MODULES));
        let mut reference = engine(Reference::new(), shape, &lora(&MODULES));
        let a = cpu.forward(&texts.batch(), Mode::Train, 10.0).unwrap();
        let b = reference.forward(&texts.batch(), Mode::Train, 10.0).unwrap();
        assert!((a - b).abs() <= 1e-6 * b, "{a} {b}");
        cpu.backward(1.0).unwrap();
        reference.backward(1.0).unwrap();
        let off = distance(&flatten(&cpu.gradients().unwrap()), &flatten(&reference.gradients().unwrap()));
        assert!(off <= 1e-5, "{off}");
        let logits = distance(&cpu.logits(&texts.batch()).unwrap(), &reference.logits(&texts.batch()).unwrap());
        assert!(logits <= 1e-5, "{logits}");
    }
}

#[test]
fn texts_laid_end_to_end_equal_texts_one_by_one() {
    let texts = texts();
    let mut together = engine(Reference::new(), SMALL, &lora(&MODULES));
    let mut apart = engine(Reference::new(), SMALL, &lora(&MODULES));
    let whole = together.forward(&texts.batch(), Mode::Train, 10.0).unwrap();
    together.backward(1.0).unwrap();
    let mut sum = 0.0;
    for border in texts.cu_seqlens.windows(2) {
        let range = border[0] as usize..border[1] as usize;
        let cu_seqlens = [0, border[1] - border[0]];
        let batch = Batch { ids: &texts.ids[range.clone()], cu_seqlens: &cu_seqlens, targets: &texts.targets[range] };
        sum += apart.forward(&batch, Mode::Train, 10.0).unwrap();
        apart.backward(1.0).unwrap();
    }
    assert!((whole - sum).abs() <= 1e-12 * whole);
    let off = distance(&flatten(&together.gradients().unwrap()), &flatten(&apart.gradients().unwrap()));
    assert!(off <= 1e-6, "{off}");
}

#[test]
fn decoding_token_by_token_equals_one_pass() {
    let texts = texts();
    for shape in [SMALL, Shape { window: None, ..SMALL }] {
        let mut engine = engine(Cpu::new(Some(1)), shape, &lora(&MODULES));
        let batch = Batch { ids: &texts.ids, cu_seqlens: &[0, 13], targets: &texts.targets };
        let all = engine.logits(&batch).unwrap();
        let mut cache = engine.cache();
        engine.decode(&texts.ids[..5], &mut cache).unwrap();
        for t in 5..13 {
            let logits = engine.decode(&texts.ids[t..=t], &mut cache).unwrap();
            let off = distance(&logits, &all[t * 50..(t + 1) * 50]);
            assert!(off <= 1e-5, "token {t}: {off}");
        }
        assert_eq!(cache.len(), 13);
    }
}

#[test]
fn log_probs_sum_to_the_loss_and_leave_a_pending_pass_alone() {
    let texts = texts();
    let mut engine = engine(Cpu::new(Some(2)), SMALL, &lora(&MODULES));
    let loss = engine.forward(&texts.batch(), Mode::Train, 1.0).unwrap();
    let log_probs = engine.log_probs(&texts.batch()).unwrap();
    assert_eq!(log_probs.len(), texts.targets.iter().filter(|t| **t != IGNORE).count());
    assert!((loss + log_probs.iter().sum::<f64>()).abs() <= 1e-4, "{loss}");
    engine.forward(&texts.batch(), Mode::Evaluate, 1.0).unwrap();
    engine.backward(1.0).unwrap();
    let disturbed = flatten(&engine.gradients().unwrap());
    engine.zero_grad().unwrap();
    engine.forward(&texts.batch(), Mode::Train, 1.0).unwrap();
    engine.backward(1.0).unwrap();
    assert_eq!(disturbed, flatten(&engine.gradients().unwrap()));
}

#[test]
fn gradients_add_up_and_scale_with_the_upstream() {
    let texts = texts();
    let mut engine = engine(Reference::new(), SMALL, &lora(&MODULES));
    let mut pass = |upstream: f64| {
        engine.forward(&texts.batch(), Mode::Train, 3.0).unwrap();
        engine.backward(upstream).unwrap();
        flatten(&engine.gradients().unwrap())
    };
    let once = pass(1.0);
    let with_half = pass(0.5);
    let scaled: Vec<f32> = once.iter().map(|g| 1.5 * g).collect();
    assert!(distance(&with_half, &scaled) <= 1e-6);
}

#[test]
fn misuse_is_refused() {
    let texts = texts();
    let mut engine = Engine::load(Cpu::new(Some(1)), &checkpoint(SMALL), &LoadOptions::default()).unwrap();
    assert!(matches!(engine.forward(&texts.batch(), Mode::Train, 1.0), Err(Error::NoAdapter)));
    assert!(matches!(engine.add_lora(&lora(&["q_porj"])), Err(Error::UnknownModule { .. })));
    let far = LoraConfig { layers_to_transform: Some(vec![2]), ..lora(&MODULES) };
    assert!(matches!(engine.add_lora(&far), Err(Error::UnknownLayer { layer: 2, layers: 2 })));
    engine.add_lora(&lora(&MODULES)).unwrap();
    assert!(matches!(engine.add_lora(&lora(&MODULES)), Err(Error::AdapterPresent)));
    assert!(matches!(engine.backward(1.0), Err(Error::NoForward)));
    engine.forward(&texts.batch(), Mode::Train, 1.0).unwrap();
    assert!(matches!(engine.forward(&texts.batch(), Mode::Train, 1.0), Err(Error::PassPending)));
    assert!(matches!(engine.remove_lora(), Err(Error::PassPending)));
    engine.discard();
    assert!(engine.remove_lora().unwrap());
    let fault = |ids: &[u32], cu_seqlens: &[u32], targets: &[i32]| {
        let mut engine = Engine::load(Cpu::new(Some(1)), &checkpoint(SMALL), &LoadOptions::default()).unwrap();
        match engine.forward(&Batch { ids, cu_seqlens, targets }, Mode::Evaluate, 1.0) {
            Err(Error::Batch(fault)) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fault(&[], &[0], &[]), BatchFault::Empty);
    assert_eq!(fault(&[1, 2], &[0, 2], &[1]), BatchFault::Lengths { ids: 2, targets: 1 });
    assert_eq!(fault(&[1, 2], &[0, 1], &[1, 1]), BatchFault::Borders { tokens: 2 });
    assert_eq!(fault(&[1, 50], &[0, 2], &[1, 1]), BatchFault::Token { id: 50, position: 1, vocabulary: 50 });
    assert_eq!(fault(&[1, 2], &[0, 2], &[-7, 1]), BatchFault::Token { id: -7, position: 0, vocabulary: 50 });
    assert_eq!(fault(&[1, 2], &[0, 2], &[IGNORE, IGNORE]), BatchFault::NoTargets);
}

#[test]
fn a_set_cancel_flag_stops_every_pass() {
    let texts = texts();
    let mut engine = engine(Cpu::new(Some(1)), SMALL, &lora(&MODULES));
    engine.forward(&texts.batch(), Mode::Train, 1.0).unwrap();
    engine.cancel().set();
    assert!(matches!(engine.backward(1.0), Err(Error::Cancelled)));
    assert!(matches!(engine.logits(&texts.batch()), Err(Error::Cancelled)));
}

#[test]
fn a_fresh_adapter_changes_nothing_and_has_the_promised_bounds() {
    let texts = texts();
    let mut engine = Engine::load(Cpu::new(Some(1)), &checkpoint(SMALL), &LoadOptions::default()).unwrap();
    let before = engine.logits(&texts.batch()).unwrap();
    engine.add_lora(&lora(&MODULES)).unwrap();
    assert_eq!(before, engine.logits(&texts.batch()).unwrap());
    for tensor in engine.adapter_tensors().unwrap() {
        let largest = tensor.values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        match tensor.matrix {
            Matrix::A => {
                let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
                assert!(largest <= bound && largest > 0.8 * bound, "{}: {largest} {bound}", tensor.name());
            }
            Matrix::B => assert_eq!(largest, 0.0),
        }
    }
    assert_eq!(engine.trainable_parameters(), 2 * 3 * (2 * (24 + 32) + 2 * (24 + 16) + 3 * (24 + 40)));
}
