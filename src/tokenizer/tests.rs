#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};

use super::*;
use crate::philox::Philox;
use crate::weights::GgufTokenizer;

const SPACES: &str = include_str!("../../tests/fixtures/tokenizer_spaces.json");
const BYTE_LEVEL: &str = include_str!("../../tests/fixtures/tokenizer_byte_level.json");
const GOLDEN: &str = include_str!("../../tests/fixtures/tokenizer_golden.json");

fn roles(eos: u32) -> Roles {
    Roles { bos: None, eos: vec![eos], vocab_size: None }
}

fn load(text: &str) -> Result<Tokenizer> {
    Tokenizer::from_json(text.as_bytes(), "tokenizer.json", &roles(0))
}

fn spaces() -> Tokenizer {
    Tokenizer::from_json(SPACES.as_bytes(), "tokenizer.json", &roles(2)).unwrap()
}

fn byte_level() -> Tokenizer {
    load(BYTE_LEVEL).unwrap()
}

fn golden(name: &str) -> Vec<(String, Vec<u32>, String)> {
    let all: Value = serde_json::from_str(GOLDEN).unwrap();
    let rows = all[name].as_array().unwrap().iter();
    rows.map(|row| {
        let ids = row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        (row["text"].as_str().unwrap().to_owned(), ids, row["decoded"].as_str().unwrap().to_owned())
    })
    .collect()
}

/// The fixture with one value replaced.
fn with(file: &str, pointer: &str, value: Value) -> String {
    let mut root: Value = serde_json::from_str(file).unwrap();
    *root.pointer_mut(pointer).unwrap() = value;
    root.to_string()
}

