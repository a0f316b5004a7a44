// SPDX-License-Identifier: MIT OR Apache-2.0
//! The dev kernel: the packaged kernel's source, a small configuration and every checker.

use std::fs;
use std::path::Path;

use anyhow::{bail, Context, Result};

use super::{config, jobs, Kernel, Kind};
use crate::cache::Entry;
use crate::exec;
use crate::sysroot::{Sysroot, BUILD};
use crate::ui::{self, Step};

/// Counts the changes of this recipe.
const RECIPE: &str = "1";

/// Rust with KASAN takes Clang.
const LLVM: &str = "LLVM=-19";

/// What is merged onto `tinyconfig`.
const FRAGMENT: &str = include_str!("../../../vm/dev.config");

/// Returns the dev kernel.
pub(super) fn ensure(sysroot: &Sysroot) -> Result<Kernel> {
    let manifest = sysroot.manifest();
    let compilers = manifest.compilers.join(
        "
",
    );
    let entry = Entry::new(
        "kernel-dev",
        &[
            RECIPE,
            LLVM,
            &compilers,
            &manifest.package_version,
            FRAGMENT,
        ],
    )?;
    let build = entry.ensure(|temp| {
        ui::step("dev kernel", |step| {
            create(sysroot, temp, &entry.log(), step)
        })
    })?;
    Ok(Kernel {
        kind: Kind::Dev,
        build: build.to_owned(),
        image: build.join("arch/x86/boot/bzImage"),
        make_arguments: vec![LLVM.into()],
    })
}

/// Configures and builds into `build`.
fn create(sysroot: &Sysroot, build: &Path, log: &Path, step: &Step) -> Result<()> {
    let make = |arguments: &[&str]| -> Result<()> {
        let source = sysroot.source();
        let output = format!("O={BUILD}");
        let jobs = jobs();
        let fixed = ["make", "-C", &source, &output, &jobs, LLVM];
        let command = sysroot
            .inside()
            .bind(build, BUILD)
            .command("nice", fixed.iter().chain(arguments));
        exec::logged(command, log, step)
    };
    make(&["tinyconfig"])?;
    let file = build.join(".config");
    let tiny = fs::read_to_string(&file).context("cannot read tinyconfig's result")?;
    // The last line of an option counts.
    fs::write(&file, format!("{tiny}\n{FRAGMENT}")).context("cannot write the configuration")?;
    make(&["olddefconfig"])?;
    let result = fs::read_to_string(&file).context("cannot read the configuration")?;
    let refused = config::not_taken(FRAGMENT, &result);
    if !refused.is_empty() {
        bail!(
            "vm/dev.config asks for what this kernel's configuration does not give (a missing \
             dependency, or an option that is gone):\n  {}",
            refused.join("\n  ")
        );
    }
    make(&["bzImage", "modules"])
}
