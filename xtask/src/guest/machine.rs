// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine a guest runs on: QEMU, and one file server per directory that the guest sees.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::sysroot::Sysroot;
use crate::{exec, host};

/// How often we look at what the guest left.
const TICK: Duration = Duration::from_millis(20);

/// How long a file server may take to listen.
const SERVER_START: Duration = Duration::from_secs(10);

/// How long a guest that left its verdict may take to stop.
const STOP: Duration = Duration::from_secs(15);

/// The kernel's command line: the console at warnings and above (the whole log is a file at the
/// end), and a kernel that is broken stops at once.
///
/// `init_on_alloc`: a file server writes file contents into the guest's memory behind the back of
/// QEMU's translator, which goes on executing its translation of whatever code was in that page
/// before. Pages that the guest's own processor clears first have no old translation. Debian's
/// kernel does that by default; without it programs crash at random.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 loglevel=5 log_buf_len=4M panic=-1 oops=panic init_on_alloc=1";

/// What a machine is made of.
pub(super) struct Parts<'a> {
    pub(super) image: &'a Path,
    pub(super) initrd: &'a Path,
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
    /// It stopped, with a verdict or without; the text says what QEMU had to say.
    Stopped(String),
    /// It was ended at the deadline.
    TimedOut,
}

/// A running machine; dropping it ends it and its servers.
pub(super) struct Machine {
    processes: Vec<Child>,
    qemu: Child,
    run: PathBuf,
}

impl Machine {
    /// Starts the servers, then the machine.
    pub(super) fn start(sysroot: &Sysroot, parts: &Parts<'_>) -> Result<Self> {
        let mut servers = Servers(Vec::new());
        let mut devices = Vec::new();
        let root = (sysroot.path(), "sysroot".to_owned());
        let shares = parts.shares.iter().enumerate();
        let shares = shares.map(|(number, path)| (path.as_path(), format!("share{number}")));
        for (path, tag) in [root].into_iter().chain(shares) {
            let read_only = tag == "sysroot";
            servers
                .0
                .push(serve(sysroot, path, &tag, read_only, parts.run)?);
            devices.push("-chardev".to_owned());
            devices.push(format!("socket,id={tag},path={tag}.socket"));
            devices.push("-device".to_owned());
            devices.push(format!("vhost-user-fs-pci,chardev={tag},tag={tag}"));
        }
        let qemu = qemu(sysroot, parts, &devices)
            .spawn()
            .context("cannot start QEMU")?;
        Ok(Self {
            processes: std::mem::take(&mut servers.0),
            qemu,
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
            let stopped = self.qemu.try_wait().context("cannot wait for QEMU")?;
            if echo {
                outputs[0].copy(&mut std::io::stdout().lock())?;
                outputs[1].copy(&mut std::io::stderr().lock())?;
            }
            if let Some(status) = stopped {
                return Ok(End::Stopped(self.last_words(status)));
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

    /// Returns what QEMU said, if it failed.
    fn last_words(&self, status: ExitStatus) -> String {
        if status.success() {
            return String::new();
        }
        let said = fs::read(self.run.join("qemu.log")).unwrap_or_default();
        let ended = match status.signal() {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("failed ({status})"),
        };
        format!("QEMU {ended}:\n{}", String::from_utf8_lossy(&said))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.qemu);
        for process in &mut self.processes {
            end(process);
        }
    }
}

/// Servers whose machine has not been started yet; dropping them ends them.
struct Servers(Vec<Child>);

impl Drop for Servers {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(end);
    }
}

/// Ends a process of ours. It may have ended by itself, which is as good.
fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

/// Starts the file server of one directory and waits until it listens.
fn serve(
    sysroot: &Sysroot,
    directory: &Path,
    tag: &str,
    read_only: bool,
    run: &Path,
) -> Result<Child> {
    let mut server = sysroot.program("usr/libexec/virtiofsd");
    server.arg("--shared-dir").arg(directory).args([
        // Relative to the working directory: a socket's path must be short.
        "--socket-path",
        &format!("{tag}.socket"),
        "--sandbox=none",
        "--no-announce-submounts",
        "--log-level=warn",
    ]);
    if read_only {
        server.args(["--readonly", "--cache=always"]);
    }
    server.current_dir(run);
    let log = run.join("virtiofsd.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = host::as_root(exec::dying_with_us(server))
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot duplicate a log")?)
        .stderr(log)
        .spawn()
        .context("cannot start virtiofsd")?;
    let socket = run.join(format!("{tag}.socket"));
    let begin = Instant::now();
    while !socket.exists() {
        let ended = child.try_wait().context("cannot wait for virtiofsd")?;
        if ended.is_some() || begin.elapsed() > SERVER_START {
            end(&mut child);
            let said = fs::read(run.join("virtiofsd.log")).unwrap_or_default();
            bail!(
                "virtiofsd does not serve {}:\n{}",
                directory.display(),
                String::from_utf8_lossy(&said)
            );
        }
        sleep(TICK);
    }
    Ok(child)
}

/// Returns the command that starts QEMU.
fn qemu(sysroot: &Sysroot, parts: &Parts<'_>, devices: &[String]) -> Command {
    let mut qemu = sysroot.program("usr/bin/qemu-system-x86_64");
    let share = sysroot.path().join("usr/share");
    let libraries = sysroot.path().join("usr/lib/x86_64-linux-gnu");
    qemu.env("QEMU_MODULE_DIR", libraries.join("qemu"));
    qemu.arg("-L").arg(share.join("qemu"));
    qemu.arg("-L").arg(share.join("seabios"));
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    qemu.args(["-display", "none", "-nic", "none"]);
    qemu.args(["-machine", "q35,memory-backend=memory"]);
    // Five-level page tables: while the kernel identifies its processor it forgets for a moment that
    // it uses them, and an interrupt then has KASAN report a wild access.
    qemu.args(["-cpu", "max,la57=off"]);
    if !parts.arguments.iter().any(|argument| argument == "-accel") {
        // A /dev/kvm that is there may still not run a guest; emulation always does.
        qemu.args(["-accel", "tcg,thread=multi"]);
    }
    let memory = parts.memory;
    qemu.arg("-smp").arg(parts.cpus.to_string());
    qemu.args(["-m", memory, "-object"]);
    // The file servers work in the guest's memory.
    qemu.arg(format!(
        "memory-backend-memfd,id=memory,size={memory},share=on"
    ));
    qemu.arg("-kernel").arg(parts.image);
    qemu.arg("-initrd").arg(parts.initrd);
    qemu.args(["-append", KERNEL_ARGUMENTS]);
    qemu.args(["-chardev", "file,id=console,path=console"]);
    qemu.args(["-serial", "chardev:console"]);
    qemu.args(devices);
    if parts.terminal {
        qemu.args(["-chardev", "stdio,id=terminal,signal=off"]);
        qemu.args(["-device", "virtio-serial-pci"]);
        qemu.args(["-device", "virtconsole,chardev=terminal"]);
    }
    qemu.args(parts.arguments);
    qemu.current_dir(parts.run);
    let mut command = exec::dying_with_us(qemu);
    if !parts.terminal {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    if let Ok(log) = File::create(parts.run.join("qemu.log")) {
        command.stderr(log);
    }
    command
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