#[test]
fn ids_and_texts_are_those_of_the_tokenizers_package() {
    for (name, tokenizer) in [("spaces", spaces()), ("byte_level", byte_level())] {
        for (text, ids, decoded) in golden(name) {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn special_tokens_never_come_from_text() {
    let hostile =
        ["</s>", "a</s>b", "<s><s>", "[INST] x [/INST]", "<unk>", "<|im_end|>", "<|endoftext|>", "<0x0A>", "[IN ST]"];
    for tokenizer in [spaces(), byte_level()] {
        for text in hostile {
            let plain = tokenizer.encode_plain(text).unwrap();
            assert!(plain.iter().all(|id| !tokenizer.0.pieces.is_special(*id)), "{text}: {plain:?}");
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        }
    }
}

#[test]
fn the_begin_token_is_added_once_and_the_end_never() {
    let tokenizer = spaces();
    assert_eq!(tokenizer.prefix(), [1]);
    assert_eq!(tokenizer.encode("").unwrap(), [1]);
    assert_eq!(tokenizer.encode("<s>").unwrap().iter().filter(|id| **id == 1).count(), 1);
    assert_eq!(tokenizer.bos(), Some(&Special { id: 1, text: "<s>".to_owned() }));
    assert_eq!(tokenizer.eos(), Some(&Special { id: 2, text: "</s>".to_owned() }));
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert_eq!(byte_level().prefix(), [0u32; 0]);

    let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let end = json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    let template = json!({
        "type": "TemplateProcessing", "single": [begin, begin, text, end], "pair": [],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] }, "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] } }
    });
    let twice = json!({ "type": "Sequence", "processors": [template, { "type": "ByteLevel" }, template] });
    for processor in [template, twice] {
        let tokenizer = load(&with(SPACES, "/post_processor", processor)).unwrap();
        assert_eq!(tokenizer.prefix(), [1]);
        let ids = tokenizer.encode("meat").unwrap();
        assert!(ids[0] == 1 && !ids[1..].contains(&1) && !ids.contains(&2));
    }
}

#[test]
fn truncation_padding_and_dropout_of_the_file_change_nothing() {
    let mut root: Value = serde_json::from_str(SPACES).unwrap();
    root["truncation"] = json!({ "direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5 });
    root["padding"] = json!({ "strategy": { "Fixed": 99 }, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>" });
    root["model"]["dropout"] = json!(0.9);
    let tokenizer = load(&root.to_string()).unwrap();
    for (text, ids, _) in golden("spaces") {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids);
    }
}

/// Random ids are broken UTF-8 in every way; a stream must give what decoding all of them gives.
#[test]
fn a_stream_joined_is_what_decode_gives() {
    for tokenizer in [spaces(), byte_level()] {
        let size = tokenizer.vocab_size() as f64;
        for seed in 0..400 {
            let random = Philox::new(seed, 7);
            let length = 1 + random.u32_at(0) as u64 % 40;
            // Half of the ids from the low range, where the byte tokens are.
            let ids: Vec<u32> = (0..length)
                .map(|i| {
                    (random.uniform_at(2 * i + 10)
                        * if random.uniform_at(2 * i + 11) < 0.5 { size } else { size.min(261.0) })
                        as u32
                })
                .collect();
            for continues in [false, true] {
                let mut stream = if continues { Stream::after_prompt(&tokenizer) } else { Stream::new(&tokenizer) };
                let mut joined = String::new();
                for id in &ids {
                    joined.push_str(&stream.push(*id).unwrap().unwrap_or_default());
                }
                joined.push_str(&stream.finish().unwrap_or_default());
                let all = tokenizer.decode(&ids).unwrap();
                if continues {
                    assert!(joined == all || joined == format!(" {all}"), "{ids:?}");
                } else {
                    assert_eq!(joined, all, "{ids:?}");
                }
            }
        }
    }
}

#[test]
fn a_stream_never_splits_a_character_and_keeps_spaces() {
    for (name, tokenizer) in [("spaces", spaces()), ("byte_level", byte_level())] {
        for (text, ids, decoded) in golden(name) {
            let mut stream = Stream::new(&tokenizer);
            let mut joined = String::new();
            for id in &ids {
                if let Some(piece) = stream.push(*id).unwrap() {
                    assert!(!piece.is_empty() && !piece.contains('\u{FFFD}'), "{text:?}: {piece:?}");
                    joined.push_str(&piece);
                }
            }
            assert_eq!(stream.finish(), None);
            assert_eq!(joined, decoded);
        }
    }
    let tokenizer = spaces();
    let ids = tokenizer.encode_plain("meat").unwrap();
    let mut stream = Stream::after_prompt(&tokenizer);
    let text: String = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(text, " meat");
}

#[test]
fn ids_outside_the_vocabulary_are_errors() {
    let tokenizer = spaces();
    let beyond = tokenizer.vocab_size() as u32;
    for id in [beyond, u32::MAX] {
        assert!(matches!(tokenizer.decode(&[id]), Err(Error::UnknownId { .. })));
        assert!(matches!(Stream::new(&tokenizer).push(id), Err(Error::UnknownId { .. })));
    }
}

#[test]
fn a_cut_or_damaged_file_is_an_error_that_says_where() {
    for end in (0..SPACES.len() - 2).step_by(61).filter(|end| SPACES.is_char_boundary(*end)) {
        let error = load(&SPACES[..end]).unwrap_err();
        assert!(matches!(error, Error::NotJson { line: 1.., .. } | Error::NotJson { line: 0, .. }), "{end}: {error}");
    }
    let error = load("{\"model\": {\n  oops").unwrap_err().to_string();
    assert_eq!(error, "tokenizer.json is not JSON at line 2, column 3: key must be a string; is the file complete?");
    assert!(matches!(load("\u{feff}[]"), Err(Error::Format { .. })));
    assert!(matches!(load("null"), Err(Error::Format { .. })));
    for (pointer, value, part) in [
        ("/model", json!(null), "no `model` object"),
        ("/model/type", json!("Unigram"), "`Unigram`"),
        ("/model/vocab", json!([]), "no `vocab`"),
        ("/model/vocab", json!({}), "empty"),
        ("/model/vocab/<s>", json!(-1), "token `<s>`"),
        ("/model/vocab/<s>", json!(1u64 << 40), "token `<s>`"),
        ("/model/vocab/<s>", json!(0), "two tokens have id 0"),
        ("/model/merges", json!({}), "no `merges`"),
        ("/model/merges/0", json!("a"), "merge 1 is no pair"),
        ("/model/merges/0", json!(["a", "nowhere to be found and longer than any token"]), "merge 1 needs"),
        ("/model/continuing_subword_prefix", json!("##a-long-prefix"), "continuing_subword_prefix"),
        ("/model/unk_token", json!("<nope>"), "`<nope>`"),
        ("/added_tokens", json!(5), "`added_tokens` is no list"),
        ("/added_tokens/0/id", json!(77), "added token `<unk>` has id 77"),
        ("/decoder", json!(null), "`none`"),
        ("/decoder", json!({ "type": "WordPiece" }), "`WordPiece`"),
        ("/decoder/decoders/0/content", json!("_"), "replaces something other"),
        ("/decoder/decoders/3/start", json!(7), "strips more"),
        ("/post_processor/type", json!("Odd"), "`Odd`"),
        ("/post_processor/special_tokens", json!({}), "without an id"),
        ("/post_processor/special_tokens/<s>/ids", json!([99999]), "id 99999"),
        (
            "/normalizer",
            json!({ "type": "Replace", "pattern": { "Regex": "(" }, "content": "" }),
            "no tokenizer that can be read",
        ),
        ("/pre_tokenizer", json!({ "type": "Nonsense" }), "no tokenizer that can be read"),
        ("/version", json!("9.9"), "no tokenizer that can be read"),
    ] {
        let error = load(&with(SPACES, pointer, value.clone())).unwrap_err().to_string();
        assert!(error.contains(part), "{pointer} = {value}: {error}");
    }
    let mut lossy: Value = serde_json::from_str(BYTE_LEVEL).unwrap();
    lossy["pre_tokenizer"] = Value::Null;
    assert!(load(&lossy.to_string()).unwrap_err().to_string().contains("characters would be lost"));
}

/// Whatever bytes a file holds: an error or a tokenizer that works, never a panic.
#[test]
fn random_damage_never_panics() {
    for file in [SPACES, BYTE_LEVEL] {
        for seed in 0..60 {
            let random = Philox::new(seed, 1);
            let mut bytes = file.as_bytes().to_vec();
            for i in 0..1 + seed % 4 {
                let at = (random.uniform_at(2 * i) * bytes.len() as f64) as usize;
                bytes[at] = b"0123456789\"{}[],:ax\\\xff"[random.u32_at(900 + i) as usize % 21];
            }
            if let Ok(tokenizer) = Tokenizer::from_json(&bytes, "x", &roles(0)) {
                for text in ["Köttbullar 🧆 </s>", "a b", ""] {
                    if let Ok(ids) = tokenizer.encode(text) {
                        let _ = tokenizer.decode(&ids);
                    }
                }
            }
        }
    }
}

#[test]
fn roles_that_do_not_fit_are_errors() {
    let build = |roles: Roles| Tokenizer::from_json(SPACES.as_bytes(), "x", &roles);
    let size = spaces().vocab_size();
    assert!(matches!(
        build(Roles { eos: vec![2, 50_000], ..Default::default() }),
        Err(Error::NoSuchSpecial { id: 50_000, .. })
    ));
    assert!(matches!(
        build(Roles { vocab_size: Some(size - 1), ..Default::default() }),
        Err(Error::MoreThanModel { .. })
    ));
    let tokenizer = build(Roles { eos: vec![2, 4, 2], vocab_size: Some(size + 64), ..Default::default() }).unwrap();
    assert_eq!(tokenizer.eos_ids(), [2, 4]);
    assert!(build(Roles::default()).unwrap().eos().is_none());
}

#[test]
fn a_folder_is_read_with_its_configs() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("tokenizer.json"), "{missing}");
    std::fs::write(folder.path().join("tokenizer.json"), SPACES).unwrap();
    assert!(Tokenizer::open(folder.path()).unwrap().eos().is_none());
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "</s>"}}"#).unwrap();
    assert_eq!(Tokenizer::open(folder.path()).unwrap().eos_ids(), [2]);
    std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": [4, 2], "vocab_size": 4000}"#).unwrap();
    assert_eq!(Tokenizer::open(&folder.path().join("tokenizer.json")).unwrap().eos_ids(), [4, 2]);
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(matches!(Tokenizer::open(folder.path()), Err(Error::NotJson { .. })));
}

