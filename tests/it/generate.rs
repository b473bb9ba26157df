//! Text from a model.

use std::error::Error as StdError;
use std::ops::ControlFlow;

use unslothify::generate::{Decoder, Error, Finish, Options, Sampling, generate};
use unslothify::tokenizer::Tokenizer;
use unslothify::train::{Device, LoadSettings, Model};

use super::tiny;

#[test]
fn the_cache_gives_what_reading_the_whole_text_gives() {
    let model = tiny::model(Device::Cpu { threads: Some(2) });
    tiny::with_lora(&model);
    let options = Options { max_new_tokens: 12, ..Options::default() };
    let generated = model.generate("Soak the bread", &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let mut ids = model.tokenizer().encode("Soak the bread").unwrap();
    for expected in &generated.ids {
        let logits = model.logits(&ids).unwrap();
        let last = &logits[logits.len() - model.config().vocab_size..];
        let best = (0..last.len()).fold(0, |best, i| if last[i] > last[best] { i } else { best });
        assert_eq!(best as u32, *expected, "at {}", ids.len());
        ids.push(*expected);
    }
}

#[test]
fn a_seed_gives_the_same_text_again_and_another_seed_another() {
    let model = tiny::model(Device::Cpu { threads: Some(2) });
    let text = |seed| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let mut shown = String::new();
        let options = Options { max_new_tokens: 24, sampling, ..Options::default() };
        let generated = model
            .generate("Butter", &options, &mut |piece| {
                shown.push_str(piece);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(shown, generated.text);
        generated.text
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn a_generation_config_says_where_a_text_ends() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let options = Options { max_new_tokens: 12, ..Options::default() };
    let generated = |config: Option<&str>| {
        if let Some(config) = config {
            std::fs::write(dir.path().join("generation_config.json"), config).unwrap();
        }
        let model = Model::from_pretrained(".", dir.path(), &LoadSettings::default()).map_err(|e| e.to_string())?;
        assert_eq!(model.tokenizer().eos().unwrap().id, 2, "training ends a text as the config says");
        Ok::<_, String>(model.generate("Soak the bread", &options, &mut |_| ControlFlow::Continue(())).unwrap())
    };
    let whole = generated(None).unwrap();
    assert_eq!((whole.finish, whole.ids.len()), (Finish::Length, 12));
    let end = whole.ids[4];
    let first = whole.ids.iter().position(|id| *id == end).unwrap();
    for config in [format!("{{\"eos_token_id\": {end}}}"), format!("{{\"eos_token_id\": [2, {end}], \"top_p\": 0.9}}")]
    {
        let short = generated(Some(&config)).unwrap();
        assert_eq!((short.finish, &short.ids), (Finish::EndOfText, &whole.ids[..=first].to_vec()), "{config}");
    }
    assert_eq!(generated(Some("{\"eos_token_id\": null}")).unwrap(), whole);
    for (config, part) in [("{\"eos_token_id\": \"</s>\"}", "a token id"), ("{\"eos", "generation_config.json")] {
        let error = generated(Some(config)).unwrap_err();
        assert!(error.contains(part) && error.contains("generation_config.json"), "{error}");
    }
    assert!(generated(Some("{\"eos_token_id\": 99999}")).unwrap_err().contains("99999"));
}

/// Says the tokens it was given, one after the other.
struct Parrot {
    tokens: Vec<u32>,
    said: usize,
    vocabulary: usize,
}

impl Decoder for Parrot {
    fn read(&mut self, _: &[u32]) -> Result<Vec<f32>, Box<dyn StdError + Send + Sync>> {
        let mut logits = vec![0.0; self.vocabulary];
        logits[self.tokens[self.said] as usize] = 9.0;
        self.said += 1;
        Ok(logits)
    }

    fn context(&self) -> usize {
        128
    }
}

fn say(text: &str, options: &Options) -> (Vec<String>, unslothify::generate::Generated) {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let mut tokens = tokenizer.encode_plain(text).unwrap();
    tokens.push(2);
    let mut parrot = Parrot { tokens, said: 0, vocabulary: tokenizer.vocab_size() };
    let mut pieces = Vec::new();
    let generated = generate(&mut parrot, &tokenizer, "Say", options, &mut |piece| {
        pieces.push(piece.to_owned());
        ControlFlow::Continue(())
    })
    .unwrap();
    (pieces, generated)
}

#[test]
fn the_end_is_never_shown_and_letters_come_whole() {
    let (pieces, generated) = say("köttbullar på bål", &Options::default());
    assert_eq!(generated.text, " köttbullar på bål");
    assert_eq!(generated.finish, Finish::EndOfText);
    assert_eq!(pieces.concat(), generated.text);
    assert!(pieces.iter().any(|piece| piece == "ö"), "{pieces:?}");
    assert_eq!(generated.ids.last(), Some(&2));
}

#[test]
fn stop_strings_and_the_number_of_tokens_end_a_text() {
    let options = Options { stop: vec!["bul".into(), "zzz".into()], ..Options::default() };
    let (pieces, generated) = say("köttbullar", &options);
    assert_eq!((generated.text.as_str(), generated.finish), (" kött", Finish::Stop));
    assert_eq!(pieces.concat(), " kött");
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), 1);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let mut tokens = tokenizer.encode_plain("meatballs").unwrap();
    tokens.push(2);
    let mut parrot = Parrot { tokens, said: 0, vocabulary: tokenizer.vocab_size() };
    let enough = &mut |_: &str| ControlFlow::Break(());
    let generated = generate(&mut parrot, &tokenizer, "Say", &Options::default(), enough).unwrap();
    assert_eq!((generated.text.as_str(), generated.finish), (" ", Finish::Stopped), "the first piece was enough");
    let (_, generated) = say("meatballs", &Options { max_new_tokens: 5, ..Options::default() });
    assert_eq!((generated.text.as_str(), generated.finish), (" meat", Finish::Length));
    let (_, generated) = say("meatballs", &Options { max_new_tokens: 0, ..Options::default() });
    assert_eq!((generated.text.as_str(), generated.ids.len()), ("", 0));
}

#[test]
fn more_than_the_model_reads_is_an_error_that_says_how_much_is_left() {
    let model = tiny::model(Device::Cpu { threads: Some(1) });
    let long = "a".repeat(1100);
    for (prompt, new, told) in
        [("Roll", 2000, "ask for at most 1018 new tokens"), (long.as_str(), 1, "give a shorter prompt")]
    {
        let options = Options { max_new_tokens: new, ..Options::default() };
        let error = model.generate(prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
        let is_it = matches!(&error, unslothify::train::Error::Generate(Error::Context { .. }));
        assert!(is_it && error.to_string().contains(told), "{error}");
    }
}
