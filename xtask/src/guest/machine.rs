// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine a guest runs on, which virtme-ng starts.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fs_err::{self as fs, File};

use super::early::{self, Judgement, Sight, SILENCE};
use super::splat;
use crate::kernel::Kind;
use crate::sysroot::Sysroot;
use crate::{exec, host};

/// The interval at which the guest's files are read.
const TICK: Duration = Duration::from_millis(20);

/// How long a guest that left its verdict may take to stop.
const STOP: Duration = Duration::from_secs(15);

/// The kernel's command line. While the kernel boots, all messages go to the console, so that a
/// hang can be told from a slow boot; the first process restricts them to warnings, and the whole
/// log is a file at the end. A broken kernel stops at once.
///
/// `init_on_alloc`: a file server writes file contents into the guest's memory behind the back of
/// QEMU's translator, which goes on executing its translation of whatever code was in that page
/// before. Pages that the guest's own processor clears first have no old translation. Debian's
/// kernel does that by default; without it programs crash at random.
///
/// `kunit.filter_glob`: kernels with KUnit run only our suites. The kernel's own run at boot, which
/// takes time, and one of them warns with PREEMPT_RT (Rust's spin locks: it expects interrupts off
/// under a lock that sleeps there).
const KERNEL_ARGUMENTS: [&str; 6] = [
    "loglevel=7",
    "log_buf_len=4M",
    "panic=-1",
    "oops=panic",
    "init_on_alloc=1",
    "kunit.filter_glob=accf*",
];

/// More arguments for our kernels without KASAN: they merge caches, and no allocation of a merged
/// cache can be made to fail (`failslab_store()` in mm/slub.c).
const RT_ARGUMENTS: [&str; 1] = ["slab_nomerge"];

/// More arguments for the kcsan kernel: KCSAN is off until it is turned on, as it would make the
/// boot hang for minutes.
const KCSAN_ARGUMENTS: [&str; 2] = ["slab_nomerge", "kcsan.early_enable=0"];

/// The script that becomes process 1 of a namespace on the host and starts virtme-ng there.
const BOOT: &str = include_str!("../../../vm/boot");

/// The parts of a machine.
pub(super) struct Parts<'a> {
    pub(super) image: &'a Path,
    pub(super) kind: Kind,
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

/// How a machine's run ended.
#[derive(Debug)]
pub(super) enum End {
    /// It stopped, with a verdict or without; the text is the output of virtme-ng and QEMU.
    Stopped(String),
    /// The emulator crashed before the first process ran; the text is its output.
    CrashedEarly(String),
    /// It was ended at the deadline.
    TimedOut,
    /// It hung before its first process ran, and was ended.
    HungEarly,
}

/// A running machine; dropping it ends it.
pub(super) struct Machine {
    process: Child,
    run: PathBuf,
}

impl Machine {
    /// Starts the machine.
    pub(super) fn start(sysroot: &Sysroot, parts: &Parts<'_>) -> Result<Self> {
        let create = |name| exec::append(&parts.run.join(name));
        let mut command = command(sysroot, parts);
        command.stderr(create("virtme.log")?.into_file());
        if !parts.terminal {
            command
                .stdin(Stdio::null())
                .stdout(create("console")?.into_file());
        }
        Ok(Self {
            process: command.spawn().context("cannot start virtme-ng")?,
            run: parts.run.to_owned(),
        })
    }

