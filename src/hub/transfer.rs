//! One file from the hub to its blob: resumed where a part of it is there, verified before it gets its name.

use std::time::{Duration, Instant};

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::cache::Repository;
use super::http::{Failed, Http, Meta, STALL, TICK, text};
use super::{Error, Listener, Result};
use crate::io::{self, Part};

/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_millis(100);

/// How far all files together are.
pub(super) struct Meter<'a> {
    listener: &'a dyn Listener,
    total: u64,
    done: u64,
    /// What was there at the start.
    kept: u64,
    started: Instant,
    told: Option<Instant>,
}

impl<'a> Meter<'a> {
    pub fn new(listener: &'a dyn Listener, total: u64, kept: u64) -> Self {
        Self { listener, total, done: kept, kept, started: Instant::now(), told: None }
    }

    fn add(&mut self, bytes: u64) {
        self.done = (self.done + bytes).min(self.total);
        if self.done == self.total || self.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            self.told = Some(Instant::now());
            let seconds = self.started.elapsed().as_secs_f64().max(0.1);
            let speed = self.done.saturating_sub(self.kept) as f64 / seconds;
            let left = self.total.saturating_sub(self.done) as f64 / speed.max(1.0);
            let left = if left < 86_400.0 { left as u64 } else { 86_400 };
            let detail = format!("{:.1} MB/s   {}:{:02} left", speed / 1e6, left / 60, left % 60);
            self.listener.progress(self.done, self.total, &detail);
        }
    }

    /// Takes back what was thrown away.
    fn take_back(&mut self, bytes: u64) {
        self.done = self.done.saturating_sub(bytes);
    }
}

/// A file to fetch.
pub(super) struct File<'a> {
    pub commit: &'a str,
    pub name: &'a str,
    pub meta: &'a Meta,
}

/// Fetches `file` to its blob and links it into its snapshot.
pub(super) fn fetch(http: &Http<'_>, repository: &Repository, file: &File<'_>, meter: &mut Meter<'_>) -> Result<()> {
    let File { commit, name, meta } = *file;
    let blob = repository.blob(&meta.etag);
    let lock = lock(http, repository, file)?;
    if io::is_file(&blob) {
        // Another process has fetched it meanwhile.
        meter.add(meta.size);
    } else {
        let mut part = Part::open(&repository.part(&meta.etag))?;
        let mut digest = Digesting::default();
        if part.len() > meta.size {
            meter.take_back(meta.size);
            part.clear()?;
        }
        part.read(|bytes| {
            digest.update(bytes);
            http.access.check().is_ok()
        })?;
        http.access.check()?;
        let mut was_corrupt = false;
        http.insist(name, |came| {
            attempt(http, file, &mut part, &mut digest, meter, came)?;
            match digest.check(meta) {
                Ok(()) => Ok(()),
                Err(got) => {
                    meter.take_back(part.len());
                    part.clear()?;
                    digest = Digesting::default();
                    let (what, wanted) = (name.to_owned(), meta.etag.clone());
                    let error = Error::Corrupt { what, got, wanted };
                    Err(if std::mem::replace(&mut was_corrupt, true) { Failed::from(error) } else { http.again(error) })
                }
            }
        })?;
        part.finish(&blob)?;
    }
    drop(lock);
    repository.link(commit, name, &meta.etag)
}

/// Waits until no other process fetches the same file.
fn lock(http: &Http<'_>, repository: &Repository, file: &File<'_>) -> Result<io::Lock> {
    let path = repository.lock(&file.meta.etag);
    let mut is_told = false;
    loop {
        if let Some(lock) = io::try_lock(&path)? {
            return Ok(lock);
        }
        http.access.check()?;
        if !std::mem::replace(&mut is_told, true) {
            let text = format!("another process fetches `{}`: waiting for it (`{}`)", file.name, path.display());
            http.access.listener.note(&text);
        }
        std::thread::sleep(TICK);
    }
}

/// One request for what is missing; ends well when every byte is there.
fn attempt(
    http: &Http<'_>,
    file: &File<'_>,
    part: &mut Part,
    digest: &mut Digesting,
    meter: &mut Meter<'_>,
    came: &mut u64,
) -> Result<(), Failed> {
    let File { commit, name, meta } = *file;
    if part.len() == meta.size {
        return Ok(());
    }
    let url = http.address(commit, name)?;
    let start = part.len();
    http.run(async {
        let mut response = http.get(url, name, start, meta).await?;
        if start > 0 && !goes_on(&response, start, meta.size) {
            // A server that sends the whole file, or that has less than we do: from the beginning then.
            meter.take_back(start);
            part.clear()?;
            *digest = Digesting::default();
            if response.status() != StatusCode::OK {
                let reason = format!("it does not go on at byte {start}");
                return Err(http.again(http.not_understood(name, &reason)));
            }
        }
        let broken = |part: &Part, reason: &str| {
            let (what, got, size) = (name.to_owned(), part.len(), meta.size);
            http.again(Error::Broken { what, got, size, reason: reason.to_owned() })
        };
        let mut since = Instant::now();
        while part.len() < meta.size {
            match timeout(TICK, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    since = Instant::now();
                    let room = usize::try_from(meta.size - part.len()).unwrap_or(usize::MAX);
                    if bytes.len() > room {
                        meter.take_back(part.len());
                        part.clear()?;
                        *digest = Digesting::default();
                        return Err(http.not_understood(name, "more bytes come than it told").into());
                    }
                    part.write(&bytes)?;
                    digest.update(&bytes);
                    *came += bytes.len() as u64;
                    meter.add(bytes.len() as u64);
                }
                Ok(Ok(None)) => return Err(broken(part, "the connection ended")),
                Ok(Err(error)) => return Err(broken(part, &error.without_url().to_string())),
                Err(_) if since.elapsed() >= STALL => return Err(broken(part, "nothing came for a minute")),
                Err(_) => {}
            }
            http.access.check()?;
        }
        Ok(())
    })
}

/// Whether the answer begins at byte `start` of a file of `size` bytes.
fn goes_on(response: &Response, start: u64, size: u64) -> bool {
    let range = text(response.headers(), CONTENT_RANGE.as_str());
    let fits = range
        .is_some_and(|range| range.starts_with(&format!("bytes {start}-")) && range.ends_with(&format!("/{size}")));
    response.status() == StatusCode::PARTIAL_CONTENT && fits
}

/// The checksum of what has come.
#[derive(Default)]
struct Digesting(Sha256);

impl Digesting {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Compares with the etag, where that is a SHA-256; gives the wrong one otherwise. Of small files, kept in git, only
    /// the size is known: it was checked.
    fn check(&self, meta: &Meta) -> Result<(), String> {
        let is_sha256 = meta.etag.len() == 64 && meta.etag.chars().all(|letter| letter.is_ascii_hexdigit());
        if !is_sha256 {
            return Ok(());
        }
        let got: String = self.0.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if got.eq_ignore_ascii_case(&meta.etag) { Ok(()) } else { Err(got) }
    }
}
