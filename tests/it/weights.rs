//! Model files against the programs that write them: `tests/fixtures/make/weights.py` made the files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use proptest::prelude::*;
use unslothify::quant::{FloatType, Nf4Scales, Nf4Values, StoredMatrix, StoredValues, nf4};
use unslothify::weights::{Checkpoint, ModelConfig, RopeScaling, TokenizerSource};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

/// A safetensors file by the crate of that name: name to bytes and shape.
fn tensors(name: &str) -> HashMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(fixture(name)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec()))).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap())).collect()
}

fn widened(bytes: &[u8]) -> Vec<f32> {
    bf16s(bytes).into_iter().map(bf16::to_f32).collect()
}

/// Fails on the first value whose bits differ.
fn assert_same(got: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let count = got.iter().zip(wanted).filter(|(got, wanted)| got.to_bits() != wanted.to_bits()).count();
    let first = got.iter().zip(wanted).position(|(got, wanted)| got.to_bits() != wanted.to_bits());
    if let Some(at) = first {
        panic!("{what}: {count} of {} differ, first at {at}: {} and {}", got.len(), got[at], wanted[at]);
    }
}

#[test]
fn nf4_is_bit_equal_to_bitsandbytes_on_whole_and_ragged_matrices() {
    let file = tensors("nf4.safetensors");
    for name in ["even", "ragged", "odd"] {
        let part = |part: &str| &file[&format!("{name}.{part}")];
        let (shape, weight) = part("weight");
        let matrix = StoredMatrix::new(shape[0], shape[1], StoredValues::Bf16(bf16s(weight))).unwrap();
        let quantised = matrix.quantize_nf4();
        let StoredValues::Nf4(values) = &quantised.values else { panic!("not NF4") };
        assert_eq!(values.codes, part("packed").1, "{name}");
        assert_eq!(values.dtype, FloatType::Bf16);
        assert_eq!(nf4::quantize(&matrix.dequantize()).1, f32s(&part("absmax").1), "{name}");
        let Nf4Scales::Nested { codes, absmax, map, offset } = &values.absmax else { panic!("not nested") };
        assert_eq!(*map, f32s(&part("map").1));
        let theirs = f32s(&part("offset").1)[0];
        assert!((offset - theirs).abs() <= 2.0 * f32::EPSILON * theirs, "{name}: {offset} {theirs}");
        for (ours, theirs) in absmax.iter().zip(f32s(&part("nested").1)) {
            assert!((ours - theirs).abs() <= 1e-8, "{name}: {ours} {theirs}");
        }
        // bitsandbytes' search on the CPU is coarse: where two codes are nearly as near it may take the other one.
        // One block alone lies 0 from the mean: 0/0 there, and any code times a scale of 0 is 0.
        let is_alone = codes.len() == 1;
        let off = codes.iter().zip(&part("codes").1).filter(|(a, b)| a != b).inspect(|(a, b)| {
            assert!(is_alone || a.abs_diff(**b) == 1, "{name}");
        });
        assert!(off.count() * 100 <= codes.len() || is_alone, "{name}");

        let stored = |absmax| {
            let values = Nf4Values { codes: part("packed").1.clone(), absmax, dtype: FloatType::Bf16 };
            StoredMatrix::new(shape[0], shape[1], StoredValues::Nf4(values)).unwrap()
        };
        let nested = stored(Nf4Scales::Nested {
            codes: part("codes").1.clone(),
            absmax: f32s(&part("nested").1),
            map: f32s(&part("map").1),
            offset: theirs,
        });
        assert_same(&nested.dequantize(), &widened(&part("back").1), name);
        let plain = stored(Nf4Scales::Plain(f32s(&part("absmax").1)));
        assert_same(&plain.dequantize(), &widened(&part("back_plain").1), name);
    }
}

#[test]
fn a_checkpoint_that_bitsandbytes_quantised_loads_equal() {
    for (folder, expected) in
        [("bnb_double", "bnb_double.expected.safetensors"), ("bnb_plain", "bnb_plain.expected.safetensors")]
    {
        let checkpoint = Checkpoint::open(&fixture(folder)).unwrap();
        assert_eq!(checkpoint.config().defaulted, Vec::<String>::new());
        assert_eq!(checkpoint.config().parameters(), 32 * 64 * 2 + 64 * 3 + 64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64);
        assert!(!checkpoint.is_gguf());
        let expected = tensors(expected);
        assert_eq!(checkpoint.names().len(), expected.len());
        for name in checkpoint.names() {
            let (shape, bytes) = &expected[&name];
            if shape.len() == 1 {
                assert_eq!(checkpoint.vector(&name).unwrap(), widened(bytes), "{name}");
                continue;
            }
            let matrix = checkpoint.matrix(&name).unwrap();
            assert_eq!([matrix.rows, matrix.cols], shape[..], "{name}");
            assert_same(&matrix.dequantize(), &widened(bytes), &format!("{folder} {name}"));
            assert_eq!(matrix.storage(), if name.contains("proj") { "nf4" } else { "bf16" }, "{name}");
        }
        let tokenizer = checkpoint.tokenizer().unwrap_err().to_string();
        assert!(tokenizer.contains("`tokenizer.json` is absent; put the"), "{tokenizer}");
    }
}

