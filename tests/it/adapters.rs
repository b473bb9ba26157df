//! PEFT adapter files: written, read, and refused by name.

use std::path::Path;

use unslothify::train::{Device, LoraConfig};
use unslothify::weights::adapter::{self, AdapterConfig, AdapterTensor};

use super::tiny;

fn adapter_files() -> (AdapterConfig, Vec<AdapterTensor>) {
    let config = AdapterConfig {
        r: 2,
        lora_alpha: 16.0,
        target_modules: vec!["v_proj".into(), "q_proj".into()],
        base_model_name_or_path: Some("org/base".into()),
        ..AdapterConfig::default()
    };
    let mut tensors = Vec::new();
    for (module, out) in [("q_proj", 6), ("v_proj", 4)] {
        for (matrix, shape) in [('A', [2, 8]), ('B', [out, 2])] {
            let values = (0..shape[0] * shape[1]).map(|i| i as f32 * 0.25 - 1.0).collect();
            tensors.push(AdapterTensor { name: adapter::key(0, module, matrix).unwrap(), shape, values });
        }
    }
    (config, tensors)
}

#[test]
fn an_adapter_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, tensors) = adapter_files();
    let path = dir.path().join("out/adapter");
    adapter::write(&path, &config, &tensors).unwrap();
    let (read, back) = adapter::read(&path).unwrap();
    config.target_modules.sort();
    assert_eq!((read, back), (config, tensors));
    let text = std::fs::read_to_string(path.join("adapter_config.json")).unwrap();
    let keys: Vec<&str> =
        text.lines().filter(|line| line.starts_with("  \"")).map(|line| line.split('"').nth(1).unwrap()).collect();
    assert!(keys.is_sorted() && keys.len() == 23, "{keys:?}");
    assert!(text.contains("\n  \"lora_alpha\": 16,\n"), "{text}");
    let bytes = std::fs::read(path.join("adapter_model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn adapters_of_peft_are_read() {
    let parity = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity");
    for (case, modules, is_rslora) in [("untied", 7, false), ("q_and_v", 2, false), ("rslora", 7, true)] {
        let (config, tensors) = adapter::read(&parity.join(case).join("adapter")).unwrap();
        assert_eq!((config.target_modules.len(), config.use_rslora), (modules, is_rslora), "{case}");
        assert!(tensors.iter().all(|t| t.shape.contains(&config.r)), "{case}");
        assert_eq!(tensors.len() % (2 * modules), 0);
    }
}

#[test]
fn an_adapter_that_needs_more_than_lora_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = adapter_files();
    adapter::write(dir.path(), &config, &tensors).unwrap();
    let path = dir.path().join("adapter_config.json");
    let plain = std::fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| {
        assert!(plain.contains(from), "{from}");
        std::fs::write(&path, plain.replace(from, to)).unwrap();
        adapter::read(dir.path()).map(|(config, _)| config).map_err(|error| error.to_string())
    };
    for (from, to, key) in [
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
        ("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"),
        ("\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", "fan_in_fan_out"),
        ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "peft_type"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "init_lora_weights"),
    ] {
        let error = with(from, to).unwrap_err();
        assert!(error.starts_with(&format!("`{key}` in `")) && error.contains("is not supported"), "{error}");
    }
    let rank = with("\"r\": 2", "\"r\": 4").unwrap_err();
    assert!(rank.contains("its rank is 2") && rank.contains("`adapter_config.json` says 4"), "{rank}");
    let list = "[\n    \"q_proj\",\n    \"v_proj\"\n  ]";
    for pattern in ["\"all-linear\"", "\".*(q_proj|v_proj)\""] {
        assert_eq!(with(list, pattern).unwrap().target_modules, ["q_proj", "v_proj"]);
    }
    let ranks = with("\"rank_pattern\": {}", "\"rank_pattern\": {\"self_attn.q_proj\": 2}").unwrap();
    assert_eq!(ranks.rank_of("model.layers.0.self_attn.q_proj"), 2);
}

