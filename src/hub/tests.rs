#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use super::*;

fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
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

#[cfg(feature = "hub")]
#[test]
fn a_hub_id_is_found_in_the_cache_by_its_main_revision() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, nowhere) = (dir.path(), Path::new("nowhere"));
    let error = resolve_in("org/name", nowhere, cache).unwrap_err().to_string();
    assert!(error.contains("downloading is not there yet: fetch it with `hf download org/name`"), "{error}");
    let snapshot = "models--org--name/snapshots/0123abcd";
    put(cache, "models--org--name/refs/main", "0123abcd\n");
    put(cache, &format!("{snapshot}/config.json"), "{}");
    put(cache, "models--org--name/snapshots/older/config.json", "{}");
    assert!(
        resolve_in("org/name", nowhere, cache).unwrap_err().to_string().contains("without its `model.safetensors`")
    );
    put(cache, &format!("{snapshot}/model.safetensors"), "");
    let folder = cache.join(snapshot);
    let wanted = Source::Cached { id: "org/name".into(), revision: "0123abcd".into(), folder };
    assert_eq!(resolve_in("org/name", nowhere, cache).unwrap(), wanted);
}

#[test]
fn the_cache_folder_follows_hugging_faces_variables() {
    let with = |pairs: &[(&str, &str)]| {
        let pairs: Vec<(String, PathBuf)> = pairs.iter().map(|(k, v)| (k.to_string(), v.into())).collect();
        cache_folder(move |name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()))
    };
    assert_eq!(with(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
    assert_eq!(with(&[("HOME", "/h"), ("HF_HOME", "/x")]), Path::new("/x/hub"));
    assert_eq!(with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/x")]), Path::new("/c"));
}