#[test]
fn a_gguf_file_of_every_type_reads_as_gguf_itself_reads_it() {
    let checkpoint = Checkpoint::open(&fixture("tiny.gguf")).unwrap();
    let config = checkpoint.config();
    assert!(checkpoint.is_gguf() && config.tie_word_embeddings);
    assert_eq!((config.vocab_size, config.head_dim, config.num_key_value_heads), (32, 16, 2));
    assert_eq!((config.rms_norm_eps, config.rope_theta, config.name.as_str()), (1e-5, 10_000.0, "Tiny"));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), &[2][..]));
    let expected = tensors("tiny.gguf.expected.safetensors");
    assert_eq!(checkpoint.names().len(), expected.len());
    let mut storages = Vec::new();
    for name in checkpoint.names() {
        let (shape, bytes) = &expected[&name];
        if shape.len() == 1 {
            assert_eq!(checkpoint.vector(&name).unwrap(), f32s(bytes), "{name}");
            continue;
        }
        let matrix = checkpoint.matrix(&name).unwrap();
        assert_same(&matrix.dequantize(), &f32s(bytes), &name);
        storages.push(matrix.storage());
    }
    storages.sort_unstable();
    storages.dedup();
    assert_eq!(storages, ["Q4_0", "Q4_1", "Q8_0", "bf16", "f16", "f32"]);
    let head = checkpoint.matrix("lm_head.weight").unwrap();
    assert_eq!(head.dequantize(), checkpoint.matrix("model.embed_tokens.weight").unwrap().dequantize());
    let TokenizerSource::Gguf(tokenizer) = checkpoint.tokenizer().unwrap() else { panic!("no GGUF tokenizer") };
    assert_eq!((tokenizer.model.as_str(), tokenizer.tokens.len(), tokenizer.bos), ("llama", 32, Some(1)));
    assert_eq!((tokenizer.scores[3], tokenizer.token_types[1], tokenizer.add_bos), (-3.0, 3, Some(true)));
}

#[test]
fn frequencies_follow_transformers() {
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("frequencies.json")).unwrap()).unwrap();
    for (name, case) in json.as_object().unwrap() {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 8, "hidden_size": 512, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 4, "rope_parameters": case["rule"],
        });
        let ours = ModelConfig::from_json(&config.to_string(), "config.json").unwrap().inverse_frequencies();
        let theirs = case["inv_freq"].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            let theirs = theirs.as_f64().unwrap();
            assert!((f64::from(*ours) - theirs).abs() <= 3e-7 * theirs, "{name}: {ours} {theirs}");
        }
    }
}

fn config_with(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> String {
    let serde_json::Value::Object(mut map) = serde_json::json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": null,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": [2, 7], "hidden_act": "silu",
    }) else {
        unreachable!()
    };
    change(&mut map);
    serde_json::Value::Object(map).to_string()
}

#[test]
fn both_spellings_of_a_config_give_the_same_model() {
    let old = ModelConfig::from_json(&config_with(|_| {}), "c").unwrap();
    assert_eq!((old.head_dim, old.sliding_window, old.eos_token_ids.as_slice()), (16, None, &[2, 7][..]));
    let new = config_with(|map| {
        map.remove("rope_theta");
        map.insert("rope_parameters".into(), serde_json::json!({"rope_theta": 10000, "rope_type": "default"}));
        map.insert("head_dim".into(), serde_json::Value::Null);
        map.insert("dtype".into(), "bfloat16".into());
    });
    assert_eq!(ModelConfig::from_json(&format!("\u{feff}{new}"), "c").unwrap(), old);
    let linear = config_with(|map| {
        map.insert("rope_scaling".into(), serde_json::json!({"type": "linear", "factor": 2}));
    });
    let linear = ModelConfig::from_json(&linear, "c").unwrap();
    assert_eq!(linear.rope_scaling, Some(RopeScaling::Linear { factor: 2.0 }));
    let silent = config_with(|map| {
        map.remove("sliding_window");
        map.remove("num_key_value_heads");
        map.insert("num_attention_heads".into(), 8.into());
    });
    let silent = ModelConfig::from_json(&silent, "c").unwrap();
    assert_eq!(silent.defaulted, ["num_key_value_heads = 8", "sliding_window = 4096"]);
}

