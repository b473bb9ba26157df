//! Requests to the hub: which header says what, which answer is worth another try, and what an error means.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use hf_hub::{HFClient, HFError};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{Access, Error, MAIN, Result, Wanted};

/// How long a connection may take to come about, and an answer to begin or go on.
const CONNECT: Duration = Duration::from_secs(10);
pub(super) const STALL: Duration = Duration::from_secs(60);
/// How often the wish to stop is looked for.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Tries in a row without a new byte.
const TRIES: u32 = 5;
/// The longest rest that the hub may ask for.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// Hops from the hub to where a file lies.
const HOPS: usize = 5;

/// A try that failed, and whether another may do better.
pub(super) enum Failed {
    Final(Box<Error>),
    /// `rest` is the pause that the hub asks for.
    Again {
        error: Box<Error>,
        rest: Option<Duration>,
    },
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Final(Box::new(error))
    }
}

impl From<crate::io::Error> for Failed {
    fn from(error: crate::io::Error) -> Self {
        Self::Final(Box::new(error.into()))
    }
}

/// What the hub says of a file before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// The SHA-256 of a large file, the git hash of a small one: the name of its blob.
    pub etag: String,
    pub size: u64,
}

/// The hub, and the runtime its requests run on.
pub(super) struct Http<'a> {
    pub access: Access<'a>,
    wanted: &'a Wanted,
    endpoint: Url,
    client: Client,
    runtime: Option<Runtime>,
    /// Whether anything has been heard from it.
    was_reached: Cell<bool>,
}

