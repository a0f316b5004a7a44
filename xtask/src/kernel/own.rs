// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our own kernels: the packaged kernel's source, a small configuration and checkers. The dev
//! kernel has as many checkers as go together; the others differ from it in what they look for.

use std::path::Path;

use anyhow::{bail, Result};
use fs_err as fs;

use super::{config, jobs, Kernel, Kind};
use crate::cache::Entry;
use crate::exec;
use crate::sysroot::{Sysroot, BUILD};
use crate::ui::{self, Step};

/// Counts the changes of this recipe.
const RECIPE: &str = "1";

/// Rust with KASAN takes Clang.
const LLVM: &str = "LLVM=-19";

/// A part of a kernel configuration.
#[derive(Debug)]
struct Fragment {
    /// Its path in the checkout.
    file: &'static str,
    /// Its content.
    text: &'static str,
}

/// The part that all of them have.
const DEV: Fragment = Fragment {
    file: "vm/dev.config",
    text: include_str!("../../../vm/dev.config"),
};

/// The part of the kernel with KCSAN.
const KCSAN: Fragment = Fragment {
    file: "vm/kcsan.config",
    text: include_str!("../../../vm/kcsan.config"),
};

/// The part of the kernel with PREEMPT_RT.
const RT: Fragment = Fragment {
    file: "vm/rt.config",
    text: include_str!("../../../vm/rt.config"),
};

/// The argument that makes the compiler instrument the Rust code of modules, so that KCSAN sees
/// every access. The kernel's build does so for C only (`scripts/Makefile.kcsan`, whose flags these
/// are). Generic and inlined code of the kernel's own Rust crates is compiled with the module that
/// uses it; their atomics and locks are functions in C.
const KCSAN_RUST: &str = "RUSTFLAGS_MODULE=-Zsanitizer=thread \
                          -Cllvm-args=-tsan-compound-read-before-write=1 \
                          -Cllvm-args=-tsan-distinguish-volatile=1";

/// A change of one file of the kernel's source, for one build: all kernels share the source.
#[derive(Debug)]
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// Rust's compiler refuses a sanitizer that its target does not list. For x86 the kernel's build
/// writes the target's description.
const KCSAN_TARGET: Edit = Edit {
    file: "scripts/generate_rust_target.rs",
    from: r#"ts.push("llvm-target", "x86_64-linux-gnu");
        ts.push("supported-sanitizers", ["kcfi", "kernel-address"]);"#,
    to: r#"ts.push("llvm-target", "x86_64-linux-gnu");
        ts.push("supported-sanitizers", ["kcfi", "kernel-address", "thread"]);"#,
};

impl Edit {
    /// Makes the change in the file's text.
    fn apply(&self, text: &str) -> Result<String> {
        if text.matches(self.from).count() != 1 {
            bail!(
                "{} of this kernel does not have the text that is to be changed for one build:\n{}",
                self.file,
                self.from
            );
        }
        Ok(text.replacen(self.from, self.to, 1))
    }
}

/// How one of these kernels is built.
#[derive(Debug)]
struct Own {
    kind: Kind,
    /// The kind of its entry in the cache.
    cache: &'static str,
    /// The parts that are merged onto `tinyconfig`, in this order.
    fragments: &'static [Fragment],
    /// The change of its source.
    edit: Option<Edit>,
    /// The argument that modules for it are built with, besides the compiler.
    modules: Option<&'static str>,
}

impl Own {
    /// Returns the recipe of `kind`, which is one of these.
    fn new(kind: Kind) -> Result<Self> {
        let own = |cache, fragments| Self {
            kind,
            cache,
            fragments,
            edit: None,
            modules: None,
        };
        Ok(match kind {
            Kind::Dev => own("kernel-dev", &[DEV]),
            Kind::Kcsan => Self {
                edit: Some(KCSAN_TARGET),
                modules: Some(KCSAN_RUST),
                ..own("kernel-kcsan", &[DEV, KCSAN])
            },
            Kind::Rt => own("kernel-rt", &[DEV, RT]),
            Kind::Stock => bail!("the stock kernel is not configured by us"),
        })
    }

