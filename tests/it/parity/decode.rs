//! A text read in steps gives the logits of the whole text, however the device does a step.

use unslothify::engine::{Batch, Engine, IGNORE, LoadOptions, LoraConfig, MODULES, Matrix};
use unslothify::kernels::cuda::Dtype;
use unslothify::kernels::{Backend, Cpu};
use unslothify::philox::Philox;
use unslothify::weights::ModelConfig;

use super::fixture::max_error;
use super::gpu::gpu;

/// Heads of 64 and depths of whole NF4 blocks, which a GPU's own kernels for steps want.
fn config() -> ModelConfig {
    let text = r#"{"architectures":["MistralForCausalLM"],"model_type":"mistral","vocab_size":300,"hidden_size":256,
"intermediate_size":704,"num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":64,
"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"sliding_window":null,
"tie_word_embeddings":false,"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"torch_dtype":"bfloat16"}"#;
    ModelConfig::from_json(text, "random").unwrap()
}

fn engine<B: Backend>(backend: B, seed: u64) -> Engine<B> {
    let options = LoadOptions { load_in_4bit: true, ..LoadOptions::default() };
    let mut engine = Engine::random(backend, config(), 1, &options).unwrap();
    put_adapter(&mut engine, seed);
    engine
}

fn put_adapter<B: Backend>(engine: &mut Engine<B>, seed: u64) {
    let target_modules = MODULES.iter().map(|module| (*module).to_owned()).collect();
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, target_modules, layers_to_transform: None, use_rslora: false, seed };
    engine.add_lora(&lora).unwrap();
    // B is zero at first
    for (stream, tensor) in engine.adapter_tensors().unwrap().into_iter().enumerate() {
        if tensor.matrix == Matrix::B {
            let random = Philox::new(seed, stream as u64);
            let values = (0..tensor.values.len() as u64).map(|i| 0.2 * (random.uniform_at(i) - 0.5) as f32);
            let values: Vec<f32> = values.collect();
            engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &values).unwrap();
        }
    }
}

fn ids() -> Vec<u32> {
    (0..290).map(|i| (i * 37 + 11) % 300).collect()
}

/// The logits of every row of the text that ends a piece.
fn whole<B: Backend>(engine: &mut Engine<B>, ends: &[usize]) -> Vec<f32> {
    let (ids, targets) = (ids(), vec![IGNORE; ids().len()]);
    let logits = engine.logits(&Batch { ids: &ids, cu_seqlens: &[0, ids.len() as u32], targets: &targets }).unwrap();
    ends.iter().flat_map(|end| logits[(end - 1) * 300..end * 300].to_vec()).collect()
}

/// A prompt, single tokens enough to be recorded and repeated, a few at once, and on beyond the cache's first room.
fn pieces() -> Vec<usize> {
    [vec![20], vec![1; 9], vec![3, 3, 3, 3, 3, 8, 1, 1], vec![12], vec![1; 6], vec![170], vec![1; 40]].concat()
}

fn stepwise<B: Backend>(engine: &mut Engine<B>) -> (Vec<f32>, Vec<usize>) {
    let (ids, mut cache) = (ids(), engine.cache());
    let (mut logits, mut ends, mut read) = (Vec::new(), Vec::new(), 0);
    for piece in pieces() {
        logits.extend(engine.decode(&ids[read..read + piece], &mut cache).unwrap());
        read += piece;
        ends.push(read);
    }
    assert_eq!(cache.len(), read);
    (logits, ends)
}

#[test]
fn steps_on_the_cpu_give_the_logits_of_the_whole_text() {
    let mut engine = engine(Cpu::new(Some(2)), 5);
    let (steps, ends) = stepwise(&mut engine);
    let error = max_error(&steps, &whole(&mut engine, &ends));
    assert!(error <= 1e-4, "{error:e}");
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn steps_on_the_gpu_give_the_logits_of_the_whole_text() {
    let mut cpu = engine(Cpu::new(Some(2)), 5);
    for (dtype, bound) in [(Dtype::F32, 1e-4), (Dtype::F16, 2e-2), (Dtype::Bf16, 2e-2)] {
        let Some(gpu) = gpu(dtype) else { return };
        let mut engine = engine(gpu, 5);
        let (steps, ends) = stepwise(&mut engine);
        let error = max_error(&steps, &whole(&mut engine, &ends));
        let from_cpu = max_error(&steps, &whole(&mut cpu, &ends));
        println!("{}: {error:e} from the whole text, {from_cpu:e} from the CPU's", dtype.name());
        assert!(error <= bound, "{}: {error:e}", dtype.name());
        assert!(from_cpu <= bound, "{}: {from_cpu:e} from the CPU's", dtype.name());
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn a_repeated_step_on_the_gpu_sees_what_has_changed() {
    let Some(gpu) = gpu(Dtype::Bf16) else { return };
    let mut engine = engine(gpu, 5);
    let ids = ids();
    // a text goes on while another is read and while the adapter's values, then the adapter, change
    let (mut cache, mut other) = (engine.cache(), engine.cache());
    let mut read = 0;
    let mut on = |engine: &mut Engine<_>, cache: &mut _, count: usize| {
        let mut logits = Vec::new();
        for id in &ids[read..read + count] {
            logits = engine.decode(&[*id], cache).unwrap();
        }
        read += count;
        logits
    };
    let first = on(&mut engine, &mut cache, 8);
    // a longer text moves what the first one's recording points to
    engine.decode(&ids, &mut other).unwrap();
    for id in &ids[..6] {
        engine.decode(&[*id], &mut other).unwrap();
    }
    let mut again = engine.cache();
    let mut repeated = Vec::new();
    for id in &ids[..8] {
        repeated = engine.decode(&[*id], &mut again).unwrap();
    }
    assert_eq!(repeated, first);
    let before = on(&mut engine, &mut cache, 1);
    let last = ids[8];
    assert_eq!(engine.decode(&[last], &mut again).unwrap(), before);
    let tensor = engine.adapter_tensors().unwrap().pop().unwrap();
    let values = vec![0.5; tensor.values.len()];
    engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &values).unwrap();
    let changed = on(&mut engine, &mut cache, 1);
    engine.enable_adapter(false).unwrap();
    let without = engine.decode(&[ids[9]], &mut again).unwrap();
    assert!(max_error(&changed, &without) > 1e-2);
    // against steps that are not recorded yet
    engine.enable_adapter(true).unwrap();
    engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &tensor.values).unwrap();
    let mut fresh = engine.cache();
    for id in &ids[..9] {
        engine.decode(&[*id], &mut fresh).unwrap();
    }
    engine.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &values).unwrap();
    assert_eq!(engine.decode(&[ids[9]], &mut fresh).unwrap(), changed);
}
