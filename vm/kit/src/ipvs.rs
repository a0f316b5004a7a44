// SPDX-License-Identifier: MIT OR Apache-2.0

//! A virtual server of the kernel (IPVS), as `ipvsadm` sets it up.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result};
use nix::libc;

use crate::netns::Netns;
use crate::sys;

const BASE: i32 = 64 + 1024 + 64;
const SET_ADD: i32 = BASE + 2;
const SET_ADD_DEST: i32 = BASE + 7;

/// Returns a `struct ip_vs_service_user`: a TCP service whose clients go to one server after
/// another.
fn service(address: SocketAddrV4) -> Vec<u8> {
    const NAME_SIZE: usize = 16;
    let mut bytes = Vec::new();
    bytes.extend((libc::IPPROTO_TCP as u16).to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(address.ip().octets());
    bytes.extend(address.port().to_be_bytes());
    bytes.extend([0; 2]);
    // No mark of a firewall.
    bytes.extend([0; 4]);
    let mut name = b"rr".to_vec();
    name.resize(NAME_SIZE, 0);
    bytes.extend(name);
    // Flags, timeout, network mask.
    bytes.extend([0; 8]);
    bytes.extend(Ipv4Addr::BROADCAST.octets());
    bytes
}

/// Returns a `struct ip_vs_dest_user`: a server that is reached by translation of addresses.
fn destination(address: SocketAddrV4) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(address.ip().octets());
    bytes.extend(address.port().to_be_bytes());
    bytes.extend([0; 2]);
    // Flags: translated. The weight. No thresholds.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(1_i32.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// Has a namespace hand the TCP clients of one address and port to another.
pub fn forward(ns: &Netns, from: SocketAddrV4, to: SocketAddrV4) -> Result<()> {
    // The option does not load the module.
    Command::new("modprobe")
        .args(["-q", "ip_vs"])
        .status()
        .context("start `modprobe`")?;
    ns.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let set = |name, bytes: &[u8]| sys::set_option(socket.as_fd(), libc::SOL_IP, name, bytes);
        let service = service(from);
        set(SET_ADD, &service).context("IP_VS_SO_SET_ADD")?;
        let both = [service, destination(to)].concat();
        set(SET_ADD_DEST, &both).context("IP_VS_SO_SET_ADDDEST")
    })
}
