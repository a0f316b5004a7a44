// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine a guest runs on, which virtme-ng starts.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::splat;
use crate::sysroot::Sysroot;
use crate::{exec, host};

/// How often we look at what the guest left.
const TICK: Duration = Duration::from_millis(20);

/// How long a guest that left its verdict may take to stop.
const STOP: Duration = Duration::from_secs(15);

/// The kernel's command line: the console at warnings and above (the whole log is a file at the
/// end), and a kernel that is broken stops at once.
///
/// `init_on_alloc`: a file server writes file contents into the guest's memory behind the back of
/// QEMU's translator, which goes on executing its translation of whatever code was in that page
/// before. Pages that the guest's own processor clears first have no old translation. Debian's
/// kernel does that by default; without it programs crash at random.
///
/// `kunit.filter_glob`: of the kernels with KUnit, only our own suites. The kernel's run at boot, which takes time, and one of
/// them warns with PREEMPT_RT (that of Rust's spin locks, which asks whether a lock that sleeps there has turned interrupts off).
const KERNEL_ARGUMENTS: [&str; 6] = [
    "loglevel=5",
    "log_buf_len=4M",
    "panic=-1",
    "oops=panic",
    "init_on_alloc=1",
    "kunit.filter_glob=accf*",
];

/// What becomes process 1 of a namespace on the host and starts virtme-ng there.
const BOOT: &str = include_str!("../../../vm/boot");

/// What a machine is made of.
pub(super) struct Parts<'a> {
    pub(super) image: &'a Path,
    /// The directory that the guest sees as /guest; its `init` is the first process.
    pub(super) files: &'a Path,
    pub(super) cpus: u32,
    pub(super) memory: &'a str,
    pub(super) arguments: &'a [String],
    pub(super) shares: &'a [PathBuf],
    /// Connect the guest's terminal to ours.
    pub(super) terminal: bool,
    /// Where the guest leaves its verdict and logs.
    pub(super) run: &'a Path,
}

/// How a machine's run came to an end.
#[derive(Debug)]
pub(super) enum End {
    /// It stopped, with a verdict or without; the text says what virtme-ng and QEMU had to say.
    Stopped(String),
    /// It was ended at the deadline.
    TimedOut,
}

/// A running machine; dropping it ends it.
pub(super) struct Machine {
    process: Child,
    run: PathBuf,
}

impl Machine {
    /// Starts the machine.
    pub(super) fn start(sysroot: &Sysroot, parts: &Parts<'_>) -> Result<Self> {
        let create = |name: &str| {
            // Shared by several programs: each adds at the end.
            File::options()
                .create(true)
                .append(true)
                .open(parts.run.join(name))
                .with_context(|| format!("cannot write {name}"))
        };
        let mut command = command(sysroot, parts);
        command.stderr(create("virtme.log")?);
        if !parts.terminal {
            command.stdin(Stdio::null()).stdout(create("console")?);
        }
        Ok(Self {
            process: command.spawn().context("cannot start virtme-ng")?,
            run: parts.run.to_owned(),
        })
    }

    /// Waits until the machine stops or `timeout` has passed, copying the command's output to ours
    /// if `echo`.
    pub(super) fn wait(&mut self, timeout: Option<Duration>, echo: bool) -> Result<End> {
        let begin = Instant::now();
        let verdict = self.run.join("verdict");
        let mut outputs = [
            Tail::new(self.run.join("stdout")),
            Tail::new(self.run.join("stderr")),
        ];
        let mut has_verdict: Option<Instant> = None;
        loop {
            let stopped = self
                .process
                .try_wait()
                .context("cannot wait for virtme-ng")?;
            if echo {
                outputs[0].copy(&mut std::io::stdout().lock())?;
                outputs[1].copy(&mut std::io::stderr().lock())?;
            }
            if stopped.is_some() {
                return Ok(End::Stopped(self.last_words()));
            }
            if has_verdict.is_none() && verdict.exists() {
                has_verdict = Some(Instant::now());
            }
            match has_verdict {
                // All is said; how the machine stops does not matter.
                Some(since) if since.elapsed() > STOP => return Ok(End::Stopped(String::new())),
                None if timeout.is_some_and(|limit| begin.elapsed() > limit) => {
                    return Ok(End::TimedOut);
                }
                _ => sleep(TICK),
            }
        }
    }

    /// Returns what was said besides the kernel's messages.
    fn last_words(&self) -> String {
        let said = fs::read(self.run.join("virtme.log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        // Those have a time before their text.
        let lines = said.lines().filter(|line| splat::message(line) == *line);
        lines.map(|line| format!("{line}\n")).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good. The whole namespace ends with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the command that starts the machine.
fn command(sysroot: &Sysroot, parts: &Parts<'_>) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child"]);
    unshare.args(["sh", "-c", BOOT, "boot"]);
    unshare.arg(sysroot.path()).arg(parts.files);
    unshare.args(parts.shares).arg("--");

    unshare.arg("--kimg").arg(parts.image);
    // Nothing that the root takes is a module; the guest's own tools find the modules in the root.
    unshare.args(["--mods", "none"]);
    // The initial RAM file system takes the first `init=` there is, the kernel the last, which is
    // virtme-ng's own.
    unshare.args(["--force-initramfs", "--kopt", "init=/guest/init"]);
    // A /dev/kvm that is there may still not run a guest; emulation always does.
    unshare.args(["--disable-kvm", "--disable-monitor"]);
    // It takes the unit for missing unless it is a capital.
    unshare.args(["--memory", &parts.memory.to_ascii_uppercase()]);
    unshare.arg("--cpus").arg(parts.cpus.to_string());
    for argument in KERNEL_ARGUMENTS {
        unshare.args(["--kopt", argument]);
    }
    if !parts.terminal {
        // With a terminal the serial line is it, and the kernel's messages go to stderr only.
        unshare.args(["--kopt", "console=ttyS0"]);
    }
    unshare.arg("--qemu-opts");
    // virtme-ng's copy of the kernel's messages goes to stderr, too, and QEMU would write it over
    // what others say there.
    unshare.args(["-set", "chardev.dmesg.append=on"]);
    // No default devices: QEMU would look on the host for the modules of some.
    unshare.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    // Five-level page tables: while the kernel identifies its processor it forgets for a moment that
    // it uses them, and an interrupt then has KASAN report a wild access.
    unshare.args(["-cpu", "max,la57=off"]);
    if !parts.arguments.iter().any(|argument| argument == "-accel") {
        unshare.args(["-accel", "tcg,thread=multi"]);
    }
    unshare.args(parts.arguments);
    host::as_root(exec::dying_with_us(unshare))
}

/// The end of a file that grows.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    /// Begins at the beginning of `path`.
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Copies to `to` what was added since the last time.
    fn copy(&mut self, to: &mut impl Write) -> Result<()> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut new = Vec::new();
        file.read_to_end(&mut new)
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        if !new.is_empty() {
            to.write_all(&new)
                .and_then(|()| to.flush())
                .context("cannot write the command's output")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_copies_everything_once() {
        let path = std::env::temp_dir().join(format!("accf-tail-{}", std::process::id()));
        let mut tail = Tail::new(path.clone());
        let mut seen = Vec::new();
        tail.copy(&mut seen).unwrap();
        fs::write(&path, "one ").unwrap();
        tail.copy(&mut seen).unwrap();
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"two")
            .unwrap();
        tail.copy(&mut seen).unwrap();
        tail.copy(&mut seen).unwrap();
        assert_eq!(seen, b"one two");
        fs::remove_file(path).unwrap();
    }
}
