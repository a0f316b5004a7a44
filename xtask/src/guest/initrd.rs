// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's initial RAM file system: busybox, the modules its root file system takes, our two
//! scripts and what they are to do.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

use crate::kernel::Kind;
use crate::sysroot::Sysroot;

/// The modules that must be loaded before there is a root file system.
const MODULES: [&str; 1] = ["overlay"];

/// The first process.
const INIT: &str = include_str!("../../../vm/initrd-init");

/// The second stage, which runs in the sysroot.
const GUEST_INIT: &str = include_str!("../../../vm/guest-init");

/// Writes the initial RAM file system `dir/initrd` with `files` under /accf and returns its path.
pub(super) fn create(
    sysroot: &Sysroot,
    kind: Kind,
    dir: &Path,
    files: &[(&str, Vec<u8>)],
) -> Result<PathBuf> {
    let busybox = sysroot.path().join("usr/bin/busybox");
    let tree = dir.join("initrd.d");
    for sub in ["bin", "modules", "accf"] {
        fs::create_dir_all(tree.join(sub)).context("cannot create the initrd's directories")?;
    }
    fs::copy(&busybox, tree.join("bin/busybox"))
        .with_context(|| format!("cannot copy {}", busybox.display()))?;
    script(&tree.join("init"), INIT)?;
    script(&tree.join("accf/guest-init"), GUEST_INIT)?;
    for (name, content) in files {
        fs::write(tree.join("accf").join(name), content)
            .with_context(|| format!("cannot write the initrd's {name}"))?;
    }
    if kind == Kind::Stock {
        add_modules(sysroot, &busybox, &tree.join("modules"))?;
    }
    let archive = dir.join("initrd");
    pack(&busybox, &tree, &archive)?;
    fs::remove_dir_all(&tree).context("cannot remove the initrd's tree")?;
    Ok(archive)
}

/// Writes an executable script.
fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Adds the packaged kernel's modules that the root file system takes, in loading order.
fn add_modules(sysroot: &Sysroot, busybox: &Path, to: &Path) -> Result<()> {
    let modules = sysroot.modules();
    let file = modules.join("modules.dep");
    let dependencies =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    for (number, module) in loading_order(&dependencies, &MODULES).iter().enumerate() {
        let packed = modules.join(module);
        let unpacked = File::create(to.join(format!("{number:02}.ko")))
            .context("cannot write an initrd module")?;
        let program = match packed.extension().and_then(|e| e.to_str()) {
            Some("xz") => "xzcat",
            Some("gz") => "zcat",
            Some("ko") => "cat",
            _ => bail!("do not know how {} is compressed", packed.display()),
        };
        let status = Command::new(busybox)
            .arg(program)
            .arg(&packed)
            .stdout(unpacked)
            .status()
            .context("cannot run busybox")?;
        if !status.success() {
            bail!("cannot unpack {}", packed.display());
        }
    }
    Ok(())
}

/// Returns the files of `wanted` and of all they depend on, dependencies first. A module that is
/// not listed is built in.
fn loading_order<'a>(dependencies: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order: Vec<&str> = Vec::new();
    for name in wanted {
        let line = dependencies.lines().find_map(|line| {
            let (file, needs) = line.split_once(':')?;
            let base = file.rsplit('/').next()?;
            (base.split('.').next()? == *name).then_some((file, needs))
        });
        let Some((file, needs)) = line else { continue };
        // modules.dep lists what must be there first last.
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

/// Packs the directory `tree` as the cpio archive `archive`.
fn pack(busybox: &Path, tree: &Path, archive: &Path) -> Result<()> {
    let mut find = Command::new(busybox)
        .args(["find", "."])
        .current_dir(tree)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run busybox find")?;
    let list = find.stdout.take().context("busybox find has no output")?;
    let output =
        File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let packed = Command::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(tree)
        .stdin(list)
        .stdout(output)
        .stderr(Stdio::null())
        .status()
        .context("cannot run busybox cpio")?;
    let found = find.wait().context("cannot wait for busybox find")?;
    if !packed.success() || !found.success() {
        bail!("cannot pack the initrd {}", archive.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let dep = "kernel/a/veth.ko.xz:\n\
                   kernel/fs/overlay.ko.xz: kernel/fs/mid.ko.xz kernel/lib/base.ko.xz\n\
                   kernel/lib/base.ko.xz:\n";
        assert_eq!(
            loading_order(dep, &["overlay"]),
            [
                "kernel/lib/base.ko.xz",
                "kernel/fs/mid.ko.xz",
                "kernel/fs/overlay.ko.xz"
            ]
        );
        assert_eq!(loading_order(dep, &["built_in"]), Vec::<&str>::new());
    }
}
