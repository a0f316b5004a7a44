// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host: which programs it must have, and how to become root for a chroot.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::exec;
use crate::ui;

/// The programs that every user needs, each with the package that brings it.
const NEEDS: [(&str, &str); 3] = [
    ("mmdebstrap", "mmdebstrap"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// What users other than root need besides.
const NEEDS_OF_USERS: [(&str, &str); 1] = [("newuidmap", "uidmap")];

/// The package of the keys that sign the distribution we build in.
const KEYRING_PACKAGE: &str = "debian-archive-keyring";

/// Where those keys may be.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// Returns whether we are root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

/// Returns `command` as run by root, or by the root of a user namespace of ours.
pub(crate) fn as_root(command: Command) -> Command {
    if is_root() {
        return command;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--map-auto"]);
    exec::wrap(unshare, &command)
}

/// Finds a program on `$PATH` and where only root looks.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Checks that the host can make and use a sysroot; root's missing packages are installed.
pub(crate) fn prepare() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the kernels and guests are for x86_64, but this is a {} machine",
            std::env::consts::ARCH
        );
    }
    let missing = missing();
    if !missing.is_empty() {
        install(&missing)?;
    }
    if !namespaces_work()? {
        if is_root() {
            bail!(
                "cannot make a mount namespace although we are root: a container must be \
                 given CAP_SYS_ADMIN (docker: --privileged)"
            );
        }
        bail!(
            "cannot make a user namespace: run as root, or allow user namespaces \
             (sysctl kernel.unprivileged_userns_clone=1, and on Ubuntu \
             kernel.apparmor_restrict_unprivileged_userns=0) and give yourself subordinate \
             ids (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER); \
             util-linux must be 2.38 or newer"
        );
    }
    Ok(())
}

/// Lists the packages that the host lacks.
fn missing() -> Vec<&'static str> {
    let of_users = NEEDS_OF_USERS.iter().filter(|_| !is_root());
    let mut packages: Vec<_> = NEEDS
        .iter()
        .chain(of_users)
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !KEYRINGS.iter().any(|file| Path::new(file).is_file()) {
        packages.push(KEYRING_PACKAGE);
    }
    packages.dedup();
    packages
}

/// Installs `packages` if we are root and there is apt, else says how to.
fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!(
            "this host lacks {list} (names of Debian's packages) and has no apt-get: \
             install them with the host's own package manager"
        );
    }
    if !is_root() {
        bail!(
            "this host lacks {list}; run:\n  sudo apt-get update && \
             sudo apt-get install --no-install-recommends {list}"
        );
    }
    let log = crate::project::target().join("logs/host-packages.log");
    ui::step(&format!("host packages ({list})"), |step| {
        let mut update = Command::new("apt-get");
        update.arg("update");
        exec::logged(update, &log, step)?;
        let mut install = Command::new("apt-get");
        install
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
        exec::logged(install, &log, step)
    })
}

/// Tries the namespaces that everything else will use.
fn namespaces_work() -> Result<bool> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "true"]);
    let status = as_root(command)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run unshare")?;
    Ok(status.success())
}
