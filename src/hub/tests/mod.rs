#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod server;

use std::fs;

use super::*;

fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Finds `id` with the cache `cache`, and no network to fetch from.
fn resolve_in(id: &str, folder: &Path, cache: &Path) -> Result<Source> {
    let cache = cache.to_path_buf();
    let places = Places::new(move |name| match name {
        "HF_HUB_CACHE" => Some(cache.clone()),
        "HF_HUB_OFFLINE" => Some("1".into()),
        _ => None,
    });
    resolve(id, folder, &Access::new(&places, &Silent, &AtomicBool::new(false)))
}

#[test]
fn auto_is_the_built_in_model_and_others_of_that_kind_are_named() {
    let nowhere = Path::new("nowhere");
    for id in ["auto", TINY_MISTRAL] {
        assert_eq!(resolve_in(id, nowhere, nowhere).unwrap(), Source::Builtin(TINY_MISTRAL));
    }
    let error = resolve_in("builtin:huge", nowhere, nowhere).unwrap_err().to_string();
    assert_eq!(error, "there is no built-in model `builtin:huge`; there is `builtin:tiny-mistral`");
}

#[test]
fn a_folder_beside_the_recipe_wins_over_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "org/name/config.json", "{}");
    assert_eq!(resolve_in("org/name", dir.path(), dir.path()).unwrap(), Source::Path(dir.path().join("org/name")));
    let missing = resolve_in("./org/nam", dir.path(), dir.path()).unwrap_err().to_string();
    assert!(missing.contains("did you mean") && missing.contains("org/name"), "{missing}");
    assert!(matches!(resolve_in("model", dir.path(), dir.path()), Err(Error::Id { .. })));
}

#[test]
fn a_hub_id_is_found_in_the_cache_by_its_main_revision() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, nowhere) = (dir.path(), Path::new("nowhere"));
    let error = resolve_in("org/name", nowhere, cache).unwrap_err().to_string();
    assert!(error.starts_with("`org/name` is not on this machine and HF_HUB_OFFLINE forbids"), "{error}");
    let snapshot = "models--org--name/snapshots/0123abcd";
    put(cache, "models--org--name/refs/main", "0123abcd\n");
    put(cache, &format!("{snapshot}/config.json"), "{}");
    put(cache, "models--org--name/snapshots/older/config.json", "{}");
    let lacks = |name: &str| {
        let error = resolve_in("org/name", nowhere, cache).unwrap_err().to_string();
        assert!(error.contains(&format!("(`{name}` is missing)")), "{error}");
    };
    lacks("tokenizer.json");
    put(cache, &format!("{snapshot}/tokenizer.json"), "{}");
    lacks("model.safetensors");
    put(cache, &format!("{snapshot}/model.safetensors.index.json"), "{}");
    lacks("model.safetensors.index.json");
    put(cache, &format!("{snapshot}/model.safetensors.index.json"), "{\"weight_map\": {\"x\": \"a.safetensors\"}}");
    lacks("a.safetensors");
    put(cache, &format!("{snapshot}/a.safetensors"), "");
    let path = cache.join(snapshot);
    let wanted = Source::Cached { id: "org/name".into(), revision: "0123abcd".into(), path };
    assert_eq!(resolve_in("org/name", nowhere, cache).unwrap(), wanted);
}

#[test]
fn a_gguf_id_is_a_path_where_its_first_folder_is_here() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "models/x/a.gguf", "");
    let error = resolve_in("models/x/b.gguf", dir.path(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("did you mean") && error.contains("a.gguf"), "{error}");
    let error = resolve_in("org/name/b.gguf", dir.path(), dir.path()).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE forbids"), "{error}");
    put(dir.path(), "models--org--name/snapshots/1/b.gguf", "");
    let found = resolve_in("org/name/b.gguf", dir.path(), dir.path()).unwrap();
    assert!(matches!(found, Source::Cached { path, .. } if path.ends_with("snapshots/1/b.gguf")));
}

#[test]
fn the_places_follow_hugging_faces_variables() {
    let with = |pairs: &[(&str, &str)]| {
        let pairs: Vec<(String, PathBuf)> = pairs.iter().map(|(k, v)| (k.to_string(), v.into())).collect();
        Places::new(move |name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
    };
    let cache = |pairs: &[(&str, &str)]| with(pairs).cache;
    assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/x")]), Path::new("/x/hub"));
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
    assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/x")]), Path::new("/c"));
    assert_eq!(with(&[]).endpoint, "https://huggingface.co");
    assert_eq!(with(&[("HF_ENDPOINT", "https://mirror.example/")]).endpoint, "https://mirror.example");
    for (value, wanted) in [("1", true), ("yes", true), ("ON", true), ("0", false), ("", false), ("no", false)] {
        assert_eq!(with(&[("HF_HUB_OFFLINE", value)]).offline.is_some(), wanted, "{value}");
    }
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "token", "hf_file\n");
    put(dir.path(), "other", "hf_other");
    let home = dir.path().to_str().unwrap();
    let other = dir.path().join("other");
    let from = |pairs: &[(&str, &str)]| with(pairs).token_from.unwrap_or_default();
    assert_eq!(from(&[("HF_HOME", home)]), dir.path().join("token").display().to_string());
    assert_eq!(from(&[("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())]), other.display().to_string());
    assert_eq!(from(&[("HF_HOME", home), ("HF_TOKEN", "hf_x")]), "HF_TOKEN");
    assert_eq!(from(&[("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), "");
    assert_eq!(from(&[("HF_TOKEN", "two lines\nX: y")]), "", "no header can be made of it");
}
