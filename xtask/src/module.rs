// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds our modules for a kernel.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use fs_err as fs;

use crate::kernel::{jobs, Kernel, Kind, Target};
use crate::sysroot::{Sysroot, BUILD};
use crate::ui::{self, Step};
use crate::{exec, project};

/// The modules built for one kernel.
#[derive(Debug, Clone)]
pub(crate) struct Modules {
    /// `accf.ko`.
    pub(crate) accf: PathBuf,
    /// `accf_kunit.ko`, where the kernel has KUnit.
    pub(crate) kunit: Option<PathBuf>,
}

/// One of the directories with a Kbuild file.
struct Part {
    /// The directory in the checkout.
    directory: &'static str,
    /// The module built there.
    module: &'static str,
    /// The object file of its Rust code.
    object: &'static str,
}

/// The module itself.
const ACCF: Part = Part {
    directory: "module",
    module: "accf.ko",
    object: "accf_main.o",
};

/// Its KUnit suites.
const KUNIT: Part = Part {
    directory: "kunit",
    module: "accf_kunit.ko",
    object: "accf_kunit_main.o",
};

/// Builds the modules for one of the kernels that guests run. Compiler warnings are errors; on the
/// dev kernel, whose compiler it suits, Clippy's too.
pub(crate) fn build(sysroot: &Sysroot, kernel: &Kernel) -> Result<Modules> {
    let build = |part: &Part| {
        build_part(
            part,
            sysroot,
            kernel,
            project::root(),
            &output(&Target::Ours(kernel.kind)),
        )
    };
    Ok(Modules {
        accf: build(&ACCF)?,
        kunit: kernel.kind.is_own().then(|| build(&KUNIT)).transpose()?,
    })
}

/// Builds the module from `source`, another checkout, for one of the kernels that guests run, and
/// keeps it in `output`.
pub(crate) fn build_from(
    sysroot: &Sysroot,
    kernel: &Kernel,
    source: &Path,
    output: &Path,
) -> Result<PathBuf> {
    build_part(&ACCF, sysroot, kernel, source, output)
}

/// Builds a part of the checkout `source` for one of the kernels that guests run.
fn build_part(
    part: &Part,
    sysroot: &Sysroot,
    kernel: &Kernel,
    source: &Path,
    output: &Path,
) -> Result<PathBuf> {
    let mut arguments = kernel.make_arguments.clone();
    if kernel.kind == Kind::Dev {
        arguments.push("CLIPPY=1".into());
    }
    let root = project::root();
    let make = |arguments: &[OsString]| {
        sysroot
            .inside()
            .bind(&kernel.build, BUILD)
            .bind(root, root)
            .command("make", arguments)
    };
    let name = format!("{} for the {} kernel", part.module, kernel.kind.name());
    ui::step(&name, |step| {
        let module = part.build(source, output, Path::new(BUILD), &arguments, &make, step)?;
        if kernel.kind == Kind::Kcsan {
            part.check_instrumented(output)?;
        }
        Ok(module)
    })
}

/// Returns the directory for what is built for `target`.
fn output(target: &Target) -> PathBuf {
    project::target().join(target.name())
}

/// Builds the module for a user's own kernel, with the host's compilers.
pub(crate) fn build_custom(tree: &Path) -> Result<PathBuf> {
    let target = Target::Custom(tree.to_owned());
    let make = |arguments: &[OsString]| {
        let mut command = Command::new("make");
        command.args(arguments);
        // The kernel has a rustc of its own.
        command.env_remove("RUSTUP_TOOLCHAIN");
        exec::dying_with_us(command)
    };
    ui::step(&format!("{} for {}", ACCF.module, tree.display()), |step| {
        ACCF.build(project::root(), &output(&target), tree, &[], &make, step)
    })
}

/// Functions that code compiled for KCSAN calls at an access: of a word, and of a word that is
/// marked (`READ_ONCE()`, in Rust `read_volatile()`).
const TSAN_CALLS: [&str; 2] = ["__tsan_read8", "__tsan_volatile_read8"];

impl Part {
    /// Checks that the Rust code in `output` is instrumented for KCSAN: nothing else would show
    /// that it is not.
    fn check_instrumented(&self, output: &Path) -> Result<()> {
        let object = output.join(self.directory).join(self.object);
        let bytes = fs::read(&object)?;
        for call in TSAN_CALLS {
            if !has_symbol(&bytes, call) {
                bail!(
                    "{} never calls {call}(): KCSAN would not see its Rust code",
                    object.display()
                );
            }
        }
        Ok(())
    }