#[test]
fn a_config_that_cannot_be_run_names_the_key() {
    let cases: [(&str, serde_json::Value, &str); 16] = [
        ("architectures", serde_json::json!(["MixtralForCausalLM"]), "`c` is a `MixtralForCausalLM` model; supported:"),
        ("hidden_act", "gelu".into(), "`hidden_act` in `c` asks for `\"gelu\"`"),
        ("attention_bias", true.into(), "`attention_bias` in `c` asks for `true`"),
        ("num_key_value_heads", 3.into(), "`num_key_value_heads` in `c` is 3; wanted a divisor of the 4"),
        ("hidden_size", 0.into(), "`hidden_size` in `c` is `0`; wanted a whole number above 0"),
        ("hidden_size", 66.into(), "`hidden_size` in `c` is `66`; wanted a multiple of the 4"),
        ("head_dim", 5.into(), "`head_dim` in `c` is 5; wanted an even number"),
        ("vocab_size", u64::MAX.into(), "`vocab_size` in `c` is 18446744073709551615; wanted 1 to 16777216"),
        ("num_hidden_layers", (-1).into(), "`num_hidden_layers` in `c` is `-1`"),
        ("rms_norm_eps", 0.into(), "`rms_norm_eps` in `c` is 0"),
        ("rope_theta", "big".into(), "`rope_theta` in `c` is `\"big\"`; wanted a number"),
        (
            "rope_scaling",
            serde_json::json!({"rope_type": "yarn"}),
            "`rope_scaling.rope_type` in `c` asks for `\"yarn\"`",
        ),
        ("rope_scaling", serde_json::json!({"type": "linear"}), "`c` lacks `rope_scaling.factor`"),
        ("eos_token_id", (-2).into(), "`eos_token_id` in `c` is `-2`; wanted a token id"),
        ("quantization_config", serde_json::json!({"quant_method": "gptq"}), "`quantization_config.quant_method` in"),
        ("tie_word_embeddings", 1.into(), "`tie_word_embeddings` in `c` is `1`; wanted true or false"),
    ];
    for (key, value, wanted) in cases {
        let text = config_with(|map| {
            map.insert(key.into(), value);
        });
        let error = ModelConfig::from_json(&text, "c").unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}\n{wanted}");
    }
    let half = config_with(|map| {
        map.remove("hidden_size");
    });
    let half = ModelConfig::from_json(&half, "c").unwrap_err().to_string();
    assert_eq!(half, "`c` lacks `hidden_size`; it is not a whole model config");
    let absurd = config_with(|map| {
        for key in ["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers"] {
            map.insert(key.into(), (1 << 24).into());
        }
    });
    assert!(ModelConfig::from_json(&absurd, "c").unwrap_err().to_string().contains("more than 2^50 parameters"));
    assert!(ModelConfig::from_json("{\"vocab", "c").unwrap_err().to_string().starts_with("`c` is not valid JSON"));
}

/// A tensor of a file: name, shape, bytes.
type Tensor = (String, Vec<usize>, Vec<u8>);