    /// Waits until the machine stops, `timeout` has passed or, with `watch`, it has hung before its
    /// first process ran. Copies the command's output to ours if `echo`.
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        watch: bool,
        echo: bool,
    ) -> Result<End> {
        let begin = Instant::now();
        let verdict = self.run.join("verdict");
        let mut console = Console::new(&self.run);
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
                let said = self.last_words();
                let is_early = !verdict.exists() && console.sight(begin, watch).is_early();
                return Ok(if is_early && early::is_a_crash(&said) {
                    End::CrashedEarly(said)
                } else {
                    End::Stopped(said)
                });
            }
            if has_verdict.is_none() && verdict.exists() {
                has_verdict = Some(Instant::now());
            }
            match has_verdict {
                // The verdict is there; how the machine stops does not matter.
                Some(since) if since.elapsed() > STOP => return Ok(End::Stopped(String::new())),
                Some(_) => {}
                None => match console.sight(begin, watch).judge(timeout) {
                    Judgement::Wait => {}
                    Judgement::HungEarly => return Ok(End::HungEarly),
                    Judgement::TimedOut => return Ok(End::TimedOut),
                },
            }
            sleep(TICK);
        }
    }

    /// Returns the output of virtme-ng and QEMU without the kernel's messages.
    fn last_words(&self) -> String {
        let said = fs::read(self.run.join("virtme.log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        // The kernel's messages have a time before their text.
        let lines = said.lines().filter(|line| splat::message(line) == *line);
        lines.map(|line| format!("{line}\n")).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already. The whole namespace ends with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the command that starts the machine.
fn command(sysroot: &Sysroot, parts: &Parts<'_>) -> Command {
    let mut unshare = exec::unshare();
    unshare.args(["sh", "-c", BOOT, "boot"]);
    unshare.arg(sysroot.path()).arg(parts.files);
    unshare.args(parts.shares).arg("--");

    unshare.arg("--kimg").arg(parts.image);
    // The root file system needs no module; the guest's own tools find the modules in it.
    unshare.args(["--mods", "none"]);
    // The initial RAM file system takes the first `init=` there is, the kernel the last, which is
    // virtme-ng's own.
    unshare.args(["--force-initramfs", "--kopt", "init=/guest/init"]);
    // A /dev/kvm that is there may still not run a guest; emulation always does.
    unshare.args(["--disable-kvm", "--disable-monitor"]);
    // virtme-ng reads a unit only if it is a capital.
    unshare.args(["--memory", &parts.memory.to_ascii_uppercase()]);
    unshare.arg("--cpus").arg(parts.cpus.to_string());
    let more: &[&str] = match parts.kind {
        Kind::Kcsan => &KCSAN_ARGUMENTS,
        Kind::Rt => &RT_ARGUMENTS,
        Kind::Stock | Kind::Dev => &[],
    };
    for argument in KERNEL_ARGUMENTS.iter().chain(more) {
        unshare.args(["--kopt", argument]);
    }
    if !parts.terminal {
        // With a terminal the serial line is it, and the kernel's messages go to stderr only.
        unshare.args(["--kopt", "console=ttyS0"]);
    }
    unshare.arg("--qemu-opts");
    // virtme-ng's copy of the kernel's messages goes to stderr, too, and QEMU would overwrite other
    // output there.
    unshare.args(["-set", "chardev.dmesg.append=on"]);
    // No default devices: QEMU would look on the host for the modules of some.
    unshare.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    // Five-level page tables: while the kernel identifies its processor it forgets for a moment
    // that it uses them, and an interrupt then has KASAN report a wild access.
    unshare.args(["-cpu", "max,la57=off"]);
    if !parts.arguments.iter().any(|argument| argument == "-accel") {
        unshare.args(["-accel", "tcg,thread=multi"]);
    }
    unshare.args(parts.arguments);
    host::as_root(exec::dying_with_us(unshare))
}

/// The output of a machine while it boots.
struct Console {
    files: [PathBuf; 2],
    /// The file that the first process creates first.
    mark: PathBuf,
    length: u64,
    last: Instant,
}

impl Console {
    /// Returns the console of the machine that writes to the directory `run`.
    fn new(run: &Path) -> Self {
        Self {
            files: ["console", "virtme.log"].map(|name| run.join(name)),
            mark: run.join("started"),
            length: 0,
            last: Instant::now(),
        }
    }

    /// Returns what is known of the machine that was switched on at `begin`; without `watch` it
    /// counts as started.
    fn sight(&mut self, begin: Instant, watch: bool) -> Sight {
        // A file that is not there yet has no output.
        let lengths = self.files.iter().map(fs::metadata);
        let length = lengths.flatten().map(|data| data.len()).sum();
        if length != self.length {
            self.length = length;
            self.last = Instant::now();
        }
        let silent_for = self.last.elapsed();
        let has_started = !watch || self.mark.exists();
        // Read only when it matters.
        let complains = !has_started && silent_for > SILENCE && self.complains();
        Sight {
            age: begin.elapsed(),
            silent_for,
            has_started,
            complains,
        }
    }

    /// Returns whether the kernel's messages have a splat.
    fn complains(&self) -> bool {
        self.files.iter().any(|file| {
            let said = fs::read(file).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).replace('\r', "");
            !splat::scan(&said).is_empty()
        })
    }
}

/// The end of a file that grows.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    /// Returns the tail that begins at the beginning of `path`.
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Copies to `to` what was added since the last call.
    fn copy(&mut self, to: &mut impl Write) -> Result<()> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut new = Vec::new();
        file.read_to_end(&mut new)?;
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
    use crate::scratch::Scratch;

    #[test]
    fn the_console_and_the_mark_are_read() {
        let run = Scratch::new("early");
        let say = |name: &str, text: &str| {
            let mut file = exec::append(&run.0.join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let begin = Instant::now();
        let mut console = Console::new(&run.0);
        let said_at = console.last;
        assert!(!console.sight(begin, true).has_started);
        assert_eq!(console.last, said_at);
        for name in ["console", "virtme.log", "console"] {
            let said_at = console.last;
            say(name, "[    0.1] fine\r\n");
            console.sight(begin, true);
            assert!(console.last > said_at, "{name}");
        }
        assert!(!console.complains());
        say("console", "[    0.2] BUG: KASAN: wild-memory-access\r\n");
        assert!(console.complains());
        say("started", "");
        assert!(console.sight(begin, true).has_started);
    }

    #[test]
    fn an_unwatched_machine_counts_as_started() {
        let run = Scratch::new("unwatched");
        let sight = Console::new(&run.0).sight(Instant::now(), false);
        assert!(sight.has_started);
    }

    #[test]
    fn a_tail_copies_everything_once() {
        let scratch = Scratch::new("tail");
        let path = scratch.0.join("stdout");
        let mut tail = Tail::new(path.clone());
        let mut seen = Vec::new();
        tail.copy(&mut seen).unwrap();
        fs::write(&path, "one ").unwrap();
        tail.copy(&mut seen).unwrap();
        exec::append(&path).unwrap().write_all(b"two").unwrap();
        tail.copy(&mut seen).unwrap();
        tail.copy(&mut seen).unwrap();
        assert_eq!(seen, b"one two");
    }
}
