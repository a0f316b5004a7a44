// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hermetic sysroot: one distribution tree that holds the compilers, the packaged kernel and
//! its source, and that is the guests' root file system.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::archive::{self, Archive};
use crate::cache::Entry;
use crate::ui::{self, Step};
use crate::{exec, host};

/// The kernel series we support, the preferred one first.
pub(crate) const SUPPORTED_SERIES: [&str; 1] = ["7.3"];

/// The distribution's release.
const SUITE: &str = "trixie";

/// The suite that has new kernels.
const BACKPORTS: &str = "trixie-backports";

/// The flavour of the packaged kernel: the one made for virtual machines.
const FLAVOUR: &str = "cloud-amd64";

/// Counts the changes of this recipe that the package list does not show.
const RECIPE: &str = "1";

/// The compilers of kernels and modules; a kernel is built again when one of their versions
/// changes.
const COMPILERS: &[&str] = &[
    "gcc-14",
    "rustc",
    "rust-src",
    "rustfmt",
    "rust-clippy",
    "bindgen",
    "clang-19",
    "lld-19",
    "llvm-19",
    "libclang-19-dev",
    "pahole",
];

/// What else building a kernel takes, what a guest consists of, and tools to use in it.
const TOOLS: &[&str] = &[
    // Building.
    "bc",
    "bison",
    "flex",
    "libdw-dev",
    "libelf-dev",
    "libssl-dev",
    "make",
    "perl",
    "rsync",
    "xz-utils",
    "zstd",
    // The machine.
    "busybox-static",
    "kmod",
    "mount",
    "qemu-system-x86",
    "util-linux",
    "virtiofsd",
    "virtme-ng",
    // In the guest.
    "ca-certificates",
    "curl",
    "ethtool",
    "gunicorn",
    "iproute2",
    "iputils-ping",
    "less",
    "nftables",
    "openssl",
    "procps",
    "psmisc",
    "python3",
    "strace",
    "tcpdump",
];

/// The mount point of a kernel's build tree inside the sysroot: build trees contain their own path,
/// so it must be the same wherever the cache is.
pub(crate) const BUILD: &str = "/accf/build";

/// The file that holds the [`Manifest`].
const MANIFEST: &str = "accf/manifest.json";

/// The file in which dpkg keeps the installed packages and their versions.
const DPKG_STATUS: &str = "var/lib/dpkg/status";

/// What a sysroot contains.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The packaged kernel's release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The version of the kernel's package.
    pub(crate) package_version: String,
    /// The series, as in the name of the source package.
    pub(crate) series: String,
    /// The compilers, each with its version.
    pub(crate) compilers: Vec<String>,
}

impl Manifest {
    /// Names the packages of the kernel: its image, modules, headers and source.
    fn packages(&self) -> [String; 4] {
        let release = &self.release;
        [
            format!("linux-binary-{release}"),
            format!("linux-modules-{release}"),
            format!("linux-headers-{release}"),
            format!("linux-source-{}", self.series),
        ]
    }
}

/// A complete sysroot.
#[derive(Debug, Clone)]
pub(crate) struct Sysroot {
    path: PathBuf,
    manifest: Manifest,
}

impl Sysroot {
    /// Returns the sysroot; makes it if it is not there.
    pub(crate) fn ensure(mirror: Option<&str>) -> Result<Self> {
        let entry = Self::entry()?;
        let path = entry.ensure(|temp| {
            host::prepare()?;
            check_room(temp)?;
            let archive = Archive::find(mirror)?;
            ui::step("sysroot", |_| create(temp, &archive, &entry.log()))
        })?;
        let file = path.join(MANIFEST);
        let text = fs::read(&file)?;
        let manifest = serde_json::from_slice(&text)
            .with_context(|| format!("cannot understand {}", file.display()))?;
        let file = path.join(DPKG_STATUS);
        let status = fs::read_to_string(&file)?;
        check_versions(&status, &manifest)?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
        })
    }

    /// Removes the sysroot, so that the next use makes a new one from today's archive.
    pub(crate) fn forget() -> Result<()> {
        Self::entry()?.remove()
    }

    /// Returns the cache entry.
    fn entry() -> Result<Entry> {
        let mut parts = vec![RECIPE, SUITE, FLAVOUR];
        parts.extend(SUPPORTED_SERIES);
        parts.extend(COMPILERS);
        parts.extend(TOOLS);
        Entry::new("sysroot", &parts)
    }

    /// Returns the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what it contains.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the directory of the packaged kernel, its modules and its image.
    pub(crate) fn modules(&self) -> PathBuf {
        self.path
            .join("usr/lib/modules")
            .join(&self.manifest.release)
    }

    /// Returns the packaged headers' directory, which has `.config` and `Module.symvers`.
    pub(crate) fn headers(&self) -> PathBuf {
        self.path
            .join(format!("usr/src/linux-headers-{}", self.manifest.release))
    }

    /// Returns the kernel source's directory as seen from inside.
    pub(crate) fn source(&self) -> String {
        format!("/usr/src/linux-source-{}", self.manifest.series)
    }

    /// Prepares to run something inside the sysroot.
    pub(crate) fn inside(&self) -> Inside {
        Inside::new(&self.path)
    }
}

