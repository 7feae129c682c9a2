//! Says when files have a new version.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
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

/// Watches some files for new versions, whether they are written in place or renamed over.
pub struct Watch {
    inotify: Inotify,
    /// A second descriptor of it, to wait on.
    readiness: AsyncFd<OwnedFd>,
    names: BTreeSet<OsString>,
}

impl Watch {
    /// Starts watching `files`, which need not exist; the folders that they are in must.
    pub fn new(files: &[PathBuf]) -> Result<Self, WatchError> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(io::Error::from)?;
        // The folder and not the file: a file that is renamed over another is not the file that was watched. Only what
        // is complete counts, so not every write does.
        let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        for file in files {
            let folder = file
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            inotify.add_watch(folder, events).map_err(|errno| WatchError::Folder {
                folder: folder.to_owned(),
                file: file.clone(),
                cause: errno.into(),
            })?;
        }
        let names = files
            .iter()
            .filter_map(|file| file.file_name().map(OsString::from))
            .collect();
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is given away here, and lives as long as what it is given to.
        let readiness =
            unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self {
            inotify,
            readiness,
            names,
        })
    }

    /// Waits until one of the files has a new version; several changes at once are one. Never returns without files.
    pub async fn changed(&mut self) -> io::Result<()> {
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
            // After an overflow nobody knows what happened, so it counts as a change.
            let is_ours = |name: &Option<OsString>| name.as_ref().is_none_or(|name| self.names.contains(name));
            if events.iter().any(|event| is_ours(&event.name)) {
                return Ok(());
            }
        }
    }
}