/// The GGUF metadata that says the same as a `tokenizer.json`.
fn gguf_of(file: &str, model: &str) -> GgufTokenizer {
    let root: Value = serde_json::from_str(file).unwrap();
    let vocab = root["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, String)> =
        vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token.clone())).collect();
    tokens.sort();
    let special: Vec<&str> =
        root["added_tokens"].as_array().unwrap().iter().map(|token| token["content"].as_str().unwrap()).collect();
    let kind = |token: &String| match token.as_str() {
        "<unk>" => 2,
        token if special.contains(&token) => 3,
        token if token.starts_with("<0x") => 6,
        _ => 1,
    };
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.clone(),
        merge => format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()),
    };
    GgufTokenizer {
        model: model.to_owned(),
        pre: Some("smollm".to_owned()),
        token_types: tokens.iter().map(|(_, token)| kind(token)).collect(),
        scores: tokens.iter().map(|(id, _)| -(*id as f32)).collect(),
        tokens: tokens.into_iter().map(|(_, token)| token).collect(),
        merges: root["model"]["merges"].as_array().unwrap().iter().map(pair).collect(),
        bos: Some(if model == "llama" { 1 } else { 0 }),
        eos: Some(if model == "llama" { 2 } else { 0 }),
        eot: None,
        unk: None,
        pad: None,
        add_bos: None,
        add_eos: Some(true),
        add_space_prefix: None,
        chat_template: None,
    }
}

