// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stock kernel: packaged, untouched. The packages lack the Rust metadata that a module is
//! compiled against, so that part is rebuilt from the packaged source and configuration.
//!
//! Three checks together show that a module built against the rebuilt part fits the kernel:
//! * `sysroot.rs` compares the package versions: image, headers and source are of one version, so
//!   that the structures in the source are those of the kernel.
//! * [`check_symbols`] compares symbol names: the rebuilt crates are of the same rustc and crate
//!   names. They do not show which source was built: they are equal for 7.2.12 and 7.3.4.
//! * The kernel's loader compares the module's `vermagic`, which begins with `KERNELRELEASE`. Two
//!   revisions of a package can have one release.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{bail, Context, Result};
use fs_err as fs;

use super::{config, jobs, Kernel, Kind};
use crate::cache::Entry;
use crate::exec;
use crate::sysroot::{Sysroot, BUILD};
use crate::ui::{self, Step};

/// Counts the changes of this recipe.
const RECIPE: &str = "1";

/// Returns the stock kernel.
pub(super) fn ensure(sysroot: &Sysroot) -> Result<Kernel> {
    let manifest = sysroot.manifest();
    let config_file = sysroot.headers().join(".config");
    let config = fs::read_to_string(&config_file)?;
    let compiler = config::compiler(&config)
        .with_context(|| format!("{} does not say what compiled it", config_file.display()))?;
    let compilers = manifest.compilers.join("\n");
    let entry = Entry::new(
        "kernel-stock",
        &[
            RECIPE,
            &compilers,
            &manifest.release,
            &manifest.package_version,
            &config,
        ],
    )?;
    let make_arguments = vec![
        format!("CC={compiler}").into(),
        format!("HOSTCC={compiler}").into(),
    ];
    let build = entry.ensure(|temp| {
        ui::step(
            &format!("stock kernel's Rust metadata ({})", manifest.release),
            |step| create(sysroot, &config, compiler, temp, &entry.log(), step),
        )
    })?;
    Ok(Kernel {
        kind: Kind::Stock,
        build: build.to_owned(),
        image: sysroot.modules().join("vmlinuz"),
        make_arguments,
    })
}

/// Fills the build tree `build`.
fn create(
    sysroot: &Sysroot,
    config: &str,
    compiler: &str,
    build: &Path,
    log: &Path,
    step: &Step,
) -> Result<()> {
    fs::write(build.join(".config"), config)?;
    let release = &sysroot.manifest().release;
    let make = sysroot.inside().bind(build, BUILD).command(
        "nice",
        [
            "make",
            "-C",
            &sysroot.source(),
            &jobs(),
            &format!("O={BUILD}"),
            &format!("CC={compiler}"),
            &format!("HOSTCC={compiler}"),
            // The release is the package's, whatever the tree's own name would be.
            "LOCALVERSION=",
            &format!("KERNELRELEASE={release}"),
            "modules_prepare",
        ],
    );
    exec::logged(make, log, step)?;
    let packaged = sysroot.headers().join("Module.symvers");
    fs::copy(&packaged, build.join("Module.symvers"))?;
    check_symbols(build)
}

/// Checks that the packaged kernel exports every name that the rebuilt Rust crates export: they
/// were built by the same rustc, for crates of the same names. This says nothing about their
/// source.
fn check_symbols(build: &Path) -> Result<()> {
    let symvers = fs::read_to_string(build.join("Module.symvers"))?;
    let exported: HashSet<&str> = symvers
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    let mut count = 0;
    let mut missing = Vec::new();
    for header in ["core", "kernel"] {
        let header = build.join(format!("rust/exports_{header}_generated.h"));
        let text = fs::read_to_string(&header)?;
        for symbol in text.lines().filter_map(exported_symbol) {
            count += 1;
            if !exported.contains(symbol) {
                missing.push(symbol.to_owned());
            }
        }
    }
    if count == 0 {
        bail!("the rebuilt Rust crates export nothing: the recipe does not fit this kernel");
    }
    if let Some(first) = missing.first() {
        bail!(
            "the rebuilt Rust crates are not those of the packaged kernel: {} of {count} symbols \
             differ, for example {first}; a module built against them would not load. The \
             sysroot's compilers differ from the package's: run `cargo xtask setup --refresh`",
            missing.len()
        );
    }
    Ok(())
}

/// Returns the symbol that a line of the generated export headers names.
fn exported_symbol(line: &str) -> Option<&str> {
    let symbol = line.trim().strip_prefix("EXPORT_SYMBOL_RUST_GPL(")?;
    symbol.strip_suffix(");")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn export_lines_are_read() {
        assert_eq!(
            exported_symbol("EXPORT_SYMBOL_RUST_GPL(_RNvNtCs1_6kernel5print12call_printk);"),
            Some("_RNvNtCs1_6kernel5print12call_printk")
        );
        assert_eq!(exported_symbol("#include <linux/module.h>"), None);
    }

    #[test]
    fn a_foreign_symbol_is_an_error() {
        let scratch = Scratch::new("stock");
        let dir = &scratch.0;
        fs::create_dir_all(dir.join("rust")).unwrap();
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        write(
            "Module.symvers",
            "0x0\t_Rone\tvmlinux\tEXPORT_SYMBOL_GPL\t\n",
        );
        write(
            "rust/exports_core_generated.h",
            "EXPORT_SYMBOL_RUST_GPL(_Rone);\n",
        );
        write("rust/exports_kernel_generated.h", "");
        check_symbols(dir).unwrap();
        write(
            "rust/exports_kernel_generated.h",
            "EXPORT_SYMBOL_RUST_GPL(_Rtwo);\n",
        );
        let error = check_symbols(dir).unwrap_err().to_string();
        assert!(error.contains("_Rtwo"), "{error}");
    }
}
