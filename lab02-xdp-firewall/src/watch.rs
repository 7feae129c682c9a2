//! Says when files have a new version.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::OsString,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Component, Path, PathBuf, absolute},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

/// Why files cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The folder of a file is not there, or not readable.
    #[error("the folder {folder} of the list {file} cannot be watched: {cause}", folder = folder.display(), file = file.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The file in it.
        file: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// The kernel watches no more for this user, or has no inotify.
    #[error("files cannot be watched: {0}")]
    Inotify(#[from] io::Error),
}

/// Watches some files for new versions, whether they are written in place, renamed over, or reached by links that
/// point elsewhere from now on.
pub struct Watch {
    files: Vec<PathBuf>,
    watched: Watched,
}

impl Watch {
    /// Starts watching `files`, which need not exist; the folders that they are in must.
    pub fn new(files: &[PathBuf]) -> Result<Self, WatchError> {
        for file in files {
            fs::read_dir(folder_of(file)).map_err(|cause| WatchError::Folder {
                folder: folder_of(file).to_owned(),
                file: file.clone(),
                cause,
            })?;
        }
        Ok(Self {
            files: files.to_vec(),
            watched: Watched::new(files)?,
        })
    }

    /// Waits until one of the files has a new version; several changes at once are one. Never returns without files.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.watched.changed().await?;
        // The way to a file may be another one now. What changes from here on is seen on the new way, and what changed
        // before is read by the caller.
        self.watched = Watched::new(&self.files)?;
        Ok(())
    }
}

fn folder_of(file: &Path) -> &Path {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Every folder on the ways to the files, as the ways were when it was made.
struct Watched {
    inotify: Inotify,
    /// A second descriptor of it, to wait on.
    readiness: AsyncFd<OwnedFd>,
    /// The names in those folders that lead to the files, and where each is.
    names: HashMap<(WatchDescriptor, OsString), PathBuf>,
}

impl Watched {
    fn new(files: &[PathBuf]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let steps: BTreeSet<Step> = files.iter().flat_map(|file| steps(file)).collect();
        let mut names = HashMap::new();
        for Step { folder, name, is_last } in steps {
            // A folder that is watched again is watched for what is asked for last, and the last steps, which ask for
            // most, are sorted behind the others. The folder and not the file: a file that is renamed over another is not the file that was watched. Only
            // what is complete counts, so not every write does.
            let mut events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
            if is_last {
                events |= AddWatchFlags::IN_CLOSE_WRITE;
            }
            match inotify.add_watch(&folder, events) {
                Ok(descriptor) => {
                    let path = folder.join(&name);
                    names.insert((descriptor, name), path);
                }
                // It went away on the way here, which the folder above it tells; or only what is in it may be reached,
                // not the folder read.
                Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR | nix::errno::Errno::EACCES) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is given away here, and lives as long as what it is given to.
        let readiness = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
        Ok(Self {
            inotify,
            readiness,
            names,
        })
    }

    async fn changed(&mut self) -> io::Result<()> {
        if self.names.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            let mut guard = self.readiness.readable().await?;
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(nix::errno::Errno::EAGAIN) => {
                    guard.clear_ready();
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if events.into_iter().any(|event| self.is_ours(event)) {
                return Ok(());
            }
        }
    }

    fn is_ours(&self, event: InotifyEvent) -> bool {
        // A folder that is gone, or an overflow, after which nobody knows what happened.
        let Some(name) = event.name else {
            return event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        };
        let Some(path) = self.names.get(&(event.wd, name)) else {
            return false;
        };
        // A new file is empty, and complete when it was written; a new link or folder is complete at once.
        !event.mask.contains(AddWatchFlags::IN_CREATE)
            || fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file())
    }
}

/// A name that is looked up on the way to a file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// Whether it is the file or a link to it, and not a folder on the way to it.
    is_last: bool,
    /// Where: a folder without links in its path.
    folder: PathBuf,
    name: OsString,
}

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// What the kernel looks up to find `file`, as far as it is there.
fn steps(file: &Path) -> Vec<Step> {
    let Ok(file) = absolute(file) else { return Vec::new() };
    let mut steps = Vec::new();
    let mut folder = PathBuf::from("/");
    let mut links = 0;
    let mut rest: VecDeque<PathBuf> = components(&file);
    while let Some(component) = rest.pop_front() {
        match component.components().next() {
            Some(Component::RootDir) => folder = PathBuf::from("/"),
            Some(Component::ParentDir) => {
                folder.pop();
            }
            Some(Component::Normal(name)) => {
                let path = folder.join(name);
                steps.push(Step {
                    folder: folder.clone(),
                    name: name.to_owned(),
                    is_last: rest.is_empty(),
                });
                match fs::read_link(&path) {
                    Ok(target) => {
                        links += 1;
                        if links > MOST_LINKS {
                            break;
                        }
                        for component in components(&target).into_iter().rev() {
                            rest.push_front(component);
                        }
                    }
                    Err(_) => folder = path,
                }
            }
            _ => {}
        }
    }
    steps
}

fn components(path: &Path) -> VecDeque<PathBuf> {
    path.components()
        .map(|component| PathBuf::from(component.as_os_str()))
        .collect()
}
