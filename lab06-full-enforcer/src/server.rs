//! The daemon's control channel: HTTP over a Unix socket.
//!
//! Whoever may connect is said by the file's owner, group and mode (0660), and checked again by the credentials that the
//! kernel has of the other end: an open descriptor can be handed on, and a mode can be changed.

use std::{
    fs, future, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, Path as UrlPath, RawQuery, Request, State, connect_info::Connected},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use enforcer_policy::{Format, NoFiles, diagnostic::Severity, read, source::MAX_BYTES};
use futures_util::{FutureExt as _, StreamExt as _};
use nix::sys::stat::{Mode as FileMode, umask};
use thiserror::Error;
use tokio::{
    net::UnixListener,
    sync::{Semaphore, oneshot},
    time::sleep,
};

use crate::{
    api::{ChangeKind, ModeRequest, Refusal, SetRequest, path},
    enforcer::{Enforcer, EnforcerError},
    gate::Gate,
    local,
};

/// Why the control channel could not be opened. Each text names cause and mend.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Somebody listens there.
    #[error("an enforcer is listening on {} already; stop it first, or give this one another --socket", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} is there and is no socket; remove it, or give another --socket", .0.display())]
    NoSocket(PathBuf),
    /// The socket could not be made.
    #[error("the socket {} cannot be made: {cause}; give another --socket", path.display())]
    Make {
        /// Its path.
        path: PathBuf,
        /// The kernel's words.
        cause: io::Error,
    },
    /// Serving failed.
    #[error("the control channel has failed: {0}")]
    Serve(io::Error),
}

/// The control channel, open. Dropping it removes the socket.
pub struct Server {
    listener: Option<UnixListener>,
    path: PathBuf,
    group: u32,
}

/// Who is at the other end of a connection, as the kernel knows it; `None` if it does not.
#[derive(Clone, Copy, Debug)]
struct Peer(Option<(u32, u32)>);

impl Connected<IncomingStream<'_, Gate>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Self {
        let credentials = stream.io().peer().ok();
        Self(credentials.map(|credentials| (credentials.uid(), credentials.gid())))
    }
}

type Shared = Arc<Mutex<Enforcer>>;

impl Server {
    /// Opens it, with its folder where that is not there. Requests wait until [`Server::serve`].
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        let make = |cause| ServerError::Make {
            path: path.to_owned(),
            cause,
        };
        remove_stale(path)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(make)?;
        }
        // Not afterwards by chmod: it would be open to all in between.
        let before = umask(FileMode::from_bits_truncate(0o117));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(make)?;
        let group = fs::metadata(path).map_err(make)?.gid();
        Ok(Self {
            listener: Some(listener),
            path: path.to_owned(),
            group,
        })
    }

    /// Answers requests until `stop` is done, and then detaches the enforcer.
    pub async fn serve(
        &mut self,
        enforcer: Enforcer,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServerError> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let enforcer: Shared = Arc::new(Mutex::new(enforcer));
        let (tell, stopped) = oneshot::channel();
        let stop = async {
            stop.await;
            let _ = tell.send(());
        };
        // Whoever has sent half a request does not keep it from stopping.
        let patience = async {
            if stopped.await.is_ok() {
                sleep(PATIENCE).await;
            }
        };
        let serve = axum::serve(
            Gate::new(listener),
            routes(self.group, Arc::clone(&enforcer)).into_make_service_with_connect_info::<Peer>(),
        );
        let served = tokio::select! {
            served = serve.with_graceful_shutdown(stop) => served.map_err(ServerError::Serve),
            () = patience => Ok(()),
            () = keep_up(&enforcer) => Ok(()),
            () = follow_local_prefixes(&enforcer) => Ok(()),
        };
        lock(&enforcer).detach();
        served
    }
}

