//! Downloads from a server on this machine.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::server::{COMMIT, Fault, Server, etag};
use super::*;

/// Keeps what it hears.
#[derive(Default)]
struct Heard {
    notes: Mutex<Vec<String>>,
    last: Mutex<Option<(u64, u64)>>,
    /// Set once so many bytes have come.
    stop_at: Option<u64>,
    stop: AtomicBool,
}

impl Listener for Heard {
    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }

    fn progress(&self, done: u64, total: u64, _: &str) {
        *self.last.lock().unwrap() = Some((done, total));
        if self.stop_at.is_some_and(|at| done >= at) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn progress_end(&self) {}
}

/// A cache and a server with a model of some small files and one large one.
struct Place {
    server: Server,
    dir: tempfile::TempDir,
    weights: Vec<u8>,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Place {
    fn new() -> Self {
        let weights: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let files: [(&str, &[u8]); 6] = [
            ("config.json", b"{}"),
            ("tokenizer.json", b"{ }"),
            ("generation_config.json", b"{  }"),
            ("README.md", b"not needed"),
            ("consolidated.safetensors", b"the same weights under other names"),
            ("model.safetensors", &weights),
        ];
        let server = Server::start(&files);
        let dir = tempfile::tempdir().unwrap();
        let variables =
            vec![("HF_HUB_CACHE", dir.path().join("hub")), ("HF_ENDPOINT", PathBuf::from(&server.endpoint))];
        Self { server, dir, weights, variables }
    }

    fn places(&self) -> Places {
        let variables = self.variables.clone();
        Places::new(move |name| variables.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value.clone()))
    }

    fn repository(&self) -> PathBuf {
        self.dir.path().join("hub/models--org--name")
    }

    fn resolve(&self, id: &str, heard: &Heard) -> Result<Source> {
        let places = self.places();
        let access = Access { pause: Duration::from_millis(1), ..Access::new(&places, heard, &heard.stop) };
        resolve(id, Path::new("nowhere"), &access)
    }

    fn get(&self) -> Result<Source> {
        self.resolve("org/name", &Heard::default())
    }

    fn refused(&self) -> String {
        let error = self.get().unwrap_err().to_string();
        assert!(!error.contains("hf_secret"), "{error}");
        error
    }

    /// The model is there, byte for byte, as Hugging Face's tools lay it out.
    fn check(&self) {
        let (repository, snapshot) = (self.repository(), self.repository().join("snapshots").join(COMMIT));
        assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
        let names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
        assert_eq!(io::list(&snapshot).unwrap(), names);
        assert!(fs::read(snapshot.join("model.safetensors")).unwrap() == self.weights);
        #[cfg(unix)]
        {
            let wanted = Path::new("../../blobs").join(etag("model.safetensors", &self.weights));
            assert_eq!(fs::read_link(snapshot.join("model.safetensors")).unwrap(), wanted);
        }
        let blobs = io::list(&repository.join("blobs")).unwrap();
        assert!(blobs.len() == 4 && !blobs.iter().any(|name| name.contains("incomplete")), "{blobs:?}");
    }
}

