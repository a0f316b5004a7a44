// SPDX-License-Identifier: MIT OR Apache-2.0

//! Network namespaces.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{JoinHandle, ScopedJoinHandle};
use std::{fs, io::Write, thread};

use anyhow::{anyhow, bail, ensure, Context, Result};
use nix::sched::{setns, unshare, CloneFlags};

use crate::link::Links;

/// A network namespace, held open.
///
/// It has no name in the file system, so nothing is left behind whatever happens: the kernel takes
/// it down once the last clone of this handle, the last thread inside, and the last socket opened
/// inside are gone.
#[derive(Clone, Debug)]
pub struct Netns {
    handle: Arc<File>,
}

impl Netns {
    /// Makes a namespace with its loopback interface up.
    pub fn new() -> Result<Self> {
        let ns = Self::without_loopback()?;
        ns.links()?.loopback_up()?;
        Ok(ns)
    }

    /// Opens a netlink socket for the interfaces inside.
    pub(crate) fn links(&self) -> Result<Links> {
        self.run(Links::open_here)
    }

    /// Makes a namespace as bare as the kernel makes it.
    pub(crate) fn without_loopback() -> Result<Self> {
        let handle = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare a network namespace")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })
        .join()
        .map_err(|_| anyhow!("the thread that makes a namespace panicked"))??;
        Ok(Self {
            handle: Arc::new(handle),
        })
    }

    /// Returns the namespace this thread is in.
    pub fn current() -> Result<Self> {
        Ok(Self {
            handle: Arc::new(File::open("/proc/thread-self/ns/net")?),
        })
    }

    /// Moves the calling thread, and no other, into this namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&*self.handle, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// Runs `f` inside, on a thread of its own, and waits for it.
    ///
    /// A socket opened inside stays inside, whichever thread uses it later.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    f()
                })
                .join()
                .map_err(|_| anyhow!("a thread inside a namespace panicked"))?
        })
    }

    /// Runs `f` inside, on a thread of its own, and does not wait for it.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let ns = self.clone();
        thread::spawn(move || {
            ns.enter()?;
            drop(ns);
            f()
        })
    }

    /// Runs a program inside, and returns what it wrote to its standard output.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.feed(program, arguments, "")
    }

    /// Runs `ip` inside, on as many commands as `commands` has lines.
    pub fn ip(&self, commands: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], commands).map(drop)
    }

    /// Runs `tc` inside, on as many commands as `commands` has lines.
    pub fn tc(&self, commands: &str) -> Result<()> {
        self.feed("tc", &["-batch", "-"], commands).map(drop)
    }

    /// Runs a program inside that reads `input`, and returns what it wrote to its standard output.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start `{program}`: is it installed?"))?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
                // `ip -batch` forgets a last line without an end.
                stdin.write_all(b"\n")?;
            }
            let output = child.wait_with_output()?;
            ensure!(
                output.status.success(),
                "`{program} {}` failed ({}): {}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim(),
                if input.is_empty() {
                    String::new()
                } else {
                    format!("; its input was:\n{input}")
                }
            );
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Reads `/proc/net/FILE` as it is inside.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        self.run(|| {
            // Not `/proc/net`: that is the namespace of the process's first thread.
            let path = format!("/proc/thread-self/net/{file}");
            fs::read_to_string(&path).with_context(|| path)
        })
    }

    /// Reads a setting of this namespace, by its name with dots.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let path = sysctl_path(name);
        self.run(|| {
            let value = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            Ok(value.trim().to_owned())
        })
    }

    /// Changes a setting of this namespace, by its name with dots.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name);
        self.run(|| {
            fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))
        })
    }

    /// Makes a namespace whose table of connections has this size, a power of two.
    ///
    /// In a table with fewer places than connections the kernel's own search for one takes longer,
    /// the more there are, at any listener.
    pub fn with_table(size: u32) -> Result<Self> {
        const SIZE: &str = "net.ipv4.tcp_child_ehash_entries";
        // A new namespace takes the setting of the namespace that its maker is in.
        let here = Self::current()?;
        let before = here.sysctl(SIZE)?;
        here.set_sysctl(SIZE, &size.to_string())?;
        let ns = Self::new();
        here.set_sysctl(SIZE, &before)?;
        ns
    }

    /// Returns the index of an interface inside.
    pub fn interface_index(&self, interface: &str) -> Result<u32> {
        self.run(|| {
            nix::net::if_::if_nametoindex(interface)
                .with_context(|| format!("no interface {interface}"))
        })
    }

    /// Returns the descriptor that names this namespace to the kernel.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

fn sysctl_path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

/// Ends a thread started by [`Netns::spawn`] and returns its result; its panic becomes an error.
pub fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    outcome(thread.join())
}

/// Ends a scoped thread and returns its result; its panic becomes an error.
pub fn join_scoped<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    outcome(thread.join())
}

fn outcome<T>(joined: thread::Result<Result<T>>) -> Result<T> {
    match joined {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            bail!("a thread panicked: {text}")
        }
    }
}
