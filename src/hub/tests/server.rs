//! A small hub on this machine: the API's answer for a model, addresses that lead to where the bytes lie, ranges, and
//! whatever can go wrong on the way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub line: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// What the server does wrong, and how often still.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status, code and `Retry-After` to requests whose line has this in it.
    Status { on: &'static str, status: u16, code: &'static str, rest: Option<u64>, times: u32 },
    /// Sends so many bytes of a body and closes the connection.
    Cut { after: usize, times: u32 },
    /// Puts other bytes under the name once a body has been cut.
    Swap { name: &'static str, bytes: Vec<u8> },
    /// Ignores ranges.
    NoRanges,
    /// Sends other bytes of the same length.
    Damage { times: u32 },
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Where redirects lead; empty: to the server itself.
    storage: &'static str,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
}

pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let server = Self { endpoint, state: state.clone() };
        files.iter().for_each(|(name, bytes)| server.put(name, bytes));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        server
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.state.lock().unwrap().files.insert(name.to_owned(), bytes.to_vec());
    }

    pub fn fault(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push(fault);
    }

    /// Lets redirects lead to another host.
    pub fn storage(&self, host: &'static str) {
        self.state.lock().unwrap().storage = host;
    }

    pub fn mend(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

/// Large files are known by their SHA-256, small ones by something as long as git's hash.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if is_large(name) { digest } else { digest[..40].to_owned() }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |name: &str| {
            let found = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
            found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
        };
        let seen = Seen { line: lines[0].clone(), range: header("range"), token: header("authorization") };
        state.lock().unwrap().seen.push(seen.clone());
        if !answer(&stream, state, &seen) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// Answers one request; false to close the connection.
fn answer(mut stream: &TcpStream, state: &Mutex<State>, seen: &Seen) -> bool {
    let mut state = state.lock().unwrap();
    let mut words = seen.line.split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let mut send = |status: u16, headers: &[(&str, String)], body: &[u8]| -> bool {
        let mut head = format!("HTTP/1.1 {status} X\r\n");
        if !headers.iter().any(|(name, _)| *name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let body = if method == "HEAD" { &[][..] } else { body };
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_ok()
    };
    for fault in &mut state.faults {
        if let Fault::Status { on, status, code, rest, times } = fault
            && *times > 0
            && seen.line.contains(*on)
        {
            *times -= 1;
            let mut headers = vec![("X-Error-Code", code.to_string()), ("X-Error-Message", "as told".to_owned())];
            headers.extend(rest.map(|rest| ("Retry-After", rest.to_string())));
            return send(*status, &headers, b"{}");
        }
    }
    if path.starts_with("/api/models/org/name/revision/") {
        let files: Vec<_> = state.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let told = serde_json::json!({ "id": "org/name", "sha": COMMIT, "siblings": files, "gated": false });
        return send(200, &[("Content-Type", "application/json".into())], told.to_string().as_bytes());
    }
    let resolve = format!("/org/name/resolve/{COMMIT}/");
    let (name, is_hub) = match (path.strip_prefix(&resolve), path.strip_prefix("/storage/")) {
        (Some(name), _) => (name.to_owned(), true),
        (None, Some(name)) => (name.to_owned(), false),
        _ => return send(404, &[("X-Error-Code", "RepoNotFound".into())], b""),
    };
    let Some(bytes) = state.files.get(&name).cloned() else {
        return send(404, &[("X-Error-Code", "EntryNotFound".into())], b"");
    };
    let etag = etag(&name, &bytes);
    if is_hub && is_large(&name) {
        let headers = [
            ("Location", format!("{}/storage/{name}", state.storage)),
            ("X-Linked-Etag", format!("\"{etag}\"")),
            ("X-Linked-Size", bytes.len().to_string()),
            ("X-Repo-Commit", COMMIT.to_owned()),
        ];
        return send(302, &headers, b"see there");
    }
    let mut headers = vec![("ETag", if is_hub { format!("\"{etag}\"") } else { "\"storage\"".to_owned() })];
    if is_hub {
        headers.push(("X-Repo-Commit", COMMIT.to_owned()));
    }
    let is_ranged = !state.faults.iter().any(|fault| matches!(fault, Fault::NoRanges));
    let start = seen.range.as_ref().filter(|_| is_ranged).map(|range| {
        range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
    });
    let mut body = bytes[start.unwrap_or(0).min(bytes.len())..].to_vec();
    headers.push(("Content-Length", body.len().to_string()));
    if let Some(start) = start {
        headers.push(("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())));
    }
    let mut is_cut = false;
    if method == "GET" && is_large(&name) {
        for fault in &mut state.faults {
            match fault {
                Fault::Cut { after, times } if *times > 0 => {
                    *times -= 1;
                    body.truncate(*after);
                    is_cut = true;
                }
                Fault::Damage { times } if *times > 0 => {
                    *times -= 1;
                    body.iter_mut().for_each(|byte| *byte ^= 1);
                }
                _ => {}
            }
        }
    }
    if is_cut
        && let Some(at) = state.faults.iter().position(|fault| matches!(fault, Fault::Swap { .. }))
        && let Fault::Swap { name, bytes } = state.faults.remove(at)
    {
        state.files.insert(name.to_owned(), bytes);
    }
    drop(state);
    send(if start.is_some() { 206 } else { 200 }, &headers, &body) && !is_cut
}