impl Drop for Http<'_> {
    fn drop(&mut self) {
        // Not to wait for a name that is still being looked up.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl<'a> Http<'a> {
    pub fn wanted(&self) -> &Wanted {
        self.wanted
    }

    pub fn new(wanted: &'a Wanted, access: Access<'a>) -> Result<Self> {
        let text = access.places.endpoint.clone();
        let wrong = |reason: String| Error::Endpoint { endpoint: text.clone(), reason };
        let endpoint = Url::parse(&text).map_err(|error| wrong(error.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            return Err(wrong("it begins with https:// or http://".to_owned()));
        }
        let client = |redirects| client(&endpoint, redirects);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::Client { reason: error.to_string() })?;
        Ok(Self {
            access,
            wanted,
            client: client(Policy::none())?,
            endpoint,
            runtime: Some(runtime),
            was_reached: Cell::new(false),
        })
    }

    /// Runs `work` to its end, or until somebody asks to stop.
    pub fn run<T>(&self, work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
        let Some(runtime) = &self.runtime else { return Err(Error::Cancelled.into()) };
        runtime.block_on(async {
            let mut work = pin!(work);
            loop {
                self.access.check()?;
                if let Ok(done) = timeout(TICK, work.as_mut()).await {
                    return done;
                }
            }
        })
    }

    /// Tries until it works, until trying again makes no sense, or too often in a row without a step forward: `attempt`
    /// says how far it came by the number it is given to raise.
    pub fn insist<T>(&self, what: &str, mut attempt: impl FnMut(&mut u64) -> Result<T, Failed>) -> Result<T> {
        let (mut tries, mut came) = (0, 0);
        loop {
            let before = came;
            let (error, rest) = match attempt(&mut came) {
                Ok(done) => return Ok(done),
                Err(Failed::Final(error)) => return Err(*error),
                Err(Failed::Again { error, rest }) => (*error, rest),
            };
            if matches!(error, Error::Network { .. }) && !self.was_reached.get() {
                return Err(error); // a machine without a network: waiting does not give it one
            }
            tries = if came > before { 1 } else { tries + 1 };
            if tries >= TRIES {
                return Err(match error {
                    Error::Busy { endpoint, what, status, said, .. } => {
                        Error::Busy { endpoint, what, status, said, tries }
                    }
                    error => error,
                });
            }
            if let (Some(rest), Error::Busy { endpoint, what, status, .. }) = (rest, &error)
                && rest > LONGEST_REST
            {
                let (endpoint, what, status) = (endpoint.clone(), what.clone(), *status);
                return Err(Error::Later { endpoint, what, status, seconds: rest.as_secs() });
            }
            let pause = rest.unwrap_or(self.access.pause * (1 << (tries - 1)));
            if pause >= Duration::from_secs(4) {
                self.access.listener.note(&format!("`{what}`: {error}; trying again in {} s", pause.as_secs()));
            }
            self.wait(pause)?;
        }
    }

    fn wait(&self, pause: Duration) -> Result<()> {
        let mut left = pause;
        while !left.is_zero() {
            self.access.check()?;
            let step = left.min(TICK);
            std::thread::sleep(step);
            left -= step;
        }
        Ok(())
    }

    /// The commit that the revision is, and the names of its files: what `hf-hub` asks the hub's API for.
    pub fn describe(&self) -> Result<(String, Vec<String>)> {
        let places = self.access.places;
        let mut builder = HFClient::builder()
            .endpoint(places.endpoint.clone())
            .client(client(&self.endpoint, Policy::limited(HOPS))?)
            .cache_enabled(false)
            .retry_max_attempts(0);
        if let Some(token) = &places.token {
            builder = builder.token(token.secret());
        }
        let hub = builder.build().map_err(|error| Error::Client { reason: error.to_string() })?;
        let (owner, name) = hf_hub::split_id(&self.wanted.id);
        let repository = hub.model(owner, name);
        let info = self.insist(&self.wanted.id, |_| {
            self.run(async {
                let asked = repository.info().revision(self.wanted.revision.clone()).send().await;
                asked.map_err(|error| self.api_failure(error))
            })
        })?;
        let wrong = |reason: &str| self.not_understood(&self.wanted.id, reason);
        let commit = info.sha.ok_or_else(|| wrong("it names no commit"))?;
        if !super::cache::is_name(&commit) {
            return Err(wrong("its commit is no commit"));
        }
        let files = info.siblings.unwrap_or_default().into_iter().map(|file| file.rfilename).collect();
        Ok((commit, files))
    }

    /// The address of a file of the repository at `commit`.
    pub fn address(&self, commit: &str, name: &str) -> Result<Url> {
        let mut url = self.endpoint.clone();
        let id = self.wanted.id.split('/');
        match url.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(id.chain(["resolve", commit]).chain(name.split('/'))),
            Err(()) => return Err(self.not_understood(name, "its address has no path")),
        };
        Ok(url)
    }

    /// Etag and size of the file at `url`.
    pub async fn head(&self, url: Url, name: &str, commit: &str) -> Result<Meta, Failed> {
        let mut url = url;
        for _ in 0..HOPS {
            let response = self.send(Method::HEAD, &url, None, name).await?;
            let headers = response.headers();
            if let Some(other) = text(headers, "x-repo-commit").filter(|other| other != commit) {
                let reason = format!("it is of commit {other}, wanted {commit}");
                return Err(self.not_understood(name, &reason).into());
            }
            let next = next_hop(&response);
            // A redirect to where the bytes lie still tells of the file; one to the repository's new name does not.
            match (self.etag(headers, next.is_some()), next) {
                (Some(etag), _) => {
                    let size = number(headers, "x-linked-size").or_else(|| number(headers, CONTENT_LENGTH.as_str()));
                    let size = size.ok_or_else(|| self.not_understood(name, "it tells no size"))?;
                    return Ok(Meta { etag, size });
                }
                (None, Some(next)) => url = next,
                (None, None) => return Err(self.not_understood(name, "it names no etag").into()),
            }
        }
        Err(self.not_understood(name, "it leads from one place to the next").into())
    }

    /// The file's bytes from `start` on, as they come; `Changed` if they are of another file by now.
    pub async fn get(&self, url: Url, name: &str, start: u64, meta: &Meta) -> Result<Response, Failed> {
        let mut url = url;
        // Behind an answer that links to the file, an etag is the storage's own, also where that is on the same host.
        let mut is_linked = false;
        for _ in 0..HOPS {
            let response = self.send(Method::GET, &url, Some(start), name).await?;
            let next = next_hop(&response);
            if self.is_hub(&url) && !is_linked {
                let etag = self.etag(response.headers(), next.is_some());
                is_linked = etag.is_some();
                if etag.is_some_and(|etag| etag != meta.etag) {
                    return Err(Error::Changed { what: name.to_owned() }.into());
                }
            }
            match next {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(self.not_understood(name, "it leads from one place to the next").into())
    }

    /// One request; the token goes to the hub alone, never to where it sends us.
    async fn send(&self, method: Method, url: &Url, start: Option<u64>, name: &str) -> Result<Response, Failed> {
        let mut request = self.client.request(method, url.clone()).header(ACCEPT_ENCODING, "identity");
        if let (true, Some(token)) = (self.is_hub(url), &self.access.places.token) {
            request = request.bearer_auth(token.secret());
        }
        if let Some(start) = start.filter(|start| *start > 0) {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let response = match timeout(STALL, request.send()).await {
            Ok(answered) => answered.map_err(|error| self.unreachable(error))?,
            Err(_) => return Err(self.again(self.network("no answer for a minute".to_owned()))),
        };
        self.was_reached.set(true);
        let status = response.status();
        if status.is_success() || status.is_redirection() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let headers = response.headers();
        let rest = number(headers, RETRY_AFTER.as_str()).map(Duration::from_secs);
        let code = text(headers, "x-error-code").unwrap_or_default();
        let said = text(headers, "x-error-message").unwrap_or_default();
        Err(self.answer(name, status.as_u16(), &code, &said, rest))
    }

    fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// The etag of the file itself: what the hub links to, or what it sends.
    fn etag(&self, headers: &HeaderMap, is_redirect: bool) -> Option<String> {
        let own = || if is_redirect { None } else { text(headers, ETAG.as_str()) };
        let etag = text(headers, "x-linked-etag").or_else(own)?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        super::cache::is_name(&etag).then_some(etag)
    }

    /// What the status of an answer about `name` means.
    fn answer(&self, name: &str, status: u16, code: &str, said: &str, rest: Option<Duration>) -> Failed {
        self.was_reached.set(true);
        let places = self.access.places;
        let (id, endpoint, token_from) = (self.wanted.id.clone(), places.endpoint.clone(), places.token_from.clone());
        let said: String = said.chars().filter(|letter| !letter.is_control()).take(200).collect();
        let what = name.to_owned();
        match (status, code) {
            (_, "GatedRepo") => Error::Gated { page: places.page(&id), id, endpoint, token_from }.into(),
            (401, "RepoNotFound" | "") if places.token.is_none() => self.not_found(),
            (404, "RevisionNotFound") if self.wanted.revision != MAIN => {
                Error::NoRevision { page: places.page(&id), id, revision: self.wanted.revision.clone() }.into()
            }
            (404, "EntryNotFound") => Error::NoFile { id, name: what, has: Vec::new() }.into(),
            (404, _) | (_, "RepoNotFound") => self.not_found(),
            (401 | 403, _) => Error::Refused { id, status, said, endpoint, token_from }.into(),
            (408 | 429 | 500..=599, _) => {
                let error = Box::new(Error::Busy { endpoint, what, status, said, tries: 1 });
                Failed::Again { error, rest }
            }
            _ => Error::Status { endpoint, what, status, said }.into(),
        }
    }

    fn not_found(&self) -> Failed {
        let places = self.access.places;
        let known = crate::io::list(&places.cache).unwrap_or_default();
        let known =
            known.iter().filter_map(|name| name.strip_prefix("models--")).map(|name| name.replacen("--", "/", 1));
        let known = known.chain([super::FOUR_BIT, super::SIXTEEN_BIT].map(str::to_owned));
        let id = &self.wanted.id;
        let near = known
            .filter(|other| other != id)
            .map(|other| (strsim::normalized_damerau_levenshtein(&other.to_lowercase(), &id.to_lowercase()), other))
            .filter(|(likeness, _)| *likeness >= 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        Failed::from(Error::NotFound {
            id: id.clone(),
            endpoint: places.endpoint.clone(),
            near: near.map(|(_, id)| id),
            token_from: places.token_from.clone(),
        })
    }

    /// What an error of `hf-hub` means.
    fn api_failure(&self, error: HFError) -> Failed {
        let id = &self.wanted.id;
        let rest = match &error {
            HFError::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        };
        let context = match error {
            HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::Http { context }
            | HFError::RateLimited { context, .. } => context,
            HFError::RepoNotFound { context: Some(context), .. }
            | HFError::RevisionNotFound { context: Some(context), .. } => context,
            HFError::Request { source, .. } => return self.unreachable(source),
            other => return self.not_understood(id, &other.to_string()).into(),
        };
        let code = context.error_code.unwrap_or_default();
        self.answer(id, context.status.as_u16(), &code, &context.server_message.unwrap_or_default(), rest)
    }

    fn network(&self, reason: String) -> Error {
        let (id, endpoint) = (self.wanted.id.clone(), self.access.places.endpoint.clone());
        Error::Network { id, endpoint, reason }
    }

    /// What a request that got no answer, or none that could be read, means. Its address is not told: that of a storage
    /// holds a signature.
    pub fn unreachable(&self, error: reqwest::Error) -> Failed {
        let error = error.without_url();
        if error.is_decode() {
            return self.not_understood(&self.wanted.id, &reason(&error)).into();
        }
        self.again(self.network(reason(&error)))
    }

    pub fn again(&self, error: Error) -> Failed {
        Failed::Again { error: Box::new(error), rest: None }
    }

    pub fn not_understood(&self, what: &str, reason: &str) -> Error {
        let (endpoint, what) = (self.access.places.endpoint.clone(), what.to_owned());
        Error::Answer { endpoint, what, reason: reason.to_owned() }
    }
}

fn client(endpoint: &Url, redirects: Policy) -> Result<Client> {
    let name = concat!("unslothify/", env!("CARGO_PKG_VERSION"));
    let mut builder =
        Client::builder().user_agent(name).connect_timeout(CONNECT).read_timeout(STALL).redirect(redirects);
    if matches!(endpoint.host_str(), Some("127.0.0.1" | "localhost")) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| Error::Client { reason: reason(&error) })
}

/// The innermost of the errors that this one came from: what a person can act on.
fn reason(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Where a redirect leads.
fn next_hop(response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let place = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(place).ok()
}

pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

pub(super) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}
