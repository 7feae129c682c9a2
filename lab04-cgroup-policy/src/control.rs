//! How a second process reads and sets the mode of one that runs: over a socket in a folder that only root may enter.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{fs::DirBuilderExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tokio::{net::UnixListener, time::Instant};

/// Where the sockets are.
const FOLDER: &str = "/run/lab04-cgroup-policy";

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked of the one that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Tell the mode.
    Tell,
    /// Observe from now on.
    Observe,
    /// Block from now on.
    Block,
    /// The one that it is not.
    Toggle,
}

impl Request {
    const ALL: [(&'static str, Self); 4] = [
        ("tell", Self::Tell),
        ("observe", Self::Observe),
        ("block", Self::Block),
        ("toggle", Self::Toggle),
    ];

    fn word(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, request)| *request == self);
        found.map_or("", |(word, _)| word)
    }
}

/// Why nobody could be asked, or why there can be no second one. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody runs there.
    #[error("no lab04-cgroup-policy runs on the cgroup {}; start one first", cgroup.display())]
    NotRunning {
        /// The cgroup's name.
        cgroup: PathBuf,
    },
    /// Nobody runs at all.
    #[error("no lab04-cgroup-policy is running; start one first")]
    NoneRunning,
    /// It is not clear who is meant.
    #[error("{count} of lab04-cgroup-policy are running; say which one by --cgroup")]
    Several {
        /// How many.
        count: usize,
    },
    /// Another one is there.
    #[error(
        "another lab04-cgroup-policy enforces a policy on this cgroup; stop it first, or change its policy's file, which \
         it follows"
    )]
    Occupied,
    /// The folder is not for this user.
    #[error("{FOLDER} may be used by root only; run it with sudo")]
    Privileges,
    /// Anything else.
    #[error("the one that runs cannot be asked: {0}")]
    Io(io::Error),
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Privileges,
            _ => Self::Io(error),
        }
    }
}

fn socket(cgroup_id: u64) -> PathBuf {
    Path::new(FOLDER).join(format!("{cgroup_id}.sock"))
}

/// Listens for requests until it is dropped.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Kept here and not in [`Control::next`], which is given up whenever something else happens first.
    half_read: Option<HalfRead>,
}

impl Control {
    /// Opens the socket for a cgroup.
    pub fn open(cgroup_id: u64) -> Result<Self, ControlError> {
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let path = socket(cgroup_id);
        if UnixStream::connect(&path).is_ok() {
            return Err(ControlError::Occupied);
        }
        // What one has left behind that was killed.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        Ok(Self {
            listener,
            path,
            half_read: None,
        })
    }

    /// Waits for a request; what cannot be understood is passed over. Nothing is lost if this is given up and called again.
    pub async fn next(&mut self) -> io::Result<Asked> {
        loop {
            let half_read = match &mut self.half_read {
                Some(half_read) => half_read,
                none => none.insert(HalfRead::new(self.listener.accept().await?.0)),
            };
            let request = tokio::time::timeout_at(half_read.until, half_read.read_on()).await;
            let stream = self.half_read.take().map(|half_read| half_read.stream);
            if let (Ok(Some(request)), Some(stream)) = (request, stream) {
                return Ok(Asked { request, stream });
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A request, as much of it as has come.
struct HalfRead {
    stream: tokio::net::UnixStream,
    line: Vec<u8>,
    until: Instant,
}

impl HalfRead {
    fn new(stream: tokio::net::UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
            until: Instant::now() + PATIENCE,
        }
    }

    async fn read_on(&mut self) -> Option<Request> {
        let mut buffer = [0; 16];
        while !self.line.ends_with(b"\n") && self.line.len() < buffer.len() {
            self.stream.readable().await.ok()?;
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.line.extend_from_slice(buffer.get(..length)?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
        let word = std::str::from_utf8(&self.line).ok()?.trim_end();
        Request::ALL
            .into_iter()
            .find(|(known, _)| *known == word)
            .map(|(_, request)| request)
    }
}

/// A request, to be answered.
pub struct Asked {
    /// What is asked.
    pub request: Request,
    stream: tokio::net::UnixStream,
}

impl Asked {
    /// Answers with the mode that is in force now.
    pub fn answer(self, mode: &str) {
        // Whoever asked may be gone.
        let _ = self.stream.try_write(format!("{mode}\n").as_bytes());
    }
}

/// Asks the one that runs on a cgroup, by the cgroup's id and name; returns its mode afterwards.
pub fn ask(cgroup_id: u64, name: &Path, request: Request) -> Result<String, ControlError> {
    match UnixStream::connect(socket(cgroup_id)) {
        Ok(stream) => exchange(stream, request),
        Err(error) if is_nobody_there(&error) => Err(ControlError::NotRunning {
            cgroup: name.to_owned(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// Asks the only one that runs.
pub fn ask_the_only_one(request: Request) -> Result<String, ControlError> {
    let folder = match fs::read_dir(FOLDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ControlError::NoneRunning),
        folder => folder?,
    };
    let mut running: Vec<UnixStream> = folder
        .filter_map(Result::ok)
        .filter_map(|entry| UnixStream::connect(entry.path()).ok())
        .collect();
    match (running.len(), running.pop()) {
        (1, Some(stream)) => exchange(stream, request),
        (0, _) => Err(ControlError::NoneRunning),
        (count, _) => Err(ControlError::Several { count }),
    }
}

fn is_nobody_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn exchange(mut stream: UnixStream, request: Request) -> Result<String, ControlError> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", request.word()).as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim_end() {
        "" => Err(ControlError::Io(io::ErrorKind::UnexpectedEof.into())),
        mode => Ok(mode.to_owned()),
    }
}