#[test]
fn keys_that_fit_no_module_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = adapter_files();
    adapter::write(dir.path(), &config, &tensors).unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = file.tensors().into_iter().map(|(name, view)| (name.replace("lora_A", "lora_A.default"), view));
    std::fs::write(&path, safetensors::serialize(renamed, None).unwrap()).unwrap();
    let error = adapter::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("holds 2 tensors whose names do not fit"), "{error}");
    assert!(error.contains("`base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight`"), "{error}");
    assert!(error.ends_with("`lora_A.weight`, not `lora_A.default.weight`"), "{error}");
    let mut half = tensors.clone();
    half.pop();
    adapter::write(dir.path(), &config, &half).unwrap();
    let error = adapter::read(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains(
            "`base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight` is missing, was a key renamed?"
        ),
        "{error}"
    );
}

/// A folder with the adapter of one layer of the tiny model, its config saying `target_modules` in another way.
fn adapter_by_pattern(folder: &Path, modules: &[&str], pattern: &str) {
    let model = tiny::model(Device::Cpu { threads: Some(1) });
    let target_modules = modules.iter().map(ToString::to_string).collect();
    model.add_lora(&LoraConfig { target_modules, layers_to_transform: Some(vec![1]), ..tiny::lora() }).unwrap();
    model.save_adapter(folder).unwrap();
    let path = folder.join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["target_modules"] = serde_json::from_str(pattern).unwrap();
    config["layers_to_transform"] = serde_json::Value::Null;
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn a_pattern_chooses_the_layers_that_the_file_has() {
    for (modules, pattern) in [
        (&["q_proj"][..], r#"".*layers\\.(1|2)\\..*q_proj""#),
        (&["q_proj", "up_proj"], r#"["layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]"#),
    ] {
        let folder = tempfile::tempdir().unwrap();
        adapter_by_pattern(folder.path(), modules, pattern);
        let model = tiny::model(Device::Cpu { threads: Some(1) });
        assert_eq!(model.load_adapter(folder.path()).unwrap().tensors, 2 * modules.len());
        let lora = model.lora().unwrap();
        assert_eq!((lora.target_modules.len(), lora.layers_to_transform), (modules.len(), Some(vec![1])));
    }
    // "all-linear" and a list of plain names mean every layer: a file that has only some is not whole.
    for pattern in ["\"all-linear\"", "[\"q_proj\"]"] {
        let folder = tempfile::tempdir().unwrap();
        adapter_by_pattern(folder.path(), &["q_proj"], pattern);
        let error = tiny::model(Device::Cpu { threads: Some(1) }).load_adapter(folder.path()).unwrap_err().to_string();
        assert!(error.contains("layers.0.self_attn.q_proj.lora_A.weight`"), "{error}");
        assert!(error.contains("which the file lacks"), "{error}");
    }
}

#[test]
fn a_pattern_of_other_modules_in_other_layers_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (config, mut tensors) = adapter_files();
    for tensor in &mut tensors {
        tensor.name = tensor.name.replace("layers.0.self_attn.v_proj", "layers.1.self_attn.v_proj");
    }
    adapter::write(dir.path(), &config, &tensors).unwrap();
    let path = dir.path().join("adapter_config.json");
    let list = "[\n    \"q_proj\",\n    \"v_proj\"\n  ]";
    let text = std::fs::read_to_string(&path).unwrap().replace(list, "\".*(0.*q_proj|1.*v_proj)\"");
    std::fs::write(&path, text).unwrap();
    let error = adapter::read(dir.path()).unwrap_err().to_string();
    assert!(error.starts_with("`target_modules` in `"), "{error}");
    assert!(error.ends_with("asks for `\".*(0.*q_proj|1.*v_proj)\"`, which is not supported; adapters that train the same modules in each of their layers are"), "{error}");
}
