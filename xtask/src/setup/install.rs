//! Installs a program into the project by `cargo install`, never over anything of the user's.

use std::{env, fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    machine::find_in_path,
    progress, toolchain,
    tools::{self, Tool},
    workspace::Workspace,
};

/// Builds `tool` and puts it into `.tools/bin`.
pub fn install(workspace: &Workspace, tool: &Tool) -> Result<()> {
    require_c_compiler()?;
    let folder = workspace.tools();
    let build = folder.join("build").join(tool.name);
    let log = folder.join("log").join(tool.name);
    let mut cargo = Command::new(toolchain::cargo());
    cargo
        // `--force`: whatever lies in .tools under that name is ours, and not what is wanted.
        .args([
            "install",
            tool.name,
            "--version",
            tool.version,
            "--locked",
            "--force",
            "--root",
        ])
        .arg(&folder)
        .env("CARGO_TARGET_DIR", &build)
        // Flags meant for the labs do not fit a tool.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if !tool.optimized {
        cargo.args(["--profile", "dev"]).env("CARGO_PROFILE_DEV_DEBUG", "false");
    }
    progress::run(&format!("building {} {}", tool.name, tool.version), &mut cargo, &log)?;

    if let Some(llvm) = tool.llvm {
        let record = tools::llvm_record(workspace);
        fs::write(&record, format!("{llvm}\n")).with_context(|| format!("{} cannot be written", record.display()))?;
    }
    fs::remove_dir_all(&build).with_context(|| format!("{} cannot be removed", build.display()))?;
    // Unless another build's leavings are in it.
    fs::remove_dir(folder.join("build")).ok();
    Ok(())
}

fn require_c_compiler() -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    if find_in_path("cc", &path).is_none() {
        bail!("no C compiler `cc` on PATH, by which cargo links; on Debian: apt-get install gcc libc6-dev");
    }
    Ok(())
}