#[test]
fn a_model_is_fetched_once_and_then_found_without_the_network() {
    let place = Place::new();
    let heard = Heard::default();
    let source = place.resolve("org/name", &heard).unwrap();
    let path = place.repository().join("snapshots").join(COMMIT);
    assert_eq!(source, Source::Cached { id: "org/name".into(), revision: COMMIT.into(), path });
    place.check();
    let notes = heard.notes.into_inner().unwrap();
    let wanted = format!("fetching `org/name` from {}: 4 files, 3 MB, to `", place.server.endpoint);
    assert!(notes.len() == 1 && notes[0].starts_with(&wanted), "{notes:?}");
    assert_eq!(heard.last.into_inner().unwrap(), Some((3_000_009, 3_000_009)));
    // What hf-hub asks is left out: it looks for a token of the machine's by itself.
    let seen = place.server.seen();
    assert!(seen.iter().filter(|seen| !seen.line.contains("/api/")).all(|seen| seen.token.is_none()));
    assert_eq!(place.get().unwrap(), source);
    assert!(place.server.seen().is_empty(), "the cache is whole");
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let mut place = Place::new();
    place.variables.push(("HF_HUB_OFFLINE", "1".into()));
    let error = place.refused();
    assert!(error.contains("HF_HUB_OFFLINE forbids fetching it") && error.contains("unset HF_HUB_OFFLINE"), "{error}");
    place.variables.pop();
    place.get().unwrap();
    place.variables.push(("TRANSFORMERS_OFFLINE", "true".into()));
    place.server.seen();
    place.get().unwrap();
    fs::remove_file(place.repository().join("snapshots").join(COMMIT).join("tokenizer.json")).unwrap();
    let error = place.refused();
    assert!(error.contains("as a whole (`tokenizer.json` is missing)"), "{error}");
    assert!(place.server.seen().is_empty());
    place.variables.pop();
    place.get().unwrap();
    let seen = place.server.seen();
    assert!(!seen.iter().any(|seen| seen.line.starts_with("GET /org")), "its blob is there: {seen:?}");
    place.check();
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_stopped() {
    let place = Place::new();
    place.server.fault(Fault::Cut { after: 1_000_000, times: 2 });
    place.get().unwrap();
    place.check();
    let ranges: Vec<String> = place.server.seen().into_iter().filter_map(|seen| seen.range).collect();
    // once to the hub, once to the storage
    assert_eq!(ranges, ["bytes=1000000-", "bytes=1000000-", "bytes=2000000-", "bytes=2000000-"]);
}

#[test]
fn a_transfer_that_brings_nothing_new_ends_and_the_next_run_goes_on() {
    let place = Place::new();
    place.server.fault(Fault::Status { on: "GET /storage", status: 503, code: "", rest: None, times: 1000 });
    let error = place.refused();
    assert!(error.contains("status 503") && error.contains("5 times by now") && error.contains("run again"), "{error}");
    place.server.mend();
    place.server.fault(Fault::Cut { after: 700_000, times: 1000 });
    place.server.seen();
    place.get().unwrap();
    place.check();
}

#[test]
fn a_stopped_transfer_keeps_its_part_and_no_half_file_is_taken_for_whole() {
    let place = Place::new();
    let heard = Heard { stop_at: Some(1), ..Heard::default() };
    place.server.fault(Fault::Cut { after: 500_000, times: 1 });
    assert!(matches!(place.resolve("org/name", &heard), Err(Error::Cancelled)));
    let part = place.repository().join("blobs").join(etag("model.safetensors", &place.weights) + ".incomplete");
    // As a killed process leaves it.
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, &place.weights[..1_234_567]).unwrap();
    assert!(!place.repository().join("snapshots").join(COMMIT).join("model.safetensors").exists());
    place.server.mend();
    place.server.seen();
    let heard = Heard::default();
    place.resolve("org/name", &heard).unwrap();
    assert!(heard.notes.lock().unwrap()[0].contains("(1 MB of it are here already)"), "{:?}", heard.notes);
    let ranges: Vec<String> = place.server.seen().into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges, ["bytes=1234567-"; 2]);
    place.check();
}

#[test]
fn a_part_of_wrong_bytes_is_thrown_away_and_fetched_anew() {
    let place = Place::new();
    let part = place.repository().join("blobs").join(etag("model.safetensors", &place.weights) + ".incomplete");
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    for wrong in [vec![0; 1000], vec![0; 3_000_000], vec![0; 4_000_000]] {
        fs::write(&part, wrong).unwrap();
        place.get().unwrap();
        place.check();
        fs::remove_dir_all(place.repository().join("snapshots")).unwrap();
        fs::remove_file(place.repository().join("blobs").join(etag("model.safetensors", &place.weights))).unwrap();
    }
}

#[test]
fn damaged_bytes_are_never_kept() {
    let place = Place::new();
    place.server.fault(Fault::Damage { times: 1 });
    place.get().unwrap();
    place.check();
    let place = Place::new();
    place.server.fault(Fault::Damage { times: 2 });
    let error = place.refused();
    assert!(error.contains("wrong checksum twice") && error.contains("nothing of it is kept"), "{error}");
    let blob = place.repository().join("blobs").join(etag("model.safetensors", &place.weights));
    assert!(!blob.exists());
    assert_eq!(io::len(&blob.with_extension("incomplete")).unwrap_or(0), 0);
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let place = Place::new();
    place.server.fault(Fault::Cut { after: 2_000_000, times: 1 });
    place.server.fault(Fault::NoRanges);
    place.get().unwrap();
    place.check();
}

#[test]
fn a_file_that_changes_between_two_parts_is_not_mixed() {
    let mut place = Place::new();
    let old = etag("model.safetensors", &place.weights);
    place.weights.reverse();
    place.server.fault(Fault::Cut { after: 1_000_000, times: 1 });
    place.server.fault(Fault::Swap { name: "model.safetensors", bytes: place.weights.clone() });
    let error = place.refused();
    assert!(error.starts_with("`model.safetensors` changed on the hub while it was fetched"), "{error}");
    let blobs = place.repository().join("blobs");
    assert_eq!(io::len(&blobs.join(format!("{old}.incomplete"))).unwrap(), 1_000_000);
    place.get().unwrap();
    let snapshot = place.repository().join("snapshots").join(COMMIT);
    assert!(fs::read(snapshot.join("model.safetensors")).unwrap() == place.weights, "the new one, from its beginning");
    assert!(!blobs.join(old).exists());
}