/// A folder with a config and the tensors of it, in F16, in as many shards as asked.
fn model(folder: &Path, config: &str, shards: usize, change: impl Fn(&str) -> Option<Vec<usize>>) {
    std::fs::write(folder.join("config.json"), config).unwrap();
    let config = ModelConfig::from_json(config, "c").unwrap();
    let mut files: Vec<Vec<Tensor>> = vec![Vec::new(); shards];
    for (i, name) in config.tensor_names().enumerate() {
        let Some(shape) = change(&name).or_else(|| config.shape(&name)) else { continue };
        let value = f16::from_f32(i as f32).to_le_bytes();
        let bytes = value.repeat(shape.iter().product());
        files[i % shards].push((name, shape, bytes));
    }
    let mut map = serde_json::Map::new();
    for (i, file) in files.iter().enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{i}.safetensors"),
        };
        let views = file.iter().map(|(name, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.clone(), bytes).unwrap();
            (name.clone(), view)
        });
        std::fs::write(folder.join(&name), safetensors::serialize(views, None).unwrap()).unwrap();
        map.extend(file.iter().map(|(tensor, ..)| (tensor.clone(), name.clone().into())));
    }
    if shards > 1 {
        let index = serde_json::json!({"metadata": {}, "weight_map": map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

#[test]
fn shards_are_read_as_one_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), &config_with(|_| {}), 3, |_| None);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for (i, name) in checkpoint.names().iter().enumerate() {
        let first = match checkpoint.config().shape(name).unwrap().len() {
            1 => checkpoint.vector(name).unwrap()[0],
            _ => checkpoint.matrix(name).unwrap().dequantize()[0],
        };
        assert_eq!(first, i as f32);
    }
    std::fs::copy(dir.path().join("model-0.safetensors"), dir.path().join("model-1.safetensors")).unwrap();
    let twice = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(twice.contains("model-1.safetensors` and in `"), "{twice}");
    std::fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    let missing = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(missing.contains("names `model-1.safetensors`, which is not beside it; download it too"), "{missing}");
    std::fs::write(dir.path().join("model.safetensors.index.json"), r#"{"weight_map":{"a":"../../x"}}"#).unwrap();
    let outside = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(outside.contains("wanted the name of a file beside it"), "{outside}");
}

#[test]
fn a_checkpoint_that_does_not_fit_its_config_names_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    model(dir.path(), &config_with(|_| {}), 1, |name| name.contains("up_proj").then(|| vec![64, 96]));
    assert!(open().contains("`model.layers.0.mlp.up_proj.weight` in `"), "{}", open());
    assert!(open().ends_with("has shape [64, 96]; its config asks for [96, 64]"), "{}", open());
    model(dir.path(), &config_with(|_| {}), 1, |_| None);
    let two = config_with(|map| {
        map.insert("num_hidden_layers".into(), 2.into());
    });
    std::fs::write(dir.path().join("config.json"), two).unwrap();
    assert!(open().contains("lacks the tensor `model.layers.1.input_layernorm.weight` and 8 others"), "{}", open());
    let tied = config_with(|map| {
        map.insert("tie_word_embeddings".into(), true.into());
    });
    std::fs::write(dir.path().join("config.json"), tied).unwrap();
    assert!(Checkpoint::open(dir.path()).is_ok());
    let whole = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), &whole[..whole.len() - 1]).unwrap();
    assert!(open().contains("is cut or no safetensors file"), "{}", open());
}

#[test]
fn what_is_no_model_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    let put = |name: &str| std::fs::write(dir.path().join(name), config_with(|_| {})).unwrap();
    assert!(open().contains("`config.json` is absent"), "{}", open());
    put("adapter_config.json");
    assert!(open().contains("it is a LoRA adapter; give its base model"), "{}", open());
    put("config.json");
    put("pytorch_model.bin");
    assert!(open().contains("`pytorch_model.bin` is a pickle, which is never read; convert it"), "{}", open());
    let junk = dir.path().join("junk.gguf");
    std::fs::write(&junk, "no model at all").unwrap();
    let error = Checkpoint::open(&junk).unwrap_err().to_string();
    assert!(error.contains("is cut or no GGUF file: it does not begin with `GGUF`"), "{error}");
}

/// The whole file with `change` made to its header, and `tail` after its end.
fn reheaded(file: &[u8], tail: &[u8], change: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) -> Vec<u8> {
    let len = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    let mut header = serde_json::from_slice(&file[8..8 + len]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], &file[8 + len..], tail].concat()
}

#[test]
fn tensors_that_do_not_lie_one_after_another_are_refused() {
    const K: &str = "model.layers.0.self_attn.k_proj.weight";
    const V: &str = "model.layers.0.self_attn.v_proj.weight";
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), &config_with(|_| {}), 1, |_| None);
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let same = |header: &mut serde_json::Map<String, serde_json::Value>| header[V] = header[K].clone();
    let hole = |header: &mut serde_json::Map<String, serde_json::Value>| drop(header.remove(K));
    for (file, wanted) in [
        (reheaded(&whole, b"", |_| {}), None),
        (reheaded(&whole, b"", same), Some("where byte ")),
        (reheaded(&whole, b"", hole), Some("where byte ")),
        (reheaded(&whole, b"more", |_| {}), Some("its tensors end at byte ")),
    ] {
        // As strict as the crate of that name.
        assert_eq!(safetensors::SafeTensors::deserialize(&file).is_err(), wanted.is_some());
        std::fs::write(&path, &file).unwrap();
        match (Checkpoint::open(dir.path()), wanted) {
            (Ok(_), None) => {}
            (Err(error), Some(wanted)) => assert!(error.to_string().contains(wanted), "{error}"),
            (result, _) => panic!("{wanted:?}: {:?}", result.map(|_| ()).map_err(|error| error.to_string())),
        }
    }
}

