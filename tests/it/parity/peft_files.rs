//! Adapter folders go both ways between PEFT and us, through the model a recipe holds.

use std::path::Path;
use std::process::Command;

use unslothify::optim::Settings;
use unslothify::train::{Algorithm, Device, Model, Optimizer, backward};

use super::fixture::{CASES, Case};

const CPU: Device = Device::Cpu { threads: Some(2) };

/// A model with PEFT's adapter after one update, so that what is saved is not what was read.
fn updated(case: &Case) -> Model {
    let model = case.adapted_model(CPU);
    let settings = Settings { weight_decay: 0.1, ..Settings::default() };
    let optimizer = Optimizer::new(&model.parameters().unwrap(), Algorithm::AdamW(settings)).unwrap();
    let before = model.adapter_tensors().unwrap();
    backward(&model.loss(&case.micro(1)).unwrap()).unwrap();
    optimizer.step(1e-2).unwrap();
    let after = model.adapter_tensors().unwrap();
    assert!(before.iter().zip(&after).all(|(a, b)| a.values != b.values), "{}: a tensor was not updated", case.name);
    model
}

/// The logits of the texts of a case's first batch, one after the other.
fn logits(model: &Model, case: &Case) -> Vec<f32> {
    case.facts.batches[0].iter().flat_map(|text| model.logits(&text.ids).unwrap()).collect()
}

#[test]
fn a_saved_adapter_reads_back_to_the_same_bits() {
    for name in CASES {
        let case = Case::open(name);
        let model = updated(&case);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("adapter");
        let saved = model.save_adapter(&at).unwrap();
        let again = case.model(CPU);
        let plain = logits(&again, &case);
        let loaded = again.load_adapter(&at).unwrap();
        assert_eq!((loaded.tensors, loaded.base.as_deref()), (saved.tensors, Some(model.origin())), "{name}");
        assert_eq!(model.lora().unwrap().lora_alpha, again.lora().unwrap().lora_alpha, "{name}");
        assert_eq!(model.adapter_tensors().unwrap(), again.adapter_tensors().unwrap(), "{name}");
        let wanted = logits(&model, &case);
        assert_eq!(logits(&again, &case), wanted, "{name}");
        assert_ne!(plain, wanted, "{name}");
    }
}

/// PEFT's adapter of a case with one key renamed.
fn renamed(case: &Case, from: &str, to: &str, folder: &Path) {
    let source = case.adapter_folder();
    std::fs::copy(source.join("adapter_config.json"), folder.join("adapter_config.json")).unwrap();
    let bytes = std::fs::read(source.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.names().iter().any(|name| name.contains(from)), "{from}");
    let tensors = file.tensors().into_iter().map(|(name, view)| (name.replace(from, to), view));
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn one_renamed_key_is_an_error_that_names_it_and_leaves_the_model_alone() {
    let case = Case::open("untied");
    let key = |layer: usize, rest: &str| format!("base_model.model.model.layers.{layer}.{rest}.weight");
    let model = case.model(CPU);
    let before = logits(&model, &case);
    for (from, to) in [
        (key(1, "self_attn.k_proj.lora_B"), key(1, "self_attn.k_proj.lora_C")), // no matrix of LoRA
        (key(0, "mlp.up_proj.lora_A"), key(0, "mlp.up_proj.lora_A.default")),
        (key(2, "mlp.down_proj.lora_B"), key(7, "mlp.down_proj.lora_B")), // alone in a layer there is not
        (key(1, "self_attn.q_proj.lora_A"), "q_proj.lora_A".to_owned()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        renamed(&case, &from, &to, folder.path());
        let error = model.load_adapter(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{to}`")), "{to} is not named: {error}");
        assert!(model.lora().is_none());
        assert_eq!(logits(&model, &case), before);
    }
    // A whole module in a layer the model does not have: every key is well formed, and none has a place.
    let folder = tempfile::tempdir().unwrap();
    renamed(&case, "layers.2.mlp.down_proj", "layers.7.mlp.down_proj", folder.path());
    let error = model.load_adapter(folder.path()).unwrap_err().to_string();
    for named in [key(7, "mlp.down_proj.lora_A"), key(2, "mlp.down_proj.lora_A")] {
        assert!(error.contains(&format!("`{named}`")), "{named} is not named: {error}");
    }
    assert!(model.lora().is_none());
}

/// Needs a Python with torch, transformers, peft (and bitsandbytes) in `UNSLOTHIFY_TEST_PYTHON`; run with
/// `cargo test --test it -- --ignored adapter_in_peft`.
#[test]
#[ignore = "not run: needs Python with peft, see UNSLOTHIFY_TEST_PYTHON"]
fn our_adapter_in_peft_matches_every_key_and_gives_our_logits() {
    let python = std::env::var("UNSLOTHIFY_TEST_PYTHON").expect("UNSLOTHIFY_TEST_PYTHON names a Python with peft");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/make/load_in_peft.py");
    for name in CASES {
        let case = Case::open(name);
        let model = updated(&case);
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        model.save_adapter(&at("adapter")).unwrap();
        let texts: Vec<&Vec<u32>> = case.facts.batches[0].iter().map(|text| &text.ids).collect();
        std::fs::write(at("ids.json"), serde_json::to_string(&texts).unwrap()).unwrap();
        let bytes: Vec<u8> = logits(&model, &case).iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(at("logits.f32"), bytes).unwrap();
        let output = Command::new(&python)
            .arg(&script)
            .args([case.folder.path(), &at("adapter"), &at("ids.json"), &at("logits.f32")])
            .output()
            .unwrap();
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{name}: {said}");
        assert!(output.status.success(), "{name}: {said}\n{complained}");
    }
}
