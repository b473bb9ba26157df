//! Loading a 16-bit folder with its linears quantised to NF4 on the way, and a 4-bit folder: time of `Engine::load`.
//!
//! Writes a random checkpoint of Mistral-7B's shape in shards, one a layer, into a folder under `--folder` (a temporary one
//! by itself), reads it once so that the page cache holds it, then loads it three times. The 4-bit folder holds
//! bitsandbytes' layout with nested scales and random contents.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::Instant;

use unslothify::engine::{Engine, LoadOptions};
use unslothify::kernels::Cuda;
use unslothify::quant::{dynamic, nf4};
use unslothify::weights::Checkpoint;

use super::{Arguments, config_text};

const LOADS: usize = 3;

pub fn run(given: &Arguments) {
    let parent = given.folder.clone().unwrap_or_else(std::env::temp_dir);
    for in_4bit in [false, true] {
        let folder = parent.join(format!("unslothify-load-{}-{in_4bit}", std::process::id()));
        let bytes = write(&folder, given.layers, in_4bit);
        read(&folder);
        let storage = if in_4bit { "4-bit" } else { "16-bit" };
        println!("load: {} layers, {storage} folder of {:.2} GB", given.layers, bytes as f64 / 1e9);
        for index in 0..LOADS {
            let backend = Cuda::new(0, given.dtype).unwrap();
            let device = backend.device().clone();
            let start = Instant::now();
            let checkpoint = Checkpoint::open(&folder).unwrap();
            let opened = start.elapsed().as_secs_f64();
            let options = LoadOptions { load_in_4bit: true, memory: given.memory };
            let engine = Engine::load(backend, &checkpoint, &options).unwrap();
            device.wait().unwrap();
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "  load {index}: {seconds:.3} s (opened in {opened:.3}), {:.1} GB/s; {:.2} GB on the device",
                bytes as f64 / 1e9 / seconds,
                engine.weight_bytes() as f64 / 1e9
            );
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}

fn read(folder: &Path) {
    let mut buffer = vec![0; 1 << 24];
    for entry in fs::read_dir(folder).unwrap() {
        let mut file = File::open(entry.unwrap().path()).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    }
}

/// A tensor of a shard: name, dtype, shape, and its bytes or how many random ones.
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    content: Content,
}

enum Content {
    Random(usize),
    Given(Vec<u8>),
}

fn write(folder: &Path, layers: usize, in_4bit: bool) -> u64 {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config_text(layers)).unwrap();
    let mut map = serde_json::Map::new();
    let count = layers + 1;
    let mut bytes = 0;
    for shard in 0..count {
        let mut tensors = Vec::new();
        if shard == layers {
            for name in ["model.embed_tokens.weight", "lm_head.weight"] {
                tensors.push(plain(name.to_owned(), vec![super::VOCABULARY, 4096]));
            }
            tensors.push(norm("model.norm.weight".to_owned()));
        } else {
            let at = |name: &str| format!("model.layers.{shard}.{name}.weight");
            for (name, rows, cols) in LINEARS {
                if in_4bit {
                    quantised(&mut tensors, &at(name), rows, cols)
                } else {
                    tensors.push(plain(at(name), vec![rows, cols]))
                }
            }
            tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|name| norm(at(name))));
        }
        let name = format!("model-{:05}-of-{count:05}.safetensors", shard + 1);
        for tensor in &tensors {
            map.insert(tensor.name.clone(), name.clone().into());
        }
        bytes += write_shard(&folder.join(name), &tensors);
    }
    let index = serde_json::json!({ "metadata": { "total_size": bytes }, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    bytes
}

const LINEARS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 4096, 4096),
    ("self_attn.k_proj", 1024, 4096),
    ("self_attn.v_proj", 1024, 4096),
    ("self_attn.o_proj", 4096, 4096),
    ("mlp.gate_proj", 14336, 4096),
    ("mlp.up_proj", 14336, 4096),
    ("mlp.down_proj", 4096, 14336),
];

fn plain(name: String, shape: Vec<usize>) -> Tensor {
    let bytes = 2 * shape.iter().product::<usize>();
    Tensor { name, dtype: "BF16", shape, content: Content::Random(bytes) }
}

fn norm(name: String) -> Tensor {
    Tensor { name, dtype: "BF16", shape: vec![4096], content: Content::Random(2 * 4096) }
}

fn quantised(tensors: &mut Vec<Tensor>, name: &str, rows: usize, cols: usize) {
    let blocks = rows * cols / nf4::BLOCK;
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let state = serde_json::json!({
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, cols],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.02,
    });
    let scales = vec![0.01; blocks.div_ceil(nf4::SCALE_BLOCK)];
    let mut add = |part: &str, dtype, shape: Vec<usize>, content| {
        tensors.push(Tensor { name: format!("{name}{part}"), dtype, shape, content });
    };
    add("", "U8", vec![rows * cols / 2, 1], Content::Random(rows * cols / 2));
    add(".absmax", "U8", vec![blocks], Content::Random(blocks));
    add(".quant_map", "F32", vec![16], Content::Given(floats(&nf4::TABLE)));
    add(".nested_absmax", "F32", vec![scales.len()], Content::Given(floats(&scales)));
    add(".nested_quant_map", "F32", vec![256], Content::Given(floats(dynamic::signed_map())));
    let state = state.to_string().into_bytes();
    add(".quant_state.bitsandbytes__nf4", "U8", vec![state.len()], Content::Given(state));
}

fn write_shard(path: &Path, tensors: &[Tensor]) -> u64 {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for tensor in tensors {
        let len = match &tensor.content {
            Content::Random(len) => *len,
            Content::Given(bytes) => bytes.len(),
        };
        let entry =
            serde_json::json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + len] });
        header.insert(tensor.name.clone(), entry);
        end += len;
    }
    let mut header = serde_json::Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    // bf16 of -0.06 to 0.06: high bytes 0x3c, 0x3d, 0xbc, 0xbd; the same numbers again and again are as good to time
    let noise: Vec<u8> = (0..1_u64 << 20)
        .flat_map(|i| {
            let bits = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            [bits as u8, 0x3c | (bits >> 8) as u8 & 0x81]
        })
        .collect();
    for tensor in tensors {
        match &tensor.content {
            Content::Given(bytes) => file.write_all(bytes).unwrap(),
            Content::Random(len) => {
                let mut left = *len;
                while left > 0 {
                    let piece = left.min(noise.len());
                    file.write_all(&noise[..piece]).unwrap();
                    left -= piece;
                }
            }
        }
    }
    file.flush().unwrap();
    end as u64
}