/// A command to be run inside a sysroot: a chroot in private mount and PID namespaces.
pub(crate) struct Inside {
    root: PathBuf,
    binds: Vec<(PathBuf, PathBuf)>,
    network: bool,
}

/// Mounts what a build needs and enters the sysroot. The arguments are the root, pairs of what to
/// bind where, `--`, and the command.
const ENTER: &str = r#"
set -eu
root=$1
shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$2"
    elif [ ! -e "$root$2" ]; then
        : > "$root$2"
    fi
    mount --rbind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" "$@"
"#;

impl Inside {
    /// Prepares to run something inside the tree `root`.
    fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            binds: Vec::new(),
            network: false,
        }
    }

    /// Mounts the host's `from` as `to`.
    pub(crate) fn bind(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.binds.push((from.into(), to.into()));
        self
    }

    /// Lets the command use the network the way the host does.
    fn network(mut self) -> Self {
        self.network = true;
        // Name resolution and trusted certificates are the host's.
        ["/etc/resolv.conf", "/etc/ssl/certs"]
            .into_iter()
            .filter(|path| Path::new(path).exists())
            .fold(self, |inside, path| inside.bind(path, path))
    }

    /// Returns the command that runs `program` there.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = exec::unshare();
        command.args(["sh", "-c", ENTER, "sh"]).arg(&self.root);
        for (from, to) in &self.binds {
            command.arg(from).arg(to);
        }
        command.arg("--").args(["env", "-i"]).args([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "LC_ALL=C.UTF-8",
            "DEBIAN_FRONTEND=noninteractive",
        ]);
        if self.network {
            for name in ["http_proxy", "https_proxy", "no_proxy"] {
                if let Ok(value) = std::env::var(name) {
                    command.arg(format!("{name}={value}"));
                }
            }
        }
        command.arg(program).args(arguments);
        host::as_root(exec::dying_with_us(command))
    }

    /// Runs a short shell script there and returns what it printed.
    fn output(&self, script: &str) -> Result<String> {
        let output = self
            .command("sh", ["-c", script])
            .output()
            .context("cannot run a command in the sysroot")?;
        if !output.status.success() {
            bail!(
                "a command failed in the sysroot ({}): {script}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The size of the sysroot and both kernels in gigabytes.
const ROOM: u64 = 10;

/// Checks that the disk has room for the sysroot and both kernels.
fn check_room(dir: &Path) -> Result<()> {
    let output = Command::new("df")
        .args(["--output=avail", "--block-size=1G"])
        .arg(dir)
        .output()
        .context("cannot run df")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let free: Option<u64> = text
        .lines()
        .last()
        .and_then(|line| line.trim().parse().ok());
    if let Some(free) = free.filter(|free| *free < ROOM) {
        bail!(
            "{free} GB are free at {}, but the sysroot and both kernels take {ROOM} GB: free some \
             space, or point XDG_CACHE_HOME at a larger disk",
            dir.display()
        );
    }
    Ok(())
}

/// Makes the sysroot in `root`.
fn create(root: &Path, archive: &Archive, log: &Path) -> Result<()> {
    ui::step("packages", |step| bootstrap(root, archive, log, step))?;
    let kernel = newest_kernel(root)?;
    ui::step(&format!("packaged kernel {}", kernel.release), |step| {
        install_kernel(root, &kernel, log, step)
    })?;
    ui::step("kernel source", |step| {
        unpack_source(root, &kernel, log, step)
    })?;
    let build = root.join(BUILD.trim_start_matches('/'));
    fs::create_dir_all(&build)?;
    let text = serde_json::to_string_pretty(&kernel).context("cannot write the manifest")?;
    Ok(fs::write(root.join(MANIFEST), text)?)
}

/// Installs the distribution and our packages.
fn bootstrap(root: &Path, archive: &Archive, log: &Path, step: &Step) -> Result<()> {
    let Archive { main, security } = archive;
    let proxies = archive::proxy_settings()?;
    let packages = [COMPILERS, TOOLS].concat().join(",");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=apt"])
        .args([
            r#"--aptopt=APT::Install-Recommends "false""#,
            r#"--aptopt=APT::Sandbox::User "root""#,
            // apt's lists are for finding the kernel.
            "--skip=cleanup/apt/lists",
        ])
        .args(proxies.iter().map(|setting| format!("--aptopt={setting}")))
        .arg(format!("--include={packages}"))
        .arg(SUITE)
        .arg(root)
        .arg(format!("deb {main} {SUITE} main"))
        .arg(format!("deb {main} {SUITE}-updates main"))
        .arg(format!("deb {main} {BACKPORTS} main"))
        .arg(format!("deb {security} {SUITE}-security main"));
    let mut private = exec::unshare();
    private.arg("--mount-proc");
    let command = host::as_root(exec::dying_with_us(exec::wrap(private, &command)));
    exec::logged(command, log, step).with_context(|| {
        format!(
            "cannot install the sysroot from {main}: the archive must have the suites {SUITE}, \
             {SUITE}-updates and {BACKPORTS}, and {security} must have {SUITE}-security, with \
             every package that apt names below (another archive: --mirror URL)"
        )
    })
}

/// Finds the newest packaged kernel of a supported series.
fn newest_kernel(root: &Path) -> Result<Manifest> {
    let inside = Inside::new(root);
    let names = inside.output("apt-cache pkgnames linux-binary-")?;
    for series in SUPPORTED_SERIES {
        let Some(release) = newest_release(&names, series) else {
            continue;
        };
        let version = inside.output(&format!(
            "apt-cache show --no-all-versions linux-binary-{release} | sed -n 's/^Version: //p'"
        ))?;
        return Ok(Manifest {
            release,
            package_version: version.trim().to_owned(),
            series: series.to_owned(),
            compilers: compilers(root)?,
        });
    }
    bail!(
        "the archive has no package linux-binary-{}.*-{FLAVOUR}: its suite {BACKPORTS} must carry \
         a kernel of a supported series ({}); try another mirror (--mirror URL), or a newer \
         version of this project if the series has left the archive",
        SUPPORTED_SERIES[0],
        SUPPORTED_SERIES.join(", ")
    )
}

/// Lists the installed compilers with their versions.
fn compilers(root: &Path) -> Result<Vec<String>> {
    let list = Inside::new(root).output(&format!("dpkg-query --show {}", COMPILERS.join(" ")))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// Picks the newest kernel release of `series` from package names.
fn newest_release(names: &str, series: &str) -> Option<String> {
    names
        .lines()
        .filter_map(|name| name.strip_prefix("linux-binary-"))
        .filter(|release| release.ends_with(&format!("-{FLAVOUR}")))
        .filter(|release| {
            let rest = release.strip_prefix(series);
            rest.is_some_and(|rest| rest.starts_with(['.', '+', '~', '-']))
        })
        .max_by(|a, b| compare_releases(a, b))
        .map(str::to_owned)
}

/// Compares kernel releases number by number.
fn compare_releases(a: &str, b: &str) -> Ordering {
    let numbers = |release: &str| -> Vec<u64> {
        release
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

/// Installs the packaged kernel, what building for it takes, and its source.
fn install_kernel(root: &Path, kernel: &Manifest, log: &Path, step: &Step) -> Result<()> {
    let packages = kernel.packages();
    let options = "install --yes --no-install-recommends -o APT::Sandbox::User=root -t";
    let packages = packages.iter().map(String::as_str);
    let arguments = options
        .split(' ')
        .chain([BACKPORTS])
        .chain(packages.clone());
    let inside = Inside::new(root).network();
    exec::logged(inside.command("apt-get", arguments), log, step).with_context(|| {
        format!(
            "cannot install {} from the suite {BACKPORTS}: the archive must have them all, of \
             one version; a mirror in the middle of an update has not: try again later, or another \
             mirror (--mirror URL)",
            packages.collect::<Vec<_>>().join(", ")
        )
    })?;
    // The image package would have done this.
    exec::logged(inside.command("depmod", [&kernel.release]), log, step)
}

/// Checks that the kernel's packages in `status`, dpkg's list, have one version.
///
/// This is what proves that the packaged kernel was built from this source. Two revisions of a
/// package share the release that the kernel's loader compares, and Rust symbol names are equal
/// even for different releases.
fn check_versions(status: &str, kernel: &Manifest) -> Result<()> {
    let version = |package: &str| {
        status.split("\n\n").find_map(|paragraph| {
            let field = |name| paragraph.lines().find_map(|line| line.strip_prefix(name));
            let is_it = field("Package: ") == Some(package)
                && field("Status: ").is_some_and(|status| status.ends_with(" installed"));
            is_it.then(|| field("Version: ").unwrap_or_default())
        })
    };
    let wanted = &kernel.package_version;
    let differing: Vec<String> = kernel
        .packages()
        .iter()
        .filter(|package| version(package) != Some(wanted.as_str()))
        .map(|package| {
            format!(
                "{package} {}",
                version(package).unwrap_or("is not installed")
            )
        })
        .collect();
    if !differing.is_empty() {
        bail!(
            "the sysroot's kernel, modules, headers and source are not of one package version \
             ({wanted}): {}. Modules built from this source do not fit this kernel: run `cargo \
             xtask setup --refresh`; a mirror in the middle of an update has several \
             versions: try again later, or another mirror (--mirror URL)",
            differing.join(", ")
        );
    }
    Ok(())
}

/// Unpacks the kernel's source and removes what is no longer needed.
fn unpack_source(root: &Path, kernel: &Manifest, log: &Path, step: &Step) -> Result<()> {
    let series = &kernel.series;
    let script = format!(
        "set -e; cd /usr/src; tar --no-same-owner -xf linux-source-{series}.tar.xz; \
         rm linux-source-{series}.tar.xz; apt-get clean; rm -rf /var/lib/apt/lists/*"
    );
    exec::logged(Inside::new(root).command("sh", ["-c", &script]), log, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_is_found_by_number() {
        let names = "linux-binary-7.3.4+deb13-cloud-amd64\n\
                     linux-binary-7.3.12+deb13-cloud-amd64\n\
                     linux-binary-7.3.12+deb13-amd64\n\
                     linux-binary-7.3.12+deb13-rt-amd64\n\
                     linux-binary-7.30.1+deb13-cloud-amd64\n\
                     linux-binary-6.12.57-cloud-amd64\n";
        assert_eq!(
            newest_release(names, "7.3").as_deref(),
            Some("7.3.12+deb13-cloud-amd64")
        );
        assert_eq!(newest_release(names, "7.4"), None);
    }

    /// Returns a manifest of the version `7.3.4-2`, and dpkg's list where `package` has `version`.
    fn installed(package: &str, version: &str) -> (Manifest, String) {
        let manifest = Manifest {
            release: "7.3.4+deb13-cloud-amd64".to_owned(),
            package_version: "7.3.4-2".to_owned(),
            series: "7.3".to_owned(),
            compilers: Vec::new(),
        };
        let status = manifest.packages().map(|name| {
            let version = if name == package { version } else { "7.3.4-2" };
            format!(
                "Package: {name}\nStatus: install ok installed\nSource: linux\nVersion: {version}\n"
            )
        });
        (manifest, status.join("\n"))
    }

    #[test]
    fn one_version_of_all_kernel_packages_passes() {
        let (manifest, status) = installed("", "");
        check_versions(&status, &manifest).unwrap();
        // Other packages of the same source have versions of their own.
        let other = "Package: linux-libc-dev\nStatus: install ok installed\nVersion: 6.12.57-1\n";
        check_versions(&format!("{other}\n{status}"), &manifest).unwrap();
    }

    #[test]
    fn another_version_of_one_kernel_package_is_an_error() {
        for package in installed("", "").0.packages() {
            // The release of both is 7.3.4+deb13.
            let (manifest, status) = installed(&package, "7.3.4-1");
            let error = check_versions(&status, &manifest).unwrap_err().to_string();
            for part in [&package, "7.3.4-1", "7.3.4-2", "setup --refresh"] {
                assert!(error.contains(part), "{error}");
            }
        }
        let (manifest, status) = installed("", "");
        let removed = status.replacen("install ok installed", "deinstall ok config-files", 1);
        let error = check_versions(&removed, &manifest).unwrap_err().to_string();
        assert!(
            error.contains("linux-binary-7.3.4+deb13-cloud-amd64 is not installed"),
            "{error}"
        );
    }
}
