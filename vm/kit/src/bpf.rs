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
const SK_REUSEPORT: u32 = 21;

/// `enum bpf_map_type`.
const ARRAY: u32 = 2;
const DEVMAP: u32 = 14;
const CPUMAP: u32 = 16;
const REUSEPORT_SOCKARRAY: u32 = 20;

/// One instruction (`struct bpf_insn`).
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, to | from << 4, o0, o1, i0, i1, i2, i3])
}

/// The program `return value`.
const fn returns(value: i32) -> [u64; 2] {
    [set(0, value), EXIT]
}

/// Calls a function of the kernel's, by its number in `enum bpf_func_id`.
const fn call(function: i32) -> u64 {
    instruction(0x85, 0, 0, 0, function)
}

/// Sets a register to a number.
const fn set(register: u8, value: i32) -> u64 {
    instruction(0xb7, register, 0, 0, value)
}

/// Sets a register to a map.
fn set_map(register: u8, map: &OwnedFd) -> [u64; 2] {
    [
        instruction(0x18, register, 1, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
    ]
}

/// Returns from a program.
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

fn attach_to_group(member: impl AsFd, program: &OwnedFd) -> io::Result<()> {
    sys::set_option(
        member.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_EBPF,
        &program.as_raw_fd().to_ne_bytes(),
    )
}

/// Has the listener of this number, in the order in which they began to listen, take all new
/// clients of a `SO_REUSEPORT` group (`SO_ATTACH_REUSEPORT_EBPF`).
///
/// `ENOSYS` says that the kernel has no `bpf()`.
pub fn choose_in_group(member: impl AsFd, number: i32) -> io::Result<()> {
    let program = sys::bpf_load(SOCKET_FILTER, 0, &returns(number))?;
    attach_to_group(member, &program)
}

/// The same by a program of classic BPF (`SO_ATTACH_REUSEPORT_CBPF`), which every kernel has.
pub fn choose_in_group_classic(member: impl AsFd, number: u32) -> io::Result<()> {
    let returns = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: number,
    };
    sys::choose_by_filter(member.as_fd(), &[returns])
}

/// A program that sends all clients of a `SO_REUSEPORT` group to one listener, also those of a
/// listener that closes (`BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`).
#[derive(Debug)]
pub struct ChooseAndMigrate {
    _chosen: OwnedFd,
}

impl ChooseAndMigrate {
    /// Attaches the program to the group of `chosen`, which it chooses.
    pub fn attach(chosen: impl AsFd) -> Result<Self> {
        const SELECT_OR_MIGRATE: u32 = 40;
        let map = sys::bpf_map(REUSEPORT_SOCKARRAY, 4, 1).context("make a map of sockets")?;
        let fd = chosen.as_fd().as_raw_fd().cast_unsigned();
        sys::bpf_write_number(&map, 0, fd).context("put a socket into a map")?;
        let program = sys::bpf_load(SK_REUSEPORT, SELECT_OR_MIGRATE, &selects(&map))
            .context("load a program for SO_REUSEPORT")?;
        attach_to_group(chosen, &program).context("SO_ATTACH_REUSEPORT_EBPF")?;
        Ok(Self { _chosen: map })
    }
}

/// Returns a program that selects the socket at key 0 of a map.
fn selects(map: &OwnedFd) -> Vec<u64> {
    const SK_SELECT_REUSEPORT: i32 = 82;
    const PASS: i32 = 1;
    let [map_low, map_high] = set_map(2, map);
    vec![
        // r2 = the map; r3 = the address of the key 0, on the stack; no flags.
        instruction(0x62, 10, 0, -4, 0),
        map_low,
        map_high,
        instruction(0xbf, 3, 10, 0, 0),
        instruction(0x07, 3, 0, 0, -4),
        set(4, 0),
        call(SK_SELECT_REUSEPORT),
        set(0, PASS),
        EXIT,
    ]
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before there is an skb.
    Native,
    /// For the kernel's skb (`XDP_FLAGS_SKB_MODE`).
    Generic,
}

impl XdpMode {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    fn flags(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
        }
    }
}

/// What becomes of each packet of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAction {
    /// It passes.
    Pass,
    /// It passes with eight bytes of metadata before it.
    PassWithMetadata,
    /// It goes on at another processor, and into IP there.
    ToProcessor(u32),
    /// It leaves by the interface with this index, of the same namespace.
    ToInterface(u32),
}

/// An XDP program on an interface; dropping it takes it away.
#[derive(Debug)]
pub struct Xdp {
    _link: OwnedFd,
    _map: Option<OwnedFd>,
}

impl Xdp {
    /// Attaches a program to an interface of a namespace.
    pub fn attach(ns: &Netns, interface: &str, mode: XdpMode, action: XdpAction) -> Result<Self> {
        let index = ns.interface_index(interface)?;
        ns.run(|| {
            let (map, instructions) = xdp_program(action).context("make a map for XDP")?;
            let program = sys::bpf_load(XDP, 0, &instructions).context("load an XDP program")?;
            let link = sys::bpf_attach_xdp(&program, index, mode.flags())
                .with_context(|| format!("attach an XDP program to {interface} ({mode:?})"))?;
            Ok(Self {
                _link: link,
                _map: map,
            })
        })
    }
}

/// Returns a program, and the map that it uses.
fn xdp_program(action: XdpAction) -> io::Result<(Option<OwnedFd>, Vec<u64>)> {
    const PASS: i32 = 2;
    const ADJUST_META: i32 = 54;
    /// How many packets may wait for the other processor.
    const QUEUE: u32 = 512;
    match action {
        XdpAction::Pass => Ok((None, returns(PASS).to_vec())),
        XdpAction::PassWithMetadata => Ok((
            None,
            vec![set(2, -8), call(ADJUST_META), set(0, PASS), EXIT],
        )),
        XdpAction::ToProcessor(number) => {
            let map = sys::bpf_map(CPUMAP, 4, number + 1)?;
            sys::bpf_write_number(&map, number, QUEUE)?;
            let program = redirects(&map, number);
            Ok((Some(map), program))
        }
        XdpAction::ToInterface(index) => {
            let map = sys::bpf_map(DEVMAP, 4, 1)?;
            sys::bpf_write_number(&map, 0, index)?;
            let program = redirects(&map, 0);
            Ok((Some(map), program))
        }
    }
}

/// Returns a program that redirects by a key of a map.
fn redirects(map: &OwnedFd, key: u32) -> Vec<u64> {
    const REDIRECT_MAP: i32 = 51;
    let [map_low, map_high] = set_map(1, map);
    vec![
        map_low,
        map_high,
        set(2, key.cast_signed()),
        set(3, 0),
        call(REDIRECT_MAP),
        EXIT,
    ]
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
        let count = sys::bpf_map(ARRAY, 8, 1).context("make a BPF map")?;
        let this = Self { count, group };
        let program = sys::bpf_load(SOCK_OPS, 0, &counts_calls(&this.count))
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
    let [map_low, map_high] = set_map(1, map);
    [
        // r2 = op; if it is another one, return.
        instruction(0x61, 2, 1, 0, 0),
        instruction(0x55, 2, 0, 9, PASSIVE_ESTABLISHED),
        // r2 = the address of the key 0, on the stack.
        instruction(0x62, 10, 0, -4, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        // r1 = the map; r0 = the address of its number, or 0.
        map_low,
        map_high,
        call(MAP_LOOKUP_ELEM),
        instruction(0x15, 0, 0, 2, 0),
        // Add 1, atomically.
        set(1, 1),
        instruction(0xdb, 0, 1, 0, 0),
        // Return 1.
        set(0, 1),
        EXIT,
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
