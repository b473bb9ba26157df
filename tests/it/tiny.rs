//! A tiny random Mistral with a tokenizer of letters, for tests that need a model and no meaning.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use unslothify::data::{BatchOptions, Batches, Dataset, MicroBatch, TokenizeOptions, Tokenized};
use unslothify::engine::{LoraConfig, MODULES, Matrix};
use unslothify::philox::Philox;
use unslothify::train::{Device, LoadSettings, Model};

pub const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const WIDE: usize = 48;
const HEADS: usize = 4;
const KEYS: usize = 2;
const HEAD: usize = 8;

/// Writes config, weights and tokenizer into `dir`; `seed` makes another model of the same shape.
pub fn write(dir: &Path, seed: u64) {
    fs::create_dir_all(dir).unwrap();
    let vocabulary = vocabulary();
    let config = json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
        "vocab_size": vocabulary.len(), "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "head_dim": HEAD, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": null, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer(&vocabulary).to_string()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![vocabulary.len(), HIDDEN]),
        ("lm_head.weight".into(), vec![vocabulary.len(), HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let (queries, keys) = (HEADS * HEAD, KEYS * HEAD);
        for (name, shape) in [
            ("self_attn.q_proj", vec![queries, HIDDEN]),
            ("self_attn.k_proj", vec![keys, HIDDEN]),
            ("self_attn.v_proj", vec![keys, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, queries]),
            ("mlp.gate_proj", vec![WIDE, HIDDEN]),
            ("mlp.up_proj", vec![WIDE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, WIDE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let bytes: Vec<Vec<u8>> = tensors.iter().enumerate().map(|(i, (_, shape))| random(seed, i as u64, shape)).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn random(seed: u64, tensor: u64, shape: &[usize]) -> Vec<u8> {
    let stream = Philox::new(seed, tensor);
    let is_norm = shape.len() == 1;
    let value = |i: u64| {
        let x = 2.0 * stream.uniform_at(i) - 1.0;
        (if is_norm { 1.0 + 0.1 * x } else { 0.5 * x }) as f32
    };
    (0..shape.iter().product::<usize>() as u64).flat_map(|i| value(i).to_le_bytes()).collect()
}

fn vocabulary() -> Vec<String> {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let letters = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain("▁.,:;!?'-()".chars()).map(String::from);
    ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(letters).collect()
}

/// A tokenizer.json of these tokens, the first three of them special.
pub fn tokenizer(vocabulary: &[String]) -> serde_json::Value {
    let special = |id: usize, content: &str| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let ids: serde_json::Map<_, _> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" }] },
        "pre_tokenizer": null,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ids, "merges": [] }
    })
}

/// The tiny model on a device.
pub fn model(device: Device) -> Model {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1);
    Model::from_pretrained(".", dir.path(), &LoadSettings { device, ..LoadSettings::default() }).unwrap()
}

/// LoRA on everything, with a scale that is not 1.
pub fn lora() -> LoraConfig {
    LoraConfig {
        r: 4,
        lora_alpha: 10.0,
        target_modules: MODULES.iter().map(ToString::to_string).collect(),
        layers_to_transform: None,
        use_rslora: false,
        seed: 3,
    }
}

/// Puts the adapter on with a B that is not zero, so that every A has a gradient.
pub fn with_lora(model: &Model) {
    model.add_lora(&lora()).unwrap();
    for (index, tensor) in model.adapter_tensors().unwrap().into_iter().enumerate() {
        if tensor.matrix == Matrix::B {
            let stream = Philox::new(8, index as u64);
            let values: Vec<f32> =
                (0..tensor.values.len() as u64).map(|i| (0.2 * stream.uniform_at(i) - 0.1) as f32).collect();
            model.set_adapter_tensor(tensor.layer, tensor.module, tensor.matrix, &values).unwrap();
        }
    }
}

pub const TEXTS: [&str; 8] = [
    "Roll them small.",
    "Soak the bread in milk before the meat goes in.",
    "Butter, and patience.",
    "A pan too full steams what it should fry; give each ball room.",
    "Lingonberries cut the fat.",
    "Why rest the mince? So that it holds.",
    "Cream last, over low heat.",
    "Grandmother weighed nothing and was never wrong by much.",
];

pub fn tokens(model: &Model) -> Tokenized {
    let dataset = Dataset::from_texts(TEXTS.iter().map(ToString::to_string).collect());
    dataset.tokenize(model.tokenizer(), &TokenizeOptions::default()).unwrap()
}

pub fn batches(model: &Model, batch_size: usize, accumulate: usize) -> Batches {
    let options = BatchOptions { batch_size, accumulate, shuffle: false, ..BatchOptions::default() };
    tokens(model).batches(&options).unwrap()
}

/// The micro-batches of the first step.
pub fn micro(model: &Model, batch_size: usize, accumulate: usize) -> Vec<MicroBatch> {
    batches(model, batch_size, accumulate).epoch(0).swap_remove(0).micro
}

/// A data file of `rows` short texts, as recipes read them.
pub fn write_data(path: &Path, rows: usize) {
    let line = |i: usize| format!("{}\n", json!({ "text": format!("Note {i}. {}", TEXTS[i % TEXTS.len()]) }));
    fs::write(path, (0..rows).map(line).collect::<String>()).unwrap();
}