/// Looks again and again at what the policy names: an interface or a cgroup that is made again is another one for the
/// kernel.
async fn keep_up(enforcer: &Shared) {
    let mut last_error = None;
    loop {
        sleep(BETWEEN_LOOKS).await;
        let error = match keep_up_once(&mut lock(enforcer)) {
            Ok(news) => {
                for news in news {
                    log::info!("{news}");
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &error
            && last_error.as_ref() != Some(error)
        {
            log::error!("the policy holds for what was there before: {error}");
        }
        last_error = error;
    }
}

/// Looks again at which destinations are the host's own, whenever there are others.
async fn follow_local_prefixes(enforcer: &Shared) {
    if !lock(enforcer).refuses_calls() {
        return future::pending().await;
    }
    loop {
        let error = match follow_until_error(enforcer).await {
            Ok(()) => "the kernel had more to say than could be read".to_owned(),
            Err(error) => error.to_string(),
        };
        log::warn!(
            "which destinations are the host's own is not known, and calls are left to the hooks on packets: {error}"
        );
        if let Err(error) = lock(enforcer).set_local(None) {
            log::error!("{error}");
        }
        sleep(PATIENCE).await;
    }
}

async fn follow_until_error(enforcer: &Shared) -> Result<(), EnforcerError> {
    // Listened for first, so that nothing is missed between reading and listening.
    let mut changes = local::changes()?;
    loop {
        let prefixes = local::prefixes().await?;
        lock(enforcer).set_local(Some(&prefixes))?;
        if changes.next().await.is_none() {
            return Ok(());
        }
        // One address brings several routes.
        while changes.next().now_or_never().flatten().is_some() {}
    }
}

/// What has been done about it.
fn keep_up_once(enforcer: &mut Enforcer) -> Result<Vec<&'static str>, EnforcerError> {
    let mut news = Vec::new();
    if enforcer.expire()? {
        news.push("entries of sets whose time is over are no more");
    }
    if enforcer.refresh()? {
        news.push("interfaces or cgroups that the policy names have come or gone: it holds for those now");
    }
    Ok(news)
}

/// How long an interface or a cgroup can be there before rules that name it match.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// How long requests that are under way may take when it is to stop.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many policies are read at a time; each may have [`MAX_BYTES`].
const POLICIES_AT_A_TIME: usize = 2;

fn routes(group: u32, enforcer: Shared) -> Router {
    let readers = Arc::new(Semaphore::new(POLICIES_AT_A_TIME));
    let one_of_two = middleware::from_fn(move |request, next: Next| {
        let readers = Arc::clone(&readers);
        async move {
            let _place = readers.acquire().await;
            next.run(request).await
        }
    });
    Router::new()
        .route(path::POLICY, get(policy).merge(post(apply).layer(one_of_two)))
        .route(
            path::MODE,
            get(mode).put(change_mode).layer(DefaultBodyLimit::max(1024)),
        )
        .route(path::SETS, get(sets))
        .route(
            &format!("{}/{{name}}", path::SETS),
            get(set).post(change_set).layer(DefaultBodyLimit::max(1024)),
        )
        .route(path::STATUS, get(status))
        .route(path::STATS, get(stats))
        .fallback(async || refused(StatusCode::NOT_FOUND, ["there is nothing here".to_owned()]))
        .layer(DefaultBodyLimit::max(MAX_BYTES))
        .layer(middleware::from_fn(move |peer, request, next| {
            admit(group, peer, request, next)
        }))
        .with_state(enforcer)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ServerError::NoSocket(path.to_owned()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ServerError::InUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(|cause| ServerError::Make {
        path: path.to_owned(),
        cause,
    })
}

/// Lets root, the daemon's own user and the socket's group in.
async fn admit(group: u32, ConnectInfo(Peer(peer)): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let own = nix::unistd::geteuid().as_raw();
    let is_welcome = peer.is_some_and(|(user, of_group)| user == 0 || user == own || of_group == group);
    log::debug!("{} {} from {peer:?}", request.method(), request.uri());
    if is_welcome {
        next.run(request).await
    } else {
        let error = "this socket is for root, the enforcer's user and the socket's group; use sudo".to_owned();
        refused(StatusCode::FORBIDDEN, [error])
    }
}

async fn policy(State(enforcer): State<Shared>) -> Response {
    Json(lock(&enforcer).policy()).into_response()
}

async fn apply(State(enforcer): State<Shared>, RawQuery(query): RawQuery, body: Bytes) -> Response {
    let dry_run = match query.as_deref() {
        None | Some("" | "dry_run=false") => false,
        Some("dry_run=true") => true,
        Some(query) => {
            let error = format!("?{query} is not understood; there is ?dry_run=true");
            return refused(StatusCode::BAD_REQUEST, [error]);
        }
    };
    let reading = read("policy", &body, Format::Json, &NoFiles);
    let Some(policy) = reading.policy else {
        let errors = reading.diagnostics.into_iter();
        let errors = errors.filter(|diagnostic| diagnostic.severity == Severity::Error);
        return refused(StatusCode::UNPROCESSABLE_ENTITY, errors.map(|error| error.message));
    };
    let applied = lock(&enforcer).apply(policy, dry_run);
    match &applied {
        Ok(applied) if !dry_run => log::info!(
            "policy {} is in force: {} rules, mode {}",
            applied.policy,
            applied.rules,
            applied.mode.mode
        ),
        Err(error) if !dry_run => log::warn!("a policy was refused, and the one in force stays: {error}"),
        _ => {}
    }
    answer(applied)
}

async fn mode(State(enforcer): State<Shared>) -> Response {
    Json(lock(&enforcer).mode()).into_response()
}

async fn change_mode(State(enforcer): State<Shared>, body: Bytes) -> Response {
    let request: ModeRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let error = format!("{error}; send {{\"mode\":\"observe\"}}, \"block\" or \"toggle\"");
            return refused(StatusCode::UNPROCESSABLE_ENTITY, [error]);
        }
    };
    let changed = lock(&enforcer).change_mode(request.mode);
    if let Ok(report) = &changed {
        log::info!("the mode is {} now", report.mode);
    }
    answer(changed)
}

async fn sets(State(enforcer): State<Shared>) -> Response {
    Json(lock(&enforcer).sets()).into_response()
}

async fn set(State(enforcer): State<Shared>, UrlPath(name): UrlPath<String>) -> Response {
    answer(lock(&enforcer).set(&name))
}

async fn change_set(State(enforcer): State<Shared>, UrlPath(name): UrlPath<String>, body: Bytes) -> Response {
    let request: SetRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let error = format!("{error}; send {{\"change\":\"add\",\"prefix\":\"192.0.2.1\"}}, or \"remove\"");
            return refused(StatusCode::UNPROCESSABLE_ENTITY, [error]);
        }
    };
    let changed = lock(&enforcer).change_set(&name, &request);
    if let Ok(changed) = &changed {
        let is = match changed.change {
            ChangeKind::Add => "in",
            ChangeKind::Remove => "no longer in",
        };
        log::info!("{} is {is} the set {} now", changed.prefix, changed.set);
    }
    answer(changed)
}

async fn status(State(enforcer): State<Shared>) -> Response {
    answer(lock(&enforcer).status())
}

async fn stats(State(enforcer): State<Shared>) -> Response {
    answer(lock(&enforcer).stats())
}

/// No request is served half: a lock that was poisoned by a panic is as good as another.
fn lock(enforcer: &Shared) -> MutexGuard<'_, Enforcer> {
    enforcer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer<T: serde::Serialize>(result: Result<T, EnforcerError>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error @ (EnforcerError::Policy(_) | EnforcerError::Set(_))) => {
            refused(StatusCode::UNPROCESSABLE_ENTITY, lines(&error))
        }
        Err(error @ EnforcerError::ModeIsFixed(_)) => refused(StatusCode::CONFLICT, lines(&error)),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, lines(&error)),
    }
}

fn lines(error: &EnforcerError) -> Vec<String> {
    error.to_string().lines().map(str::to_owned).collect()
}

fn refused(status: StatusCode, errors: impl IntoIterator<Item = String>) -> Response {
    let refusal = Refusal {
        errors: errors.into_iter().collect(),
    };
    (status, Json(refusal)).into_response()
}