    /// Returns what it is made from.
    fn parts(&self) -> Vec<&'static str> {
        let fragments = self.fragments.iter().map(|part| part.text);
        let edit = self.edit.iter().flat_map(|edit| [edit.file, edit.to]);
        fragments.chain(edit).collect()
    }

    /// Configures and builds into `build`.
    fn create(&self, sysroot: &Sysroot, build: &Path, log: &Path, step: &Step) -> Result<()> {
        let source = sysroot.source();
        let mut binds = vec![(build.to_owned(), BUILD.to_owned())];
        if let Some(edit) = &self.edit {
            let place = format!("{source}/{}", edit.file);
            let original = sysroot.path().join(place.trim_start_matches('/'));
            let text = fs::read_to_string(&original)?;
            let edited = build.join("edited");
            fs::write(&edited, edit.apply(&text)?)?;
            binds.push((edited, place));
        }
        let make = |arguments: &[&str]| -> Result<()> {
            let output = format!("O={BUILD}");
            let jobs = jobs();
            let fixed = ["make", "-C", &source, &output, &jobs, LLVM];
            let inside = binds
                .iter()
                .fold(sysroot.inside(), |inside, (from, to)| inside.bind(from, to));
            let command = inside.command("nice", fixed.iter().chain(arguments));
            exec::logged(command, log, step)
        };
        make(&["tinyconfig"])?;
        let file = build.join(".config");
        let mut text = fs::read_to_string(&file)?;
        for fragment in self.fragments {
            // The last line that sets an option counts.
            text.push('\n');
            text.push_str(fragment.text);
        }
        fs::write(&file, text)?;
        make(&["olddefconfig"])?;
        let result = fs::read_to_string(&file)?;
        let refused = config::not_taken(self.fragments.iter().map(|part| part.text), &result);
        if !refused.is_empty() {
            let files: Vec<_> = self.fragments.iter().map(|part| part.file).collect();
            bail!(
                "{} asks for what this kernel's configuration does not give (a missing \
                 dependency, or an option that is gone):\n  {}",
                files.join(" with "),
                refused.join("\n  ")
            );
        }
        make(&["bzImage", "modules"])
    }
}

/// Returns the kernel `kind`, which is one of these.
pub(super) fn ensure(sysroot: &Sysroot, kind: Kind) -> Result<Kernel> {
    let own = Own::new(kind)?;
    let manifest = sysroot.manifest();
    let compilers = manifest.compilers.join("\n");
    let mut parts = vec![RECIPE, LLVM, &compilers, &manifest.package_version];
    parts.extend(own.parts());
    let entry = Entry::new(own.cache, &parts)?;
    let build = entry.ensure(|temp| {
        ui::step(&format!("{} kernel", own.kind.name()), |step| {
            own.create(sysroot, temp, &entry.log(), step)
        })
    })?;
    let arguments = [Some(LLVM), own.modules];
    Ok(Kernel {
        kind: own.kind,
        build: build.to_owned(),
        image: build.join("arch/x86/boot/bzImage"),
        make_arguments: arguments.into_iter().flatten().map(Into::into).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_made_from_dev_and_its_own() {
        assert_eq!(Own::new(Kind::Dev).unwrap().parts(), [DEV.text]);
        assert_eq!(Own::new(Kind::Rt).unwrap().parts(), [DEV.text, RT.text]);
        let kcsan = Own::new(Kind::Kcsan).unwrap().parts();
        assert_eq!(kcsan[..2], [DEV.text, KCSAN.text]);
        assert!(kcsan.contains(&KCSAN_TARGET.to));
        assert!(Own::new(Kind::Stock).is_err());
    }

    #[test]
    fn a_source_that_is_not_as_expected_is_not_changed() {
        let edit = Edit {
            file: "a.rs",
            from: "one",
            to: "two",
        };
        assert_eq!(edit.apply("zero one\n").unwrap(), "zero two\n");
        for text in ["zero\n", "one one\n"] {
            let error = edit.apply(text).unwrap_err().to_string();
            assert!(error.contains("a.rs"), "{error}");
        }
    }
}
