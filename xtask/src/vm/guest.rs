//! What runs inside the guest, as its first process: mounts, loads modules, runs the tests, and turns the machine off.
//!
//! It tells the host over the second serial line, which nothing else writes to; the first one is the kernel's console.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, PipeReader, Read as _, Write as _},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail};

use super::message::{JOB, Job, Message, Module, Run};
use crate::test::RESULTS;

const LINE_TO_THE_HOST: &str = if cfg!(target_arch = "aarch64") {
    "/dev/ttyAMA1"
} else {
    "/dev/ttyS1"
};

/// The search path for programs, as a login shell of root has it.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is mounted where: type, folder, options.
const MOUNTS: [(&str, &str, &str); 9] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=0666"),
    ("tmpfs", "/tmp", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("bpf", "/sys/fs/bpf", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
];

/// Does the job, then turns the machine off; an error is told to the host, or else to the console.
pub fn run() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this command is what `cargo xtask test --kernel` starts inside a guest");
    }
    for (kind, folder, options) in MOUNTS {
        mount(kind, folder, options)?;
    }
    let host = Host::open()?;
    host.tell(&Message::Booted {
        release: kernel("osrelease"),
        version: kernel("version"),
    });
    if let Err(error) = work(&host) {
        let failure = Some(format!("{error:#}"));
        host.tell(&Message::Ended { failure });
    }
    host.tell(&Message::Done);
    turn_off()
}

fn work(host: &Host) -> Result<()> {
    let job = fs::read(JOB).with_context(|| format!("{JOB} cannot be read"))?;
    let job: Job = serde_json::from_slice(&job).with_context(|| format!("{JOB} is no job"))?;
    for module in &job.modules {
        if let Err(error) = load(module) {
            host.tell(&Message::ModuleRefused {
                name: module.name.clone(),
                error: format!("{error:#}"),
            });
        }
    }
    loopback_up().context("the interface lo cannot be set up")?;
    for run in &job.runs {
        let failure = test(run, host).unwrap_or_else(|error| Some(format!("{error:#}")));
        host.tell(&Message::Ended { failure });
    }
    Ok(())
}

/// Runs one test program; the answer says how it ended, if not well.
fn test(run: &Run, host: &Host) -> Result<Option<String>> {
    let (results, write_results) = io::pipe()?;
    let (output, write_output) = io::pipe()?;
    let mut command = Command::new(&run.program);
    command
        .args(&run.args)
        .current_dir(&run.folder)
        .env_clear()
        // Apart from what the tests print, which may break into a line.
        .env(RESULTS, format!("/proc/1/fd/{}", write_results.as_raw_fd()))
        .env("PATH", PATH)
        .env("HOME", "/root")
        .envs(run.variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(write_output.try_clone()?)
        .stderr(write_output);
    let runner = command
        .spawn()
        .with_context(|| format!("{} cannot be started", run.program.display()))?;
    drop(command);
    let status = thread::scope(|scope| {
        scope.spawn(|| host.tell_lines(results, Message::Result));
        scope.spawn(|| host.tell_lines(output, Message::Output));
        let status = wait_for(runner.id());
        // Whatever is left would keep the pipes open, and is none of the next run's business.
        // SAFETY: kill takes no pointers; -1 is everything but this process.
        unsafe { libc::kill(-1, libc::SIGKILL) };
        drop(write_results);
        status
    })?;
    let signal = libc::WTERMSIG(status);
    Ok(if libc::WIFSIGNALED(status) {
        Some(format!("the runner was ended by signal {signal}"))
    } else {
        let code = libc::WEXITSTATUS(status);
        (code != 0).then(|| format!("the runner ended with exit status {code}"))
    })
}

/// Waits for one process, and meanwhile for whichever others have ended without anybody who waits for them.
fn wait_for(process: u32) -> io::Result<libc::c_int> {
    loop {
        let mut status = 0;
        // SAFETY: wait writes an int to the address given, which is a live one.
        match unsafe { libc::wait(&raw mut status) } {
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            ended if ended.cast_unsigned() == process => return Ok(status),
            _ => {}
        }
    }
}

/// The serial line to the host.
struct Host {
    line: Arc<Mutex<File>>,
}

impl Host {
    fn open() -> Result<Self> {
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .open(LINE_TO_THE_HOST)
            .with_context(|| format!("{LINE_TO_THE_HOST} cannot be opened"))?;
        // SAFETY: an all-zero termios is a valid one, and tcgetattr and tcsetattr get a live one.
        unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            libc::tcgetattr(line.as_raw_fd(), &raw mut settings);
            // Bytes as they are: a terminal would add a carriage return to each line.
            libc::cfmakeraw(&raw mut settings);
            libc::tcsetattr(line.as_raw_fd(), libc::TCSANOW, &raw const settings);
        }
        let line = Arc::new(Mutex::new(line));
        Ok(Self { line })
    }

    fn tell(&self, message: &Message) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nobody else to tell that the host cannot be told.
        line.write_all(message.to_line().as_bytes()).ok();
    }

    fn tell_lines(&self, pipe: PipeReader, message: fn(String) -> Message) {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            self.tell(&message(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

fn mount(kind: &str, folder: &str, options: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{folder} cannot be created"))?;
    let text = |text: &str| std::ffi::CString::new(text).expect("a constant without zero bytes");
    let (kind, folder, options) = (text(kind), text(folder), text(options));
    // SAFETY: all pointers are to strings that live until the call returns.
    let answer = unsafe {
        libc::mount(
            kind.as_ptr(),
            folder.as_ptr(),
            kind.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    };
    if answer == -1 {
        let error = io::Error::last_os_error();
        // The kernel may have mounted it by itself (`CONFIG_DEVTMPFS_MOUNT`), or not know it, as a user's own might.
        if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENODEV)) {
            return Err(error).with_context(|| format!("{} cannot be mounted", folder.to_string_lossy()));
        }
    }
    Ok(())
}

fn load(module: &Module) -> Result<()> {
    let mut content = Vec::new();
    File::open(&module.path)?.read_to_end(&mut content)?;
    let parameters = std::ffi::CString::new(module.parameters.as_str())?;
    // SAFETY: the kernel reads `content` up to its length, and `parameters` up to its zero byte.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_init_module,
            content.as_ptr(),
            content.len(),
            parameters.as_ptr(),
        )
    };
    let error = io::Error::last_os_error();
    if answer == -1 && error.raw_os_error() != Some(libc::EEXIST) {
        return Err(error.into());
    }
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid one; the socket is closed with the process; ioctl reads a live ifreq.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = libc::c_char::from_ne_bytes(*b"l");
        request.ifr_name[1] = libc::c_char::from_ne_bytes(*b"o");
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        if libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn kernel(what: &str) -> String {
    fs::read_to_string(format!("/proc/sys/kernel/{what}")).map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

fn turn_off() -> ! {
    // SAFETY: reboot takes no pointers. Files need no sync, for there are none on a disk.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    unreachable!("a machine that was turned off goes on")
}