fn from_gguf(gguf: &GgufTokenizer) -> Result<Tokenizer> {
    Tokenizer::build(gguf::to_json(gguf)?, "the GGUF file's tokenizer", &roles(gguf.eos.unwrap_or(0)))
}

#[test]
fn a_gguf_tokenizer_gives_the_ids_of_its_tokenizer_json() {
    for (name, file, model) in [("spaces", SPACES, "llama"), ("byte_level", BYTE_LEVEL, "gpt2")] {
        let tokenizer = from_gguf(&gguf_of(file, model)).unwrap();
        for (text, ids, decoded) in golden(name) {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_gguf_tokenizer_written_as_json_gives_the_same_ids_to_hugging_faces_own_reader() {
    for (name, file, model) in [("spaces", SPACES, "llama"), ("byte_level", BYTE_LEVEL, "gpt2")] {
        let gguf = GgufTokenizer { add_bos: Some(true), ..gguf_of(file, model) };
        let ours = from_gguf(&gguf).unwrap();
        let bytes = Tokenizer::json_of(&gguf).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
        // There, unlike here, text can spell a special token.
        let plain: Vec<String> = golden(name).into_iter().map(|(text, _, _)| text).collect();
        let plain: Vec<String> = plain.into_iter().filter(|text| !text.contains(['<', '['])).collect();
        assert!(plain.len() > 10);
        for text in plain {
            let encoding = theirs.encode(text.as_str(), true).unwrap();
            assert_eq!(encoding.get_ids(), ours.encode(&text).unwrap(), "{name}: {text:?}");
        }
        let again = Tokenizer::from_json(&bytes, "written", &roles(gguf.eos.unwrap_or(0))).unwrap();
        assert_eq!((again.prefix(), again.bos()), (ours.prefix(), ours.bos()));
    }
}

#[test]
fn scores_become_merges_with_the_best_token_first() {
    let mut gguf = gguf_of(SPACES, "llama");
    let bytes: Vec<String> = gguf.tokens[..261].to_vec();
    gguf.tokens = bytes.into_iter().chain(["▁ab", "▁a", "bc", "▁", "a", "b", "c"].map(str::to_owned)).collect();
    gguf.scores = (0..gguf.tokens.len()).map(|id| if id < 261 { 0.0 } else { 260.0 - id as f32 }).collect();
    gguf.token_types.truncate(261);
    gguf.token_types.extend([1; 7]);
    gguf.merges.clear();
    let tokenizer = from_gguf(&gguf).unwrap();
    let id = |token: &str| tokenizer.id(token).unwrap();
    // `▁a` scores higher than `bc`, and `▁ab` higher still once `▁a` is there.
    assert_eq!(tokenizer.encode("abc").unwrap(), [1, id("▁ab"), id("c")]);
    assert_eq!(tokenizer.encode("bc").unwrap(), [1, id("▁"), id("bc")]);
    gguf.add_space_prefix = Some(false);
    let tokenizer = from_gguf(&gguf).unwrap();
    assert_eq!(tokenizer.encode("bc").unwrap(), [1, id("bc")]);
    assert_eq!(tokenizer.decode(&tokenizer.encode(" bc").unwrap()).unwrap(), " bc");
    gguf.add_bos = Some(false);
    assert_eq!(from_gguf(&gguf).unwrap().encode("bc").unwrap(), [id("bc")]);
}

#[test]
fn gguf_metadata_that_is_missing_or_unknown_is_named() {
    let error = |change: fn(&mut GgufTokenizer), model: &str| {
        let mut gguf = gguf_of(if model == "gpt2" { BYTE_LEVEL } else { SPACES }, model);
        change(&mut gguf);
        from_gguf(&gguf).unwrap_err().to_string()
    };
    assert!(error(|g| g.model = "bert".to_owned(), "gpt2").contains("`bert`"));
    let unknown = error(|g| g.pre = Some("mystery".to_owned()), "gpt2");
    assert!(unknown.contains("`mystery`") && unknown.contains("llama-bpe"), "{unknown}");
    assert!(error(|g| g.pre = None, "gpt2").contains("`tokenizer.ggml.pre`"));
    assert!(error(|g| g.tokens.clear(), "gpt2").contains("`tokenizer.ggml.tokens`"));
    assert!(error(|g| g.merges.clear(), "gpt2").contains("`tokenizer.ggml.merges`"));
    assert!(error(|g| g.scores.truncate(3), "llama").contains("`tokenizer.ggml.scores`"));
    assert!(error(|g| g.bos = None, "llama").contains("`tokenizer.ggml.bos_token_id`"));
    assert!(error(|g| g.bos = Some(1 << 20), "llama").contains("which it lacks"));
    for name in pre::KNOWN {
        let mut gguf = gguf_of(BYTE_LEVEL, "gpt2");
        gguf.pre = Some((*name).to_owned());
        let tokenizer = from_gguf(&gguf).unwrap();
        for text in ["Köttbullar, 1755 gram!", "don't  WON'T\n\n x", "🧆"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text, "{name}");
        }
    }
}

/// SmolLM2's vocabulary lacks the byte 0x04, among others.
#[test]
fn a_character_without_a_token_is_an_error_instead_of_a_gap() {
    let mut root: Value = serde_json::from_str(BYTE_LEVEL).unwrap();
    let vocab = root["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove("Ą").unwrap(); // 0x04
    vocab.remove("ó").unwrap(); // 0xF3, which begins characters of plane 15
    let tokenizer = load(&root.to_string()).unwrap();
    assert!(tokenizer.encode("köttbullar ó").is_ok());
    let error = tokenizer.encode("a\u{4}b").unwrap_err().to_string();
    assert_eq!(error, "the model has no token for '\\u{4}' (U+0004); take it out of the text");
    assert!(matches!(tokenizer.encode("a\u{F0000}"), Err(Error::NoToken { character: '\u{F0000}' })));
    assert!(byte_level().encode("a\u{4}b").is_ok());
}