#[test]
fn a_busy_hub_is_asked_again_after_the_pause_it_wants() {
    let place = Place::new();
    for (on, status) in [("/api/", 429), ("HEAD", 502), ("GET /org/name/resolve", 503), ("GET /storage", 500)] {
        place.server.fault(Fault::Status { on, status, code: "", rest: None, times: 2 });
    }
    place.server.fault(Fault::Status { on: "HEAD", status: 429, code: "", rest: Some(1), times: 1 });
    let started = std::time::Instant::now();
    place.get().unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After was 1");
    place.check();
    let place = Place::new();
    place.server.fault(Fault::Status { on: "HEAD", status: 429, code: "", rest: Some(3600), times: 1 });
    let error = place.refused();
    assert!(error.contains("wants 3600 seconds of rest"), "{error}");
    place.server.mend();
    place.server.fault(Fault::Status { on: "/api/", status: 429, code: "", rest: None, times: 100 });
    let error = place.refused();
    assert!(error.contains("status 429") && error.contains("with HF_TOKEN set the limits are wider"), "{error}");
}

#[test]
fn who_may_not_is_told_the_page_and_the_variable() {
    let mut place = Place::new();
    let page = format!("open {}/org/name", place.server.endpoint);
    place.server.fault(Fault::Status { on: "HEAD", status: 403, code: "GatedRepo", rest: None, times: 1 });
    let error = place.refused();
    assert!(error.contains("gated") && error.contains(&page) && error.contains("set HF_TOKEN"), "{error}");
    assert!(error.contains("/settings/tokens") && !error.contains("was sent"), "{error}");
    place.variables.push(("HF_TOKEN", "hf_secret".into()));
    place.server.fault(Fault::Status { on: "HEAD", status: 401, code: "GatedRepo", rest: None, times: 1 });
    let error = place.refused();
    assert!(error.contains("the token of `HF_TOKEN` was sent"), "{error}");
    place.server.fault(Fault::Status { on: "/api/", status: 401, code: "", rest: None, times: 1 });
    let error = place.refused();
    assert!(error.contains("the hub refuses `org/name` (status 401) (\"as told\")"), "{error}");
    place.server.fault(Fault::Status { on: "/api/", status: 401, code: "RepoNotFound", rest: None, times: 1 });
    assert!(place.refused().contains("knows no model `org/name`"));
    place.server.seen();
    place.get().unwrap();
    place.check();
    // The token goes to the hub on every request; here the storage is on the same host, and so gets it.
    let seen = place.server.seen();
    let hub = seen.iter().filter(|seen| !seen.line.contains("/storage/"));
    assert!(hub.clone().count() > 5 && hub.clone().all(|seen| seen.token.as_deref() == Some("Bearer hf_secret")));
    assert_eq!(format!("{:?}", place.places().token), "Some(Token(…))");
}

#[test]
fn the_token_stays_with_the_hub() {
    // The storage of this hub is another host: the same server by its other name.
    let mut place = Place::new();
    place.variables.push(("HF_TOKEN", "hf_secret".into()));
    let port = place.server.endpoint.rsplit(':').next().unwrap().to_owned();
    let elsewhere: &'static str = Box::leak(format!("http://localhost:{port}").into_boxed_str());
    place.server.storage(elsewhere);
    place.get().unwrap();
    let seen = place.server.seen();
    let storage: Vec<_> = seen.iter().filter(|seen| seen.line.contains("/storage/")).collect();
    assert!(!storage.is_empty() && storage.iter().all(|seen| seen.token.is_none()), "{storage:?}");
}

#[test]
fn a_model_that_is_not_there_may_be_meant_differently() {
    let place = Place::new();
    place.get().unwrap();
    let error = place.resolve("org/nane", &Heard::default()).unwrap_err().to_string();
    assert!(error.contains("did you mean `org/name`?") && error.contains("private"), "{error}");
    let error = place.resolve("mistralai/Mistral-7b-v0.3", &Heard::default()).unwrap_err().to_string();
    assert!(error.contains("did you mean `mistralai/Mistral-7B-v0.3`?"), "{error}");
}

