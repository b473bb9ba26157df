//! Two oracles that share no code with the fixtures: slopes of the loss, and candle's Mistral.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::mistral;
use unslothify::engine::{Batch, Engine, Mode};
use unslothify::kernels::{Backend, Cpu, Reference};
use unslothify::philox::Philox;

use super::fixture::{Case, Rows, Worst, max_error, root, tensors};

/// Steps of this size are exact in f32 on values rounded to it.
const STEP: f64 = 1.0 / 1024.0;

fn loss<B: Backend>(engine: &mut Engine<B>, rows: &Rows) -> f64 {
    engine.forward(&rows.batch(), Mode::Evaluate, rows.target_count() as f64).unwrap()
}

#[test]
fn twenty_random_gradients_are_slopes_of_the_loss() {
    for name in ["texts", "rslora"] {
        let case = Case::open(name);
        let rows = case.rows(0);
        let mut engine = case.engine(Reference::new());
        for tensor in engine.adapter_tensors().unwrap() {
            let rounded: Vec<f32> =
                tensor.values.iter().map(|value| ((f64::from(*value) / STEP).round() * STEP) as f32).collect();
            engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &rounded).unwrap();
        }
        engine.forward(&rows.batch(), Mode::Train, rows.target_count() as f64).unwrap();
        engine.backward(1.0).unwrap();
        let (params, gradients) = (engine.adapter_tensors().unwrap(), engine.gradients().unwrap());
        let largest = gradients.iter().flat_map(|g| &g.values).fold(0f64, |most, g| most.max(f64::from(g.abs())));
        let random = Philox::new(3, 0);
        let mut worst = Worst::default();
        for draw in 0..20 {
            let pick = |stream: u64, len: usize| (random.uniform_at(2 * draw + stream) * len as f64) as usize;
            let tensor = pick(0, params.len());
            let (param, gradient) = (&params[tensor], &gradients[tensor]);
            let value = pick(1, param.values.len());
            let mut at = |steps: f64| {
                let mut values = param.values.clone();
                values[value] = (f64::from(values[value]) + steps * STEP) as f32;
                engine.set_adapter_tensor(param.layer, param.module, param.matrix, &values).unwrap();
                loss(&mut engine, &rows)
            };
            // fourth-order central difference
            let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP);
            engine.set_adapter_tensor(param.layer, param.module, param.matrix, &param.values).unwrap();
            let error = (f64::from(gradient.values[value]) - slope).abs() / slope.abs().max(1e-3 * largest);
            worst.see(format!("{name} {}[{value}]", param.name()), error);
        }
        worst.within("gradients against slopes", 1e-5);
    }
}

/// candle's own implementation of the decoder on the same weights.
fn candle_logits(case: &Case, ids: &[u32]) -> Vec<f32> {
    let checkpoint = case.checkpoint();
    let c = checkpoint.config();
    let config = mistral::Config {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        head_dim: Some(c.head_dim),
        num_key_value_heads: c.num_key_value_heads,
        hidden_act: Activation::Silu,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope_theta,
        sliding_window: None,
        use_flash_attn: false,
    };
    let (values, device) = (tensors(&root().join("bases/wide.safetensors")), Device::Cpu);
    let shapes = |name: &str| match checkpoint.matrix(name) {
        Ok(matrix) => vec![matrix.rows, matrix.cols],
        Err(_) => vec![c.hidden_size],
    };
    let named: HashMap<String, Tensor> = values
        .into_iter()
        .map(|(name, values)| {
            let tensor = Tensor::from_vec(values, shapes(&name), &device).unwrap();
            (name, tensor)
        })
        .collect();
    let mut model = mistral::Model::new(&config, VarBuilder::from_tensors(named, DType::F32, &device)).unwrap();
    // candle returns the last row only
    (1..=ids.len())
        .flat_map(|end| {
            model.clear_kv_cache();
            let row = model.forward(&Tensor::new(&ids[..end], &device).unwrap().unsqueeze(0).unwrap(), 0).unwrap();
            row.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        })
        .collect()
}

#[test]
fn candles_mistral_agrees_on_the_forward_pass() {
    let case = Case::open("untied");
    let text = &case.facts.batches[0][0];
    let borders = [0, text.ids.len() as u32];
    let batch = Batch { ids: &text.ids, cu_seqlens: &borders, targets: &text.targets };
    let ours = case.base(Cpu::new(Some(2))).logits(&batch).unwrap();
    let error = max_error(&ours, &candle_logits(&case, &text.ids));
    println!("candle's logits: {error:.2e}");
    assert!(error <= 2e-5, "{error:.2e}");
}
