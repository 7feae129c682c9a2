//! Compiles a lab's eBPF crate from the `build.rs` of its loader.
//!
//! [`aya_build`] does the work. What is added here: the tools that `cargo xtask setup` installed into the project are
//! found, `core` is built from source with a stable toolchain, all labs share one build folder (so that `core` is
//! compiled for BPF once, not once a lab), and a missing tool is one line that says what to do.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Compiles the package `name`, whose sources lie in `root_dir` (relative to the calling package), for BPF.
///
/// Its binaries are left in `OUT_DIR`, for `aya::include_bytes_aligned!`. To be called from a `build.rs`, where
/// anything that fails is reported to cargo as an error of the build; it does not return then.
pub fn compile(name: &str, root_dir: &str) {
    if let Err(cause) = try_compile(name, root_dir) {
        // `cargo::error` fails the build with this one line, without the noise of a panic.
        println!("cargo::error={cause}");
    }
}

fn try_compile(name: &str, root_dir: &str) -> Result<(), String> {
    let workspace = workspace_dir()?;
    let tools = workspace.join(".tools/bin");
    println!("cargo::rerun-if-changed={root_dir}");
    println!("cargo::rerun-if-changed={}", tools.join("bpf-linker").display());
    println!("cargo::rerun-if-env-changed=PATH");

    let path = prepend_to_path(&tools)?;
    require_bpf_linker(&path)?;
    require_rust_src()?;
    share_build_folder(name).map_err(|error| format!("the build folder for eBPF cannot be made: {error}"))?;

    // SAFETY: a build script has one thread here, and nothing reads the environment meanwhile.
    unsafe {
        env::set_var("PATH", path);
        // Lets a stable compiler accept `-Z build-std=core`, which the BPF target needs: no `core` is shipped for it.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // What the inner cargo prints is shown as warnings of this package; its progress is none.
        env::set_var("CARGO_TERM_QUIET", "true");
    }
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| String::from("stable"));
    let package = aya_build::Package {
        name,
        root_dir,
        ..Default::default()
    };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(&toolchain))
        .map_err(|_| format!("the eBPF crate {name} does not compile; the compiler's messages stand above"))
}

/// The workspace's folder: the nearest one above the calling package that holds `Cargo.lock`.
fn workspace_dir() -> Result<PathBuf, String> {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set: call this from a build.rs")?;
    Path::new(&package)
        .ancestors()
        .find(|folder| folder.join("Cargo.lock").exists())
        .map(Path::to_owned)
        .ok_or_else(|| String::from("no Cargo.lock above this package: build it inside its workspace"))
}

fn prepend_to_path(folder: &Path) -> Result<std::ffi::OsString, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(folder.to_owned()).chain(env::split_paths(&path)))
        .map_err(|error| format!("PATH cannot be extended by {}: {error}", folder.display()))
}

fn require_bpf_linker(path: &std::ffi::OsStr) -> Result<(), String> {
    let found = env::split_paths(path).any(|folder| folder.join("bpf-linker").is_file());
    found.then_some(()).ok_or_else(|| {
        String::from("bpf-linker is missing: run `cargo xtask setup`, which installs it into this project")
    })
}

fn require_rust_src() -> Result<(), String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .map_err(|error| format!("rustc cannot be run: {error}"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core");
    core.is_dir().then_some(()).ok_or_else(|| {
        String::from("rust-src is missing (the sources of `core`): run `cargo xtask setup`, which installs it")
    })
}

/// Makes the folder in which `aya_build` will build `name` a link to one that all labs and profiles share.
fn share_build_folder(name: &str) -> io::Result<()> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE-HASH/out, wherever TARGET is, and TARGET/TRIPLE/PROFILE/… when it is
    // built for another machine; then each triple has a folder of its own, which costs one more build of `core`.
    let target = out_dir.ancestors().nth(4).unwrap_or(&out_dir);
    let shared = target.join("ebpf");
    fs::create_dir_all(&shared)?;

    let link = out_dir.join("aya-build/target").join(name);
    if fs::read_link(&link).is_ok_and(|points_to| points_to == shared) {
        return Ok(());
    }
    fs::create_dir_all(link.parent().unwrap_or(&out_dir))?;
    if link.is_symlink() {
        fs::remove_file(&link)?;
    } else if link.exists() {
        fs::remove_dir_all(&link)?;
    }
    std::os::unix::fs::symlink(shared, link)
}