    /// Builds the module of the checkout `source` against the tree `build` and returns its path in
    /// `output`.
    fn build(
        &self,
        source: &Path,
        output: &Path,
        build: &Path,
        arguments: &[OsString],
        make: &dyn Fn(&[OsString]) -> Command,
        step: &Step,
    ) -> Result<PathBuf> {
        let source = source.join(self.directory);
        let objects = output.join(self.directory);
        let log = output.join(format!("{}.log", self.directory));
        fs::create_dir_all(&objects)?;
        // Two tasks at once must not compile into the same files.
        let lock = fs::File::create(output.join(format!("{}.lock", self.directory)))
            .context("cannot create the build's lock")?;
        lock.lock().context("cannot lock the build")?;
        // The log has the lines of this run only.
        if log.exists() {
            fs::remove_file(&log)?;
        }
        let variable = |name: &str, value: &Path| {
            let mut assignment = OsString::from(format!("{name}="));
            assignment.push(value);
            assignment
        };
        let mut all: Vec<OsString> = vec!["-C".into(), build.into(), jobs().into()];
        all.push(variable("M", &source));
        all.push(variable("MO", &objects));
        all.push("W=1".into());
        all.extend_from_slice(arguments);
        all.push("modules".into());
        exec::logged(make(&all), &log, step)?;
        let text = fs::read(&log)?;
        let warnings = warnings(&String::from_utf8_lossy(&text));
        if !warnings.is_empty() {
            // Up-to-date objects would not be compiled again, and so not be warned of.
            fs::remove_dir_all(&objects)?;
            bail!(
                "warnings while building {}:\n{}\n(all of it: {})",
                self.module,
                warnings,
                log.display()
            );
        }
        let module = output.join(self.module);
        // A guest of another task may be reading the module: replace it as a whole.
        let new = output.join(format!("{}.new", self.module));
        fs::copy(objects.join(self.module), &new)
            .with_context(|| format!("the build made no {}", self.module))?;
        fs::rename(&new, &module)?;
        Ok(module)
    }
}

/// Returns whether an object has the symbol `name`.
fn has_symbol(object: &[u8], name: &str) -> bool {
    let entry = [b"\0", name.as_bytes(), b"\0"].concat();
    object
        .windows(entry.len())
        .any(|window| window == entry.as_slice())
}

/// The number of lines that are shown from a warning on.
const CONTEXT: usize = 12;

/// Returns the warnings of a build's log with the lines that follow each.
fn warnings(log: &str) -> String {
    let mut left = 0;
    let mut text = String::new();
    for line in log.lines() {
        if is_warning(line) {
            left = CONTEXT;
        }
        if left > 0 {
            left -= 1;
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Returns whether this line is a warning of a compiler, linker, make or modpost.
fn is_warning(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.starts_with("warning") || line.contains("warning:") || line.contains("warning[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_every_tool_are_found() {
        for line in [
            "warning: unused variable: `x`",
            "warning[E0001]: something",
            "/x/helpers.c:3:5: warning: unused variable 'x' [-Wunused-variable]",
            "WARNING: modpost: missing MODULE_LICENSE() in accf.o",
            "ld.lld: warning: something",
        ] {
            assert!(is_warning(line), "{line}");
        }
        for line in [
            "  RUSTC [M] accf_main.o",
            "  CC [M]  net/warnings.o",
            "Skipping BTF generation for accf.ko due to unavailability of vmlinux",
        ] {
            assert!(!is_warning(line), "{line}");
        }
    }

    #[test]
    fn symbols_are_found_whole() {
        let names = b"\0__tsan_read8\0__tsan_volatile_read8\0f\0";
        for name in TSAN_CALLS {
            assert!(has_symbol(names, name), "{name}");
        }
        assert!(!has_symbol(names, "__tsan_read"));
        assert!(!has_symbol(b"\0__tsan_volatile_read8\0", "__tsan_read8"));
    }

    #[test]
    fn a_warning_comes_with_what_explains_it() {
        let log = "  RUSTC [M] a.o\nwarning: unused\n --> a.rs:1:1\n";
        assert_eq!(warnings(log), "warning: unused\n --> a.rs:1:1\n");
    }
}
