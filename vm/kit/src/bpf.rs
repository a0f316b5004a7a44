// SPDX-License-Identifier: MIT OR Apache-2.0

//! BPF programs of a few instructions, each written by hand.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result};
use nix::libc;

use crate::netns::Netns;
use crate::sys;

/// `enum bpf_prog_type` of `linux/bpf.h`.
const SOCKET_FILTER: u32 = 1;
const XDP: u32 = 6;
const SOCK_OPS: u32 = 13;

/// One instruction (`struct bpf_insn`).
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, to | from << 4, o0, o1, i0, i1, i2, i3])
}

/// The program `return value`.
const fn returns(value: i32) -> [u64; 2] {
    [
        instruction(0xb7, 0, 0, 0, value),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// Has the listener of this number, in the order in which they began to listen, take all new
/// clients of a `SO_REUSEPORT` group (`SO_ATTACH_REUSEPORT_EBPF`).
///
/// `ENOSYS` says that the kernel has no `bpf()`.
pub fn choose_in_group(member: impl AsFd, number: i32) -> io::Result<()> {
    let program = sys::bpf_load(SOCKET_FILTER, &returns(number))?;
    sys::set_option(
        member.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_EBPF,
        &program.as_raw_fd().to_ne_bytes(),
    )
}

/// An XDP program on an interface that lets all packets pass; dropping it takes it away.
#[derive(Debug)]
pub struct XdpPass {
    _link: OwnedFd,
}

impl XdpPass {
    /// Attaches the program to an interface of a namespace.
    pub fn attach(ns: &Netns, interface: &str) -> Result<Self> {
        const PASS: i32 = 2;
        let index = ns.interface_index(interface)?;
        ns.run(|| {
            let program = sys::bpf_load(XDP, &returns(PASS)).context("load an XDP program")?;
            let _link = sys::bpf_attach_xdp(&program, index).context("attach an XDP program")?;
            Ok(Self { _link })
        })
    }
}

/// A program that counts the connections that sockets of this process have accepted: the calls with
/// `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`. It sees listeners that are made while it lives.
#[derive(Debug)]
pub struct CountAccepted {
    count: OwnedFd,
    group: PathBuf,
}

/// Where the control groups are, and how they are mounted if they are not.
const GROUPS: &str = "/sys/fs/cgroup";

impl CountAccepted {
    /// Moves this process to a control group of its own, and attaches the program there.
    pub fn start() -> Result<Self> {
        const CGROUP_SOCK_OPS: u32 = 3;
        let root = Path::new(GROUPS);
        if !root.join("cgroup.procs").exists() {
            // If another process is faster, this fails.
            Command::new("mount")
                .args(["-t", "cgroup2", "cgroup2", GROUPS])
                .output()
                .context("start `mount`")?;
        }
        let group = root.join(format!("accf-{}", process::id()));
        fs::create_dir(&group).with_context(|| format!("{} (cgroup2)", group.display()))?;
        let count = sys::bpf_number().context("make a BPF map")?;
        let this = Self { count, group };
        let program = sys::bpf_load(SOCK_OPS, &counts_calls(&this.count))
            .context("load a program for sockets")?;
        let directory = File::open(&this.group)?;
        sys::bpf_attach_to_cgroup(&program, directory.as_fd(), CGROUP_SOCK_OPS)
            .context("attach a program to a control group")?;
        fs::write(this.group.join("cgroup.procs"), process::id().to_string())
            .context("enter a control group")?;
        Ok(this)
    }

    /// Returns how many connections were accepted.
    pub fn count(&self) -> Result<u64> {
        sys::bpf_read_number(&self.count).context("read a BPF map")
    }
}

impl Drop for CountAccepted {
    fn drop(&mut self) {
        // An error cannot be reported here; the group does no harm.
        let _ = fs::write(
            Path::new(GROUPS).join("cgroup.procs"),
            process::id().to_string(),
        );
        let _ = fs::remove_dir(&self.group);
    }
}

/// Returns a program that adds 1 to the number in a map if it is called for a new connection of a
/// server's.
fn counts_calls(map: &OwnedFd) -> [u64; 13] {
    const PASSIVE_ESTABLISHED: i32 = 5;
    const MAP_LOOKUP_ELEM: i32 = 1;
    [
        // r2 = op; if it is another one, return.
        instruction(0x61, 2, 1, 0, 0),
        instruction(0x55, 2, 0, 9, PASSIVE_ESTABLISHED),
        // r2 = the address of the key 0, on the stack.
        instruction(0x62, 10, 0, -4, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        // r1 = the map; r0 = the address of its number, or 0.
        instruction(0x18, 1, 1, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(0x15, 0, 0, 2, 0),
        // Add 1, atomically.
        instruction(0xb7, 1, 0, 0, 1),
        instruction(0xdb, 0, 1, 0, 0),
        // Return 1.
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_eight_bytes() {
        let bytes = instruction(0x62, 10, 3, -4, 0x0102_0304).to_ne_bytes();
        assert_eq!(bytes, [0x62, 0x3a, 0xfc, 0xff, 4, 3, 2, 1]);
        assert_eq!(returns(1)[0].to_ne_bytes(), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
    }
}