/// A GGUF file without keys: vectors of 8 F32 with their names and offsets.
fn gguf(tensors: &[(&str, u64)]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    for (name, offset) in tensors {
        bytes.extend((name.len() as u64).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(8_u64.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 96, 0);
    bytes
}

#[test]
fn gguf_tensors_that_overlap_or_share_a_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let open = |tensors: &[(&str, u64)]| {
        std::fs::write(&path, gguf(tensors)).unwrap();
        Checkpoint::open(&path).map(|_| ()).unwrap_err().to_string()
    };
    // A hole is allowed; the file then fails for its keys.
    assert!(open(&[("a", 64), ("b", 0)]).contains("lacks `general.architecture`"));
    for offset in [0, 16] {
        let overlap = open(&[("a", offset), ("c", 64), ("b", 0)]);
        assert!(overlap.contains("` share bytes; "), "{overlap}");
    }
    let twice = open(&[("token_embd.weight", 0), ("model.embed_tokens.weight", 32)]);
    assert!(twice.contains("`token_embd.weight` and `model.embed_tokens.weight` name one tensor"), "{twice}");
}

/// Opens what may be anything and reads all of it; the answer does not matter, only that there is one.
fn read_all(path: &Path) {
    if let Ok(checkpoint) = Checkpoint::open(path) {
        for name in checkpoint.names() {
            let _ = checkpoint.matrix(&name).map(|matrix| matrix.dequantize());
            let _ = checkpoint.vector(&name);
        }
        let _ = checkpoint.tokenizer();
    }
}

/// Bytes of a file with some changed: single bytes, whole numbers of 8 bytes, or the end cut off.
fn damage(bytes: &mut Vec<u8>, changes: &[(u32, u64, u8)]) {
    for &(place, value, kind) in changes {
        let header = bytes.len().min(2500);
        let at = place as usize % header.max(1);
        match kind % 4 {
            0 => bytes.truncate(place as usize % (bytes.len() + 1)),
            1 => bytes.iter_mut().skip(at).take(8).zip(value.to_le_bytes()).for_each(|(to, from)| *to = from),
            2 => bytes
                .iter_mut()
                .skip(at)
                .take(4)
                .zip((value as u32 % 40).to_le_bytes())
                .for_each(|(to, from)| *to = from),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value as u8),
        }
    }
}

/// A real file, where one is at hand: `UNSLOTHIFY_GGUF` is its path, `UNSLOTHIFY_GGUF_EXPECTED` a safetensors file of
/// what gguf makes of some of its tensors, in transformers' row order.
#[test]
fn a_real_gguf_reads_as_gguf_reads_it() {
    let (Some(path), Some(expected)) =
        (std::env::var_os("UNSLOTHIFY_GGUF"), std::env::var_os("UNSLOTHIFY_GGUF_EXPECTED"))
    else {
        eprintln!("not run: UNSLOTHIFY_GGUF and UNSLOTHIFY_GGUF_EXPECTED are not set");
        return;
    };
    let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
    println!("{:#?}\n{} parameters", checkpoint.config(), checkpoint.config().parameters());
    let TokenizerSource::Gguf(tokenizer) = checkpoint.tokenizer().unwrap() else { panic!("no GGUF tokenizer") };
    assert_eq!(tokenizer.tokens.len(), checkpoint.config().vocab_size);
    println!("{} {:?} {} merges, bos {:?}", tokenizer.model, tokenizer.pre, tokenizer.merges.len(), tokenizer.bos);
    let bytes = std::fs::read(expected).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.len() >= 3);
    for (name, view) in file.tensors() {
        let matrix = checkpoint.matrix(&name).unwrap();
        assert_eq!([matrix.rows, matrix.cols], view.shape(), "{name}");
        assert_same(&matrix.dequantize(), &f32s(view.data()), &name);
        println!("{name} {} {:?} equal", matrix.storage(), view.shape());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_gguf_files_never_panic(changes in prop::collection::vec((any::<u32>(), any::<u64>(), any::<u8>()), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = std::fs::read(fixture("tiny.gguf")).unwrap();
        damage(&mut bytes, &changes);
        let path = dir.path().join("damaged.gguf");
        std::fs::write(&path, bytes).unwrap();
        read_all(&path);
    }

    #[test]
    fn damaged_safetensors_never_panic(changes in prop::collection::vec((any::<u32>(), any::<u64>(), any::<u8>()), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = std::fs::read(fixture("bnb_double/model.safetensors")).unwrap();
        damage(&mut bytes, &changes);
        std::fs::copy(fixture("bnb_double/config.json"), dir.path().join("config.json")).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        read_all(dir.path());
    }
}