#[test]
fn a_model_in_shards_and_one_gguf_file_are_fetched() {
    let mut place = Place::new();
    let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let index = format!("{{\"weight_map\": {{\"x\": \"{a}\", \"y\": \"{b}\", \"z\": \"{a}\"}}}}");
    let files: [(&str, &[u8]); 6] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index.as_bytes()),
        (a, b"first"),
        (b, b"second"),
        ("small.Q4_0.gguf", b"GGUF"),
    ];
    place.server = Server::start(&files);
    place.variables.push(("HF_ENDPOINT", PathBuf::from(&place.server.endpoint)));
    place.get().unwrap();
    let snapshot = place.repository().join("snapshots").join(COMMIT);
    assert_eq!(
        (fs::read(snapshot.join(a)).unwrap(), fs::read(snapshot.join(b)).unwrap()),
        (b"first".to_vec(), b"second".to_vec())
    );
    fs::remove_file(snapshot.join(b)).unwrap();
    place.get().unwrap();
    assert!(snapshot.join(b).exists(), "a shard that was missing");
    let Source::Cached { path, .. } = place.resolve("org/name/small.Q4_0.gguf", &Heard::default()).unwrap() else {
        panic!("not in the cache")
    };
    assert_eq!(fs::read(path).unwrap(), b"GGUF");
    let error = place.resolve("org/name/large.gguf", &Heard::default()).unwrap_err().to_string();
    assert_eq!(error, "`org/name` has no file `large.gguf`; it has: small.Q4_0.gguf");
    place.server = Server::start(&[("config.json", b"{}"), ("x.Q8_0.gguf", b"GGUF")]);
    place.variables.push(("HF_ENDPOINT", PathBuf::from(&place.server.endpoint)));
    fs::remove_dir_all(place.repository()).unwrap();
    let error = place.refused();
    assert_eq!(error, "`org/name` has no safetensors weights; name one of its GGUF files: org/name/x.Q8_0.gguf");
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let mut place = Place::new();
    let index = "{\"weight_map\": {\"x\": \"../../../evil.safetensors\"}}";
    let files: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors.index.json", index.as_bytes())];
    place.server = Server::start(&files);
    place.variables.push(("HF_ENDPOINT", PathBuf::from(&place.server.endpoint)));
    assert!(place.refused().contains("does not list the model's shards"));
    for id in ["org/../../x.gguf", "org/name/../x.gguf", "../org/name/x.gguf"] {
        assert!(place.resolve(id, &Heard::default()).is_err(), "{id}");
    }
}

#[test]
fn no_network_says_what_can_be_done() {
    let mut place = Place::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    place.variables.push(("HF_ENDPOINT", format!("http://{closed}").into()));
    let error = place.refused();
    let wanted =
        format!("`org/name` is not in the Hugging Face cache, and the hub http://{closed} cannot be reached (");
    assert!(error.starts_with(&wanted) && error.contains("refused"), "{error}");
    assert!(error.contains("HF_HUB_OFFLINE=1") && error.contains("HTTPS_PROXY") && error.contains("folder"), "{error}");
    place.variables.push(("HF_ENDPOINT", "huggingface.co".into()));
    assert!(place.refused().contains("HF_ENDPOINT is `huggingface.co`, which is no address"));
}

#[test]
fn auto_falls_back_to_the_built_in_base_and_says_so() {
    let mut place = Place::new();
    let gpu = Room::Gpu { free_bytes: 78 << 30 };
    let auto = |place: &Place, room| {
        let (places, heard) = (place.places(), Heard::default());
        let access = Access { pause: Duration::from_millis(1), ..Access::new(&places, &heard, &heard.stop) };
        resolve_auto(room, true, &access)
    };
    let (source, told) = auto(&place, Room::Cpu).unwrap();
    assert_eq!(source, Source::Builtin(TINY_MISTRAL));
    assert!(told.contains("because a larger one takes hours on a CPU") && told.contains("--set base_model="), "{told}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    place.variables.push(("HF_ENDPOINT", format!("http://{closed}").into()));
    let (source, told) = auto(&place, gpu).unwrap();
    assert_eq!(source, Source::Builtin(TINY_MISTRAL));
    assert!(told.contains("cannot be reached"), "{told}");
    place.variables.push(("HF_HUB_OFFLINE", "1".into()));
    let (source, told) = auto(&place, gpu).unwrap();
    assert_eq!(source, Source::Builtin(TINY_MISTRAL));
    assert!(told.contains("HF_HUB_OFFLINE forbids fetching it"), "{told}");
    // A whole one in the cache is taken without asking anybody.
    let snapshot = place.dir.path().join("hub/models--mistralai--Mistral-7B-v0.3/snapshots/abc");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        put(&snapshot, name, "");
    }
    let (source, told) = auto(&place, gpu).unwrap();
    assert!(matches!(source, Source::Cached { id, .. } if id == SIXTEEN_BIT), "{told}");
    assert!(told.contains("from the Hugging Face cache"), "{told}");
}
